"""Which held-out rows a report asks, and how long its answers may become."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import follow_up
from studio.errors import DatasetError


def held_out(tmp_path: Path, rows: int) -> Path:
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{n}", "completion": f"a{n}"}) + "\n\n" for n in range(rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("rows", "most", "asked", "looked_at"),
    [
        (3, 5, [0, 1, 2], 3),
        (4, 4, [0, 1, 2, 3], 4),
        (5, 4, [0, 1, 2, 3], 5),
        (10, 3, [0, 3, 6], 10),
        (12, 1, [0], 10),  # of twelve rows and the empty lines behind them the first twenty lines
    ],
)
def test_a_report_asks_rows_that_are_spread_over_those_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, most: int, asked: list[int], looked_at: int
) -> None:
    monkeypatch.setattr(follow_up, "READ_ROWS", 20)
    found, number = follow_up.held_out_prompts(held_out(tmp_path, rows), most)
    assert [prompt["turns"][0][-1]["content"] for prompt in found] == [f"q{n}" for n in asked] and number == looked_at
    assert [prompt["reference"] for prompt in found] == [f"a{n}" for n in asked]


def test_without_held_out_rows_there_is_no_report(tmp_path: Path) -> None:
    for path in (held_out(tmp_path, 0), tmp_path / "nowhere.jsonl"):
        with pytest.raises(DatasetError, match="held out no rows") as refused:
            follow_up.held_out_prompts(path, 5)
        assert refused.value.fix == "Train with test_size above 0."


@pytest.mark.parametrize(("length", "tokens"), [(0, 32), (65, 32), (66, 33), (1023, 511), (1024, 512), (5000, 512)])
def test_an_answer_may_become_as_long_as_the_longest_reference(length: int, tokens: int) -> None:
    asked = [{"reference": "x" * length}, {"reference": "x" * (length // 2)}, {"reference": None}, {}]
    assert follow_up._room(asked) == tokens  # type: ignore[arg-type]
    assert follow_up._room([{"reference": "é" * (length // 2)}]) == max(32, min(512, length // 2))  # type: ignore[typeddict-item]
