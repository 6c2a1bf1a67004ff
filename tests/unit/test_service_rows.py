"""Comparisons, preferences and jobs as services keep and show them: what counts, what is left out, in which order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from studio.db.models import AnswerRow, ComparisonRow, DatasetRow, JobRow, JudgementRow, MetricRow, VerdictRow
from studio.errors import NotFoundError, StudioError
from studio.evaluation.verdicts import SWAPPED
from studio.records import MetricPoint, PreferenceSource
from studio.services import Studio, comparisons, job_records, jobs, merging, preferences
from studio.services.forecast import Span
from studio.services.paging import Page
from tests.stores import add


def prompt(name: str, reference: str | None = None, turns: int = 1) -> dict[str, Any]:
    made: dict[str, Any] = {"id": name, "turns": [[{"role": "user", "content": f"{name}?"}]] * turns}
    return made if reference is None else {**made, "reference": reference}


def comparison(studio: Studio, *prompts: dict[str, Any], name: str = "c", **values: Any) -> ComparisonRow:
    row = ComparisonRow(**{"name": name, "base_model": "starter", "contestants": ["x", "y"], "prompts": list(prompts), **values})
    add(studio, row)
    return row


def answer(row: ComparisonRow, name: str, who: str, text: str, error: str = "") -> AnswerRow:
    return AnswerRow(comparison_id=row.id, prompt_id=name, contestant=who, text=text, seconds=1.0, error=error)


# comparisons


def test_exact_match_is_of_answers_with_references_and_essays_are_left_out(studio: Studio) -> None:
    essay = "w" * 201
    row = comparison(studio, prompt("1", "a"), prompt("2", "b"), prompt("3", essay), prompt("4"), prompt("5", "e"))
    add(
        studio,
        answer(row, "1", "x", "a"),
        answer(row, "2", "x", "no"),
        answer(row, "3", "x", "no"),
        answer(row, "4", "x", "a"),
        answer(row, "5", "x", "e", "too long"),
    )
    add(studio, answer(row, "3", "y", "no"))
    shown = studio.comparisons.show("c")
    assert {name: (one.exact_match, one.n, one.left_out, bool(one.reason)) for name, one in shown.scores.items()} == {
        "x": (0.5, 2, 1, False),
        "y": (None, 0, 1, True),
    }
    assert [one.text for one in shown.answers] == ["a", "no", "no", "a", "", "no"], "the text of an answer that failed is none"
    with studio.db.write() as session:
        session.query(AnswerRow).filter_by(prompt_id="3", contestant="y").one().text = essay
    assert {name: (one.exact_match, one.n, one.left_out) for name, one in studio.comparisons.show("c").scores.items()} == {
        "x": (pytest.approx(1 / 3), 3, 0),
        "y": (1.0, 1, 0),
    }


@pytest.mark.parametrize(
    ("turns", "asked", "fault"),
    [
        (["a"], 1, ""),
        (["a", "b"], 2, ""),
        ([], 1, "The file has no answer to this prompt."),
        (["a", " $ERROR$ "], 2, "Turn 2 of 2 failed: the file holds $ERROR$ in its place."),
        (["a"], 2, "The file has 1 of 2 answers, one for each turn."),
        (["a", "b"], 1, "The file has 2 of 1 answers, one for each turn."),
    ],
)
def test_answers_made_elsewhere_are_whole_or_none(turns: list[str], asked: int, fault: str) -> None:
    made = comparisons._ready("c", "file:x", "1", turns, asked)
    assert (made.error, made.text, made.turns, made.seconds) == (fault, "" if fault else turns[-1], turns, 0.0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"contestants": []}, "No contestant is named"),
        ({}, "No prompt is given"),
        ({"prompts": []}, "No prompt is given"),
        ({"prompts": [{"prompt": "x"}], "questions": "vicuna"}, "several places at once"),
        ({"questions": "vicunas"}, "There are no questions 'vicunas'"),
        ({"held_out": "nothing"}, "There is no training 'nothing'"),
        ({"prompts": [{"prompt": "x"}], "name": "c"}, "The name 'c' is taken"),
        ({"prompts": [{"prompt": "x"}], "contestants": ["file:/no"]}, "is not there"),
    ],
)
def test_what_cannot_be_compared(studio: Studio, values: dict[str, Any], said: str) -> None:
    comparison(studio, prompt("1"))
    with pytest.raises(StudioError) as caught:
        studio.comparisons.create(**{"base_model": "starter", "contestants": ["base"], **values})
    assert said in caught.value.message


def test_a_comparison_is_greedy_and_takes_answers_from_a_file(studio: Studio, tmp_path: Path) -> None:
    file = tmp_path / "far.jsonl"
    file.write_text('{"id": "1", "answer": "a"}\n')
    made = studio.comparisons.create(
        base_model="starter", contestants=["base", f"file:{file}", "base"], prompts=[{"prompt": "x"}, {"prompt": "y"}]
    )
    assert made.contestants == ["base", f"file:{file}"] and (made.params.temperature, made.params.max_new_tokens) == (0.0, 128)
    assert [(one.prompt_id, one.text, bool(one.error)) for one in made.answers] == [("1", "a", False), ("2", "", True)]
    again = studio.comparisons.create(base_model="starter", contestants=["base"], questions="vicuna", params={"temperature": 0.5})
    assert (again.name, again.prompt_count, again.params.temperature, made.name) == ("comparison-2", 80, 0.5, "comparison")
    assert [one.name for one in studio.comparisons.list()] == ["comparison-2", "comparison"]
    with pytest.raises(StudioError, match="is still being answered"):
        studio.comparisons.delete("comparison")
    with studio.db.write() as session:
        job = session.get_one(JobRow, made.job)
        assert (job.kind, job.queue, job.name) == ("compare", "light", f"compare-{made.id}")
        job.status = "CANCELLED"
    assert studio.comparisons.delete("comparison").id == made.id
    with studio.db.read() as session:
        assert session.query(AnswerRow).count() == 0
    with pytest.raises(NotFoundError, match="There is no comparison 'comparison'"):
        studio.comparisons.show("comparison")
    studio.comparisons.adapters.models.at_terminal = False
    with pytest.raises(StudioError, match="can't be named here"):
        studio.comparisons.create(base_model="starter", contestants=[f"file:{file}"], prompts=[{"prompt": "x"}])
    uploaded = studio.comparisons.create(
        base_model="starter", contestants=["file:far"], prompts=[{"prompt": "x"}], files={"file:far": file}
    )
    assert [one.text for one in uploaded.answers] == ["a"]


def test_a_job_that_is_gone_is_done_and_a_report_names_its_training(studio: Studio) -> None:
    comparison(studio, prompt("1"))
    (shown,) = studio.comparisons.list()
    assert (shown.status, shown.reason, shown.progress.step, shown.training) == ("SUCCEEDED", "", None, None)
    (job,) = add(studio, JobRow(kind="report", name="r", status="RUNNING", step=2, max_steps=4, eta_s=1.0, config={"training": "t1"}))
    comparison(studio, prompt("1"), name="d", job_id=job)
    one = next(one for one in studio.comparisons.list() if one.name == "d")
    assert (one.status, one.progress.step, one.progress.max_steps, one.training) == ("RUNNING", 2, 4, "t1")


# preferences


def judged(studio: Studio, row: ComparisonRow, *said: tuple[str, str], rater: str = "judge", orders: int = 2) -> None:
    """(prompt, winner among a, b, tie, invalid, and "split" where the orders differ) of one judge."""
    job = JobRow(kind="judge", name=f"judge {rater}", status="SUCCEEDED")
    add(studio, job)
    (judgement,) = add(studio, JudgementRow(comparison_id=row.id, judge=rater, kind="model", job_id=job.id))
    for name, winner in said:
        first, second = ("a", "a") if winner == "split" else (winner, SWAPPED[winner])
        lines = [("x", "y", first), ("y", "x", second)][:orders]
        add(
            studio,
            *(
                VerdictRow(comparison_id=row.id, judgement_id=judgement, rater=rater, prompt_id=name, a=a, b=b, winner=w)
                for a, b, w in lines
            ),
        )


def vote(row: ComparisonRow, name: str, winner: str, who: str = "ann", a: str = "x", b: str = "y") -> VerdictRow:
    return VerdictRow(comparison_id=row.id, rater=f"human:{who}", prompt_id=name, a=a, b=b, winner=winner)


def pairs(
    studio: Studio, row: ComparisonRow, margin: float = 0.5, source: PreferenceSource = PreferenceSource.BOTH
) -> tuple[dict[str, Any], dict[str, int]]:
    left_out: Counter[str] = Counter()
    with studio.db.read() as session:
        found = list(preferences._pairs(session, session.get_one(ComparisonRow, row.id), margin, source, left_out))
    rows = {
        str(one.provenance["prompt_id"]): (one.provenance["chosen"], one.provenance["rejected"], one.provenance["margin"]) for one in found
    }
    return rows, dict(left_out)


def test_pairs_that_were_decided_become_preferences_and_the_others_are_counted(studio: Studio) -> None:
    row = comparison(studio, *(prompt(str(n)) for n in range(7)), prompt("two", turns=2), prompt("none"))
    for n in range(7):
        add(studio, answer(row, str(n), "x", f"x{n}"), answer(row, str(n), "y", f"y{n}"))
    add(studio, answer(row, "two", "x", "a"), answer(row, "two", "y", "b"), answer(row, "none", "x", "a"))
    with studio.db.write() as session:
        session.query(AnswerRow).filter_by(prompt_id="3", contestant="y").one().text = " x3 "
        session.query(AnswerRow).filter_by(prompt_id="4", contestant="x").one().text = " "
    judged(
        studio,
        row,
        ("0", "a"),
        ("1", "b"),
        ("2", "split"),
        ("3", "a"),
        ("4", "a"),
        ("5", "tie"),
        ("6", "invalid"),
        ("two", "a"),
        ("none", "a"),
    )
    assert pairs(studio, row) == (
        {"0": ("x", "y", 1.0), "1": ("y", "x", 1.0)},
        {
            "undecided": 2,
            "with equal answers": 1,
            "won by an empty answer": 1,
            "with several turns, whose earlier answers differ": 1,
            "without an answer": 1,
        },
    )
    made = studio.preferences.make(["c", row.id], name="chosen", min_margin=1.0)
    assert (made.rows, made.kind, made.name) == (2, "preference", "chosen")


def test_people_go_before_judges_unless_one_is_named(studio: Studio) -> None:
    row = comparison(studio, *(prompt(str(n)) for n in range(4)))
    for n in range(4):
        add(studio, answer(row, str(n), "x", f"x{n}"), answer(row, str(n), "y", f"y{n}"))
    judged(studio, row, ("0", "a"), ("1", "a"), ("2", "a"))
    add(
        studio,
        vote(row, "0", "b"),
        vote(row, "1", "a"),
        vote(row, "1", "b", "bob"),
        vote(row, "1", "a", "eve"),
        vote(row, "3", "a", a="y", b="x"),
    )
    assert pairs(studio, row)[0] == {"0": ("y", "x", 1.0), "2": ("x", "y", 1.0), "3": ("y", "x", 1.0)}
    assert pairs(studio, row, 0.3)[0]["1"] == ("x", "y", pytest.approx(1 / 3)) and "1" not in pairs(studio, row, 0.34)[0]
    assert sorted(pairs(studio, row, 0.3, PreferenceSource.HUMAN)[0]) == ["0", "1", "3"]
    assert pairs(studio, row, 0.3, PreferenceSource.JUDGE)[0] == {n: ("x", "y", 1.0) for n in "012"}
    one_order = comparison(studio, prompt("0"), name="once")
    add(studio, answer(one_order, "0", "x", "a"), answer(one_order, "0", "y", "b"))
    judged(studio, one_order, ("0", "a"), rater="hasty", orders=1)
    assert pairs(studio, one_order) == ({}, {}), "a judge that has shown one order has decided nothing"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"comparisons": ["c"], "min_margin": -0.1}, "A margin of -0.1 is impossible"),
        ({"comparisons": ["c"], "min_margin": 1.1}, "A margin of 1.1 is impossible"),
        ({"comparisons": []}, "No comparison is named"),
        ({"comparisons": ["c"]}, r"No pair was decided clearly enough \(nobody has judged or voted\)"),
    ],
)
def test_what_makes_no_preferences(studio: Studio, values: dict[str, Any], said: str) -> None:
    comparison(studio, prompt("1"))
    with pytest.raises(StudioError, match=said):
        studio.preferences.make(**values)


def test_the_worst_prompts_are_those_lost_most_clearly_then_those_nobody_got_right(studio: Studio) -> None:
    row = comparison(
        studio,
        prompt("lost", "42"),
        prompt("half"),
        prompt("won", "yes"),
        prompt("nobody", "#### 7"),
        prompt("two", "x", 2),
        prompt("right", "Lima"),
    )
    said = {
        "lost": ("no", "42"),
        "half": ("a", "b"),
        "won": ("yes", "no"),
        "nobody": ("6", "5"),
        "two": ("a", "b"),
        "right": ("in Lima", "x"),
    }
    for name, (x, y) in said.items():
        add(studio, answer(row, name, "x", x), answer(row, name, "y", y))
    judged(studio, row, ("lost", "b"), ("won", "a"), ("two", "b"), ("half", "split"))
    add(studio, vote(row, "half", "b"), vote(row, "half", "tie", "bob"))
    found = studio.preferences.worst("c", "x")
    assert [(one.prompt_id, one.question, one.answer, one.better) for one in found] == [
        ("lost", "lost?", "no", "42"),
        ("half", "half?", "a", "b"),
        ("nobody", "nobody?", "6", "#### 7"),
    ]
    assert [one.prompt_id for one in studio.preferences.worst("c", "x", limit=1)] == ["lost"]
    corrected = studio.preferences.correct("c", {"lost": " 42 ", "half": " "})
    assert (corrected.rows, corrected.name) == (1, "c-corrections")
    with pytest.raises(NotFoundError, match="has no prompt 'gone'"):  # dropped without a word until now
        studio.preferences.correct("c", {"lost": "42", "gone": "x"})
    with pytest.raises(StudioError, match="No answer is given"):
        studio.preferences.correct("c", {"lost": " "})


@pytest.mark.parametrize(
    ("answer_", "reference", "right"),
    [
        ("It is 7.", "#### 7", True),
        ("It is 7.0", "7", True),
        ("7 or 8", "seven", False),
        ("in Lima", "Lima", True),
        ("lima!", "Lima", True),
        ("8", "7", False),
    ],
)
def test_what_is_right(answer_: str, reference: str, right: bool) -> None:
    assert preferences._is_right(answer_, reference) is right


# jobs


def job(**values: Any) -> JobRow:
    return JobRow(
        **{
            "kind": "train",
            "name": "n",
            "status": "QUEUED",
            "created_at": 1.0,
            "priority": 0,
            "rank": 5.0,
            "tags": [],
            "notes": "",
            "reason": "",
            **values,
        }
    )


def test_jobs_are_listed_in_the_order_that_matters(studio: Studio) -> None:
    rows = [
        job(name="ended", status="FAILED", ended_at=9.0), job(name="ended last", status="SUCCEEDED", ended_at=10.0), job(name="later", rank=9.0),
        job(name="soon", rank=1.0), job(name="urgent", priority=1, rank=99.0), job(name="runs", status="RUNNING", started_at=5.0),
        job(name="runs first", status="RUNNING", started_at=4.0), job(name="aside", status="PAUSED", rank=3.0), job(name="a report", kind="report"),
    ]  # fmt: skip
    add(studio, *rows)
    assert [one.name for one in studio.jobs.list()] == ["runs first", "runs", "urgent", "soon", "aside", "later", "ended last", "ended"]
    assert [one.name for one in studio.jobs.list(status="paused")] == ["aside"]
    add(studio, job(name="ended at some time", status="FAILED", ended_at=None))
    assert studio.jobs.list()[-1].name == "ended at some time"  # when it was made counts, long ago
    part = studio.jobs.list(page=Page(3, 2))
    assert ([one.name for one in part], part.total) == (["urgent", "soon", "aside"], 9)
    found = studio.jobs.list(search="ended", page=Page(1, 1))
    assert ([one.name for one in found], found.total) == (["ended"], 3)


def test_jobs_are_found_by_all_words(studio: Studio) -> None:
    add(studio, DatasetRow(id="d1", name="Songs", kind="sft", format="x", rows=1))
    add(
        studio,
        job(name="night", dataset_id="d1", tags=["Blue"], notes="About cats", base_model="starter", recipe="qlora-sft"),
        job(name="day"),
    )
    for words in ("night", "SONGS", "blue cats", "starter qlora", "", "queued night"):
        assert "night" in [one.name for one in studio.jobs.list(search=words)], words
    assert studio.jobs.list(search="night dogs") == [] and [one.name for one in studio.jobs.list(search="day")] == ["day"]


def test_tags_and_notes_have_their_limits(studio: Studio) -> None:
    add(studio, job(name="n"))
    assert studio.jobs.tag("n", ["  a  b ", "x" * 40, "a b"]).tags == ["a b", "x" * 40]
    for bad in ("", "x" * 41, "a\x00b"):
        with pytest.raises(StudioError, match="can't be a tag"):
            studio.jobs.tag("n", [bad])
    assert len(studio.jobs.tag("n", [str(n) for n in range(18)]).tags) == 20
    with pytest.raises(StudioError, match="at most 20 tags"):
        studio.jobs.tag("n", ["one more"])
    assert studio.jobs.tag("n", ["one more"], ["0", "1"]).tags[-1] == "one more"
    assert studio.jobs.note("n", " " + "x" * 9_998 + " ").notes == "x" * 9_998
    with pytest.raises(StudioError, match="The note has 10001 letters"):
        studio.jobs.note("n", "x" * 10_001)
    assert studio.jobs.note("n", "").notes == ""


def test_a_job_is_waited_for_until_it_has_ended_or_the_time_is_over(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    add(studio, job(name="n"), job(name="done", status="FAILED"))
    now, slept = 100.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += 1.0

    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    assert studio.jobs.wait("done").status == "FAILED" and slept == []
    assert studio.jobs.wait("n", timeout=2.0).status == "QUEUED" and slept == [0.2, 0.2]
    assert studio.jobs.wait("n", timeout=0.0).status == "QUEUED" and len(slept) == 2


def test_what_can_be_compared(studio: Studio) -> None:
    ids = add(studio, *(job(name=f"j{n}") for n in range(21)), job(name="e", kind="export"))
    (sweep,) = add(studio, job(name="s", kind="sweep"))
    add(studio, *(job(name=f"c{n}", parent_id=sweep) for n in range(22)))
    for wrong in (ids[:1], ids[:21], [ids[0], ids[0]], [ids[0], ids[21]], ["s", ids[0]]):
        with pytest.raises(StudioError, match="Only trainings can be compared"):
            studio.jobs.compare(wrong)
    assert [len(studio.jobs.compare(right).jobs) for right in (ids[:2], ids[:20], ["s"])] == [2, 20, 22]


def test_the_queue_ends_when_all_that_is_known_has_ended() -> None:
    spans = [Span(0.0, 5.0), Span(1.0, 9.0), Span(2.0, None)]
    assert [jobs._last_end(*given) for given in ((spans[:2], 2), (spans, 3), (spans[:2], 3), (spans[:2], 1), ([], 0))] == [
        9.0,
        None,
        None,
        None,
        None,
    ]


def test_points_are_of_steps_that_learned_or_were_evaluated() -> None:
    def measured(kind: str, step: int, **values: Any) -> MetricRow:
        return MetricRow(kind=kind, step=step, values=values)

    found: list[MetricPoint] = job_records.points([
        measured("drift", 1, drift=0.1), measured("eval", 2, loss=3.0, seconds=9.0), measured("machine", 2, at=5.0, used=7),
        measured("train", 2, loss=2.0, at=6.0), measured("eval", 3, loss=1.0), measured("machine", 4, used=1),
    ])  # fmt: skip
    assert found == [{"step": 2, "eval_loss": 3.0, "used": 7, "loss": 2.0, "at": 6.0}, {"step": 3, "eval_loss": 1.0}]


def test_a_sweep_shows_what_is_each_runs_own(studio: Studio) -> None:
    (sweep,) = add(studio, job(name="s", kind="sweep", config={"grid": {"lora.r": [1, 2], "seed": [1]}}))
    add(studio, job(name="c", parent_id=sweep, config={"lora": {"r": 2}, "seed": 1, "other": 3}, result={"loss": 1.0}))
    (child,) = studio.jobs.show("s").children or []
    assert (child.options, child.result) == ({"lora.r": 2, "seed": 1}, {"loss": 1.0}) and studio.jobs.show("c").children is None


# sums of adapters


@pytest.mark.parametrize(("text", "weights"), [("A=0.7,B=0.3", {"A": 0.7, "B": 0.3}), (" a=b=1 ", {"a=b": 1.0}), ("x=-2", {"x": -2.0})])
def test_weights_are_read(text: str, weights: dict[str, float]) -> None:
    assert merging.parse(text) == weights


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A", "names no adapter and weight"),
        ("=1", "names no adapter and weight"),
        ("A=x", "names no adapter and weight"),
        ("A=nan", "names no adapter and weight"),
        ("A=1,A=2", "is named twice"),
    ],
)
def test_weights_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(StudioError, match=said):
        merging.parse(text)


@pytest.mark.parametrize(
    ("weights", "method", "density", "said"),
    [
        ({"a": 1.0}, "mean", 0.5, "Method 'mean' is not known"),
        ({"a": 0.0, "b": 0.0}, "linear", 0.5, "Every weight is zero"),
        ({"a": 100.1}, "linear", 0.5, "beyond -100 to 100"),
        ({"a": float("inf")}, "linear", 0.5, "beyond -100 to 100"),
        ({"a": 1.0}, "ties", 0.0, "density 0.0 is no share"),
        ({"a": 1.0}, "ties", 1.1, "density 1.1 is no share"),
        ({"a": 100.0, "b": -100.0}, "dare", 1.0, ""),
        ({"a": 0.0, "b": 1.0}, "ties", 0.01, ""),
    ],
)
def test_which_sums_make_sense(weights: dict[str, float], method: str, density: float, said: str) -> None:
    if not said:
        merging._check(weights, method, density)
        return
    with pytest.raises(StudioError, match=said):
        merging._check(weights, method, density)
