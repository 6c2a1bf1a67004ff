"""Votes and corrections at a terminal: the same services as the page and HTTP."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from studio import cli
from studio.db.models import AnswerRow, ComparisonRow
from studio.services import Studio
from studio.settings import Settings

Run = Callable[..., tuple[int, Any]]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    studio = Studio.open(settings)
    prompts = [{"id": str(n), "turns": [[{"role": "user", "content": f"q{n}"}]], "reference": "r"} for n in range(2)]
    with studio.comparisons.db.write() as session:
        row = ComparisonRow(name="c", base_model="starter", contestants=["x", "y"], prompts=prompts)
        session.add(row)
        session.flush()
        session.add_all(
            AnswerRow(comparison_id=row.id, prompt_id=str(n), contestant=who, text=f"{who}{n}", seconds=1.0)
            for n in range(2)
            for who in "xy"
        )

    def call(*arguments: str) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", ["studio", *arguments, "--json"])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), json.loads(capfd.readouterr().out)

    return call


def test_a_ballot_is_voted_and_then_says_who_was_who(run: Run) -> None:
    code, shown = run("ballot", "c", "--voter", "ann")
    assert code == 0 and {shown["left"][0], shown["right"][0]} == {"x", "y"} and shown["voted"] == 0
    code, told = run("vote", "c", shown["ballot"], "left", "--voter", "ann")
    assert code == 0 and shown["left"][0] in json.dumps(told)
    assert run("ballot", "c", "--voter", "ann")[1]["voted"] == 1
    for arguments in (("vote", "c", "forged", "left"), ("vote", "c", shown["ballot"], "up"), ("ballot", "nobody")):
        code, refused = run(*arguments, "--voter", "ann")
        assert code == 1 and refused["error"]["fix"]


def test_lost_prompts_are_listed_and_corrected(run: Run, tmp_path: Path) -> None:
    code, shown = run("ballot", "c", "--voter", "ann")
    winner = shown["left"][0]
    run("vote", "c", shown["ballot"], "left", "--voter", "ann")
    code, lost = run("worst", "c", {"x": "y", "y": "x"}[winner], "--limit", "5")
    assert code == 0 and shown["prompt"]["id"] in [one["prompt_id"] for one in lost]
    file = tmp_path / "better.jsonl"
    file.write_text('{"prompt_id": "0", "answer": "right"}\n\n{"prompt_id": "1", "answer": "so"}\n')
    code, made = run("correct", "c", str(file), "--name", "better")
    assert code == 0 and (made["name"], made["rows"]) == ("better", 2)
    for text in ('{"prompt_id": "9", "answer": "x"}', '{"prompt_id": 0, "answer": "x"}', "no", '{"prompt_id": "0", "answer": "x"}\n' * 2):
        file.write_text(text)
        code, refused = run("correct", "c", str(file))
        assert code == 1 and refused["error"]["fix"], text
