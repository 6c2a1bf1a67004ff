"""Jobs that judge and compress, with stand-ins for engine and judge: what is asked again, what counts as a tie, what is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from jobs import compare as comparing
from jobs import compress as compressing
from jobs import judgement as judgements
from jobs import panel
from jobs.compress import SweepAnswer
from jobs.judgement import JudgementRun
from jobs.light import LightContext, LightJobStopped
from jobs.panel import AnswerPair, JudgeQuestion, JudgeSetup, LikelihoodJudge, ModelJudge, PanelJudge, ReferenceJudge
from studio.db.models import AnswerRow, ComparisonRow, DatasetRow, JobRow, JudgementRow, VerdictRow
from studio.engine.client import FinishedAnswer
from studio.engine.protocol import Contestant
from studio.errors import EngineError, StudioError
from studio.records import CompressedTexts, Compression, InvalidReason, SweepPrompt, Verdict
from studio.settings import Settings
from studio.types import Example, GenerationParams, Message, Role
from tests.runs import open_store

PROMPT: Any = {"id": "p", "turns": [[{"role": "user", "content": "Why?"}]], "reference": "right"}


def pair(a: str = "one", b: str = "two", prompt: Any = PROMPT, **values: Any) -> AnswerPair:
    return AnswerPair(**{"prompt": prompt, "a": "x", "b": "y", "answers_a": [a], "answers_b": [b], **values})


# a model that is asked


def far(model: str = "m") -> dict[str, Any]:
    return Contestant(name=model, url="http://far/v1", model=model).as_json()


class Asked:
    """An engine that gives one answer, or trouble, after the other."""

    def __init__(self, *said: Any) -> None:
        self.said, self.params = list(said), []  # type: ignore[var-annotated]

    def chat(self, contestant: Any, messages: Any, params: Any, grammar: Any = None) -> FinishedAnswer:
        self.params.append((params, grammar))
        one = self.said.pop(0)
        if isinstance(one, Exception):
            raise one
        return FinishedAnswer(one, "stop", 5, 2, 0.5)

    def close(self) -> None:
        self.said.append("closed")


def asked(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, *said: Any, template: str = "pair", model: dict[str, Any] | None = None
) -> tuple[ModelJudge, Asked, list[float]]:
    engine, pauses, now = Asked(*said), [], [0.0]  # type: ignore[var-annotated]
    monkeypatch.setattr(panel.EngineClient, "from_settings", lambda *_, **__: engine)
    judge = ModelJudge(JudgeSetup(settings, model or far(), template))

    def rest(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(judge, "_rest", rest)
    monkeypatch.setattr(panel, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(panel.random, "uniform", lambda low, high: (low + high) / 2)
    return judge, engine, pauses


def trouble(status: int, code: str = "x", **details: Any) -> EngineError:
    return EngineError("trouble", "wait", status=status, code=code, **details)


def test_trouble_that_may_pass_is_waited_for_longer_each_time(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    judge, engine, pauses = asked(monkeypatch, settings, *[trouble(503)] * 5, "A")
    (question,) = judge.questions([pair()])
    said = question.ask()
    assert (said.winner, said.reply, said.prompt_tokens, said.completion_tokens, said.seconds) == ("a", "A", 5, 2, 0.5)
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0] and len(engine.params) == 6
    judge, engine, pauses = asked(monkeypatch, settings, *[trouble(503)] * 6)
    with pytest.raises(StudioError, match=r"The judge at http://far/v1 gave no answer in 6 attempts: trouble"):
        judge._reply([])
    assert len(pauses) == 5
    judge, _, pauses = asked(monkeypatch, settings, trouble(429, retry_after=7), trouble(408), "A")
    assert judge._reply([]).text == "A" and pauses == [7.0, 1.0]
    judge, _, pauses = asked(monkeypatch, settings, trouble(429, retry_after=500), trouble(429, retry_after=500))
    with pytest.raises(StudioError, match="in 2 attempts"):
        judge._reply([])
    assert pauses == [500.0], "a quarter of an hour is the most for one question"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_next_question_would_meet_too_ends_the_judgement(monkeypatch: pytest.MonkeyPatch, settings: Settings, status: int) -> None:
    judge, _, pauses = asked(monkeypatch, settings, trouble(status))
    with pytest.raises(StudioError, match="in 1 attempts"):
        judge._reply([])
    own, _, _ = asked(monkeypatch, settings, trouble(status), model=Contestant.from_json(far()).as_json() | {"url": ""})
    with pytest.raises(EngineError, match="trouble"):
        own._reply([])
    assert pauses == []


@pytest.mark.parametrize(("status", "code"), [(400, "x"), (413, "x"), (499, "x"), (502, "not_openai")])
def test_what_one_question_cannot_have_is_its_reply(monkeypatch: pytest.MonkeyPatch, settings: Settings, status: int, code: str) -> None:
    judge, engine, _ = asked(monkeypatch, settings, trouble(status, code))
    (question,) = judge.questions([pair()])
    said = question.ask()
    assert said.winner == "invalid" and said.reply.startswith("(no verdict: trouble") and said.prompt_tokens == 0 and engine.said == []


def test_another_server_has_room_to_reason_and_a_schema(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    judge, engine, _ = asked(monkeypatch, settings, "A")
    judge._reply([])
    params, grammar = engine.params[0]
    assert (params.temperature, params.max_new_tokens, grammar.kind) == (0.0, 2048, "json_schema")
    assert asked(monkeypatch, settings, template="mt-bench")[0]._grammar is None
    own, _, _ = asked(monkeypatch, settings, model=far() | {"url": ""})
    assert own._grammar is not None and (own._grammar.kind, own._params.max_new_tokens) == ("gbnf", 8)
    assert judge.identity == ("http://far/v1", "m") and own.identity is None
    keys = {judge.questions([one])[0].key for one in (pair(), pair(), pair("other"), pair(prompt={**PROMPT, "reference": ""}))}
    assert len(keys) == 3
    judge.close()
    assert engine.said == ["closed"]


def test_each_answer_is_rated_once(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    judge, engine, _ = asked(monkeypatch, settings, "8", "3", "none", trouble(404), template="score")
    there, back = judge.questions([pair(), pair("two", "one")])
    first, second = there.ask(), back.ask()
    assert (first.winner, first.reply, second.winner, second.reply) == ("a", "8\n\n=====\n\n3", "b", "3\n\n=====\n\n8")
    assert (first.prompt_tokens, first.completion_tokens, first.seconds) == (10, 4, 1.0) and len(engine.params) == 2
    (third,) = judge.questions([pair("one", "new")])
    assert third.ask().winner == "invalid"
    (fourth,) = judge.questions([pair("newer", "one")])
    for _ in range(2):
        with pytest.raises(StudioError):
            fourth.ask()
    assert len(engine.params) == 4, "what failed is not asked again"


def test_a_pause_ends_when_the_job_shall(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panel.EngineClient, "from_settings", lambda *_, **__: Asked())
    judge = ModelJudge(JudgeSetup(settings, far(), "pair", stop_requested=lambda: True))
    with pytest.raises(LightJobStopped):
        judge._rest(30.0)
    ModelJudge(JudgeSetup(settings, far(), "pair"))._rest(0.0)


# the other judges


@pytest.mark.parametrize(
    ("one", "other", "winner"),
    [(-1.0, -2.0, "a"), (-2.0, -1.0, "b"), (-1.0, -1.0, "tie"), (-1.0, -1.0 - 9e-7, "tie"), (-1.0, -1.0 - 2e-6, "a")],
)
def test_the_likelier_answer_wins_from_a_millionth_on(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, one: float, other: float, winner: str
) -> None:
    calls: list[Any] = []

    def child(module: str, options: Any, cache: Any, pulse: Any) -> dict[str, Any]:
        calls.append(options["conversations"])
        return {"scores": [{"logprob": value, "tokens": 3, "prompt_tokens": 4, "seconds": 0.25} for value in (one, other)]}

    monkeypatch.setattr(panel, "run_child", child)
    judge = LikelihoodJudge(JudgeSetup(settings, {"studio": {"base": 1}}))
    there, back = judge.questions([pair(), pair("two", "one")])
    said = there.ask()
    assert (said.winner, said.prompt_tokens, said.completion_tokens, said.seconds) == (winner, 8, 0, 0.5)
    assert back.ask().winner == {"a": "b", "b": "a", "tie": "tie"}[winner] and len(calls) == 1 and len(calls[0]) == 2
    assert said.reply == f"a: {one:.3f} over 3 tokens\nb: {other:.3f} over 3 tokens" and there.key != back.key
    for model in (None, {"studio": None}):
        with pytest.raises(StudioError, match="needs a model of this machine"):
            LikelihoodJudge(JudgeSetup(settings, model))


def test_a_panel_says_what_most_say(settings: Settings) -> None:
    members = [{"judge": "r", "kind": "reference"}]
    made = PanelJudge(JudgeSetup(settings, members=members))
    assert made.questions([pair(prompt={**PROMPT, "reference": ""})]) == []
    (question,) = made.questions([pair("right", "wrong")])
    assert (question.ask().winner, question.ask().reply, question.asked) == ("a", "r: a", "")
    said = {
        name: pair().verdict(winner, "", "", 3, 2, seconds=0.5) for name, winner in (("j", "a"), ("k", "b"), ("l", "a"), ("m", "invalid"))
    }
    both = panel.said_together(pair(is_probe=True), said)
    assert (both.winner, both.reply, both.prompt_tokens, both.completion_tokens, both.seconds, both.probe) == (
        "a",
        "j: a\nk: b\nl: a\nm: invalid",
        12,
        8,
        2.0,
        True,
    )
    assert ReferenceJudge().questions([pair(), pair(prompt={**PROMPT, "reference": ""})])[0].ask().winner == "tie"


def test_pairs_are_shown_in_both_orders(settings: Settings) -> None:
    done: list[int] = []
    found = panel.judge_both_orders(ReferenceJudge(), [(PROMPT, "right", "wrong"), (PROMPT, "same", "same")], done.append)
    assert [[one.winner for one in verdicts] for verdicts in found] == [["a", "b"], []] and done == [1, 1]
    assert [panel.score_of_first(verdicts) for verdicts in found] == [1.0, 0.5]
    conversation = panel._conversation({"id": "1", "turns": [PROMPT["turns"][0]] * 3}, ["a", "b"])
    assert [message["role"] for message in conversation] == ["user", "assistant"] * 2
    assert panel._shown(conversation[:2]) == "user:\nWhy?\n\nassistant:\na"


# a judgement


class Said:
    """A judge that says what it is told to, and remembers what it was asked."""

    identity: Any = None

    def __init__(self, winner: str | Callable[[AnswerPair], str] = "a", tokens: int = 10) -> None:
        self.winner, self.tokens, self.asked, self.lock = winner, tokens, [], threading.Lock()  # type: ignore[var-annotated]

    def questions(self, pairs: Sequence[AnswerPair]) -> list[JudgeQuestion]:
        return [JudgeQuestion(one, "asked", f"{one.prompt['id']}:{one.a}:{one.b}", self._asks(one)) for one in pairs]

    def _asks(self, one: AnswerPair) -> Callable[[], Verdict]:
        def ask() -> Verdict:
            with self.lock:
                self.asked.append((one.prompt["id"], one.a, one.b))
            winner = self.winner if isinstance(self.winner, str) else self.winner(one)
            if winner == "broken":
                raise StudioError("broken", "")
            return one.verdict(winner, "asked", "reply", self.tokens - 3, 3, seconds=0.5)

        return ask

    def close(self) -> None:
        """It holds nothing."""


@pytest.fixture
def db(settings: Settings) -> Iterator[Any]:
    made = open_store(settings)
    yield made
    made.dispose()


def started(
    db: Any, settings: Settings, judge: Said, *, prompts: int = 2, kind: str = "model", stop: Any = lambda: False, **config: Any
) -> tuple[JudgementRun, list[tuple[int, int]]]:
    steps: list[tuple[int, int]] = []
    with db.write() as session:
        asked_ = [
            {"id": str(n), "turns": [[{"role": "user", "content": "q"}]], "reference": "r", "category": "art"} for n in range(prompts)
        ]
        comparison = ComparisonRow(name=f"c{kind}{prompts}{len(config)}", base_model="b", contestants=["x", "y"], prompts=asked_)
        session.add(comparison)
        session.flush()
        for n in range(prompts):
            for who in "xy":
                session.add(
                    AnswerRow(
                        comparison_id=comparison.id, prompt_id=str(n), contestant=who, text=f"{who}{n}" * (1 + (who == "x")), seconds=1.0
                    )
                )
        made = JudgementRow(comparison_id=comparison.id, judge="j", kind=kind, template="pair")
        session.add(made)
        session.flush()
        judgement_id = made.id
    given: dict[str, Any] = dict.fromkeys(LightContext.__dataclass_fields__)
    context = LightContext(
        **{**given, "db": db, "settings": settings, "stop_requested": stop, "progress": lambda *step: steps.append(step)}
    )
    return JudgementRun(context, {"judgement": judgement_id, **config}, judge), steps  # type: ignore[arg-type]


def test_every_pair_is_asked_in_both_orders_and_then_against_a_constant_answer(db: Any, settings: Settings) -> None:
    judge = Said(lambda one: "b" if one.is_probe and one.a == "constant-answer" else "a")
    run, steps = started(db, settings, judge, prompts=12)
    found = run.finish()
    assert len(judge.asked) == 12 * 2 + 10 * 2 and steps[0] == (0, 44) and steps[-1] == (44, 44)
    assert counted(judge.asked)["constant-answer"] == 20 and ("9", "y", "constant-answer") in judge.asked, (
        "ten probes of the last contestant"
    )
    assert (found["verdicts"], found["cached"], found["prompt_tokens"], found["completion_tokens"], found["seconds"]) == (
        44,
        0,
        7 * 44,
        3 * 44,
        22.0,
    )
    assert (found["pairs"], found["first_win_rate"], found["swap_consistency"], found["is_cut_by_budget"]) == (12, 1.0, 0.0, False)
    assert (
        found["baselines"]["constant_answer"]["win_rate"] == 0.0
        and found["longer_win_rate"] == 0.5
        and found["categories"]["art"]["games"] == 12
    )
    again = Said()
    assert JudgementRun(run.context, run.config, again).ask(lambda *_: None) is False and again.asked == [], "nothing is open"  # type: ignore[arg-type]
    with db.read() as session:
        assert session.get_one(JudgementRow, run.judgement.id).readings["verdicts"] == 44


def counted(asked_: list[tuple[str, str, str]]) -> dict[str, int]:
    return {name: sum(name in one for one in asked_) for name in ("x", "y", "constant-answer")}


@pytest.mark.parametrize(
    ("kind", "config", "asked_"), [("model", {"probes": False}, 4), ("reference", {}, 4), ("panel", {}, 8), ("likelihood", {}, 4)]
)
def test_a_constant_answer_plays_against_models_and_panels(
    db: Any, settings: Settings, kind: str, config: dict[str, Any], asked_: int
) -> None:
    judge = Said()
    started(db, settings, judge, kind=kind, **config)[0].ask(lambda *_: None)
    assert len(judge.asked) == asked_


@pytest.mark.parametrize(
    ("budget", "asked_", "is_cut"), [(0, 8, False), (30, 3, True), (31, 4, True), (80, 8, False), (79, 8, False), (70, 7, True)]
)
def test_a_budget_ends_the_asking(db: Any, settings: Settings, budget: int, asked_: int, is_cut: bool) -> None:
    judge = Said()
    run, _ = started(db, settings, judge, budget_tokens=budget, concurrency=1)
    assert (run.ask(lambda *_: None), len(judge.asked)) == (is_cut, asked_)
    more = Said()
    again = JudgementRun(run.context, run.config, more)  # type: ignore[arg-type]
    assert again.ask(lambda *_: None) is is_cut and more.asked == [], "a budget is for the whole"


def test_equal_questions_are_answered_from_earlier_verdicts_that_are_valid(db: Any, settings: Settings) -> None:
    first, _ = started(db, settings, Said(lambda one: "invalid" if one.prompt["id"] == "1" else "b"), probes=False)
    first.finish()
    judge = Said("a")
    second, _ = started(db, settings, judge, probes=False, concurrency=3)
    found = second.finish()
    assert sorted(judge.asked) == [("1", "x", "y"), ("1", "y", "x")] and (found["cached"], found["prompt_tokens"]) == (2, 14)
    with db.read() as session:
        rows = session.query(VerdictRow).filter_by(judgement_id=second.judgement.id, is_cached=True).all()
        assert [(row.winner, row.reply, row.prompt_tokens) for row in rows] == [("b", "reply", 0)] * 2


def test_a_probe_that_fails_is_left_out_and_a_question_that_fails_ends_the_job(db: Any, settings: Settings) -> None:
    run, _ = started(db, settings, Said(lambda one: "broken" if one.is_probe else "a"))
    assert run.finish()["verdicts"] == 4
    other, _ = started(db, settings, Said(lambda one: "broken" if one.prompt["id"] == "2" else "a"), prompts=3)
    with pytest.raises(StudioError, match="broken"):
        other.ask(lambda *_: None)
    stopped, _ = started(db, settings, Said(), prompts=4, stop=lambda: True)
    with pytest.raises(LightJobStopped):
        stopped.ask(lambda *_: None)
    empty, _ = started(db, settings, Said(), prompts=5)
    empty.answers.clear()
    with pytest.raises(StudioError, match="There is no pair of answers to judge"):
        empty.ask(lambda *_: None)


def test_why_replies_are_invalid_and_whether_the_judge_plays_too(db: Any, settings: Settings) -> None:
    run, _ = started(db, settings, Said())
    rows = [
        VerdictRow(winner="invalid", reply="", is_probe=False),
        VerdictRow(winner="invalid", reply="A or B", is_probe=False),
        VerdictRow(winner="invalid", reply="", is_probe=True),
        VerdictRow(winner="a", reply="", is_probe=False),
    ]
    assert sum((run._reasons(rows) or {}).values()) == 2 and (run._reasons(rows) or {})[InvalidReason.EMPTY] == 1
    single = judgements.TemplateKind.SINGLE
    assert (
        judgements._reason(VerdictRow(reply="8\n\n=====\n\n"), single) == InvalidReason.EMPTY
        and judgements._reason(VerdictRow(reply="8"), single) == InvalidReason.NO_VERDICT
    )
    rule, _ = started(db, settings, Said(), kind="reference")
    assert rule._reasons(rows) is None and rule.own_name() == ""
    rule.contestants = {"x": far("m"), "y": far("n")}
    rule.judge.identity = ("http://far/v1", "n")
    assert rule.own_name() == "y"


def test_verdicts_of_replies_that_name_the_answers_by_their_order_are_counted(db: Any, settings: Settings) -> None:
    run, _ = started(db, settings, Said())
    said = [
        ("a", "The first answer is better.", False),
        ("a", "A", False),
        ("b", "The second answer is better.", False),
        ("tie", "The first answer is better.", False),  # what is read of it today is no verdict of then
        ("b", "The second answer is better.", True),  # a probe
    ]
    rows = [VerdictRow(winner=winner, reply=reply, is_probe=is_probe) for winner, reply, is_probe in said]
    assert run._by_order(rows) == 2
    run.judgement.template = "score"
    assert run._by_order(rows) is None
    rule, _ = started(db, settings, Said(), kind="reference")
    assert rule._by_order(rows) is None


# compressing


class Engine:
    """Answers with what it was asked, or refuses with a status."""

    def __init__(self, status: int | None = None) -> None:
        self.status = status

    def chat(self, contestant: Any, messages: Any, params: Any) -> Any:
        if self.status is not None:
            raise EngineError("too long", "", status=self.status)
        return SimpleNamespace(text=messages[0].content, seconds=0.5)


def made(text: str = "short", before: int = 10, after: int = 5, seconds: float = 0.1) -> Compression:
    return Compression(
        text=text, tokens_before=before, tokens_after=after, requested=0.5, achieved=0.5, counter="", method="", seconds=seconds
    )


def test_a_prompt_of_a_sweep_is_asked_with_its_question_once() -> None:
    config = {"contestant": far(), "params": {"temperature": 0.0}}

    def answered(text: str, status: int | None = None) -> SweepAnswer:
        return compressing._answer(Engine(status), config, SweepPrompt(text="long", question="Why?", reference="r"), made(text))  # type: ignore[arg-type]

    assert [answered(text).text for text in ("short", "short Why?", "")] == ["short\n\nWhy?", "short Why?", "Why?"]
    assert answered("short").seconds == 0.5 and answered("short").reference == "r"
    for status in (400, 413, 499):
        assert "too long" in answered("short", status).error
    for status in (401, 404, 429, 500, 503):
        with pytest.raises(EngineError):
            answered("short", status)
    assert compressing._as_prompt(3, SweepPrompt(text="t", question="q")) == {
        "id": "3",
        "turns": [[{"role": "user", "content": "t\n\nq"}]],
        "reference": "",
    }


def test_a_point_of_a_sweep_and_its_judge() -> None:
    rows = [SweepAnswer(made(seconds=0.2), "a", "a", 1.0), SweepAnswer(made(after=8), "b", "c", 2.0, "failed")]
    point = compressing._point(0.5, rows)
    wanted = {
        "rate": 0.5,
        "achieved": 0.65,
        "tokens_before": 20,
        "tokens_after": 13,
        "exact_match": 0.5,
        "seconds": 1.5,
        "compress_seconds": 0.15,
        "failed": 1,
        "n": 2,
    }
    assert {name: point[name] for name in wanted} == wanted and point["number_match"] is None and "number_match" in point["reasons"]
    assert compressing._point(1.0, [SweepAnswer(made(before=0, after=0), "", "", 0.0)])["achieved"] == 1.0
    prompts = [SweepPrompt(text="t", reference="a"), SweepPrompt(text="t", reference="b"), SweepPrompt(text="t")]
    whole = [SweepAnswer(made(), "", text, 0.0) for text in ("a", "x", "y")]
    half = [SweepAnswer(made(), "", text, 0.0) for text in ("z", "b", "n")]
    points: list[dict[str, Any]] = [{"rate": 1.0}, {"rate": 0.5}]
    done: list[int] = []
    compressing._judge(ReferenceJudge(), prompts, {1.0: whole, 0.5: half}, points, done.append)
    # the whole prompt against itself is as good; one lost, one won, and of the third the rule knows nothing
    assert points == [{"rate": 1.0, "judge": 0.5, "judged": 3}, {"rate": 0.5, "judge": 0.5, "judged": 3}] and done == [4, 4, 5, 5]
    compressing._judge(Said("invalid"), prompts, {1.0: whole, 0.5: half}, points, done.append)  # type: ignore[arg-type]
    assert (points[1]["judge"], points[1]["judged"]) == (0.0, 0)


@pytest.mark.parametrize(("length", "asked_"), [(199, 0), (200, 1)])
def test_texts_of_200_characters_are_shortened_where_that_saves_tokens(length: int, asked_: int) -> None:
    calls: list[str] = []

    def compress(text: str, rate: float, question: str = "") -> Compression:
        calls.append(text)
        return made(text[:9], 10, 6)

    row = Example(text="t" * length)
    short, figures = compressing.shorten(row, compress, 0.5, CompressedTexts.TEXT)
    assert len(calls) == asked_ and figures == ((10, 6) if asked_ else (0, 0)) and short.text == ("t" * 9 if asked_ else row.text)
    for useless in (made("x", 10, 10), made("t" * 300, 10, 6)):
        same, figures = compressing.shorten(Example(text="t" * 300), lambda *_, useless=useless: useless, 0.5, CompressedTexts.TEXT)
        assert (same.text, figures) == ("t" * 300, (0, 0))


def test_the_longest_question_of_a_row_is_the_one_that_becomes_shorter() -> None:
    def compress(text: str, rate: float, question: str = "") -> Compression:
        return made("short", 10, 4)

    def turn(role: Role, size: int) -> Message:
        return Message(role=role, content="t" * size)

    row = Example(messages=[turn(Role.SYSTEM, 300), turn(Role.USER, 250), turn(Role.ASSISTANT, 900)])
    found, figures = compressing.shorten(row, compress, 0.5, CompressedTexts.LONGEST)
    assert [len(message.content) for message in found.messages or []] == [5, 250, 900] and figures == (10, 4)
    none = Example(messages=[turn(Role.ASSISTANT, 900)])
    assert compressing.shorten(none, compress, 0.5, CompressedTexts.LONGEST) == (none, (0, 0))
    both = Example(prompt=[turn(Role.USER, 300)], chosen=[turn(Role.ASSISTANT, 300)], rejected=[turn(Role.ASSISTANT, 300)])
    found, figures = compressing.shorten(both, compress, 0.5, CompressedTexts.ASSISTANT)
    assert figures == (20, 8) and [len(part[0].content) for part in (found.prompt, found.chosen, found.rejected)] == [300, 5, 5]  # type: ignore[index,union-attr]


def written(db: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch, rows: list[str], **config: Any) -> Any:
    source, target = settings.home / "rows.jsonl", settings.datasets / "new"
    source.write_text("".join(row + "\n" for row in rows))
    closed: list[bool] = []

    class Process:
        def compress(self, chosen: Path, counter: Path, options: dict[str, Any]) -> Compression:
            assert (chosen, counter, options["method"], options["rate"], options["keep"]) == (Path("/c"), Path("/n"), "llmlingua", 0.5, 1)
            return made("short", 10, 4)

        def close(self) -> None:
            closed.append(True)

    monkeypatch.setattr(compressing, "CompressorProcess", Process)
    with db.write() as session:
        for name in ("parent", "taken"):
            session.merge(DatasetRow(id=name, name=name, kind="text", format="x", rows=1))
        job_id = session.query(JobRow).count()
    given: dict[str, Any] = dict.fromkeys(LightContext.__dataclass_fields__)
    whole = {
        "compressor": "/c",
        "counter": "/n",
        "options": {"keep": 1},
        "method": "llmlingua",
        "rate": 0.5,
        "texts": "text",
        "parent": "parent",
        "dataset": "new",
        "name": "small",
    }
    whole |= {"rows_path": str(source), "folder": str(target), "rows": len(rows), **config}
    context = LightContext(
        **{**given, "db": db, "config": whole, "job_id": f"j{job_id}", "stop_requested": lambda: False, "progress": lambda *_: None}
    )
    try:
        return compressing.data(context)
    finally:
        assert closed == [True]


def test_a_shortened_dataset_is_a_version_of_its_own(db: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ['{"text": "' + "t" * 300 + '"}', '{"text": "few"}']
    found = written(db, settings, monkeypatch, rows)
    assert (found["rows"], found["shortened"], found["unchanged"], found["tokens_before"], found["tokens_after"]) == (2, 1, 1, 10, 4)
    file = settings.datasets / "new" / "rows.jsonl"
    assert file.read_text() == '{"text":"short"}\n{"text":"few"}\n'
    with db.read() as session:
        row = session.get_one(DatasetRow, "new")
        assert (row.name, row.rows, row.bytes, row.parent_id, row.skipped) == ("small", 2, file.stat().st_size, "parent", 0)
        assert row.provenance["made"] == "compress" and row.provenance["rate"] == 0.5 and row.provenance["job"].startswith("j")
        assert row.sha256 == compressing.hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("rows", "config", "said"),
    [
        ([], {}, "The dataset has no rows"),
        (['{"text": "few"}'], {}, "none of the 1 rows has a plain text of at least 200 characters"),
        (['{"text": "few"}'], {"texts": "longest"}, "none of the 1 rows has a user or system text"),
        (['{"text": "' + "t" * 300 + '"}'], {"parent": "gone"}, "was deleted meanwhile"),
    ],
)
def test_where_nothing_becomes_shorter_no_dataset_is_made(
    db: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch, rows: list[str], config: dict[str, Any], said: str
) -> None:
    with pytest.raises(StudioError, match=said):
        written(db, settings, monkeypatch, rows, **config)
    assert not (settings.datasets / "new").exists()


def test_a_name_that_was_taken_meanwhile_gets_the_id(db: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    written(db, settings, monkeypatch, ['{"text": "' + "t" * 300 + '"}'], name="taken")
    with db.read() as session:
        assert session.get_one(DatasetRow, "new").name == "taken-new"


@pytest.mark.parametrize("number", [0, 1, 9])
def test_every_answer_of_a_comparison_is_kept_and_counted(db: Any, settings: Settings, number: int) -> None:
    run, _ = started(db, settings, Said())
    told: list[tuple[int, int]] = []
    context: Any = SimpleNamespace(db=db, progress=lambda done, total: told.append((done, total)), stop_requested=lambda: False)
    tasks = [
        ({"id": f"new{n}", "turns": [[{"role": "user", "content": "?"}]]}, Contestant(name="x", url="u", model="m")) for n in range(number)
    ]
    client: Any = Asked(*["yes"] * number)
    made = comparing._answer_all(context, client, run.comparison.id, tasks, GenerationParams(), already=3, total=3 + number)
    with db.read() as session:
        kept = session.scalars(select(AnswerRow.prompt_id).where(AnswerRow.prompt_id.startswith("new"))).all()
    assert made == number == len(kept) and told[-1:] == [(3 + number, 3 + number)] * bool(number)
