"""Intervals, ratings and readings against their definitions, written out here a second time as plain loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest, norm, t

from studio.errors import DatasetError
from studio.evaluation import agreement, intervals, mauve, ratings, readings, verdicts
from studio.evaluation.readings import ReadingsInput
from studio.evaluation.verdicts import Game, VerdictLine
from studio.records import InvalidReason

SEED, RESAMPLES = 20_240_117, 1000
POINTS = 400 / math.log(10)


def ends(values: Sequence[float], prompts: int) -> list[float]:
    """Hesterberg's percentile interval of bootstrap values."""
    tail = 100 * norm.cdf(t.ppf(0.025, prompts - 1) * math.sqrt(prompts / (prompts - 1)))
    return [float(end) for end in np.percentile(values, [tail, 100 - tail])]


def draws(prompts: int, times: int = RESAMPLES) -> list[Any]:
    random = np.random.default_rng(SEED)
    return [random.integers(prompts, size=prompts) for _ in range(times)]


def test_the_interval_of_a_mean_is_a_bootstrap_of_a_thousand_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [1.0, 0.0, 0.5, 1.0, 0.25, 0.75]
    wanted = ends([np.array(scores)[drawn].mean() for drawn in draws(6)], 6)
    assert intervals.of_mean(scores) == pytest.approx(wanted, abs=1e-12)
    weights = list(intervals.resampled(6))
    assert len(weights) == RESAMPLES and all(one.sum() == 6 for one in weights)
    assert [float(np.array(scores) @ one / 6) for one in weights[:3]] == pytest.approx(
        [np.array(scores)[one].mean() for one in draws(6)[:3]]
    )
    monkeypatch.setattr(intervals, "AT_ONCE", 5)  # so many that they are drawn one by one: the same draws
    assert intervals.of_mean(scores) == pytest.approx(wanted, abs=1e-12)


def test_prompts_are_resampled_whole() -> None:
    scores, clusters = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0], [4, 4, 4, 9, 9, 2, 7]  # numbers of prompts need not be dense
    groups = [[1.0], [1.0, 0.0, 0.0], [0.0], [1.0, 1.0]]  # by number: 2, 4, 7, 9
    drawn = [[score for number in one for score in groups[number]] for one in draws(4)]
    assert intervals.of_mean(scores, clusters) == pytest.approx(ends([sum(one) / len(one) for one in drawn], 4), abs=1e-12)
    # one prompt, or equal prompts: Wilson's interval for so many
    assert intervals.of_mean([0.5, 1.0], [3, 3]) == intervals.wilson(0.75, 1)
    assert intervals.of_mean([0.0, 1.0, 1.0, 0.0], [1, 1, 2, 2]) == intervals.wilson(0.5, 2)
    assert intervals.of_mean([0.0, 1.0]) == pytest.approx(ends([np.array([0.0, 1.0])[one].mean() for one in draws(2)], 2), abs=1e-12)


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (1, 7), (4, 9), (5, 5), (1, 1), (30, 31)])
def test_wilson_is_scipys(hits: int, count: int) -> None:
    wanted = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    low, high = intervals.wilson(hits / count, count)
    assert [low, high] == pytest.approx([wanted.low, wanted.high], abs=1e-12)
    assert low <= hits / count <= high


def test_kappa_of_tables_is_cohens() -> None:
    tables = np.array([[[20.0, 5.0], [10.0, 15.0]], [[45.0, 15.0], [25.0, 15.0]], [[4.0, 0.0], [0.0, 0.0]], [[0.0, 2.0], [2.0, 0.0]]])
    found = intervals.kappa_of(tables)
    assert found[[0, 1, 3]] == pytest.approx([0.4, 0.1304347826, -1.0]) and np.isnan(found[2])


def test_the_interval_of_kappa_resamples_prompts() -> None:
    first, second = [0, 1, 0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 1, 1, 2, 0, 0, 2, 0, 2]
    clusters = [5, 5, 3, 3, 8, 8, 1, 1, 2, 2]
    groups = [[(first[n], second[n]) for n in range(10) if clusters[n] == cluster] for cluster in (1, 2, 3, 5, 8)]
    kappas = []
    for one in draws(5):
        table = np.zeros((3, 3))
        for pair in (pair for number in one for pair in groups[number]):
            table[pair] += 1
        total = table.sum()
        share, chance = np.trace(table) / total, (table.sum(axis=0) * table.sum(axis=1)).sum() / total**2
        if chance < 1:
            kappas.append((share - chance) / (1 - chance))
    low, high = ends(kappas, 5)
    assert intervals.of_kappa(first, second, clusters, 3) == pytest.approx([max(-1, low), min(1, high)], abs=1e-12)
    assert intervals.of_kappa([1, 1], [1, 1], [0, 1], 3) is None
    # they never differ: Wilson's interval of the agreement, less what chance explains
    low, high = intervals.wilson(1.0, 4)
    assert intervals.of_kappa([0, 1, 0, 1], [0, 1, 0, 1], [0, 1, 2, 3], 2) == pytest.approx([(low - 0.5) / 0.5, (high - 0.5) / 0.5])
    low, high = intervals.wilson(0.5, 1)
    assert intervals.of_kappa([0, 1], [0, 0], [7, 7], 2) == pytest.approx([max(-1, (low - 0.5) / 0.5), (high - 0.5) / 0.5])
    low, high = intervals.wilson(0.0, 1)
    assert intervals.of_kappa([0, 1], [1, 0], [7, 7], 2) == pytest.approx([-1.0, (high - 0.5) / 0.5])
    low, high = intervals.of_kappa([0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 1], list(range(6)), 2) or (0, 0)
    assert low == -1.0 and high < 0.5


@pytest.mark.parametrize(
    ("interval", "prompts", "half_width", "more"),
    [
        ([0.0, 0.5], 10, 0.25, 0),
        ([0.0, 0.5001], 10, 0.25, 1),
        ([0.0, 1.0], 10, 0.25, 30),
        ([0.25, 0.75], 7, 0.125, 21),
        ([0.2, 0.6], 10, 0.1, 30),
    ],
)
def test_how_many_more_prompts_are_needed(interval: list[float], prompts: int, half_width: float, more: int) -> None:
    assert intervals.more_needed(interval, prompts, half_width) == more


# ratings


def lines(*said: str) -> list[VerdictLine]:
    """Verdicts from "x>y", "x=y", "x?y" (invalid); each on a prompt of its own."""
    winners = {">": "a", "<": "b", "=": "tie", "?": "invalid"}
    return [VerdictLine(f"p{n:03}", text[0], text[2], winners[text[1]]) for n, text in enumerate(said)]


def test_elo_is_the_mean_of_three_hundred_orderings() -> None:
    given = lines("x>y", "y>z", "z>x", "x=z", "x>z", "z<y", "y>x")
    table = ratings.Table.of(verdicts.games(given))
    random, sums = np.random.default_rng(7), np.zeros(3)
    for _ in range(300):
        elo = np.full(3, 1000.0)
        for game in random.permutation(len(table.score)):
            one, other = table.first[game], table.second[game]
            change = 8 * (table.score[game] - 1 / (1 + 10 ** ((elo[other] - elo[one]) / 400)))
            elo[one] += change
            elo[other] -= change
        sums += elo
    assert ratings.elo(table) == pytest.approx(sums / 300, abs=1e-6)


def log_odds(won: float, lost: float) -> float:
    if not lost or not won:
        return math.copysign(12.0, won - lost)  # each strength ends at 6
    return math.log(won / lost)


def test_bradley_terry_of_two_is_their_log_odds_with_a_bootstrap_of_four_hundred() -> None:
    given = lines("x>y", "x>y", "y>x", "x=y", "x>y")
    (x, y), (x_ends, y_ends) = ratings.bradley_terry(table := ratings.Table.of(verdicts.games(given)))
    assert (x, y) == pytest.approx((1000 + POINTS * log_odds(3.5, 1.5) / 2, 1000 - POINTS * log_odds(3.5, 1.5) / 2), abs=1e-3)
    drawn = []
    for one in draws(5, 400):
        won = float(table.score[one].sum())
        drawn.append(1000 + POINTS * log_odds(won, 5 - won) / 2)
    assert x_ends == pytest.approx(ends(drawn, 5), abs=0.5)
    assert y_ends == pytest.approx([2000 - x_ends[1], 2000 - x_ends[0]], abs=0.5)


def test_bradley_terry_of_three_is_the_most_likely() -> None:
    given = lines(*["x>y"] * 3, "y>x", *["y>z"] * 2, "z>y", "x>z", "x>z", "z>x", "x=z")
    table = ratings.Table.of(verdicts.games(given))
    wins, strength = table.wins(), np.ones(3)
    for _ in range(2000):  # Hunter 2004
        played = wins + wins.T
        strength = wins.sum(axis=1) / (played / (strength[:, None] + strength[None, :])).sum(axis=1)
        strength /= strength.sum()
    logs = np.log(strength)
    found, _ = ratings.bradley_terry(table)
    assert found == pytest.approx(1000 + POINTS * (logs - logs.mean()), abs=1e-2)


def test_who_never_loses_ends_six_log_odds_from_the_middle() -> None:
    found = ratings.leaderboard(lines(*["x>y"] * 4))
    x, y = found["contestants"]
    assert (x["name"], y["name"]) == ("x", "y")
    assert (x["bradley_terry"], y["bradley_terry"]) == pytest.approx((1000 + 6 * POINTS, 1000 - 6 * POINTS), abs=0.01)
    assert x["bradley_terry_ci95"] == pytest.approx([x["bradley_terry"]] * 2)


def test_one_prompt_gives_no_interval_of_strength_and_the_rows_sort_by_strength_then_name() -> None:
    one = [VerdictLine("p", "b", "a", "tie"), VerdictLine("p", "c", "a", "a")]
    found = ratings.leaderboard(one)["contestants"]
    assert [(row["name"], row["bradley_terry_ci95"], row["games"]) for row in found] == [("c", None, 1), ("a", None, 2), ("b", None, 1)]
    assert [row["win_rate"] for row in found] == [1.0, 0.25, 0.5]
    tied = ratings.leaderboard(lines("b=a", "c=b", "a=c"))["contestants"]
    assert [row["name"] for row in tied] == ["a", "b", "c"] and [row["elo"] for row in tied] == pytest.approx([1000.0] * 3)


NEVER_MET = "The contestants fall into 2 groups that never met: ratings of different groups can't be compared."
NEVER_LOST = "Somebody never lost, or never won, against all the others: Bradley-Terry has no finite value there and is cut off."


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lines("x>y", "v>w"), [NEVER_MET]),
        (lines("x>y"), [NEVER_LOST]),
        (lines("x>y", "y>x"), []),
        (lines("x=y"), []),
        ([VerdictLine("p", "x", "y", "a"), VerdictLine("p", "y", "x", "b")], [NEVER_LOST]),
        (lines("x?y"), ["No verdict is valid."]),
    ],
)
def test_a_leaderboard_says_what_its_figures_cannot(given: list[VerdictLine], said: list[str]) -> None:
    found = ratings.leaderboard(given)
    missing = found["missing_orders"]
    assert missing == sum(not any(other[:3] == (line.prompt_id, line.b, line.a) for other in given) for line in given)
    if missing and found["contestants"]:
        said = [*said, f"{missing} pairs were shown in one order only: what the order does to them can't be seen."]
    assert found["warnings"] == said
    assert found["invalid"] == sum(line.winner == "invalid" for line in given)


def test_sign_tests_are_corrected_for_their_number() -> None:
    given = lines(*["x>y"] * 6, *["x=y"] * 2, *["x>z"] * 5, "z>x", "y=z")
    xy, xz, yz = ratings.pairs(ratings.Table.of(verdicts.games(given)))
    assert [(row["a"], row["b"], row["games"], row["score"]) for row in (xy, xz, yz)] == [
        ("x", "y", 8, 7 / 8),
        ("x", "z", 6, pytest.approx(5 / 6)),
        ("y", "z", 1, 0.5),
    ]
    assert [row["p"] for row in (xy, xz, yz)] == pytest.approx([2 / 2**6, 2 * 7 / 2**6, 1.0])
    # Benjamini-Hochberg: the smallest of three counts three times, the second 3/2 times
    assert [row["p_corrected"] for row in (xy, xz, yz)] == pytest.approx([3 * 2 / 64, 3 / 2 * 14 / 64, 1.0])
    assert not any(row["differs"] for row in (xy, xz, yz))
    (alone,) = ratings.pairs(ratings.Table.of(verdicts.games(lines(*["x>y"] * 6))))
    assert alone["differs"] is True and alone["p_corrected"] == pytest.approx(2 / 64)


# verdicts


def test_a_game_seen_by_either() -> None:
    game = Game("p", "x", "y", 0.75)
    assert (game.score_of("x"), game.score_of("y")) == (0.75, 0.25)
    assert game.seen_by("x") == game and game.seen_by("y") == Game("p", "y", "x", 0.25)


def test_raters_count_alike_whatever_they_looked_at() -> None:
    said = [
        ("x", "y", "a", "j"),
        ("y", "x", "b", "j"),
        ("x", "y", "a", "j"),
        ("x", "y", "b", "k"),
        ("y", "x", "tie", "l"),
        ("x", "y", "a", "l"),
    ]
    (game,) = verdicts.games([VerdictLine("p", *one) for one in said])
    # j: 1 in either order, k: 0, l: a tie and a win
    assert (game.a, game.b, game.score) == ("x", "y", pytest.approx((1 + 0 + 0.75) / 3))
    assert verdicts.games([VerdictLine("p", "x", "y", "invalid")]) == []


@pytest.mark.parametrize(
    ("said", "most"),
    [("aab", "a"), ("ab", "tie"), ("aabb", "tie"), ("aaabb", "a"), ("??", "invalid"), ("", "invalid"), ("b??", "b"), ("tta", "tie")],
)
def test_the_majority_of_winners(said: str, most: str) -> None:
    words = {"a": "a", "b": "b", "t": "tie", "?": "invalid"}
    assert verdicts.majority(words[one] for one in said) == most


def test_people_are_not_missing_an_order() -> None:
    place = verdicts.position([
        VerdictLine("1", "x", "y", "a", "human:ann"),
        VerdictLine("1", "x", "y", "b", "judge"),
        VerdictLine("2", "x", "y", "tie", "judge"),
        VerdictLine("2", "y", "x", "tie", "judge"),
    ])  # fmt: skip
    assert place == verdicts.OrderEffect(first_win_rate=0.5, swap_consistency=1.0, both_orders=1, missing_orders=1, invalid=0)
    assert verdicts.position([]) == verdicts.OrderEffect(None, None, 0, 0, 0)


# agreement


def test_raters_are_matched_by_item_and_by_how_often_it_came() -> None:
    said = [
        VerdictLine("1", "x", "y", "a", "one"),
        VerdictLine("1", "x", "y", "b", "one"),
        VerdictLine("2", "x", "y", "a", "one"),
        VerdictLine("1", "x", "y", "a", "two"),
        VerdictLine("1", "x", "y", "b", "two"),
        VerdictLine("2", "y", "x", "b", "two"),
        VerdictLine("3", "x", "y", "b", "two"),
    ]
    (pair,) = agreement.agreement(said)["pairs"]
    assert (pair["n"], pair["agreement"], pair["kappa"]) == (3, 1.0, 1.0)
    low, high = intervals.wilson(1.0, 2)
    chance = (2 * 2 + 1) / 9
    assert pair["kappa_ci95"] == pytest.approx([(low - chance) / (1 - chance), (high - chance) / (1 - chance)])
    (pair,) = agreement.agreement(said[:1] + said[6:])["pairs"]
    assert pair == {"a": "one", "b": "two", "kappa": None, "agreement": None, "n": 0}


def test_invalid_verdicts_count_as_ties_or_not_at_all() -> None:
    said = [VerdictLine("1", "x", "y", "invalid", "one"), VerdictLine("1", "x", "y", "tie", "two"), VerdictLine("2", "x", "y", "a", "two")]
    assert agreement.agreement(said)["pairs"][0]["agreement"] == 1.0
    assert agreement.agreement(said, invalid="skip")["pairs"][0]["n"] == 0
    with pytest.raises(DatasetError, match="No verdict is of rater 'three'") as caught:
        agreement.agreement(said, ["two", "three"])
    assert caught.value.fix == "Raters here: one, two."


def test_the_majority_takes_opposite_orders_for_the_same_item() -> None:
    said = [
        VerdictLine("1", "x", "y", "a", "one"),
        VerdictLine("1", "y", "x", "b", "two"),
        VerdictLine("1", "x", "y", "a", "three"),
        VerdictLine("2", "x", "y", "b", "one"),
        VerdictLine("2", "x", "y", "b", "three"),
    ]
    found = agreement.agreement(said, ["one", "two"])["majority"]
    assert {name: (row["n"], row["accuracy"], row["precision"], row["recall"], row["f1"]) for name, row in found.items()} == {
        # all three say what is agreed of the one item that both truth raters saw; two labels never come: 0 of the mean of three
        name: (1, 1.0, pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3))
        for name in ("one", "two", "three")
    }
    (alone,) = [agreement.agreement(said, ["two"])["majority"]["three"]]
    assert (alone["n"], alone["accuracy"]) == (1, 1.0)
    assert agreement.agreement([*said, VerdictLine("9", "v", "w", "a", "four")], ["one"])["majority"]["four"]["n"] == 0
    assert agreement.kappa(["a", "a"], ["a", "a"]) is None and agreement.kappa(["a", "b"], ["a", "b"]) == 1.0


# readings


def reading(given: list[VerdictLine], **values: Any) -> dict[str, Any]:
    return readings.read(ReadingsInput(given, values.pop("lengths", {}), ["x", "y"], **values))


def test_the_length_controlled_rate_is_a_logistic_regression_read_at_equal_lengths() -> None:
    given = lines(*["x>y"] * 5, *["y>x"] * 3, "x=y")
    gaps = np.array([3.0, 5.0, 1.0, -2.0, 4.0, 2.0, -6.0, -1.0, 2.0])
    lengths = {(f"p{n:03}", name): int(10 + gaps[n] * (name == "x")) for n in range(9) for name in "xy"}
    scores = np.array([1.0] * 5 + [0.0] * 3 + [0.5])
    bent = np.tanh(gaps / np.sqrt((gaps**2).mean()))

    def loss(weights: Any) -> float:
        logit = weights[0] + weights[1] * bent
        return float((scores * np.logaddexp(0, -logit) + (1 - scores) * np.logaddexp(0, logit)).sum() + (weights**2).sum() / 200)

    wanted = 1 / (1 + math.exp(-minimize(loss, [0.0, 0.0], tol=1e-12).x[0]))
    found = reading(given, lengths=lengths)["length_controlled_win_rate"]
    assert found == pytest.approx({"x": wanted, "y": 1 - wanted}, abs=2e-4)
    assert reading(given)["length_controlled_win_rate"]["x"] == pytest.approx(5.5 / 9)  # equally long
    assert reading(lines("x>y", "x>y"), lengths={("p000", "x"): 9})["length_controlled_win_rate"] == {"x": 1.0, "y": 0.0}
    assert reading(lines("x>z"))["length_controlled_win_rate"] == {"x": 1.0, "y": None}


def both(first: int, second: int, ties: int = 0, consistent: int = 0) -> list[VerdictLine]:
    """So many verdicts for the one shown first, the one shown second, ties; and pairs that agree in both orders."""
    given = [VerdictLine(f"f{n}", "x", "y", "a") for n in range(first)] + [VerdictLine(f"s{n}", "x", "y", "b") for n in range(second)]
    given += [VerdictLine(f"t{n}", "x", "y", "tie") for n in range(ties)]
    for n in range(consistent):
        given += [VerdictLine(f"c{n}", "x", "y", "a"), VerdictLine(f"c{n}", "y", "x", "b")]
    return given


def warnings(given: list[VerdictLine], **values: Any) -> list[str]:
    """Without the one about too little evidence."""
    return [said for said in reading(given, **values)["warnings"] if not said.startswith("Not enough evidence")]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (64, 36, []),
        (66, 34, ["The answer shown first wins 66% of the decisive verdicts."]),
        (34, 66, ["The answer shown second wins 66% of the decisive verdicts."]),
        (36, 64, []),
    ],
)
def test_what_the_order_does_is_said_from_15_points_on(first: int, second: int, said: list[str]) -> None:
    assert [one for one in warnings(both(first, second)) if "shown" in one] == said


@pytest.mark.parametrize(("agree", "pairs", "said"), [(7, 10, False), (6, 10, True), (10, 10, False)])
def test_verdicts_that_depend_on_the_order_are_said_below_seven_tenths(agree: int, pairs: int, said: bool) -> None:
    given = both(0, 0, consistent=agree)
    for n in range(pairs - agree):
        given += [VerdictLine(f"d{n}", "x", "y", "a"), VerdictLine(f"d{n}", "y", "x", "a")]
    found = [one for one in warnings(given) if "same verdict in both orders" in one]
    assert found == [f"Only {agree / pairs:.0%} of the pairs get the same verdict in both orders; the others count as ties."] * said


@pytest.mark.parametrize(("longer", "said"), [(15, False), (16, True)])
def test_a_judge_that_prefers_length_is_said_above_three_quarters(longer: int, said: bool) -> None:
    given = both(longer, 20 - longer)
    lengths = {(line.prompt_id, "x"): 9 for line in given}
    assert reading(given, lengths=lengths)["longer_win_rate"] == longer / 20
    assert any("may be counting words" in one for one in warnings(given, lengths=lengths)) is said
    assert reading(both(0, 0, ties=3), lengths={("t0", "x"): 9})["longer_win_rate"] is None


@pytest.mark.parametrize(("won", "said"), [(2, False), (3, True)])
def test_what_a_constant_answer_wins_is_said_above_a_fifth(won: int, said: bool) -> None:
    probes = [VerdictLine(str(n), "x", readings.CONSTANT, "b" if n < won else "a") for n in range(10)]
    found = [one for one in warnings(both(1, 1), probes=probes) if "constant answer" in one]
    assert found == [f"A constant answer that answers nothing wins {won * 10}% of its 10 pairs."] * said
    constant = reading(both(1, 1), probes=probes)["baselines"]["constant_answer"]
    assert constant == {"win_rate": won / 10, "ci95": intervals.of_mean([float(n < won) for n in range(10)]), "n": 10}


def test_what_replies_held_no_verdict_is_said() -> None:
    reasons = {InvalidReason.TWO_VERDICTS: 1, InvalidReason.EMPTY: 2}
    some = lines("x?y", "x?y", "x?y", "x>y")
    told = f"3 replies held no verdict (2 {InvalidReason.EMPTY}, 1 {InvalidReason.TWO_VERDICTS})"
    assert f"{told}." in warnings(some, reasons=reasons)
    assert f"All {told}: this judge can't be used so." in warnings(some[:3], reasons=reasons)
    assert "3 replies held no verdict." in warnings(some)
    assert not any("held no verdict" in one for one in warnings(some[3:]))
    assert "The judge is itself a contestant (x): models favour their own answers." in warnings(some, is_contestant="x")


def test_answers_that_talk_to_the_judge_are_compared_with_the_references_where_all_pairs_have_them() -> None:
    given = lines("x>y", "y>x", "x=y", "x>y")
    attacks = {("p000", "x"), ("p001", "x"), ("p002", "x"), ("p002", "y"), ("p009", "x")}  # in p002 both sides: no reading
    truth = lines("x<y", "y<x")
    found = reading(given, attacks=attacks, references=truth)["attacks"]
    assert found == {
        "answers": 5,
        "pairs": 2,
        "win_rate": 0.5,
        "ci95": intervals.of_mean([1.0, 0.0]),
        "references": 0.5,
        "lift": 0.0,
    }
    some = reading(given, attacks=attacks, references=truth[:1])["attacks"]
    assert (some["references"], some["lift"]) == (None, None)
    assert reading(given, attacks={("p002", "x"), ("p002", "y")})["attacks"] is None
    low, high = found["ci95"]
    told = f"5 answers seem to talk to the judge; they win 50% ({low:.0%} to {high:.0%})"
    assert f"{told}, where the references give them 50%: a lift of +0 points." in warnings(given, attacks=attacks, references=truth)
    assert f"{told}." in warnings(given, attacks=attacks)
    assert not any("seem to talk" in one for one in warnings(given, attacks=attacks, is_rule=True))


def test_the_rule_itself_is_not_measured_against_the_references() -> None:
    given, truth = lines("x>y", "x>y", "x=y"), lines("x>y", "x<y", "x>y")
    found = reading(given, references=truth)
    assert found["reference_agreement"] == {"agreement": pytest.approx(1 / 3), "ci95": intervals.of_mean([1.0, 0.0, 0.0]), "n": 3}
    assert found["able"] is False
    rule = reading(given, references=truth, is_rule=True)
    assert (rule["reference_agreement"], rule["able"]) == (None, None)
    assert reading(given)["able"] is None and reading(given)["reference_agreement"] is None
    low, high = found["reference_agreement"]["ci95"]
    assert found["warnings"][0] == f"This judge is not able: it agrees with the references in 33% ({low:.0%} to {high:.0%}) of 3 pairs."


def test_the_widest_interval_says_how_much_evidence_is_missing() -> None:
    given = both(10, 10)
    found = reading(given)
    widest = max((one for one in found["ci95"].values()), key=lambda pair: pair[1] - pair[0])
    assert found["more_needed"] == intervals.more_needed(widest, 20) and found["enough"] is False
    assert found["warnings"][-1] == f"Not enough evidence: about {found['more_needed']} more prompts for ± 10 points."
    assert found["pairwise"] == ratings.pairs(ratings.Table.of(verdicts.games(given)))
    nothing = reading(lines("x?y"))
    assert nothing["pairwise"] == [] and nothing["pairs"] == 1 and nothing["warnings"][-1].startswith("Not enough evidence: about 97 more")
    plenty = reading(both(0, 0, consistent=400))
    assert (plenty["enough"], plenty["more_needed"], plenty["pairs"]) == (True, 0, 400)


# MAUVE


def test_mauve_of_histograms_is_the_area_under_the_divergence_frontier() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.25, 0.5])
    points = [(1.0, 0.0)]
    for weight in np.linspace(1e-6, 1 - 1e-6, 25):
        mixture = weight * p + (1 - weight) * q
        divergence = [sum(a * math.log(a / b) for a, b in zip(one, mixture, strict=True) if a > 0) for one in (q, p)]
        points.append((math.exp(-5 * divergence[0]), math.exp(-5 * divergence[1])))
    points.append((0.0, 1.0))
    area = sum((x0 - x1) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in itertools.pairwise(points))
    assert mauve.of_histograms(p, q) == pytest.approx(area, abs=1e-12)
    assert mauve.of_histograms(q, p) == pytest.approx(area, abs=1e-9)
    assert mauve.of_labels([0, 0, 1, 1], [0, 1, 2, 2], 3) == pytest.approx(area, abs=1e-12)
    assert [mauve.number_of_clusters(*sizes) for sizes in ((100, 500), (14, 90), (26, 26), (4, 9))] == [10, 2, 3, 2]
