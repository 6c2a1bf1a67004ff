"""One attempt at one inner rate: which characters of which texts a method keeps. Knows a loaded backend; nothing of wanted rates."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studio.compress import budget, llmlingua, methods, ranking, spans
from studio.compress.importance import Importance
from studio.compress.information import Information
from studio.compress.methods import Method
from studio.compress.models import CLASSIFIER
from studio.compress.tracing import word_mask
from studio.errors import StudioError

THRESHOLD_OPTIONS = {"token_to_word", "chunk_end_tokens"}  # of llmlingua2, what changes no more than how words are read


@dataclass(frozen=True)
class Selection:
    """A mask per text, and the order in which the texts come out."""

    masks: list[bytearray]
    order: list[int]


class Selector:
    """`select(inner rate)` for one set of texts. What does not depend on the rate is read once."""

    def __init__(
        self,
        backend: llmlingua.Backend,
        information: Information,
        importance: Importance,
        method: Method,
        texts: Sequence[str],
        question: str,
        options: Mapping[str, Any],
    ) -> None:
        self.backend = backend
        self.information = information
        self.importance = importance
        self.method = method
        self.texts = list(texts)
        self.question = question
        self.options = {**method.calibrated, **options}
        self.unknown = 0  # characters that the compressor has no word for
        self.keeps_unknown = False
        self._lengths = [backend.oai_tokenizer.count(text) for text in self.texts]
        self._given = set(options)
        self._ranking: list[int] | None = None
        keeps_words = method.name == "self_information" or (backend.facts.cuts_words and method.name == "structured")
        ranks_passages = method.name == "longllmlingua" and methods.keeps_passages(backend.facts, options)
        sets_thresholds = method.kind == CLASSIFIER and set(options) <= THRESHOLD_OPTIONS
        ways = ((ranks_passages, self._passages), (keeps_words, self._words), (sets_thresholds, self._importances))
        self.select = next((way for is_it, way in ways if is_it), self._library)

    def _library(self, rate: float) -> Selection:
        """The library at `rate`, its choice followed character by character."""
        arguments: dict[str, Any] = {"context": self.texts, "rate": rate, **self.method.sets, **self._defaults(), **self.options}
        if self.method.needs_question or self.method.kind == "causal":
            arguments["question"] = self.question
            arguments.setdefault("concate_question", False)
        try:
            _, trace = self.backend.run("compress_prompt", arguments)
        except StudioError:
            if "condition_in_question" in self._given or self.options.get("condition_in_question") != "after_condition":
                raise
            self.options["condition_in_question"] = "after"  # the library can't cut this question from its text
            return self._library(rate)
        masks = trace.masks(self.texts)
        if masks is None:
            raise StudioError("With these options it can't be told which words were kept.", "Leave keep_split out, or use calibrate=False.")
        if trace.words is not None:
            self._keep_unknown(masks, trace)
        return Selection(masks, trace.contexts if trace.contexts is not None else list(range(len(self.texts))))

    def _importances(self, rate: float) -> Selection:
        """The words that a classifier wants to keep most."""
        given = {name: value for name, value in self.options.items() if name in THRESHOLD_OPTIONS}
        readings = self.importance.read(self.texts, given)
        self.unknown = sum(len(reading.unknown) for reading in readings)
        return Selection([reading.mask(rate) for reading in readings], list(range(len(self.texts))))

    def _defaults(self) -> dict[str, Any]:
        if self.method.kind != "causal":
            return {}
        sized: dict[str, Any] = {"iterative_size": budget.iterative_size(sum(self._lengths))}
        return sized

    def _keep_unknown(self, masks: list[bytearray], trace: Any) -> None:
        """Letters that the classifier's tokenizer does not know are never dropped in silence."""
        chosen = range(len(self.texts)) if trace.contexts is None else trace.contexts
        self.unknown = 0
        for index, words in zip(chosen, trace.words, strict=True):
            known = word_mask(self.texts[index], words)[1]
            for place, character in enumerate(self.texts[index]):
                if not known[place] and unicodedata.category(character)[0] in "LMNS":
                    masks[index][place] = 1
                    self.unknown += 1
        self.keeps_unknown = self.unknown > 0

    def _words(self, rate: float) -> Selection:
        """The words of greatest self-information that together make up `rate` of the characters."""
        found = [(index, word) for index, text in enumerate(self.texts) for word in self.information.words(text)]
        found.sort(key=lambda pair: -pair[1].score)
        room = rate * sum(word.end - word.start + 1 for _, word in found)
        masks = [bytearray(len(text)) for text in self.texts]
        for index, word in found:
            room -= word.end - word.start + 1
            if room < 0:
                break
            spans.keep(masks[index], word.start, word.end)
        return Selection(masks, list(range(len(self.texts))))

    def _passages(self, rate: float) -> Selection:
        """Whole texts in LongLLMLingua's order while they fit; of the first that does not fit, its words of greatest information."""
        if self._ranking is None:
            self._ranking = self._rank()
        room = rate * sum(self._lengths)
        masks, chosen = [bytearray(len(text)) for text in self.texts], []
        for index in self._ranking:
            if room <= 0:
                break
            chosen.append(index)
            if self._lengths[index] <= room:
                masks[index] = spans.full(self.texts[index])
            else:
                share = room / self._lengths[index]
                masks[index] = self._some_words(self.texts[index], share)
            room -= self._lengths[index]
        order = self.options.get("reorder_context", "original")
        if order == "two_stage":
            chosen = chosen[::2] + chosen[1::2][::-1]
        return Selection(masks, sorted(chosen) if order == "original" else chosen)

    def _some_words(self, text: str, share: float) -> bytearray:
        found = self.information.words(text)
        mask, room = bytearray(len(text)), share * sum(word.end - word.start + 1 for word in found)
        for word in sorted(found, key=lambda word: -word.score):
            room -= word.end - word.start + 1
            if room < 0:
                break
            spans.keep(mask, word.start, word.end)
        return mask

    def _rank(self) -> list[int]:
        """By the library's `rank_method` where the caller names one; else by LongLLMLingua's measure and by shared words together."""
        filled = [index for index, text in enumerate(self.texts) if text.strip()]
        texts = [self.texts[index] for index in filled]
        if len(filled) < 2:
            return filled
        order = llmlingua.rank(self.backend, texts, self.question, str(self.options.get("rank_method", "longllmlingua")))
        if "rank_method" not in self._given:
            order = ranking.fused(order, ranking.shared_words(texts, self.question))
        return [filled[n] for n in order]
