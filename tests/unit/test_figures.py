"""Figures that are only shown: win rates, intervals, counts, savings. Each expected value is worked out by hand or published."""

from __future__ import annotations

import pytest

from jobs.compress import recommend
from studio.compress import budget
from studio.evaluation import agreement, intervals, judging, metrics, ratings, readings, verdicts
from studio.evaluation.__main__ import contestant
from studio.evaluation.verdicts import VerdictLine
from studio.records import JobProgress, JobStatus, Report, ReportCounts, ReportJudgement
from studio.services import savings
from studio.ui import measured, words

# p1: x wins both orders; p2: y wins both; p3: the first one wins (split); p4: x and a tie; p5: one order only, x; p6: no verdict
VERDICTS = "p1 x y a, p1 y x b, p2 x y b, p2 y x a, p3 x y a, p3 y x a, p4 x y a, p4 y x tie, p5 x y a, p6 x y invalid, p6 y x a"
LINES = [VerdictLine(*line.split(), "j") for line in VERDICTS.split(", ")]
# scores of x by prompt: 1, 0, 0.5, 0.75, 1, and of p6 the valid order: 0
X_RATE = (1 + 0 + 0.5 + 0.75 + 1 + 0) / 6
LENGTHS = {(f"p{n}", name): length for n in range(1, 7) for name, length in (("x", 10 + n), ("y", 10))}


def test_each_contestant_has_its_own_win_rate_in_ratings() -> None:
    found = {row["name"]: row for row in ratings.leaderboard(LINES)["contestants"]}
    assert found["x"]["win_rate"] == pytest.approx(X_RATE) and found["y"]["win_rate"] == pytest.approx(1 - X_RATE)
    assert found["x"]["games"] == found["y"]["games"] == 6
    x, y = found["x"]["ci95"], found["y"]["ci95"]
    assert y == pytest.approx([1 - x[1], 1 - x[0]], abs=0.03) and y[0] < 1 - X_RATE < y[1]


def test_each_contestant_has_its_own_win_rate_in_readings() -> None:
    found = readings.read(readings.ReadingsInput(LINES, LENGTHS, ["y", "x", "z"], categories={"p1": "math", "p2": "math", "p5": "art"}))
    assert found["win_rate"] == pytest.approx({"x": X_RATE, "y": 1 - X_RATE, "z": None})
    assert found["ci95"]["z"] is None and found["ci95"]["y"][0] < 1 - X_RATE < found["ci95"]["y"][1]
    assert found["pairs"] == 6 and found["invalid"] == 1 and found["missing_orders"] == 1
    assert found["categories"]["math"]["win_rate"] == {"x": 0.5, "y": 0.5, "z": None} and found["categories"]["math"]["games"] == 2
    assert found["categories"]["art"]["win_rate"] == {"x": 1.0, "y": 0.0, "z": None}


def test_what_the_order_and_the_length_did() -> None:
    place = verdicts.position(LINES)
    # decisive: all but the tie and the invalid one; the first one wins p1, p2, p3 twice, p4, p5, p6
    assert place.first_win_rate == pytest.approx(7 / 9)
    assert place.swap_consistency == 2 / 4 and place.both_orders == 4  # of p1 to p4; p6 has one valid order
    assert (place.missing_orders, place.invalid) == (1, 1)
    # x is longer everywhere; it wins 2 of p1, 0 of p2, 1 of p3, 1 of p4 (the tie aside), 1 of p5, 0 of p6
    assert readings.longer_win_rate(LINES, LENGTHS) == pytest.approx(5 / 9)
    assert readings.longer_win_rate(LINES, {}) is None


def test_the_longest_answer_as_a_judge_and_a_constant_answer() -> None:
    truth = [
        VerdictLine("p1", "x", "y", "a"),
        VerdictLine("p2", "y", "x", "a"),
        VerdictLine("p3", "x", "y", "tie"),
        VerdictLine("p4", "y", "x", "a"),
    ]
    probes = [
        VerdictLine("p1", "x", readings.CONSTANT, "b"),
        VerdictLine("p1", readings.CONSTANT, "x", "a"),
        VerdictLine("p2", "x", readings.CONSTANT, "a"),
        VerdictLine("p3", readings.CONSTANT, "x", "a"),
    ]
    found = readings.read(readings.ReadingsInput(LINES, LENGTHS, ["x", "y"], references=truth, probes=probes))
    # where the references decide: the judge is right on p1 and p2, wrong on p4 (it leans to x); the longest (x) is right on p1 only
    assert (found["reference_agreement"]["agreement"], found["reference_agreement"]["n"]) == (pytest.approx(2 / 3), 3)
    assert found["able"] is False
    longest = found["baselines"]["longest"]["references"]
    assert (longest["agreement"], longest["n"]) == (pytest.approx(1 / 3), 3)
    own = found["baselines"]["longest"]["judge"]
    assert (own["agreement"], own["n"]) == (pytest.approx(3 / 5), 5)  # the judge decides all but p3; x on p1, p4, p5
    assert (found["baselines"]["constant_answer"]["win_rate"], found["baselines"]["constant_answer"]["n"]) == (pytest.approx(2 / 3), 3)
    assert found["length_controlled_win_rate"]["x"] == pytest.approx(1 - found["length_controlled_win_rate"]["y"], abs=0.02)


def test_a_judge_at_the_limit_is_able() -> None:
    def read(right: int) -> bool | None:
        lines = [VerdictLine(str(n), "x", "y", "a" if n < right else "b") for n in range(10)]
        truth = [VerdictLine(str(n), "x", "y", "a") for n in range(10)]
        able: bool | None = readings.read(readings.ReadingsInput(lines, {}, ["x", "y"], references=truth))["able"]
        return able

    assert (read(7), read(6)) == (True, False)


def test_intervals_are_the_published_ones() -> None:
    # Wilson 1927, 8 of 10; Hesterberg 2015, 3.4: Phi(t(n - 1) * sqrt(n / (n - 1))), so -2.2622 * 1.0541 for 10
    assert intervals.wilson(0.8, 10) == pytest.approx([0.4901, 0.9433], abs=1e-4)
    assert [round(intervals.percentiles(n)[0], 2) for n in (10, 20, 1000)] == [0.86, 1.59, 2.48]
    assert sum(intervals.percentiles(10)) == 100
    assert intervals.of_mean([0.0, 1.0] * 200) == pytest.approx([0.451, 0.549], abs=0.006)  # 0.5 -+ 1.96 * 0.5 / 20
    # two scores of each prompt are one observation
    twice = intervals.of_mean([0.0, 0.0, 1.0, 1.0] * 25, [n // 2 for n in range(100)])
    assert twice == pytest.approx(intervals.of_mean([0.0, 1.0] * 25), abs=1e-9)


def test_how_many_prompts_more_would_do() -> None:
    assert intervals.more_needed([0.3, 0.7], 20) == 60  # half as wide takes four times as many
    assert intervals.more_needed([0.4, 0.6], 90) == 0 and intervals.more_needed([0.39, 0.61], 100) == 21
    found = readings.read(readings.ReadingsInput([VerdictLine("1", "x", "y", "invalid")], {}, ["x", "y"]))
    assert (found["more_needed"], found["enough"]) == (97, False)


def test_pairs_of_contestants_are_tested_by_sign() -> None:
    lines = [VerdictLine(str(n), *(("x", "y") if n % 2 else ("y", "x")), "a" if n % 2 else "b") for n in range(8)]  # x wins all eight
    (row,) = ratings.pairs(ratings.Table.of(verdicts.games([*lines, VerdictLine("t", "x", "y", "tie")])))
    assert (row["a"], row["b"], row["games"]) == ("x", "y", 9) and row["score"] == pytest.approx(8.5 / 9)
    assert row["p"] == pytest.approx(2 / 2**8) and row["differs"]


def test_kappa_and_shares_of_two_raters() -> None:
    said = {"one": "aaaabbbtt", "two": "aaabbbbta"}
    lines = [VerdictLine(str(n), "x", "y", "tie" if w == "t" else w, who) for who, text in said.items() for n, w in enumerate(text)]
    (pair,) = agreement.agreement(lines)["pairs"]
    share, chance = 7 / 9, (4 * 4 + 3 * 4 + 2 * 1) / 81
    assert (pair["agreement"], pair["n"]) == (pytest.approx(share), 9)
    assert pair["kappa"] == pytest.approx((share - chance) / (1 - chance))


def test_the_majority_needs_more_than_half() -> None:
    said = {"one": "aab", "two": "abb", "three": "abt"}
    lines = [VerdictLine(str(n), "x", "y", "tie" if w == "t" else w, who) for who, text in said.items() for n, w in enumerate(text)]
    two = agreement.agreement(lines, ["one", "two"])["majority"]  # a, split, b
    assert two["three"]["accuracy"] == pytest.approx(1 / 3) and two["one"]["accuracy"] == pytest.approx(2 / 3)
    three = agreement.agreement(lines, ["one", "two", "three"])["majority"]  # a, b, b
    assert [three[who]["accuracy"] for who in said] == pytest.approx([2 / 3, 1.0, 2 / 3])
    assert three["three"]["n"] == 3


def test_words_in_common() -> None:
    # 2 of 4 words are wanted, 2 of 2 wanted ones are there: 2 * 2 / (4 + 2)
    assert metrics.token_f1("cat sat down today", ["cat sat"]) == pytest.approx(2 / 3)
    assert metrics.token_f1("cat sat", ["dog", "the cat sat"]) == 1.0


def test_figures_of_answers() -> None:
    found = contestant({"texts": ["a", " ", "b"], "pairs": [], "errors": 2, "seconds": [1.0, 2.0, 6.0], "tokens": [1, 0, 5]})
    assert (found["answers"], found["errors"], found["empty"], found["seconds"], found["tokens"], found["n"]) == (3, 2, 1, 3.0, 2.0, 0)


def test_savings_follow_from_the_speeds() -> None:
    # reading: 0.1 ms a token; 200 tokens fewer save 0.02 s, compressing took 0.02 s, of which 0.01 s whatever the length
    found = savings.predict((400, 0.04), (200, 0.02), 0.02)
    assert found.saved_s == pytest.approx(0.0) and found.read_s_per_token == pytest.approx(0.0001)
    # per token of the original 0.05 ms are saved and 0.025 ms spent: 0.01 s are earned back after 400 tokens
    assert found.break_even_tokens == 400 and found.compress_s == 0.02
    assert savings.predict((4000, 4.0), (2000, 2.0), 0.41).saved_s == pytest.approx(1.59)
    assert savings.predict((100, 1.0), (100, 1.0), 0.1).saved_s is None
    assert savings.predict((100, 1.0), (0, 0.0), 0.1).saved_s is None


def test_the_tolerance_of_a_sweep_is_inclusive_and_stops_at_the_first_loss() -> None:
    points = [{"rate": rate, "exact_match": score} for rate, score in ((0.25, 1.0), (0.4, 0.25), (0.6, 0.75), (1.0, 1.0))]
    assert recommend(points, "exact_match", 0.25) == {"recommended": 0.6, "whole": 1.0}
    assert recommend(points, "exact_match", 0.2)["recommended"] == 1.0


def test_a_target_just_exceeded_is_searched_on() -> None:
    # the first try is 5 of 1000 tokens above what was wanted: near enough for a rate, too much for a target
    def attempt(inner: float) -> tuple[int, float]:
        return (405 if inner >= 0.4 else 395), inner

    tokens, _, inner = budget.meet(attempt, 400, 1000, first=0.4, at_most=True)
    assert tokens == 395 and inner < 0.4
    assert budget.meet(attempt, 400, 1000, first=0.4)[0] == 405
    assert budget.meet(lambda inner: (500, inner), 400, 1000, first=0.4, at_most=True)[0] == 500, "nothing below it: what there is"
    assert budget.meet(lambda inner: (390 if inner < 0.4 else 405, inner), 400, 1000, first=0.5, at_most=True)[0] == 390, (
        "390 is farther, and below"
    )


def test_scores_of_single_answers_and_the_rule_decide_for_the_better_one() -> None:
    assert [judging.by_rating(8, 3), judging.by_rating(3, 8), judging.by_rating(4, 4)] == ["a", "b", "tie"]
    assert judging.by_reference("Lima", "Lima!", "Lima") == "a" and judging.by_reference("Lima!", "Lima", "Lima") == "b"
    assert judging.by_reference("Lima", " Lima ", "Lima") == "tie"


def test_a_report_counts_what_the_run_won_and_lost() -> None:
    found = Report(
        job="1",
        training="2",
        comparison="3",
        status=JobStatus.SUCCEEDED,
        reason="",
        fix="",
        progress=JobProgress(step=3, max_steps=4, eta_s=None),
        created_at=0.0,
        ended_at=1.0,
        metrics={},
        rows=6,
        counts=ReportCounts(wins=3, losses=1, ties=2),
        judge=ReportJudgement(judge="reference", win_rate=0.75, ci95=[0.5, 0.9]),
        adapter="mine",
        base="base",
        wins=[],
        losses=[],
    )
    shown = measured.report(found)
    assert shown is not None and shown["part"] == 0.75
    assert "it won 3, lost 1, 2 were equal" in shown["sentence"]
    assert shown["wins"] == [{"name": "mine", "share": 0.75, "low": 0.5, "high": 0.9, "text": "wins 75 % (50 % to 90 %)"}]


def test_shares_round_to_all_only_when_it_is_all() -> None:
    assert [words.share(part) for part in (0.0, 0.034, 0.0999, 0.1, 0.996, 1.0, None)] == [
        "0 %",
        "3.4 %",
        "10.0 %",
        "10 %",
        "99 %",
        "100 %",
        "",
    ]
    assert words.share_with_interval(0.5, [0.25, 0.75]) == "50 % (25 % to 75 %)" and words.share_with_interval(0.5, None) == "50 %"
