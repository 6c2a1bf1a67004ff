"""Jobs that compress: quality against rate, and a dataset that is made shorter. Compressor, engine and judge are stand-ins."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import compress
from studio.db.models import DatasetRow
from studio.errors import EngineError, StudioError
from studio.services import Studio
from tests.stores import add


def halved(text: str, rate: float, question: str = "") -> Any:
    made = text[: round(len(text) * rate)]
    return SimpleNamespace(text=made, tokens_before=len(text), tokens_after=len(made), seconds=0.5)


def context(studio: Studio, monkeypatch: pytest.MonkeyPatch, **config: Any) -> tuple[Any, list[Any]]:
    told: list[Any] = []

    @contextmanager
    def compressing(context: Any) -> Any:
        yield halved

    monkeypatch.setattr(compress, "_compressing", compressing)
    made = SimpleNamespace(
        config=config, settings=studio.settings, db=studio.db, job_id="job", progress=lambda *step: told.append(step), stop_requested=None,
        stop_if_asked=lambda: told.append("asked"),
    )  # fmt: skip
    return made, told


SWEEP: dict[str, Any] = {
    "prompts": [{"text": "aaaa", "question": "q", "reference": "aaaa\n\nq"}, {"text": "bbbb", "question": "", "reference": "no"}],
    "rates": [0.5, 1.0], "tolerance": 0.1, "metric": "exact_match", "contestant": {}, "params": {},
}  # fmt: skip


def engine(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> list[str]:
    asked: list[str] = []
    left = list(errors)

    def chat(contestant: Any, messages: Any, params: Any) -> Any:
        asked.append(messages[0].content)
        if left:
            raise left.pop(0)
        return SimpleNamespace(text=messages[0].content, seconds=2.0)

    client = SimpleNamespace(chat=chat, close=lambda: asked.append("closed"))
    monkeypatch.setattr(compress.EngineClient, "from_settings", lambda settings, lane: client)
    monkeypatch.setattr(compress.Contestant, "from_json", lambda value: value)
    return asked


def test_each_prompt_is_answered_at_each_rate_from_the_whole_on(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = engine(monkeypatch)
    made, told = context(studio, monkeypatch, **SWEEP)
    found = compress.sweep(made)
    assert asked == ["aaaa\n\nq", "bbbb", "aa\n\nq", "bb", "closed"] and told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    whole, half = found["points"]
    assert (whole["rate"], whole["achieved"], whole["tokens_before"], whole["tokens_after"], whole["n"]) == (1.0, 1.0, 8, 8, 2)
    assert (half["achieved"], half["tokens_after"], half["seconds"], half["compress_seconds"], half["failed"]) == (0.5, 4, 2.0, 0.5, 0)
    assert (whole["exact_match"], half["exact_match"]) == (0.5, 0.0) and (found["recommended"], found["whole"], found["judge"]) == (
        1.0,
        0.5,
        "",
    )


@pytest.mark.parametrize("status", [400, 413, 401, 404, 429, 500, 503])
def test_a_prompt_that_fails_by_itself_is_counted_and_what_concerns_all_ends_the_job(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    engine(monkeypatch, EngineError("too long", "", status=status, code="x"))
    made, _ = context(studio, monkeypatch, **SWEEP)
    if status in (400, 413):
        assert [point["failed"] for point in compress.sweep(made)["points"]] == [1, 0]
    else:
        with pytest.raises(EngineError):
            compress.sweep(made)


def test_a_judge_holds_shorter_prompts_against_the_whole_ones(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    engine(monkeypatch)
    made, told = context(studio, monkeypatch, **SWEEP, judge={"judge": "j"})
    pairs: list[Any] = []

    def both(judge: Any, asked: Any, on_pair: Any) -> list[Any]:
        pairs.extend(asked)
        on_pair(3)
        return [0.5, 0.5, 0.25, None]

    monkeypatch.setattr(compress, "open_judge", lambda *_: SimpleNamespace(close=lambda: told.append("closed")))
    monkeypatch.setattr(compress, "judge_both_orders", both)
    monkeypatch.setattr(compress, "score_of_first", lambda score: score)
    found = compress.sweep(made)
    assert [(point["judge"], point["judged"]) for point in found["points"]] == [(0.5, 2), (0.25, 1)] and found["judge"] == "j"
    assert told[-4:] == ["asked", (7, 8), "closed", (8, 8)]
    assert [(first, second) for _, first, second in pairs] == [
        ("aaaa\n\nq", "aaaa\n\nq"),
        ("bbbb", "bbbb"),
        ("aa\n\nq", "aaaa\n\nq"),
        ("bb", "bbbb"),
    ]
    assert [one["reference"] for one, _, _ in pairs[:2]] == ["aaaa\n\nq", "no"] and pairs[0][0]["id"] == "0"


def dataset(studio: Studio, tmp_path: Path, *texts: str) -> dict[str, Any]:
    [parent] = add(
        studio, DatasetRow(name="d", kind="chat", format="f", mapping={}, source="s", rows=len(texts), skipped=0, sha256="", bytes=1)
    )
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x" * 300}]} for text in texts]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "rows_path": str(tmp_path / "rows.jsonl"), "folder": str(tmp_path / "new"), "rows": len(texts), "rate": 0.5, "dataset": "new", "name": "short",
        "parent": parent, "method": "m",
    }  # fmt: skip


def test_a_dataset_is_made_shorter(studio: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = dataset(studio, tmp_path, "a" * 200, "b" * 199)
    made, told = context(studio, monkeypatch, **config)
    found = compress.data(made)
    assert (found["rows"], found["shortened"], found["unchanged"], found["tokens_before"], found["tokens_after"]) == (2, 1, 1, 200, 100)
    lines = (tmp_path / "new" / "rows.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["messages"][0]["content"]) for line in lines] == [100, 199] and told[0] == (1, 2)
    with studio.db.read() as session:
        row = session.get_one(DatasetRow, "new")
        assert (row.name, row.rows, row.bytes, row.parent_id) == ("short", 2, sum(len(line) + 1 for line in lines), config["parent"])
    made.config = {**config, "dataset": "newer", "folder": str(tmp_path / "newer")}
    compress.data(made)
    with studio.db.read() as session:
        assert session.get_one(DatasetRow, "newer").name == "short-newer"


@pytest.mark.parametrize(
    ("texts", "change", "said"),
    [
        (["b" * 199], {}, "Nothing became shorter"),
        (["a" * 200], {"rate": 1.0}, "Nothing became shorter"),
        ([], {}, "has no rows"),
        (["a" * 200], {"parent": "gone"}, "was deleted meanwhile"),
    ],
)
def test_a_dataset_that_can_not_be_made_leaves_nothing(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, texts: list[str], change: dict[str, Any], said: str
) -> None:
    made, _ = context(studio, monkeypatch, **{**dataset(studio, tmp_path, *texts), **change})
    with pytest.raises(StudioError, match=said):
        compress.data(made)
    assert not (tmp_path / "new").exists()
