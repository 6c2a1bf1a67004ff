"""The kinds of judges: a rule on references, the likelihood that a model gives, and a model that is asked. JUDGES has one entry each.

A judge turns pairs of answers into questions; a question has a key, equal for equal questions to an equal judge, and can be asked.
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

from jobs.light import LightJobStopped
from studio.datasets.children import run_child
from studio.engine.client import EngineClient, FinishedAnswer
from studio.engine.protocol import Contestant, Grammar
from studio.errors import EngineError, StudioError
from studio.evaluation import judging, replies
from studio.evaluation.verdicts import SCORES, SWAPPED, majority
from studio.records import ComparisonPrompt, JudgeKind, PromptMessage, TemplateKind, Verdict, Winner
from studio.settings import Settings
from studio.types import GenerationParams

ATTEMPTS = 6
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 20.0
PATIENCE_S = 900.0  # for one question: a judge that hangs must not hold the job for hours
HOPELESS = (401, 403, 404)  # the next question would get the same answer
READER = 2  # counts up when replies come to be read in another way: what was read before is asked again
RATING_BREAK = "\n\n=====\n\n"  # between the replies about the two answers, each rated alone
EQUAL = 1e-6  # log-probabilities nearer than this are a tie


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt, turn by turn; `a` is shown first."""

    prompt: ComparisonPrompt
    a: str
    b: str
    answers_a: Sequence[str]
    answers_b: Sequence[str]
    is_probe: bool = False

    def verdict(self, winner: str, asked: str, reply: str, *tokens: int, seconds: float = 0.0) -> Verdict:
        """What came of asking about the pair. `tokens`: of the prompt and of the reply."""
        prompt_tokens, completion_tokens = tokens or (0, 0)
        return Verdict(
            prompt_id=self.prompt["id"],
            a=self.a,
            b=self.b,
            winner=Winner(winner),
            probe=self.is_probe,
            asked=asked,
            reply=reply,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            seconds=seconds,
        )


@dataclass(frozen=True)
class JudgeQuestion:
    """A pair of answers as one judge is asked about it."""

    pair: AnswerPair
    asked: str
    key: str
    ask: Callable[[], Verdict]


class PairJudge(Protocol):
    """A judge. `identity` says whether it is a contestant too; None for what can't be one."""

    identity: Any

    def questions(self, pairs: Sequence[AnswerPair]) -> list[JudgeQuestion]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class JudgeSetup:
    """What a judge is made of: who it is, how it is asked, and when to stop asking."""

    settings: Settings
    model: dict[str, Any] | None = None  # a Contestant as JSON; None for the rule
    template: str = ""
    criteria: str = ""
    members: Sequence[Mapping[str, Any]] = ()  # of a panel: as JudgingService.judge_config gives each
    stop_requested: Callable[[], bool] = lambda: False

    def stop_if_asked(self) -> None:
        """Raises LightJobStopped once the job shall end."""
        if self.stop_requested():
            raise LightJobStopped


def open_judge(chosen: Mapping[str, Any], settings: Settings, stop_requested: Callable[[], bool] = lambda: False) -> PairJudge:
    """The judge of `kind`, `model`, `template` and `criteria`, as JudgingService.judge_config gives them."""
    model, template, criteria = (chosen.get(name) for name in ("model", "template", "criteria"))
    members = chosen.get("members") or ()
    return JUDGES[JudgeKind(chosen["kind"])](JudgeSetup(settings, model, template or "", criteria or "", members, stop_requested))


def judge_both_orders(
    judge: PairJudge, pairs: Sequence[tuple[ComparisonPrompt, str, str]], on_pair: Callable[[int], None] = lambda _: None
) -> list[list[Verdict]]:
    """What the judge says of each (prompt, one, other), `one` shown first and then second, so that `a` is `one` and then `other`.

    Equal texts are not asked about: their list is empty. So is that of a pair that the judge knows nothing about.
    `on_pair` is called with the number of pairs so far.
    """
    ordered = [
        (n, AnswerPair(prompt, name, rest, [first], [second]))
        for n, (prompt, one, other) in enumerate(pairs)
        if one != other
        for name, rest, first, second in (("one", "other", one, other), ("other", "one", other, one))
    ]
    places = {id(pair): n for n, pair in ordered}
    found: list[list[Verdict]] = [[] for _ in pairs]
    for question in judge.questions([pair for _, pair in ordered]):
        found[places[id(question.pair)]].append(question.ask())
        on_pair(places[id(question.pair)] + 1)
    return found


def score_of_first(verdicts: Sequence[Verdict]) -> float | None:
    """Of the first of two texts, 0-1, from what a judge said in both orders; 0.5 is a tie, None when no order had a verdict."""
    if not verdicts:
        return 0.5
    turned = [verdicts[0].winner, *(SWAPPED[other.winner] for other in verdicts[1:])]
    valid = [SCORES[winner] for winner in turned if winner in SCORES]
    return sum(valid) / len(valid) if valid else None


def identity_of(contestant: dict[str, Any]) -> Any:
    """What makes two contestants the same: folders, or URL and model; not how they were called."""
    if contestant["url"]:
        return contestant["url"], contestant["model"]
    return contestant["studio"]


def _key(*parts: Any) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


class ReferenceJudge:
    """The reference judge: no model, no order, no doubt; only as good as the references."""

    identity: Any = None

    def __init__(self, setup: JudgeSetup | None = None) -> None:
        """It needs nothing."""

    def questions(self, pairs: Sequence[AnswerPair]) -> list[JudgeQuestion]:
        return [self._question(pair, pair.prompt["reference"]) for pair in pairs if pair.prompt.get("reference")]

    def close(self) -> None:
        """It holds nothing."""

    def _question(self, pair: AnswerPair, reference: str) -> JudgeQuestion:
        a, b = pair.answers_a[-1], pair.answers_b[-1]
        asked = f"Reference: {reference}\n\nFirst answer: {a}\n\nSecond answer: {b}"

        def ask() -> Verdict:
            return pair.verdict(judging.by_reference(a, b, reference), asked, "exact match, then ROUGE-L")

        return JudgeQuestion(pair, asked, _key("reference", reference, a, b), ask)


class ModelJudge:
    """A model behind our engine or a URL. Replies are held to the form of a verdict where the server can; all are read strictly."""

    def __init__(self, setup: JudgeSetup) -> None:
        assert setup.model is not None
        self.contestant = Contestant.from_json(setup.model)
        self.identity = identity_of(setup.model)
        self.judge = judge = judging.get(setup.template)
        self.criteria = setup.criteria
        self._setup = setup
        self._client = EngineClient.from_settings(setup.settings, lane="batch")
        room = judge.max_new_tokens
        self._grammar: Grammar | None = Grammar("gbnf", judge.grammar)
        if self.contestant.url:  # other servers know schemas at best; one that refuses them is asked without
            self._grammar = None
            if judge.schema:
                self._grammar = Grammar("json_schema", judge.schema)
            room = max(room, judging.ROOM_TO_REASON)
        self._params = GenerationParams(temperature=0.0, max_new_tokens=room)
        self._ratings: dict[str, Future[FinishedAnswer]] = {}
        self._lock = threading.Lock()

    def questions(self, pairs: Sequence[AnswerPair]) -> list[JudgeQuestion]:
        make = {TemplateKind.PAIRWISE: self._pairwise, TemplateKind.SINGLE: self._single}[self.judge.kind]
        return [make(pair) for pair in pairs]

    def close(self) -> None:
        self._client.close()

    def _pairwise(self, pair: AnswerPair) -> JudgeQuestion:
        messages = judging.question(self.judge, pair.prompt, pair.answers_a, pair.answers_b, self.criteria)
        asked = _shown(messages)

        def ask() -> Verdict:
            done = self._reply(messages)
            tokens = done.prompt_tokens, done.completion_tokens
            return pair.verdict(judging.verdict(done.text), asked, done.text, *tokens, seconds=done.seconds)

        return JudgeQuestion(pair, asked, self._key_of(messages), ask)

    def _single(self, pair: AnswerPair) -> JudgeQuestion:
        """Each answer is rated alone and once; the verdict of both orders is that of the two scores."""
        both = [judging.rating_question(self.judge, pair.prompt, answers, self.criteria) for answers in (pair.answers_a, pair.answers_b)]
        asked = RATING_BREAK.join(map(_shown, both))

        def ask() -> Verdict:
            done = [self._rated(messages) for messages in both]
            winner = judging.by_rating(*(judging.rating(answer.text) for answer in done))
            tokens = sum(answer.prompt_tokens for answer in done), sum(answer.completion_tokens for answer in done)
            reply = RATING_BREAK.join(answer.text for answer in done)
            return pair.verdict(winner, asked, reply, *tokens, seconds=sum(answer.seconds for answer in done))

        return JudgeQuestion(pair, asked, self._key_of(both), ask)

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
        return _key(READER, self.identity, self.judge.name, self._params.max_new_tokens, messages)

    def _reply(self, messages: list[judging.Message]) -> FinishedAnswer:
        """Asked again with longer and longer pauses while the trouble may pass. What this one question can't have is its reply."""
        begun = time.monotonic()
        for attempt in range(ATTEMPTS):
            try:
                return self._client.chat(self.contestant, messages, self._params, grammar=self._grammar)
            except EngineError as exc:
                is_of_this_question = exc.code == "not_openai" or (400 <= exc.status < 500 and exc.status not in (*HOPELESS, 408, 429))
                if is_of_this_question:
                    return FinishedAnswer(f"{replies.REFUSED}{exc})", None, 0, 0, 0.0)
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
            self._setup.stop_if_asked()
            time.sleep(0.1)


class LikelihoodJudge:
    """The answer to which a model gives the higher summed log-probability: what that model itself would rather say. Knows no order."""

    identity: Any = None

    def __init__(self, setup: JudgeSetup) -> None:
        if setup.model is None or setup.model["studio"] is None:
            raise StudioError("A likelihood judge needs a model of this machine.", "Name a base model, or BASE:ADAPTER.")
        self._folders = setup.model["studio"]
        self._setup = setup
        self._scores: dict[str, dict[str, Any]] = {}
        self._wanted: dict[str, list[PromptMessage]] = {}
        self._lock = threading.Lock()

    def questions(self, pairs: Sequence[AnswerPair]) -> list[JudgeQuestion]:
        return [self._question(pair) for pair in pairs]

    def close(self) -> None:
        """Its model ends with its process."""

    def _question(self, pair: AnswerPair) -> JudgeQuestion:
        texts = [_conversation(pair.prompt, answers) for answers in (pair.answers_a, pair.answers_b)]
        keys = [_key(messages) for messages in texts]
        self._wanted |= dict(zip(keys, texts, strict=True))
        asked = RATING_BREAK.join(map(_shown, texts))

        def ask() -> Verdict:
            one, other = (self._score(key) for key in keys)
            winner = Winner.TIE
            if abs(one["logprob"] - other["logprob"]) >= EQUAL:
                winner = Winner.A if one["logprob"] > other["logprob"] else Winner.B
            reply = "\n".join(f"{name}: {row['logprob']:.3f} over {row['tokens']} tokens" for name, row in (("a", one), ("b", other)))
            tokens, seconds = (sum(row[name] for row in (one, other)) for name in ("prompt_tokens", "seconds"))
            return pair.verdict(winner, asked, reply, tokens, 0, seconds=seconds)

        return JudgeQuestion(pair, asked, _key("likelihood", self._folders, keys), ask)

    def _score(self, key: str) -> dict[str, Any]:
        """Scores of everything at the first call, in a process of its own, which ends with its memory."""
        with self._lock:
            if not self._scores:
                options = {"studio": self._folders, "conversations": list(self._wanted.values())}
                cache = self._setup.settings.cache
                found = run_child("studio.evaluation.likelihood", options, cache, pulse=self._setup.stop_if_asked)
                self._scores = dict(zip(self._wanted, found["scores"], strict=True))
        return self._scores[key]


class PanelJudge:
    """Several judges, each asked by itself; their majority decides."""

    identity: Any = None  # each of its judges has its own

    def __init__(self, setup: JudgeSetup) -> None:
        chosen = [{"criteria": setup.criteria, **member} for member in setup.members]
        self.judges = {str(one["judge"]): open_judge(one, setup.settings, setup.stop_requested) for one in chosen}

    def questions(self, pairs: Sequence[AnswerPair]) -> list[JudgeQuestion]:
        own: dict[int, dict[str, JudgeQuestion]] = {id(pair): {} for pair in pairs}
        for name, judge in self.judges.items():
            for question in judge.questions(pairs):
                own[id(question.pair)][name] = question
        return [self._question(pair, own[id(pair)]) for pair in pairs if own[id(pair)]]

    def close(self) -> None:
        for judge in self.judges.values():
            judge.close()

    def _question(self, pair: AnswerPair, questions: Mapping[str, JudgeQuestion]) -> JudgeQuestion:
        def ask() -> Verdict:
            return said_together(pair, {name: question.ask() for name, question in questions.items()})

        return JudgeQuestion(pair, "", _key("panel", [question.key for question in questions.values()]), ask)


def said_together(pair: AnswerPair, said: Mapping[str, Verdict]) -> Verdict:
    """The majority of what several judges say of a pair; its reply names each."""
    reply = "\n".join(f"{name}: {verdict.winner}" for name, verdict in said.items())
    tokens = sum(one.prompt_tokens for one in said.values()), sum(one.completion_tokens for one in said.values())
    winner = majority(verdict.winner for verdict in said.values())
    return pair.verdict(winner, "", reply, *tokens, seconds=sum(one.seconds for one in said.values()))


# a new kind of judge needs an entry here, and a name that JudgingService recognises
JUDGES: dict[JudgeKind, Callable[[JudgeSetup], PairJudge]] = {
    JudgeKind.REFERENCE: ReferenceJudge,
    JudgeKind.LIKELIHOOD: LikelihoodJudge,
    JudgeKind.MODEL: ModelJudge,
    JudgeKind.PANEL: PanelJudge,
}


def _conversation(prompt: ComparisonPrompt, answers: Sequence[str]) -> list[PromptMessage]:
    messages: list[PromptMessage] = []
    for turn, answer in zip(prompt["turns"], answers, strict=False):
        messages += [*turn, {"role": "assistant", "content": answer}]
    return messages


def _shown(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(f"{message['role']}:\n{message['content']}" for message in messages)
