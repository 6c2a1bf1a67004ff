"""What is decided from scores before it is shown: who is preferred, whether orders agree, margins, points of a sweep, warnings."""

from __future__ import annotations

import pytest

from jobs.compress import SweepAnswer, _point
from studio.evaluation import readings
from studio.evaluation.verdicts import VerdictLine
from studio.records import Compression, CompressionWinner, Winner
from studio.services import compression, preferences, ratings


def test_the_judge_of_two_answers_is_read_from_both_orders() -> None:
    assert [compression._preferred(score) for score in (1.0, 0.75, 0.5, 0.25, None)] == [
        CompressionWinner.ORIGINAL,
        CompressionWinner.ORIGINAL,
        CompressionWinner.TIE,
        CompressionWinner.COMPRESSED,
        None,
    ]
    both = [[Winner(one), Winner(other)] for one, other in (("a", "b"), ("a", "a"), ("tie", "tie"), ("a", "invalid"))]
    assert [compression._agree(winners) for winners in both] == [True, False, True, None]
    assert compression._agree([]) is True


def test_the_orders_of_a_pair_become_one_line_per_rater() -> None:
    lines = [
        ("p", "y", "x", "a", "j"),  # y wins
        ("p", "x", "y", "b", "j"),  # y wins again
        ("q", "x", "y", "a", "j"),
        ("q", "y", "x", "a", "j"),  # the first one wins: a tie
        ("q", "y", "x", "a", "k"),
        ("r", "x", "y", "invalid", "j"),
    ]
    assert ratings._per_pair(lines) == [("p", "x", "y", "b", "j"), ("q", "x", "y", "tie", "j"), ("q", "x", "y", "b", "k")]


def test_a_rater_s_score_is_that_of_the_first_name() -> None:
    assert preferences._scored({"x": "a", "y": "b"}, "x").score == 1.0
    assert preferences._scored({"x": "a", "y": "a"}, "x").score == 0.5
    assert preferences._scored({"x": "tie", "y": "a"}, "x").score == 0.25
    raters = {"one": preferences._scored({"x": "a"}, "x"), "two": preferences._scored({"y": "tie"}, "x")}
    assert preferences._score(raters) == 0.75


def test_a_point_of_a_sweep_holds_means() -> None:
    def answer(text: str, before: int, after: int, seconds: float, error: str = "") -> SweepAnswer:
        made = Compression(
            text="t", tokens_before=before, tokens_after=after, requested=0.5, achieved=0.5, counter="c", method="m", seconds=seconds / 10
        )
        return SweepAnswer(made, "5 cats", text, seconds, error)

    point = _point(0.5, [answer("5 cats", 100, 40, 1.0), answer("5 dogs", 60, 40, 2.0), answer("", 40, 20, 0.0, "too long")])
    assert (point["tokens_before"], point["tokens_after"], point["achieved"]) == (200, 100, 0.5)
    assert (point["exact_match"], point["number_match"], point["failed"], point["n"]) == (0.3333, 0.6667, 1, 3)
    assert (point["seconds"], point["compress_seconds"]) == (1.0, 0.1)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([("x", "y", "a"), ("y", "x", "a")], "The answer shown first wins 100% of the decisive verdicts."),
        ([("x", "y", "b"), ("y", "x", "b")], "The answer shown second wins 100% of the decisive verdicts."),
        ([("x", "y", "a"), ("y", "x", "a")], "Only 0% of the pairs get the same verdict in both orders; the others count as ties."),
        ([("x", "y", "invalid"), ("y", "x", "invalid")], "All 8 replies held no verdict: this judge can't be used so."),
        ([("x", "y", "invalid"), ("y", "x", "a")], "4 replies held no verdict."),
    ],
)
def test_what_speaks_against_a_judge_is_said(lines: list[tuple[str, str, str]], said: str) -> None:
    given = [VerdictLine(str(n), *line) for n in range(4) for line in lines]
    assert said in readings.read(readings.ReadingsInput(given, {}, ["x", "y"]))["warnings"]
