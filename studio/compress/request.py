"""One call of a compressor, and whether it can be done at all. Knows what methods need; loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from studio.compress import methods, models
from studio.compress.checks import MustKeep
from studio.compress.methods import Method
from studio.compress.models import CompressorFacts
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.compress.llmlingua import Backend

JOIN = "\n\n"


@dataclass
class Request:
    """One call, checked."""

    contexts: list[str]
    method: Method
    rate: float | None
    target_token: float | None
    instruction: str
    question: str
    force_tokens: list[str]
    force_digits: bool
    drop_consecutive: bool
    must_keep: MustKeep
    options: Mapping[str, Any]
    calibrate: bool = True

    def check(self, backend: Backend) -> None:
        """Raises StudioError for the first thing that can't be done."""
        check_wish(self.contexts, self.rate, self.target_token, is_exact=self.calibrate)
        check_kind(self.method, backend.facts, backend.folder.name)
        for text in (*self.contexts, self.instruction, self.question):
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise StudioError("The prompt holds half of a character (a lone surrogate).", "Save the text as UTF-8 again.")
        if self.method.needs_question and not self.question.strip():
            raise StudioError(f"{self.method.name} needs a question.", "Give the question that the documents shall answer.")
        methods.check_options(self.method, self.options)

    def original(self) -> str:
        return self.joined(self.contexts)

    def joined(self, contexts: Sequence[str]) -> str:
        return JOIN.join(part for part in (self.instruction, *contexts, self.question) if part)


def check_wish(contexts: Sequence[str], rate: float | None, target_token: float | None, *, is_exact: bool = True) -> None:
    """Raises StudioError for a wish that nobody can meet. Not `is_exact`: the library has a default, and an order of precedence."""
    if is_exact and (rate is None) == (target_token is None):
        raise StudioError("Give either a rate or a target in tokens.", "For instance a rate of 0.5, or a target of 500 tokens.")
    if rate is not None and not 0 < rate <= 1:
        raise StudioError(f"The rate {rate:g} is not above 0 and at most 1.", "0.5 keeps half of the tokens.")
    if target_token is not None and not target_token >= 1:
        raise StudioError(f"The target of {target_token:g} tokens is below 1.", "Give a number of tokens such as 500.")
    if not any(text.strip() for text in contexts):
        raise StudioError("There is nothing to compress: the prompt is empty.", "Give some text.")


def check_kind(method: Method, facts: CompressorFacts, name: str) -> None:
    """Raises StudioError when a compressor can't do `method`."""
    if method.kind != facts.kind and not (method.name == "structured" and facts.kind == models.CLASSIFIER):
        needs = "a token classifier" if method.kind == models.CLASSIFIER else "a causal language model"
        raise StudioError(f"{method.name} needs {needs}, and {name} is none.", "Choose another compressor or method.")
