"""Calls for one request: how the model's chat template writes them, and what holds and reads them in each of its answers.

Knows renderers and vocabularies; no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from studio.catalogue import rope
from studio.datasets.call_format import AS_TEXT, TOLD_AS_TEXT, TOOLS_KEY, CallFormat, call_format
from studio.datasets.rendering import Renderer
from studio.engine import calls
from studio.engine.answer import GeneratedAnswer
from studio.engine.grammar import GrammarVocabulary, Matcher
from studio.engine.protocol import GenerationRequest, Tools, bad_request

MOST_BYTES = 1024**2  # of an adapter's card
AS_INSTRUCTION = "The chat template has no place for tools: they were told as a plain instruction."
AS_JSON = "The chat template writes calls in a way that is not read here: the call was asked for as JSON."


@dataclass(frozen=True)
class Calling:
    """Of all answers of one request."""

    form: CallFormat
    tools: Tools
    matcher: Matcher
    decode: Callable[[Sequence[int]], str]  # ids to text, with the tokens that calls are written with
    notes: tuple[str, ...]

    def give(self, answer: GeneratedAnswer) -> None:
        """Have this answer's calls held and read."""
        answer.reader = calls.CallReader(self.form, self.tools.names, is_forced=self.tools.is_forced)
        answer.notes = (*answer.notes, *self.notes)
        if self.tools.is_forced:
            answer.matcher = self.matcher.copy()
        else:
            answer.calls_matcher = self.matcher.copy()


def calling_of(request: GenerationRequest, renderer: Renderer, vocabulary: GrammarVocabulary) -> Calling:
    """Raises EngineError 400 where the template has no tools and nobody asked for them in another way."""
    tools = request.tools
    assert tools is not None, "a request with tools"
    form, notes = _form(request, tools, renderer)
    matcher = vocabulary.matcher(calls.grammar(form, tools, vocabulary.literal, from_mark=not tools.is_forced))
    return Calling(form, tools, matcher, _decoding(renderer, form), notes)


def _form(request: GenerationRequest, tools: Tools, renderer: Renderer) -> tuple[CallFormat, tuple[str, ...]]:
    if not renderer.dialogue.shows_tools:
        if not (tools.is_forced or tools.as_instruction or _has_learned_so(request)):
            raise bad_request(
                f"The chat template of {request.model} has no place for tools, so it is not told of them.",
                "Set tools_as_instruction to true to have them told as plain text, or tool_choice to required or a function's name.",
                param="tools",
                code="tools_not_supported",
            )
        return AS_TEXT, (AS_INSTRUCTION,)
    found = _format_of(renderer)
    if found is not None:
        return found, ()
    if tools.is_forced:
        return AS_TEXT, (AS_JSON,)
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
def _format_of(renderer: Renderer) -> CallFormat | None:
    return call_format(renderer.dialogue)


def _decoding(renderer: Renderer, form: CallFormat) -> Callable[[Sequence[int]], str]:
    """Ids to text without special tokens, but for those that the format's texts hold."""
    fixed = "".join((form.opening, *form.between, form.link, form.closing))
    added = renderer.tokenizer.get_added_tokens_decoder()
    dropped = {token_id for token_id, token in added.items() if token.special and token.content not in fixed}
    if len(dropped) == sum(token.special for token in added.values()):
        return renderer.decode

    def decode(ids: Iterable[int]) -> str:
        return renderer.decode([token_id for token_id in ids if token_id not in dropped], skip_special_tokens=False)

    return decode
