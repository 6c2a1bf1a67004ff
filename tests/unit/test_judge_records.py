"""Judges and what they say: one entry per kind of judge, and records whose JSON is the documented one."""

from __future__ import annotations

import pytest

from jobs.panel import JUDGES
from studio.evaluation import agreement, judging, prompts, ratings
from studio.evaluation.verdicts import WINNERS, VerdictLine
from studio.records import Agreement, Compression, JudgeKind, Judgement, Leaderboard, Winner
from studio.services.ratings import CHOICES

BOTH = [VerdictLine("1", "x", "y", "a", "j"), VerdictLine("1", "y", "x", "b", "j"), VerdictLine("2", "x", "y", "tie", "human:me")]


def test_every_kind_of_judge_and_every_template_is_whole() -> None:
    assert set(JUDGES) == set(JudgeKind)
    for name, judge in judging.judges().items():
        assert judge.name == name and judge.title and judge.max_new_tokens > 0
        assert judge.grammar and set(judge.templates) == {"plain", "reference", "turns", "turns_reference"}
    assert set(WINNERS) == set(Winner) and set(CHOICES.values()) == {"a", "b", "tie"}


def test_json_of_ratings_and_agreement_is_the_documented_one() -> None:
    board = Leaderboard(**ratings.leaderboard(BOTH)).model_dump(mode="json")
    assert {"name", "bradley_terry", "bradley_terry_ci95", "elo", "win_rate", "ci95", "games"} <= set(board["contestants"][0])
    assert board["position"] == {"first_win_rate": 0.5, "swap_consistency": 1.0}
    raters = Agreement(**agreement.agreement(BOTH, ["j"])).model_dump(mode="json")
    assert [set(row) for row in raters["pairs"]] == [{"a", "b", "kappa", "agreement", "n"}]
    assert [set(row) for row in raters["majority"].values()] == [{"accuracy", "precision", "recall", "f1", "n"}] * 2
    documented = {"pairs", "win_rate", "ci95", "swap_consistency", "first_win_rate", "longer_win_rate", "invalid", "enough", "more_needed"}
    assert documented <= set(Judgement.model_fields)
    shown = Compression(text="a", tokens_before=2, tokens_after=1, requested=0.5, achieved=0.5, counter="c", method="m", seconds=0.1)
    assert shown.model_copy(update={"kept": [("a", True)]}).model_dump(mode="json")["kept"] == [["a", True]]


def test_rows_that_were_read_are_read_again_alike() -> None:
    rows = [
        {"id": 7, "prompt": "Hello", "reference": "Hi", "category": "small talk"},
        {"question_id": 7, "turns": ["One?", "Two?"], "reference": ["1", "2"]},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
    ]
    once = prompts.from_rows(rows)
    assert [prompt["id"] for prompt in once] == ["7", "7-2", "3"]
    assert (once[1]["reference"], once[1]["references"], len(once[1]["turns"])) == ("2", ["1", "2"], 2)
    assert "reference" not in once[2] and len(once[2]["turns"][0]) == 2
    assert prompts.from_rows(once) == once


def test_every_row_that_is_no_prompt_is_named() -> None:
    with pytest.raises(prompts.DatasetError, match=r"prompts, row 2: no prompt \(2 problems in all\)") as caught:
        prompts.from_rows([{"prompt": "x"}, {}, {"prompt": "y"}, {"messages": [{"role": "assistant", "content": "z"}]}])
    assert [problem["line"] for problem in caught.value.details["problems"]] == [2, 4]
