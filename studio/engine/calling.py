"""Calls for one request: how the model's chat template writes them, and what holds and reads them in each of its answers.

Knows renderers and vocabularies; no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from studio.catalogue import rope
from studio.datasets.call_format import AS_TEXT, CallFormat, call_format
from studio.datasets.keyed_format import KeyedFormat, keyed_format
from studio.datasets.rendering import TOLD_AS_TEXT, TOOLS_KEY, Renderer
from studio.engine import calls
from studio.engine.answer import GeneratedAnswer
from studio.engine.grammar import GrammarVocabulary, Matcher
from studio.engine.keyed_calls import KeyedReader
from studio.engine.keyed_grammar import keyed_grammar
from studio.engine.protocol import GenerationRequest, Grammar, Tools, bad_request

MOST_BYTES = 1024**2  # of an adapter's card
AS_INSTRUCTION = "The chat template has no place for tools: they were told as a plain instruction."
AS_JSON = "The call was asked for as JSON, which is not how the chat template writes calls."
UNHELD = "Calls are read, but not held to what the tools take: a tool takes arguments that it does not name, or nothing ends a text."


@dataclass(frozen=True)
class Calling:
    """Of all answers of one request."""

    form: CallFormat | KeyedFormat
    tools: Tools
    matcher: Matcher | None  # None: calls are read and not held
    decode: Callable[[Sequence[int]], str]  # ids to text, with the tokens that calls are written with
    notes: tuple[str, ...]

    def give(self, answer: GeneratedAnswer) -> None:
        """Have this answer's calls held and read."""
        if isinstance(self.form, KeyedFormat):
            answer.reader = KeyedReader(self.form, self.tools)
        else:
            answer.reader = calls.CallReader(self.form, self.tools.names, is_forced=self.tools.is_forced)
        answer.notes = (*answer.notes, *self.notes)
        matcher = self.matcher and self.matcher.copy()
        if self.tools.is_forced:
            answer.matcher = matcher
        else:
            answer.calls_matcher = matcher


def calling_of(request: GenerationRequest, renderer: Renderer, vocabulary: GrammarVocabulary) -> Calling:
    """Raises EngineError 400 where the template has no tools and nobody asked for them in another way."""
    tools = request.tools
    assert tools is not None, "a request with tools"
    form, notes = _form(request, tools, renderer)
    grammar: Grammar | None
    if isinstance(form, KeyedFormat):
        grammar = keyed_grammar(form, tools, vocabulary.literal)
        notes = (*notes, UNHELD) if grammar is None else notes
    else:
        grammar = calls.grammar(form, tools, vocabulary.literal, from_mark=not tools.is_forced)
    matcher = None if grammar is None else vocabulary.matcher(grammar)
    return Calling(form, tools, matcher, _decoding(renderer, form), notes)


def _form(request: GenerationRequest, tools: Tools, renderer: Renderer) -> tuple[CallFormat | KeyedFormat, tuple[str, ...]]:
    if renderer.tells_tools_as_text:
        if not (tools.is_forced or tools.as_instruction or _has_learned_so(request)):
            raise bad_request(
                f"The chat template of {request.model} has no place for tools, so it is not told of them.",
                "Set tools_as_instruction to true to have them told as plain text, or tool_choice to required or a function's name.",
                param="tools",
                code="tools_not_supported",
            )
        return AS_TEXT, (AS_INSTRUCTION,)
    found = _format_of(renderer)
    if tools.is_forced and not isinstance(found, CallFormat):
        return AS_TEXT, (AS_JSON,)  # whose shortest end is known, so that the call is whole within the limit
    if found is not None:
        return found, ()
    raise bad_request(
        f"The chat template of {request.model} writes calls in a way that is not read here.",
        "Set tool_choice to required or to a function's name: then a call is asked for as JSON.",
        param="tools",
        code="tools_not_supported",
    )


def _has_learned_so(request: GenerationRequest) -> bool:
    """Whether the adapter was trained with tools that were told as plain text."""
    if request.adapter is None:
        return False
    try:
        with (request.adapter.path / rope.CARD).open("rb") as file:
            card = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(card, dict) and card.get(TOOLS_KEY) == TOLD_AS_TEXT


@lru_cache(maxsize=32)
def _format_of(renderer: Renderer) -> CallFormat | KeyedFormat | None:
    return call_format(renderer.dialogue) or keyed_format(renderer.dialogue)


def _decoding(renderer: Renderer, form: CallFormat | KeyedFormat) -> Callable[[Sequence[int]], str]:
    """Ids to text without special tokens, but for those that the format's texts hold."""
    fixed = "".join(form.texts)
    added = renderer.tokenizer.get_added_tokens_decoder()
    dropped = {token_id for token_id, token in added.items() if token.special and token.content not in fixed}
    if len(dropped) == sum(token.special for token in added.values()):
        return renderer.decode

    def decode(ids: Iterable[int]) -> str:
        return renderer.decode([token_id for token_id in ids if token_id not in dropped], skip_special_tokens=False)

    return decode
