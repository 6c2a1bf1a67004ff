"""One answer in the making: from prompt ids, token by token, to the events its caller sees. Knows no torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from studio.engine.protocol import AdapterRef, CallDelta, Ending, Event, Lane, ModelFolder, Speculation, TokenLogprob, Usage
from studio.engine.text import AnswerText
from studio.errors import EngineError
from studio.types import GenerationParams

if TYPE_CHECKING:
    from studio.engine.call_text import CallsInText
    from studio.engine.grammar import GrammarVocabulary, Matcher
    from studio.engine.speculation import Drafter, Gain

RESERVED_TOKENS = 256  # of an answer that are counted before they are written: few use the limit they may


@dataclass(eq=False)
class GeneratedAnswer:
    """What to make and how far it is. `deliver` is called from the scheduler's thread and must not block."""

    base: ModelFolder
    adapter: AdapterRef | None
    prompt_ids: Sequence[int]
    limit: int  # tokens; 0 where nothing is written
    params: GenerationParams
    seed: int
    stop_ids: frozenset[int]
    text: AnswerText
    deliver: Callable[[Event], None]
    ending: Ending = field(default_factory=Ending)
    index: int = 0
    top_logprobs: int | None = None
    vocabulary: GrammarVocabulary | None = None  # needed for logprobs only
    matcher: Matcher | None = None
    reader: CallsInText | None = None  # of calls, where tools were given
    calls_matcher: Matcher | None = None  # holds what follows once a call begins
    lane: Lane = "chat"
    speculation: Speculation | None = None  # as asked
    drafter: Drafter | None = None  # as given by the scheduler, with `gain`
    gain: Gain = None  # type: ignore[assignment]
    notes: tuple[str, ...] = ()  # what the reader must know of how it was made
    reused_tokens: int = 0  # of the prompt, whose states were known
    completion_tokens: int = 0
    submitted_at: float = field(default_factory=time.monotonic)
    started_at: float = 0.0  # when the scheduler took it up
    first_token_at: float = 0.0
    error: EngineError | None = None
    is_finished: bool = False
    is_cancelled: bool = False
    ids: list[int] = field(default_factory=list)
    echo: str | None = None  # the prompt's text, with which the answer begins

    @property
    def is_over(self) -> bool:
        return self.is_finished or self.is_cancelled

    @property
    def width(self) -> int:
        """Columns of keys and values that it takes, as far as they are counted before they are written."""
        return len(self.prompt_ids) + min(self.limit, max(RESERVED_TOKENS, self.completion_tokens))

    @property
    def is_read_first(self) -> bool:
        """Whether something is wanted of its prompt before anything is written."""
        return self.echo is not None

    @property
    def barred(self) -> frozenset[int]:
        """Tokens that would end it where it may not end yet."""
        if len(self.ids) < self.ending.min_tokens:
            return self.stop_ids
        return self.stop_ids - self.ending.stop_token_ids if self.ending.ignore_eos else frozenset()

    def cancel(self) -> None:
        """Nobody waits any more; the scheduler drops it before its next step."""
        self.is_cancelled = True

    def repeat(self, probabilities: Sequence[Sequence[tuple[int, float]]] = ()) -> None:
        """Begin with the prompt; `probabilities` as in `take`, of each of its tokens but the first, where they are wanted."""
        assert self.echo is not None
        entries: tuple[TokenLogprob, ...] = ()
        if self.vocabulary is not None and self.top_logprobs is not None:
            first = TokenLogprob(self.vocabulary.token_bytes(self.prompt_ids[0]), None)
            entries = (first, *map(self._logprob, probabilities))
        self.deliver(Event(self.index, self.echo, entries))
        if not self.limit:
            self.finish("length")

    def take(self, token_id: int, logprobs: Sequence[tuple[int, float]] = ()) -> None:
        """The next token was chosen; `logprobs` holds it first, then the likeliest ones. May finish the answer."""
        self.first_token_at = self.first_token_at or time.monotonic()
        if token_id in self.stop_ids:
            if self.echo is not None and logprobs:  # who counts the tokens of an echo counts the one that ended it too
                self.deliver(Event(self.index, "", (self._logprob(logprobs),)))
            return self.finish("stop")
        self.ids.append(token_id)
        self.completion_tokens += 1
        if self.matcher is not None:
            self.matcher.take(token_id)
        text, calls = self._read(self.text.push(token_id))
        entries = (self._logprob(logprobs),) if logprobs else ()
        if text or entries or calls:
            self.deliver(Event(self.index, text, entries, calls=calls))
        if self.calls_matcher is not None and self.reader is not None and self.reader.opened:
            self._hold_calls(self.reader.opened)
        if self.matcher is not None:
            self.matcher.leave(self.limit - self.completion_tokens)
        if self.text.is_stopped or (self.matcher is not None and self.matcher.is_complete):
            self.finish("stop")
        elif self.completion_tokens >= self.limit:
            self.finish("length")

    def finish(self, reason: str) -> None:
        self.is_finished = True
        usage = Usage(len(self.prompt_ids), self.completion_tokens)
        text, calls = self._read(self.text.finish())
        if self.reader is not None:
            rest = self.reader.finish()
            text, calls = text + rest.content, (*calls, *rest.calls)
            if self.reader.count and reason == "stop":
                reason = "tool_calls"
        self.deliver(Event(self.index, text, finish_reason=reason, usage=usage, facts=self.facts(), calls=calls))

    def _read(self, text: str) -> tuple[str, tuple[CallDelta, ...]]:
        """The text without its calls, and those."""
        if self.reader is None:
            return text, ()
        read = self.reader.push(text)
        return read.content, read.calls

    def _hold_calls(self, opened: str) -> None:
        """From here on the answer is calls: their grammar follows what was written of them, unless that already departs from it."""
        matcher, self.calls_matcher = self.calls_matcher, None
        if matcher is not None and self.matcher is None and matcher.follow(opened):
            self.matcher = matcher

    def facts(self) -> dict[str, Any]:
        """How it was made: seconds, tokens per second after the first token, and what is worth a word."""
        now = time.monotonic()
        writing = now - (self.first_token_at or now)
        speed = (self.completion_tokens - 1) / writing if self.completion_tokens > 1 and writing > 0 else None
        return {
            "first_token_s": round((self.first_token_at or now) - self.submitted_at, 4),
            "seconds": round(now - self.submitted_at, 4),
            "tokens_per_s": speed and round(speed, 2),
            "reused_tokens": self.reused_tokens,
            "notes": list(self.notes),
            "speculation": self.gain.as_json() if self.drafter is not None else None,
        }

    def fail(self, error: EngineError) -> None:
        """End with an error; what was written so far has been delivered already."""
        if not self.is_over:
            self.is_finished, self.error = True, error
            self.deliver(Event(self.index, error=error))

    def _logprob(self, entries: Sequence[tuple[int, float]]) -> TokenLogprob:
        assert self.vocabulary is not None, "logprobs need a vocabulary"
        named = [(self.vocabulary.token_bytes(token_id), value) for token_id, value in entries]
        return TokenLogprob(named[0][0], named[0][1], tuple(named[1:]))
