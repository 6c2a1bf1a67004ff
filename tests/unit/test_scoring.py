"""Scores, agreement and ratings are those that others publish or define; bad files are refused in one line."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest

from studio.errors import DatasetError
from studio.evaluation import agreement, intervals, metrics, numbers, ratings, verdicts
from studio.evaluation.verdicts import VerdictLine

LABELS = {"0": "tie", "1": "a", "2": "b"}


@pytest.fixture(scope="module")
def pandalm(shared_data: Path) -> list[VerdictLine]:
    """999 pairs, three people and two models."""
    folder = shared_data / "data" / "judge" / "pandalm"
    with gzip.open(folder / "testset-v1.json.gz") as file:
        people = json.load(file)
    found = [VerdictLine(str(row["idx"]), "one", "two", LABELS[str(row[f"annotator{n}"])], f"h{n}") for row in people for n in (1, 2, 3)]
    for name, key in (("gpt-3.5-turbo", "gpt_result"), ("pandalm-7b", "pandalm_result")):
        rows = json.loads((folder / f"{name}-testset-v1.json").read_text())
        found += [VerdictLine(str(row["idx"]), "one", "two", LABELS.get(str(row[key]), "invalid"), name) for row in rows]
    return found


def test_published_agreement_is_recomputed(pandalm: list[VerdictLine]) -> None:
    found = agreement.agreement(pandalm, ["h1", "h2", "h3"], "tie")
    kappas = {(row["a"], row["b"]): round(row["kappa"], 2) for row in found["pairs"] if row["b"].startswith("h")}
    assert kappas == {("h1", "h2"): 0.85, ("h1", "h3"): 0.88, ("h2", "h3"): 0.86}
    for judge, accuracy, f1 in (("gpt-3.5-turbo", 71.07, 57.55), ("pandalm-7b", 66.77, 57.43)):
        row = found["majority"][judge]
        assert (round(100 * row["accuracy"], 2), round(100 * row["f1"], 2), row["n"]) == (accuracy, f1, 999)
    winners = Counter(agreement._majority([agreement._by_rater(pandalm, "tie")[name] for name in ("h1", "h2", "h3")]).values())
    assert winners == {"tie": 105, "a": 422, "b": 472}


def test_raters_who_saw_opposite_orders_are_compared() -> None:
    said = [VerdictLine("1", "x", "y", "a", "one"), VerdictLine("1", "y", "x", "b", "two"), VerdictLine("2", "x", "y", "tie", "one")]
    found = agreement.agreement([*said, VerdictLine("2", "x", "y", "invalid", "two")], invalid="skip")
    assert found["pairs"] == [{"a": "one", "b": "two", "kappa": None, "agreement": 1.0, "n": 1}]


def test_rouge_is_googles_to_five_digits(shared_data: Path) -> None:
    expected = json.loads((shared_data / "data" / "metrics" / "google_rouge_expected.json").read_text())
    for stemmer, key in ((False, "expected_no_stem"), (True, "expected_stem")):
        for kind, rows in expected[key].items():
            for target, prediction, row in zip(expected["targets"], expected["predictions"], rows, strict=True):
                assert metrics.rouge(prediction, [target], (kind,), stemmer=stemmer)[kind] == pytest.approx(row["f"], abs=6e-6)
    for target, prediction, kind, row in expected["small"]:
        assert metrics.rouge(prediction, [target], (kind,))[kind] == pytest.approx(row["f"], abs=6e-6)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 5 and 7", "7"),
        ("#### 1,234", "1234"),
        ("#### 3\nthen #### $1,000.50 in 2 days", "1000.50"),
        ("A: none\n", None),
        ("4 apples. A: 12 of 20", "12"),
        ("DATA: 5 then 6", "6"),
        ("#### ", None),
        ("costs -$3", "-3"),
        ("10-7", "7"),
        ("1,2,3", "3"),
        ("nothing", None),
    ],
)
def test_the_number_of_an_answer(text: str, number: str | None) -> None:
    found = numbers.number(text)
    assert found is None if number is None else str(found) == number
    assert metrics.number_match("12.0", ["#### 12"]) and not metrics.number_match("none", ["none"])


def test_rows_with_different_numbers_of_references() -> None:
    found = metrics.measure([("the cat sat down", ["a dog", "The cat sat down."]), ("x", ["x"])], schema={"type": "number"})
    assert found["exact_match"] == 0.5 and found["exact_match_normalized"] == 1.0 and found["schema_match"] == 0.0
    assert found["rouge1"] == 1.0 and found["n"] == 2
    assert (
        metrics.contains("It is Lima, I think.", ["lima"])
        and not metrics.contains("Limassol", ["Lima"])
        and not metrics.contains("x", [""])
    )


def both_orders(prompt: int, x_wins: bool) -> list[VerdictLine]:
    return [VerdictLine(str(prompt), "x", "y", "a" if x_wins else "b"), VerdictLine(str(prompt), "y", "x", "b" if x_wins else "a")]


def test_ratings_of_two_follow_from_their_win_rate() -> None:
    found = ratings.leaderboard(line for n in range(100) for line in both_orders(n, n < 75))
    x, y = found["contestants"]
    assert (x["name"], x["win_rate"], x["games"]) == ("x", 0.75, 100)
    assert x["bradley_terry"] - y["bradley_terry"] == pytest.approx(400 * math.log10(3), abs=0.1)
    assert x["bradley_terry"] + y["bradley_terry"] == pytest.approx(2000)
    assert x["bradley_terry_ci95"][0] < x["bradley_terry"] < x["bradley_terry_ci95"][1]
    assert 1050 < x["elo"] < 1100 and x["elo"] + y["elo"] == pytest.approx(2000)
    assert found["position"] == {"first_win_rate": 0.5, "swap_consistency": 1.0}


def test_the_order_of_lines_does_not_matter() -> None:
    lines = [line for n in range(40) for line in both_orders(n, n % 3 > 0)]
    shuffled = random.Random(1).sample(lines, len(lines))
    assert ratings.leaderboard(lines)["contestants"] == ratings.leaderboard(shuffled)["contestants"]


def test_a_split_pair_is_a_tie_and_an_invalid_order_counts_for_nothing() -> None:
    lines = [
        VerdictLine("1", "x", "y", "a"),
        VerdictLine("1", "y", "x", "a"),
        VerdictLine("2", "x", "y", "a"),
        VerdictLine("2", "y", "x", "invalid"),
    ]
    assert [game.score for game in verdicts.games(lines)] == [0.5, 1.0]
    place = verdicts.position(lines)
    assert (place.first_win_rate, place.swap_consistency, place.invalid, place.missing_orders) == (1.0, 0.0, 1, 0)


@pytest.mark.parametrize(("prompts", "ties"), [(30, 0.3), (60, 0.0)])
def test_intervals_cover_the_truth(prompts: int, ties: float) -> None:
    """A thousand simulated comparisons, each judged in both orders by a judge that errs in each on its own."""
    source, hits = random.Random(3), 0
    for _ in range(1000):
        truth = source.uniform(0.3, 0.7)
        games = [sum(_look(source, truth, ties) for _ in range(2)) / 2 for _ in range(prompts)]
        low, high = intervals.of_mean(games)
        hits += low <= ties / 2 + (1 - ties) * truth <= high
    assert 0.92 <= hits / 1000 <= 0.98


def _look(source: random.Random, truth: float, ties: float) -> float:
    return 0.5 if source.random() < ties else float(source.random() < truth)


def test_twenty_wins_are_no_proof() -> None:
    low, high = intervals.of_mean([1.0] * 20)
    assert low < 0.9 and high == 1.0, "twenty wins are no proof of winning always"


def test_many_contestants_are_corrected_for() -> None:
    source = random.Random(0)
    names = [f"c{n}" for n in range(12)]
    lines = [VerdictLine(str(n), a, b, source.choice("ab")) for n in range(40) for i, a in enumerate(names) for b in names[i + 1 :]]
    found = ratings.pairs(ratings.Table.of(verdicts.games(lines)))
    assert any(row["p"] < 0.05 for row in found) and not any(row["differs"] for row in found)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt_id": "1", "a": "x", "b": "y", "winner": "x"}', "winner 'x' is unknown"),
        ('{"prompt_id": "1", "a": "x", "b": "x", "winner": "a"}', "the same contestant"),
        ('{"prompt_id": "1", "a": "x", "winner": "a"}', "b is missing"),
        ("[]", "not a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_a_bad_verdict_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text('{"prompt_id": 1, "a": "x", "b": "y", "winner": "tie"}\n' + line + "\n")
    with pytest.raises(DatasetError, match=said) as caught:
        verdicts.read(path)
    assert "line 2" in str(caught.value)
