"""One compression whose rate is met: its parts, what must stay in them, the search, and what the caller should be told.

Knows a loaded backend and one checked request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from studio.compress import budget, checks, methods, sections, spans
from studio.compress.importance import Importance
from studio.compress.information import Information
from studio.compress.llmlingua import Backend
from studio.compress.request import Request
from studio.compress.selection import Selection, Selector
from studio.errors import StudioError

MISS = 0.05  # of the rate: more is told
STARVING = 0.5  # of the rate: known words get that much of their own tokens at least
LARGE = 8  # a document of more than this part of all tokens is large
SMALLEST_PASSAGE = 24  # tokens: shorter ones say too little to be ranked


@dataclass(frozen=True)
class TextPart:
    """A stretch of one context that is compressed, at `rate` or at the rate of the whole."""

    context: int
    start: int
    end: int
    rate: float | None = None


class Calibration:
    """One calibrated compression: its parts, what must stay in them, and the search."""

    def __init__(self, backend: Backend, information: Information, importance: Importance, asked: Request) -> None:
        self.backend = backend
        self.information = information
        self.importance = importance
        self.asked = asked
        self.notes: list[str] = []
        self.documents: dict[int, sections.Document] = {}
        self.contexts = list(asked.contexts)  # as they are read: of a JSON text its long strings, one after the other
        self.parts, self.fixed = self._parts()
        self.units = [spans.units(text) for text in self.contexts]
        self.whole_words = [spans.whole_words(text) for text in self.contexts]
        whole = list(self.contexts)
        for n, document in self.documents.items():
            whole[n] = document.text
        self.original = asked.joined(whole)  # without tags
        self.selectors = {rate: self._selector(rate) for rate in dict.fromkeys(part.rate for part in self.parts)}

    def _parts(self) -> tuple[list[TextPart], list[bytearray]]:
        """Parts to compress, and per context a mask of what stays as it is."""
        if self.asked.method.name == "structured":
            return self._structured_parts()
        fixed = [bytearray(len(text)) for text in self.contexts]
        if self.asked.method.name != "longllmlingua":
            return [TextPart(n, 0, len(text)) for n, text in enumerate(self.contexts)], fixed
        return self._passages(), fixed

    def _passages(self) -> list[TextPart]:
        """What is ranked: documents that fit the model's window; a longer or a lone one by its paragraphs, or their sentences.

        A compressor that keeps or drops passages as they are needs small ones, so it gets large documents in passages too.
        """
        lengths = [self.backend.get_token_length(text) for text in self.contexts]
        room = max(32, self.backend.max_position_embeddings - self._count(self.asked.question) - 40)
        is_lone = sum(bool(text.strip()) for text in self.contexts) == 1
        whole = room
        if methods.keeps_passages(self.backend.facts, self.asked.options):
            whole = min(room, sum(lengths) // LARGE)
        limit = min(room, max(SMALLEST_PASSAGE, sum(lengths) // (2 * LARGE)))
        return [
            part
            for n, (text, tokens) in enumerate(zip(self.contexts, lengths, strict=True))
            for part in (
                [TextPart(n, 0, len(text))]
                if not is_lone and tokens <= max(whole, limit)
                else [TextPart(n, *edges) for edges in spans.passages(text, limit, self.backend.get_token_length)]
            )
        ]

    def _structured_parts(self) -> tuple[list[TextPart], list[bytearray]]:
        parts, fixed = [], []
        for n, text in enumerate(self.contexts):
            found, plain, mask = self._sections(n, text), "", bytearray()
            for section in found:
                start = len(plain)
                plain += section.text
                mask += bytes([not section.compress]) * len(section.text)
                if section.compress and section.text.strip():
                    parts.append(TextPart(n, start, len(plain), section.rate))
            self.contexts[n] = plain
            fixed.append(mask)
        if not parts:
            raise StudioError("No section may be compressed.", "Take compress=False away from at least one.")
        if all(part.rate is not None for part in parts):
            self.notes.append("Every section names its own rate, so the requested rate changes nothing.")
        return parts, fixed

    def _sections(self, n: int, text: str) -> list[sections.Section]:
        if not sections.is_json(text):
            return sections.tagged(text)
        self.documents[n] = document = sections.Document(text)
        if document.doubled:
            self.notes.append(f"The JSON has a key twice ({', '.join(document.doubled[:3])}); both stay.")
        if not document.strings:
            raise StudioError("The JSON holds no longer text.", "Keys, numbers and short values are kept as they are.")
        between = sections.Section("\n", compress=False)
        return [section for string in document.strings for section in (sections.Section(string), between)]

    def _selector(self, rate: float | None) -> tuple[Selector, list[TextPart]]:
        mine = [part for part in self.parts if part.rate == rate]
        texts = [self.contexts[part.context][part.start : part.end] for part in mine]
        method, backend = self.asked.method, self.backend
        if method.name == "structured":
            name = "llmlingua"
            if backend.use_llmlingua2:
                name = "llmlingua2"
            elif backend.facts.cuts_words:
                name = "self_information"
            method = replace(methods.METHODS[name], calibrated={"use_context_level_filter": False})
        return Selector(backend, self.information, self.importance, method, texts, self.asked.question, self.asked.options), mine

    def meet(self, wanted: int, total: int) -> tuple[str, list[bytearray], float | None]:
        """Text, masks and inner rate closest to `wanted` tokens."""
        masks = [bytearray(mask) for mask in self.fixed]
        order = list(range(len(self.contexts)))
        for rate, (selector, parts) in self.selectors.items():
            if rate is not None:
                self._meet_sections(selector, parts, rate, masks)
        if None not in self.selectors:
            return self.asked.joined(self._texts(masks, order)), masks, None
        selector, parts = self.selectors[None]
        compressible = sum(self._count(self.contexts[part.context][part.start : part.end]) for part in parts)
        if self.asked.method.name == "structured" and self.asked.rate is not None and len(self.selectors) == 1:
            wanted = round(total - compressible + self.asked.rate * compressible)

        def attempt(inner: float) -> tuple[int, tuple[str, list[bytearray]]]:
            made, sequence = self._apply(selector.select(inner), parts, masks)
            text = self.asked.joined(self._texts(made, sequence))
            return self._count(text), (text, made)

        if self.asked.rate is not None and self.backend.use_llmlingua2:  # for a classifier an attempt costs next to nothing
            wanted = self._fed(wanted, total, selector, attempt)
        first = max(0.01, (wanted - (total - compressible)) / max(1, compressible))
        _, (text, made), inner = budget.meet(attempt, wanted, total, first=first, at_most=self.asked.target_token is not None)
        return text, made, round(inner, 4)

    def _fed(self, wanted: int, total: int, selector: Selector, attempt: Callable[[float], tuple[int, Any]]) -> int:
        """`wanted`, or more where letters without a word must stay and would starve the words beside them, numbers above all."""
        least, _ = attempt(budget.SMALLEST)
        room = STARVING * (self.asked.rate or 0) * (total - least)
        if not selector.unknown:
            return wanted
        return max(wanted, round(least + room))

    def _meet_sections(self, selector: Selector, parts: list[TextPart], rate: float, masks: list[bytearray]) -> None:
        """Sections with a rate of their own, met on their own tokens."""
        texts = [self.contexts[part.context][part.start : part.end] for part in parts]
        total = sum(self._count(text) for text in texts)

        def attempt(inner: float) -> tuple[int, list[bytearray]]:
            made, _ = self._apply(selector.select(inner), parts, masks)
            short = [spans.assemble(text, made[part.context][part.start : part.end]) for text, part in zip(texts, parts, strict=True)]
            return sum(self._count(text) for text in short), made

        _, made, _ = budget.meet(attempt, round(rate * total), total, first=rate)
        masks[:] = made

    def _apply(self, selection: Selection, parts: list[TextPart], masks: list[bytearray]) -> tuple[list[bytearray], list[int]]:
        """Masks of the contexts with a selection written into them and everything that must stay; and their order."""
        made = [bytearray(mask) for mask in masks]
        for part, mask in zip(parts, selection.masks, strict=True):
            made[part.context][part.start : part.end] = mask
        for text, mask, units, whole in zip(self.contexts, made, self.units, self.whole_words, strict=True):
            spans.settle_words(mask, whole)
            spans.close_units(mask, units)
            if any(mask) or not self._drops_documents():
                self._force(text, mask)
        order = list(range(len(self.contexts)))
        if len(parts) == len(self.contexts):  # whole contexts, which may change places
            order = [parts[n].context for n in selection.order]
        return made, order + [n for n in range(len(self.contexts)) if n not in order and any(made[n])]

    def _drops_documents(self) -> bool:
        """Whether whole documents may go: then what must stay in them goes too, with a warning."""
        return self.asked.method.name == "longllmlingua"

    def _force(self, text: str, mask: bytearray) -> None:
        previous = ("", 0)
        for start, end, what in self.asked.must_keep.spans(text):
            is_doubled = self.asked.drop_consecutive and what == previous[0] and not any(mask[previous[1] : start])
            change = spans.drop if is_doubled else spans.keep
            change(mask, start, end)
            previous = (what, end)

    def _texts(self, masks: Sequence[bytearray], order: Sequence[int]) -> list[str]:
        texts = []
        for n in order:
            if n in self.documents:
                texts.append(self._json_text(n, masks[n]))
            elif self.asked.method.name == "structured":
                texts.append(self._section_text(n, masks[n]))
            else:
                texts.append(spans.assemble(self.contexts[n], masks[n]))
        return texts

    def _json_text(self, n: int, mask: bytearray) -> str:
        mine = [part for part in self.parts if part.context == n]
        return self.documents[n].rebuilt([spans.assemble(self.contexts[n][p.start : p.end], mask[p.start : p.end]) for p in mine])

    def _section_text(self, n: int, mask: bytearray) -> str:
        """Sections in order, with the white space around each as it was."""
        out, cursor, text = "", 0, self.contexts[n]
        for part in (part for part in self.parts if part.context == n):
            inner = text[part.start : part.end]
            left, right = len(inner) - len(inner.lstrip()), len(inner.rstrip())
            out += text[cursor : part.start] + inner[:left] + spans.assemble(inner, mask[part.start : part.end]) + inner[right:]
            cursor = part.end
        return out + text[cursor:]

    def achieved_compressible(self, after: int, before: int) -> float:
        compressible = sum(self._count(self.contexts[part.context][part.start : part.end]) for part in self.parts)
        return round(max(0.0, 1 - (before - after) / max(1, compressible)), 4)

    def warnings(self, text: str, after: int, before: int, wanted: float) -> list[str]:
        """What the caller should know: a rate that was missed, things that must not get lost and did, words that were never there."""
        asked, found = self.asked, list(self.notes)
        for selector, _ in self.selectors.values():
            found += self._selector_notes(selector)
        if (asked.method.name != "structured" and abs(after - wanted) / before > MISS) or (asked.target_token and after > wanted):
            found.append(
                f"Asked for {wanted / before:.0%} of the tokens, {after / before:.0%} came out: {self._why_missed(after, wanted)}."
            )
        found += [f"{word!r} is not in the prompt, so it can't be kept." for word in asked.must_keep.absent(self.original)]
        lost = checks.lost(self.original, text, tuple(checks.KINDS))
        if self.documents:
            lost.pop("quotes", None)  # every string of JSON is quoted
        found += [checks.warning(kind, gone, checks.count(self.original, kind)) for kind, gone in lost.items()]
        return found

    def _why_missed(self, after: int, wanted: float) -> str:
        if after < wanted:
            return "too little is kept, because the next word or number to keep, which stays whole, is larger than what is missing"
        if self.asked.must_keep.spans(self.original):
            return "too much is kept, because what must stay leaves no more room"
        if any(selector.keeps_unknown for selector, _ in self.selectors.values()):
            return "too much is kept, because letters that the compressor has no word for stay"
        return "too much is kept, because words and numbers are not cut into pieces"

    def _selector_notes(self, selector: Selector) -> list[str]:
        notes = []
        facts = self.backend.facts
        if selector.unknown:
            how = "their words were kept or dropped whole, as the words beside them. self_information weighs them."
            if selector.keeps_unknown:
                how = "they were kept. self_information can cut them."
            notes.append(f"The compressor has no word for {selector.unknown:,} characters; {how}")
        if facts.cuts_words and self.asked.method.name == "llmlingua":
            notes.append(
                f"This compressor has only {facts.vocabulary:,} pieces, so dropping tokens cuts inside words. "
                "Use self_information or llmlingua2 instead."
            )
        if self.asked.method.name == "longllmlingua" and methods.keeps_passages(facts, self.asked.options):
            notes.append(
                "Whole passages and whole words were kept, because this compressor's vocabulary is too small to drop tokens. "
                "Passages are ranked by how well they foretell the question and by the rare words that they share with it."
            )
        return notes

    def _count(self, text: str) -> int:
        return self.backend.oai_tokenizer.count(text)

    def words(self, masks: Sequence[bytearray]) -> list[tuple[str, bool]]:
        """Every word of the prompt in order, with whether it stayed."""
        asked = self.asked
        around = [(asked.instruction, spans.full(asked.instruction)), *zip(self.contexts, masks, strict=True)]
        return [pair for text, mask in (*around, (asked.question, spans.full(asked.question))) for pair in spans.words(text, mask)]
