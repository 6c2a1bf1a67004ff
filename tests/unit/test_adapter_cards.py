"""What is written beside an adapter's weights, and which rows a training is looked at with."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.config import build
from jobs.rundir import RunDir
from jobs.trainers import adapters, checkpoints
from jobs.trainers import questions as asking
from jobs.trainers.adapters import AdapterCard
from jobs.trainers.checkpoints import CheckpointStore
from studio.catalogue import rope_flags
from studio.errors import DatasetError
from studio.records import WeightKind

YARN = {"rope.rope_type": "yarn", "rope.factor": 4.0}


def card(options: dict[str, Any], template: str = "t", shows_tools: bool = True, **more: Any) -> AdapterCard:
    renderer: Any = SimpleNamespace(
        template=template, template_sha256="s", card=lambda: {"special_tokens": ["<s>"]}, stop_strings=("end",),
        tells_tools_as_text=not shows_tools,
    )  # fmt: skip
    return AdapterCard(build({"base_model": "base", "model_name_or_path": "/private/base", **options}), renderer, **more)


def test_a_card_holds_no_path_and_only_what_counts() -> None:
    plain = card({}).as_json({"loss": 1.0})
    assert set(plain) == {
        "base_model", "method", "objective", "chat_template", "special_tokens", "stop_strings", "config", "metrics",
    }  # fmt: skip
    assert "/private" not in json.dumps(plain) and plain["metrics"] == {"loss": 1.0} and plain["stop_strings"] == ["end"]
    assert card(YARN).as_json({})["rope"] == {"rope_type": "yarn", "factor": 4.0}
    targets: Any = SimpleNamespace(share=0.12345678, left_out={"router": 0.87654321})
    assert card({}, targets=targets).as_json({})["targets"] == {"share": 0.123457, "left_out": {"router": 0.876543}}


@pytest.mark.parametrize(
    ("chosen", "template", "name"),
    [
        ("/private/own.jinja", "t", "own.jinja"),
        ("chatml", "t", "chatml"),
        (None, "t", "model"),
        (None, (adapters.TEMPLATES / "alpaca.jinja").read_text(encoding="utf-8"), "alpaca"),
    ],
)
def test_the_name_of_a_template(chosen: str | None, template: str, name: str) -> None:
    made = card({"chat_template": chosen}, template)
    assert made.template_name == name and made.as_json({})["config"]["chat_template"] == name


@pytest.mark.parametrize(
    ("has_tools", "shows", "told"), [(False, True, None), (True, True, adapters.TOLD_BY_TEMPLATE), (True, False, adapters.TOLD_AS_TEXT)]
)
def test_how_rows_told_of_tools(has_tools: bool, shows: bool, told: Any) -> None:
    assert card({}, shows_tools=shows, has_tools=has_tools).as_json({}).get(adapters.TOOLS_KEY) == told


def test_a_readme_says_how_the_adapter_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rope_flags, "overrides", lambda base: {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "max_position_embeddings": 8192}
    )
    plain = adapters._readme(card({}), {"loss": 1.23456789, "steps": 3}, None)
    assert "- loss: 1.23457\n- steps: 3\n" in plain and "from transformers import AutoModelForCausalLM\n" in plain
    assert not any(word in plain for word in ("register()", "prepare_peft", "AutoConfig", "none yet"))
    assert "- none yet\n" in adapters._readme(card({}), {}, None)
    assert "register()" in adapters._readme(card({"method": "bottleneck"}), {}, None)
    lost = adapters._readme(card({}), {}, None, 2)
    assert "2 of its tensors are not found" in lost and "fused.prepare_peft()" in lost
    long = adapters._readme(card(YARN), {}, None)
    assert "from transformers import AutoConfig, AutoModelForCausalLM" in long and "reads 8,192 tokens at once" in long
    targets: Any = SimpleNamespace(share=0.5, left_out={WeightKind.ROUTER: 0.5})
    reached = adapters.sentence(0.5, targets.left_out)
    assert reached and reached in adapters._readme(card({}, targets=targets), {}, None)


class Rows:
    """A renderer whose tokens are the letters of a row."""

    def example(self, example: Any, max_length: int) -> Any:
        text = example.text or (example.prompt or "") + (example.completion or "")
        if "refused" in text:
            raise DatasetError("No.", "")
        ids = [ord(letter) for letter in text]
        return SimpleNamespace(ids=ids, learned=[False] + [letter != "-" for letter in text[1:]])

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def completion_prompt(self, prompt: str) -> list[int]:
        return [ord(letter) for letter in prompt]


def asked(path: Path, rows: list[dict[str, Any]], max_length: int = 100, most: int = 99) -> list[asking.RowQuestion]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return asking.questions(path, Rows(), max_length, most)  # type: ignore[arg-type]


def test_rows_are_spread_over_the_head_of_a_file(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "completion": f"c{n}"} for n in range(2001)]
    assert [one.line for one in asked(tmp_path / "r", rows, most=4)] == [1, 501, 1001, 1501]
    assert len(asked(tmp_path / "r", rows, most=9999)) == 2000 and [one.line for one in asked(tmp_path / "r", rows[:3], most=3)] == [
        1,
        2,
        3,
    ]


def test_a_row_is_asked_without_its_answer(tmp_path: Path) -> None:
    [pair] = asked(tmp_path / "r", [{"prompt": "p" * 700, "completion": "c" * 700}], max_length=9999)
    assert (pair.prompt, pair.reference, len(pair.ids), len(pair.row)) == ("p" * 600, "c" * 600, 700, 1400)
    texts = [{"text": "abcdef"}, {"text": "x" * 100}, {"text": "ab"}]
    assert [(one.prompt, len(one.ids)) for one in asked(tmp_path / "r", texts)] == [("abc", 3), ("x" * 24, 24), ("a", 1)]


def test_rows_that_can_not_be_asked_are_passed_over(tmp_path: Path) -> None:
    rows = [
        {"prompt": "refused", "completion": "c"}, {"prompt": "p", "completion": "c"}, {"prompt": "p" * 11, "completion": "c"},
        {"prompt": "--", "completion": "--"}, {"prompt": "p" * 10, "completion": "c"},
    ]  # fmt: skip
    assert [one.line for one in asked(tmp_path / "r", rows, max_length=10)] == [2, 5]


def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: list[int], keep: int = 2) -> CheckpointStore:
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda path: SimpleNamespace(free=free.pop(0) if len(free) > 1 else free[0]))
    return CheckpointStore(RunDir(tmp_path), keep)


def steps(made: CheckpointStore) -> list[int]:
    return sorted(checkpoints.checkpoint_step(folder) for folder in made.run.checkpoint_folders())


def test_so_many_checkpoints_stay_and_the_pinned_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path, monkeypatch, [10**12])
    for step in (1, 2, 3, 4):
        made.write(step, lambda folder: (folder / "a").write_text("x") and None, pinned=1)
    assert steps(made) == [1, 3, 4]
    (tmp_path / "checkpoints" / ".part-9-1").mkdir()
    (tmp_path / "checkpoints" / "checkpoint-4.old").mkdir()
    made.clean()
    assert sorted(one.name for one in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]
    made.drop_newer(tmp_path / "checkpoints" / "checkpoint-3")
    assert steps(made) == [1, 3]
    made.drop_newer(None)
    assert steps(made) == []


def test_older_checkpoints_make_room_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = 11 * 10**6 + 16 * 1024**2
    made = store(tmp_path, monkeypatch, [10**12])
    for step in (1, 2):
        made.write(step, lambda folder: (folder / "a").write_text("x") and None)
    store(tmp_path, monkeypatch, [enough - 1, enough])
    made.write(3, lambda folder: (folder / "a").write_text("x") and None, expected_bytes=10**7)
    assert steps(made) == [2, 3], "the oldest gave way before, the newest stays"
    store(tmp_path, monkeypatch, [enough - 1])
    with pytest.raises(OSError, match="28 MB are needed, 28 MB are free") as refused:
        made.write(4, lambda folder: None, expected_bytes=10**7)
    assert refused.value.errno == checkpoints.errno.ENOSPC and steps(made) == [3]


def test_a_checkpoint_that_fails_leaves_the_earlier_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = store(tmp_path, monkeypatch, [10**12])
    made.write(1, lambda folder: (folder / "a").write_text("x") and None)

    def fails(folder: Path) -> None:
        (folder / "a").touch()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        made.write(2, fails)
    assert [one.name for one in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-1"]
