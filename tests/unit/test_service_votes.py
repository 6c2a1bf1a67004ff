"""Votes, leaderboards and judgements as services keep them: which pair is next, who counts, what a judgement will take."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from studio.db.models import AdapterRow, AnswerRow, ComparisonRow, DatasetRow, JobRow, JudgementRow, MetricRow, VerdictRow
from studio.errors import StudioError
from studio.evaluation import judging as templates
from studio.evaluation import ratings as figures
from studio.evaluation.verdicts import VerdictLine
from studio.services import Studio, ratings
from tests.stores import add


@pytest.fixture
def studio(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """The leaderboard is computed in this process."""

    def child(module: str, options: dict[str, Any], cache: Any) -> dict[str, Any]:
        assert options["do"] == "leaderboard"
        return figures.leaderboard(VerdictLine(*line) for line in options["verdicts"])

    monkeypatch.setattr(ratings, "run_child", child)
    return studio


def compare(studio: Studio, prompts: int = 6, contestants: tuple[str, ...] = ("x", "y"), name: str = "c", **values: Any) -> ComparisonRow:
    asked = [{"id": str(n), "turns": [[{"role": "user", "content": "q" * 10}]], "reference": "r"} for n in range(prompts)]
    row = ComparisonRow(**{"name": name, "base_model": "starter", "contestants": list(contestants), "prompts": asked, **values})
    add(studio, row)
    given = [
        AnswerRow(comparison_id=row.id, prompt_id=str(n), contestant=who, text=f"{who} says {n}", seconds=1.0 + n, completion_tokens=4)
        for n in range(prompts)
        for who in contestants
    ]
    add(studio, *given)
    return row


def verdict(row: ComparisonRow, prompt: int, winner: str, rater: str = "j", a: str = "x", b: str = "y", **values: Any) -> VerdictRow:
    return VerdictRow(**{"comparison_id": row.id, "rater": rater, "prompt_id": str(prompt), "a": a, "b": b, "winner": winner, **values})


# ballots


def test_every_third_ballot_is_of_the_pairs_that_everybody_is_shown(studio: Studio) -> None:
    row = compare(studio, prompts=9)
    shown: dict[str, list[str]] = {}
    for voter in ("ann", "bob"):
        while (ballot := studio.ratings.ballot("c", voter)).left is not None:
            assert ballot.voted + 1 == len(shown.get(voter, ())) + 1 and ballot.total == 9 and ballot.prompt is not None
            shown.setdefault(voter, []).append(ballot.prompt["id"])
            studio.ratings.vote("c", voter, ballot.ballot, "left")
        assert (ballot.voted, ballot.total, ballot.ballot, ballot.prompt) == (9, 9, "", None)
    common = [pair[0] for pair in ratings._shared_pairs(row, [(str(n), "x", "y") for n in range(9)])]
    assert len(common) == 3 and sorted(shown["ann"]) == sorted(shown["bob"]) == [str(n) for n in range(9)]
    for own in shown.values():
        assert [prompt for prompt in own if prompt in common] == common, "in one order for all"
        assert [place for place, prompt in enumerate(own) if prompt in common] == [1, 4, 7] or [own.index(prompt) for prompt in common] == [
            1,
            2,
            4,
        ]


def pair(n: int) -> tuple[str, str, str]:
    return (str(n), "x", "y")


def seen(*numbers: int) -> set[Any]:
    return {ratings._unordered(pair(n)) for n in numbers}


@pytest.mark.parametrize(
    ("left", "been", "voted", "following"),
    [
        ([0, 1, 2, 3], [], {}, {2, 3}),  # none of none yet: not below a third
        ([0, 1, 3], [2], {}, {0}),
        ([1, 3, 4], [0, 2], {}, {3, 4}),
        ([1, 5], [0, 2, 3], {}, {5}),  # one of three is a third
        ([1, 5], [0, 2, 3, 4], {}, {1}),
        ([0, 1], [2, 3], {}, {0}),
        ([2, 3, 4], [], {2: 1, 4: 1}, {3}),
        ([2, 3], [0, 1], {2: 5, 3: 5}, {2, 3}),
    ],
)
def test_which_pair_is_next(left: list[int], been: list[int], voted: dict[int, int], following: set[int]) -> None:
    votes = Counter({ratings._unordered(pair(n)): count for n, count in voted.items()})
    found = {int(ratings._next_pair([pair(0), pair(1)], [pair(n) for n in left], seen(*been), votes)[0]) for _ in range(40)}
    assert found == following


@pytest.mark.parametrize(
    ("votes", "chance"),
    [([], 1 / 2), ([("x", "y")], 1 / 3), ([("y", "x")], 2 / 3), ([("x", "y"), ("y", "x")], 1 / 2), ([("x", "z")], 1 / 2)],
)
def test_whoever_was_on_the_left_less_often_is_there_now(
    monkeypatch: pytest.MonkeyPatch, votes: list[tuple[str, str]], chance: float
) -> None:
    placed = []
    for drawn in (chance - 0.001, chance + 0.001):
        monkeypatch.setattr(random, "random", lambda drawn=drawn: drawn)
        placed.append(ratings._placed(["x", "y"], [("1", *vote) for vote in votes]))
    assert placed == [["x", "y"], ["y", "x"]]


def test_pairs_of_equal_or_missing_answers_are_not_shown(studio: Studio) -> None:
    row = compare(studio, prompts=2, contestants=("x", "y", "z"))
    answers = {("0", "x"): "a", ("0", "y"): "a", ("0", "z"): "b", ("1", "x"): "a"}
    assert ratings._pairs(row, answers) == [("0", "x", "z"), ("0", "y", "z")]
    assert [len(ratings._shared_pairs(row, [pair(n) for n in range(count)])) for count in (1, 3, 4, 6, 7)] == [1, 1, 2, 2, 3]
    assert ratings._whole(["one"]) == "one" and ratings._whole(["one", "two"]) == "Turn 1:\none\n\nTurn 2:\ntwo"


def test_a_vote_is_sealed_to_its_voter_and_replaced_by_the_next(studio: Studio) -> None:
    row = compare(studio, prompts=1)
    ballot = studio.ratings.ballot("c", " ann ")
    texts = {"x says 0": "x", "y says 0": "y"}
    for given, said in (
        (("bob", ballot.ballot, "left"), "not of this voter"),
        (("ann", "x" * 32, "left"), "not of this voter"),
        (("ann", ballot.ballot, "up"), "can't be voted"),
    ):
        with pytest.raises(StudioError, match=said):
            studio.ratings.vote("c", *given)
    for voter in ("", "a b", "-"):
        with pytest.raises(StudioError, match="can't be a voter's name"):
            studio.ratings.ballot("c", voter)
    winners = []
    for choice in ("left", "right", "tie", "both-bad"):
        vote = studio.ratings.vote("c", "ann", ballot.ballot, choice)
        assert (vote.left, vote.right) == (texts[str(ballot.left)], texts[str(ballot.right)])
        winners.append(vote.winner)
        with studio.db.read() as session:
            (kept,) = session.query(VerdictRow)
            assert (kept.rater, kept.a, kept.b, kept.winner, kept.reply) == ("human:ann", vote.left, vote.right, vote.winner, choice)
    assert winners == ["a", "b", "tie", "tie"]
    other = ratings._sealed(row, "human:ann", "0", texts[str(ballot.right)], texts[str(ballot.left)])
    studio.ratings.vote("c", "ann", other, "left")
    with studio.db.read() as session:
        assert session.query(VerdictRow).count() == 1, "the same pair the other way round"


# who counts


def judgement(studio: Studio, row: ComparisonRow, at: float, status: str = "SUCCEEDED", able: bool | None = None) -> str:
    job = JobRow(kind="judge", name=f"job {at}", status=status)
    add(studio, job)
    (made,) = add(
        studio, JudgementRow(comparison_id=row.id, judge=f"j{at:g}", kind="model", readings={"able": able}, created_at=at, job_id=job.id)
    )
    return str(made)


def test_the_newest_judgement_counts_and_an_able_one_before_one_that_is_not(studio: Studio) -> None:
    row = compare(studio)
    with studio.db.read() as session:
        assert ratings.newest_judgement(session, row) is None
    for at, status, able, newest in (
        (3.0, "SUCCEEDED", False, 0),
        (1.0, "SUCCEEDED", None, 1),
        (2.0, "SUCCEEDED", True, 2),
        (9.0, "RUNNING", True, 2),
        (8.0, "SUCCEEDED", False, 2),
    ):
        made = judgement(studio, row, at, status, able)
        with studio.db.read() as session:
            found = session.get_one(JudgementRow, ratings.newest_judgement(session, row))
        assert found.created_at == {0: 3.0, 1: 1.0, 2: 2.0}[newest], made


def test_a_leaderboard_is_of_votes_and_the_newest_judge(studio: Studio) -> None:
    row = compare(studio)
    old, new = judgement(studio, row, 1.0), judgement(studio, row, 2.0)
    add(
        studio,
        verdict(row, 0, "a", judgement_id=new),
        verdict(row, 0, "a", judgement_id=new, a="y", b="x"),
        verdict(row, 1, "a", judgement_id=new),
        verdict(row, 2, "b", judgement_id=old),
        verdict(row, 3, "b", judgement_id=new, is_probe=True),
        verdict(row, 4, "b", rater="human:ann"),
    )
    found = studio.ratings.leaderboard(["c"])
    assert {one.name: (one.games, one.win_rate) for one in found.contestants} == {
        "x": (3, pytest.approx(0.5)),
        "y": (3, pytest.approx(0.5)),
    }
    people = studio.ratings.leaderboard(human_only=True)
    assert {one.name: one.win_rate for one in people.contestants} == {"x": 0.0, "y": 1.0} and people.comparisons == [row.id]
    assert studio.ratings.leaderboard([compare(studio, name="empty").name]).contestants == []


def test_names_are_whole_where_bases_are_mixed_and_data_chooses_the_comparisons(studio: Studio) -> None:
    add(studio, DatasetRow(id="d1", name="rows", kind="sft", format="x", rows=1))
    one, two = (
        compare(studio, name="one", contestants=("base", "a"), dataset_id="d1"),
        compare(studio, name="two", base_model="other", contestants=("other", "b:c")),
    )
    add(studio, verdict(one, 0, "a", rater="human:ann", a="base", b="a"), verdict(two, 0, "a", rater="human:ann", a="other", b="b:c"))
    names = {one.name for one in studio.ratings.leaderboard().contestants}
    assert names == {"starter", "starter:a", "other", "b:c"}
    assert {one.name for one in studio.ratings.leaderboard(data="rows").contestants} == {"base", "a"}
    assert [ratings._name_among(name, one, True) for name in ("starter", "http://x#m")] == ["starter", "http://x#m"]


def test_facts_of_contestants(studio: Studio) -> None:
    row = compare(studio, prompts=2, contestants=("x", "mine"))
    (job,) = add(studio, JobRow(kind="train", name="run", status="SUCCEEDED", attempt=1, started_at=10.0, ended_at=25.0))
    add(studio, AdapterRow(name="mine", base_model="starter", method="lora", job_id=job, path="/a", bytes=77))
    with studio.db.write() as session:
        for step, values in ((1, {"eval_loss": 3.0}), (2, {"loss": 2.0})):
            session.add(MetricRow(job_id=job, kind="eval", step=step, attempt=1, values=values))
    add(studio, verdict(row, 0, "a", rater="human:ann", b="mine"))
    found = {one.name: one for one in studio.ratings.leaderboard(["c"], with_facts=True).contestants}
    mine = found["mine"]
    assert (mine.bytes, mine.job, mine.training, mine.training_seconds, mine.eval_loss) == (77, job, "run", 15.0, 2.0)
    assert (mine.seconds_per_answer, mine.tokens_per_answer, found["x"].bytes) == (1.5, 4.0, None)
    assert ratings._mean([]) is None


def test_raters_are_compared_by_pair_over_both_orders(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[Any] = [
        ("1", "x", "y", "a", "j"), ("1", "y", "x", "b", "j"), ("2", "x", "y", "a", "j"), ("2", "y", "x", "a", "j"), ("3", "y", "x", "a", "j"),
        ("4", "x", "y", "invalid", "j"), ("5", "x", "y", "a", "j"), ("5", "y", "x", "tie", "j"),
    ]  # fmt: skip
    assert ratings._per_pair(lines) == [
        ("1", "x", "y", "a", "j"),
        ("2", "x", "y", "tie", "j"),
        ("3", "x", "y", "b", "j"),
        ("5", "x", "y", "a", "j"),
    ]
    row = compare(studio)
    assert studio.ratings.agreement("c").pairs == []
    asked: list[Any] = []
    monkeypatch.setattr(ratings, "run_child", lambda module, options, cache: asked.append(options) or {"pairs": [], "majority": {}})
    old, new = judgement(studio, row, 1.0), judgement(studio, row, 2.0)
    add(
        studio,
        verdict(row, 0, "a", "old", judgement_id=old),
        verdict(row, 0, "a", "new", judgement_id=new),
        verdict(row, 0, "b", "human:ann"),
    )
    studio.ratings.agreement("c")
    studio.ratings.agreement("c")
    assert [line[4] for line in asked[0]["verdicts"]] == ["human:ann", "new", "old"] and len(asked) == 1, "figures are kept"
    for n in range(32):
        studio.ratings._figures("agreement", [("1", "x", "y", "a", str(n))])
    studio.ratings.agreement("c")
    assert len(asked) == 34 and len(studio.ratings._made) == 32


# judgements


def test_what_a_judgement_will_take(studio: Studio) -> None:
    row = compare(studio, prompts=2, contestants=("x", "y", "z"))
    characters = sum(len(f"{who} says {n}") for n in range(2) for who in "xyz")
    rule = studio.judging.estimate("c", "reference")
    assert (rule.questions, rule.prompt_tokens, rule.completion_tokens, rule.seconds) == (12, 0, 0, 0.0)
    frame = sum(map(len, templates.get("brief").templates["plain"].values()))
    tokens = -(-(2 * 2 * characters + 12 * (frame + 10)) // 4)
    own = studio.judging.estimate("c", "starter")
    assert (own.prompt_tokens, own.completion_tokens, own.seconds) == (tokens, 12 * 4, None), "512 tokens of context: in few words"
    far = studio.judging.estimate("c", "http://far/v1#m", template="mt-bench")
    assert far.completion_tokens == 12 * 2048
    add(
        studio, verdict(row, 0, "a", "other", seconds=3.0, prompt_tokens=100), verdict(row, 1, "a", "other", seconds=1.0, prompt_tokens=100)
    )
    add(
        studio,
        verdict(row, 0, "a", "kept", seconds=900.0, prompt_tokens=100, is_cached=True),
        verdict(row, 1, "a", "human:ann", seconds=70.0),
    )
    assert studio.judging.estimate("c", "starter").seconds == round(0.02 * tokens / 4, 1)
    add(studio, verdict(row, 0, "a", "starter", seconds=8.0, prompt_tokens=100))
    assert studio.judging.estimate("c", "starter").seconds == round(0.08 * tokens / 4, 1)
    panel = studio.judging.estimate("c", "reference, starter")
    assert (panel.judge, panel.questions, panel.prompt_tokens, panel.seconds) == (
        "reference,starter",
        24,
        tokens,
        round(0.08 * tokens / 4, 1),
    )


@pytest.mark.parametrize(
    ("judge", "values", "said"),
    [
        ("reference,reference", {}, "is no panel of judges"),
        ("reference,", {}, "is no panel of judges"),
        (",".join(["reference", *(f"http://far/v1#m{n}" for n in range(9))]), {}, "Name 2 to 9 different judges"),
        ("reference", {"criteria": "x"}, "follows no criteria"),
        ("likelihood:starter", {"criteria": "x"}, "follows no criteria"),
        ("likelihood:http://far/v1#m", {}, "needs a model of this machine"),
        ("reference", {"template": "pair"}, "no template fits it"),
        ("reference,likelihood:starter", {"template": "pair"}, "no template fits them"),
        ("starter", {"template": "x"}, "no judge template"),
    ],
)
def test_what_no_judge_can_do(studio: Studio, judge: str, values: dict[str, Any], said: str) -> None:
    compare(studio)
    with pytest.raises(StudioError) as caught:
        studio.judging.judge("c", judge, **values)
    assert said in f"{caught.value.message} {caught.value.fix}"


def test_who_is_asked_and_when(studio: Studio) -> None:
    (answering,) = add(studio, JobRow(kind="compare", name="answering", status="RUNNING"))
    row = compare(studio, job_id=answering)
    made = studio.judging.judge("c", ",".join(["reference", *(f"http://far/v1#m{n}" for n in range(8))]))
    with studio.db.read() as session:
        job = session.get_one(JobRow, made.job)
        assert (job.kind, job.queue, job.after_id, job.name) == ("judge", "light", answering, f"judge-{made.id}")
        assert [one["judge"] for one in job.config["members"]] == ["reference", *(f"http://far/v1#m{n}" for n in range(8))]
    listed = studio.judging.list("c")
    assert [one.judge for one in listed][:2] == [made.judge, "reference"] and [one.member_of for one in listed] == [None, *[made.id] * 9]
    alone = compare(studio, name="alone", contestants=("x",))
    bare = compare(studio, name="bare")
    with studio.db.write() as session:
        session.get_one(ComparisonRow, bare.id).prompts = [{"id": "0", "turns": [[{"role": "user", "content": "q"}]]}]
    for name, judge, said in ((alone.name, "reference", "has one contestant only"), (bare.name, "reference", "has no references")):
        with pytest.raises(StudioError, match=said):
            studio.judging.judge(name, judge)
    add(studio, *(verdict(row, n, "a", judgement_id=made.id) for n in range(4)))
    assert [one.prompt_id for one in studio.judging.verdicts(made.id, offset=1, limit=2)] == ["1", "2"]
    assert [one.prompt_id for one in studio.judging.verdicts(made.id, prompt="3")] == ["3"]
