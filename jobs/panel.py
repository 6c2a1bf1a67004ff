"""The three kinds of judges behind one face: a rule on references, a model that is asked, and what a model itself would say.

Each turns cases into questions; a question has a key, equal for equal questions to an equal judge, and can be asked.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from jobs.light import LightContext, Stopped
from studio.datasets.children import run_child
from studio.db.models import JudgementRow
from studio.engine.client import EngineClient, FinishedAnswer
from studio.engine.protocol import Contestant, Grammar
from studio.errors import EngineError, StudioError
from studio.evaluation import judging
from studio.evaluation.prompts import Prompt
from studio.evaluation.verdicts import SCORES, SWAPPED
from studio.types import GenerationParams

ATTEMPTS = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
PATIENCE_S = 900.0  # for one question: a judge that hangs must not hold the job for hours
HOPELESS = (401, 403, 404)  # the next question would get the same answer
SCHEMA_TOKENS = 24  # of a verdict as a JSON object
EQUAL = 1e-6  # log-probabilities nearer than this are a tie


@dataclass(frozen=True)
class Case:
    """Two answers to one prompt, turn by turn; `a` is shown first."""

    prompt: Prompt
    a: str
    b: str
    answers_a: Sequence[str]
    answers_b: Sequence[str]
    is_probe: bool = False


@dataclass(frozen=True)
class Said:
    """What came of a question."""

    winner: str
    reply: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Question:
    """A case as one judge is asked it."""

    case: Case
    asked: str
    key: str
    ask: Callable[[], Said]


class Panelist(Protocol):
    """A judge. `identity` says whether it is a contestant too; None for what can't be one."""

    identity: Any

    def questions(self, cases: Sequence[Case]) -> list[Question]: ...

    def close(self) -> None: ...


def panelist(judgement: JudgementRow, config: dict[str, Any], context: LightContext) -> Panelist:
    """The judge that a judgement names."""
    said = {"kind": judgement.kind, "template": judgement.template, "criteria": judgement.criteria}
    return seated({**config, **said}, context)


def seated(chosen: Mapping[str, Any], context: LightContext) -> Panelist:
    """The judge of `kind`, `model`, `template` and `criteria`."""
    if chosen["kind"] == "reference":
        return Rule()
    if chosen["kind"] == "likelihood":
        return Likelihood(chosen["model"], context)
    return AskedModel(chosen["model"], judging.get(chosen["template"]), chosen.get("criteria", ""), context)


def duels(judge: Panelist, pairs: Sequence[tuple[Prompt, str, str]], told: Callable[[int], None] = lambda _: None) -> list[list[Said]]:
    """What the judge says of each (prompt, one, other), `one` shown first and then second, so that `a` is `one` and then `other`.

    Equal texts are not asked about: their list is empty. So is that of a pair that the judge knows nothing about. `told`: pairs so far.
    """
    cases = [
        (n, Case(prompt, name, rest, [first], [second]))
        for n, (prompt, one, other) in enumerate(pairs)
        if one != other
        for name, rest, first, second in (("one", "other", one, other), ("other", "one", other, one))
    ]
    places = {id(case): n for n, case in cases}
    found: list[list[Said]] = [[] for _ in pairs]
    for question in judge.questions([case for _, case in cases]):
        found[places[id(question.case)]].append(question.ask())
        told(places[id(question.case)] + 1)
    return found


def score(said: Sequence[Said]) -> float | None:
    """Of the first of two texts, 0-1, from what a judge said in both orders; 0.5 is a tie, None when no order had a verdict."""
    if not said:
        return 0.5
    turned = [said[0].winner, *(SWAPPED[other.winner] for other in said[1:])]
    valid = [SCORES[winner] for winner in turned if winner in SCORES]
    return sum(valid) / len(valid) if valid else None


def identity_of(contestant: dict[str, Any]) -> Any:
    """What makes two contestants the same: folders, or URL and model; not how they were called."""
    return (contestant["url"], contestant["model"]) if contestant["url"] else contestant["studio"]


def _key(*parts: Any) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


class Rule:
    """The reference judge: no model, no order, no doubt; only as good as the references."""

    identity: Any = None

    def questions(self, cases: Sequence[Case]) -> list[Question]:
        return [self._question(case) for case in cases if case.prompt.get("reference")]

    def close(self) -> None:
        """It holds nothing."""

    def _question(self, case: Case) -> Question:
        reference, a, b = case.prompt["reference"], case.answers_a[-1], case.answers_b[-1]
        asked = f"Reference: {reference}\n\nFirst answer: {a}\n\nSecond answer: {b}"
        rule = "exact match, then ROUGE-L"

        def ask() -> Said:
            return Said(judging.by_reference(a, b, reference), rule)

        return Question(case, asked, _key("reference", reference, a, b), ask)


class AskedModel:
    """A model behind our engine or a URL. Replies are held to the form of a verdict where the server can; all are read strictly."""

    def __init__(self, model: dict[str, Any], judge: judging.Judge, criteria: str, context: LightContext) -> None:
        self.contestant = Contestant.from_json(model)
        self.identity = identity_of(model)
        self.judge = judge
        self.criteria = criteria
        self._is_stopping = context.stop_requested
        self._client = EngineClient.from_settings(context.settings, lane="batch")
        room = judge.max_new_tokens
        self._grammar: Grammar | None = Grammar("gbnf", judge.grammar)
        if self.contestant.url:  # other servers know schemas at best; one that refuses them is asked without
            self._grammar = Grammar("json_schema", judge.schema) if judge.schema else None
            room = max(room, SCHEMA_TOKENS)
        self._params = GenerationParams(temperature=0.0, max_new_tokens=room)
        self._ratings: dict[str, Future[FinishedAnswer]] = {}
        self._lock = threading.Lock()

    def questions(self, cases: Sequence[Case]) -> list[Question]:
        make = self._pairwise if self.judge.kind == "pairwise" else self._single
        return [make(case) for case in cases]

    def close(self) -> None:
        self._client.close()

    def _pairwise(self, case: Case) -> Question:
        messages = judging.question(self.judge, case.prompt, case.answers_a, case.answers_b, self.criteria)

        def ask() -> Said:
            done = self._reply(messages)
            return Said(judging.verdict(done.text), done.text, done.prompt_tokens, done.completion_tokens, done.seconds)

        return Question(case, _shown(messages), self._key_of(messages), ask)

    def _single(self, case: Case) -> Question:
        """Each answer is rated alone and once; the verdict of both orders is that of the two scores."""
        both = [judging.rating_question(self.judge, case.prompt, answers, self.criteria) for answers in (case.answers_a, case.answers_b)]

        def ask() -> Said:
            done = [self._rated(messages) for messages in both]
            winner = judging.by_rating(*(judging.rating(answer.text) for answer in done))
            tokens = sum(answer.prompt_tokens for answer in done), sum(answer.completion_tokens for answer in done)
            return Said(winner, "\n\n".join(answer.text for answer in done), *tokens, sum(answer.seconds for answer in done))

        return Question(case, "\n\n=====\n\n".join(map(_shown, both)), self._key_of(both), ask)

    def _rated(self, messages: list[judging.Message]) -> FinishedAnswer:
        key = self._key_of(messages)
        with self._lock:
            future = self._ratings.get(key)
            is_mine = future is None
            future = self._ratings.setdefault(key, Future())
        if is_mine:
            try:
                future.set_result(self._reply(messages))
            except BaseException as exc:
                future.set_exception(exc)
                raise
        return future.result()

    def _key_of(self, messages: Any) -> str:
        return _key(self.identity, self.judge.name, self._params.max_new_tokens, messages)

    def _reply(self, messages: list[judging.Message]) -> FinishedAnswer:
        """Asked again with longer and longer pauses while the trouble may pass. What this one question can't have is its reply."""
        begun = time.monotonic()
        for attempt in range(ATTEMPTS):
            try:
                return self._client.chat(self.contestant, messages, self._params, grammar=self._grammar)
            except EngineError as exc:
                is_of_this_question = exc.code == "not_openai" or (400 <= exc.status < 500 and exc.status not in (*HOPELESS, 408, 429))
                if is_of_this_question:
                    return FinishedAnswer(f"(no verdict: {exc})", None, 0, 0, 0.0)
                pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt) * random.uniform(0.75, 1.25)
                pause = max(pause, float(exc.details.get("retry_after") or 0))
                if exc.status in HOPELESS or attempt + 1 == ATTEMPTS or time.monotonic() - begun + pause > PATIENCE_S:
                    raise self._given_up(exc, attempt + 1) from None
                self._rest(pause)
        raise AssertionError("unreachable")

    def _given_up(self, exc: EngineError, attempts: int) -> StudioError:
        if not self.contestant.url:
            return exc
        fix = "Check its URL and model. What was judged is kept: retry the job to go on."
        return StudioError(f"The judge at {self.contestant.url} gave no answer in {attempts} attempts: {exc.message}", fix)

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._is_stopping():
                raise Stopped
            time.sleep(0.1)


class Likelihood:
    """The answer to which a model gives the higher summed log-probability: what that model itself would rather say. Knows no order."""

    identity: Any = None

    def __init__(self, model: dict[str, Any], context: LightContext) -> None:
        if model["studio"] is None:
            raise StudioError("A likelihood judge needs a model of this machine.", "Name a base model, or BASE:ADAPTER.")
        self._model = model
        self._context = context
        self._scores: dict[str, dict[str, Any]] = {}
        self._wanted: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def questions(self, cases: Sequence[Case]) -> list[Question]:
        return [self._question(case) for case in cases]

    def close(self) -> None:
        """Its model ends with its process."""

    def _question(self, case: Case) -> Question:
        texts = [_conversation(case.prompt, answers) for answers in (case.answers_a, case.answers_b)]
        keys = [_key(messages) for messages in texts]
        self._wanted |= dict(zip(keys, texts, strict=True))

        def ask() -> Said:
            one, other = (self._score(key) for key in keys)
            gap = one["logprob"] - other["logprob"]
            winner = "tie" if abs(gap) < EQUAL else "a" if gap > 0 else "b"
            reply = "\n".join(f"{name}: {row['logprob']:.3f} over {row['tokens']} tokens" for name, row in (("a", one), ("b", other)))
            return Said(winner, reply, one["prompt_tokens"] + other["prompt_tokens"], 0, one["seconds"] + other["seconds"])

        return Question(case, "\n\n=====\n\n".join(map(_shown, texts)), _key("likelihood", self._model["studio"], keys), ask)

    def _score(self, key: str) -> dict[str, Any]:
        """Scores of everything at the first call, in a process of its own, which ends with its memory."""
        with self._lock:
            if not self._scores:
                options = {"studio": self._model["studio"], "conversations": list(self._wanted.values())}
                found = run_child("studio.evaluation.likelihood", options, self._context.settings.cache, pulse=self._context.stop_if_asked)
                self._scores = dict(zip(self._wanted, found["scores"], strict=True))
        return self._scores[key]


def _conversation(prompt: Prompt, answers: Sequence[str]) -> Any:
    messages: list[dict[str, Any]] = []
    for turn, answer in zip(prompt["turns"], answers, strict=False):
        messages += [*turn, {"role": "assistant", "content": answer}]
    return messages


def _shown(messages: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages)
