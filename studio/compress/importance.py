"""How much a token classifier wants to keep each word of a text, read once: another rate is then a matter of milliseconds.

Words, chunks and probabilities are llmlingua's (LLMLingua-2); only the threshold is set here, finer than in whole percents.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
from numpy.typing import NDArray

from studio.compress import spans
from studio.compress.tracing import word_places

REMEMBERED = 200_000  # words of all texts
APART, GOLDEN = 0.01, 0.6180339887  # unread words that would be equal get probabilities a little apart, spread evenly over the text
Numbers = NDArray[Any]


@dataclass(frozen=True)
class ClassifierReading:
    """One text of `length` characters.

    `places`: (start, end) of each word, None where it was not found again. `chunks`: probability and tokens of each word, chunk by
    chunk. `unknown`: places of letters and digits that the classifier's tokenizer has no word for; their words are among `places`.
    """

    length: int
    places: list[tuple[int, int] | None]
    chunks: list[tuple[Numbers, Numbers]]
    unknown: list[int]

    def mask(self, rate: float) -> bytearray:
        """The words of greatest importance that make up about `rate` of the tokens of each chunk."""
        mask = bytearray(self.length)
        places = iter(self.places)
        for probabilities, tokens in self.chunks:
            threshold = 1.0
            if tokens.sum():
                threshold = numpy.percentile(numpy.repeat(probabilities, tokens), 100 * (1 - min(1.0, rate)))
            chosen = probabilities > threshold
            if rate >= 1:
                chosen = probabilities >= threshold
            for is_kept, place in zip(chosen.tolist(), places, strict=False):
                if is_kept and place is not None:
                    spans.keep(mask, *place)
        return mask


class Importance:
    """Readings of texts; remembers what it has read."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._known: OrderedDict[tuple[Any, ...], ClassifierReading] = OrderedDict()
        self._held = 0

    def read(self, texts: Sequence[str], options: Mapping[str, Any]) -> list[ClassifierReading]:
        """A reading of each text. `options`: token_to_word and chunk_end_tokens of the library."""
        keys = [(self.backend.oai_tokenizer, text, str(sorted(options.items()))) for text in texts]
        fresh = list(dict.fromkeys(key for key in keys if key not in self._known))
        found = {}
        if fresh:
            found = dict(zip(fresh, self._read([key[1] for key in fresh], options), strict=True))
        readings = [found.get(key) or self._known[key] for key in keys]
        for key in dict.fromkeys(keys):
            if key in found:
                self._known[key] = found[key]
                self._held += len(found[key].places)
            self._known.move_to_end(key)
        while self._held > REMEMBERED and len(self._known) > 1:
            self._held -= len(self._known.popitem(last=False)[1].places)
        return readings

    def _read(self, texts: list[str], options: Mapping[str, Any]) -> list[ClassifierReading]:
        arguments = {"context": texts, "rate": 0.5, "use_context_level_filter": False, **options}
        _, trace = self.backend.run("compress_prompt", arguments)
        chunks, found = iter(trace.probabilities), []
        for text, labelled in zip(texts, trace.words, strict=True):
            words = [word for word, _ in labelled]
            mine, count = [], 0
            while count < len(words):
                mine.append([float(value) for value in next(chunks)])
                count += len(mine[-1])
            places = word_places(text, words)
            unknown = _unknown(text, places)
            found.append(self._reading(text, words, places, mine, unknown))
        return found

    def _reading(
        self, text: str, words: list[str], places: list[tuple[int, int] | None], chunks: list[list[float]], unknown: list[int]
    ) -> ClassifierReading:
        """Words that the classifier has read, and in their places those that its tokenizer does not know."""
        waiting, known = deque(_unknown_words(text, unknown)), iter(zip(words, places, strict=True))
        count, entries = self.backend.oai_tokenizer.count, []
        for chunk, probabilities in enumerate(chunks):
            for probability, (word, place) in zip(probabilities, known, strict=False):
                while place is not None and waiting and waiting[0][0] < place[0]:
                    entries.append(ScoredWord(chunk, waiting[0], count(text[slice(*waiting.popleft())])))
                entries.append(ScoredWord(chunk, place, count(word), probability))
        last = max(0, len(chunks) - 1)
        entries += [ScoredWord(last, place, count(text[slice(*place)])) for place in waiting]
        entries = _scored(entries)
        groups = [list(group) for _, group in itertools.groupby(entries, key=lambda entry: entry.chunk)]
        arrays = [
            (numpy.array([entry.probability for entry in group], dtype=float), numpy.array([entry.tokens for entry in group], dtype=int))
            for group in groups
        ]
        return ClassifierReading(len(text), [entry.place for entry in entries], arrays, unknown)


@dataclass(frozen=True)
class ScoredWord:
    """A word of a chunk; `probability` is None for one that the classifier could not read."""

    chunk: int
    place: tuple[int, int] | None
    tokens: int
    probability: float | None = None


def _scored(entries: Sequence[ScoredWord]) -> list[ScoredWord]:
    """Each unread word is as important as the words beside it are on average; equal ones are told apart by their number."""
    before = _nearest(entries)
    after = _nearest(entries[::-1])[::-1]
    found = []
    for number, (entry, left, right) in enumerate(zip(entries, before, after, strict=True)):
        if entry.probability is None:
            beside = [value for value in (left, right) if value is not None] or [0.5]
            entry = replace(entry, probability=sum(beside) / len(beside) - APART * (number * GOLDEN % 1))
        found.append(entry)
    return found


def _nearest(entries: Sequence[ScoredWord]) -> list[float | None]:
    """The last known probability up to each entry."""
    found: list[float | None] = []
    last = None
    for entry in entries:
        if entry.probability is not None:
            last = entry.probability
        found.append(last)
    return found


def _unknown_words(text: str, unknown: Sequence[int]) -> list[tuple[int, int]]:
    """The words, and characters that are made of several, in which unknown letters stand; nothing that the classifier has read."""
    if not unknown:
        return []
    mask = bytearray(len(text))
    for character in unknown:
        mask[character] = 1
    edges = [match.span() for match in spans.WHOLE.finditer(text)]
    found = []
    for start, end in edges:
        places = [n for n in range(start, end) if mask[n]]
        if places:
            found.append((places[0], places[-1] + 1))
    return found


def _unknown(text: str, places: Sequence[tuple[int, int] | None]) -> list[int]:
    known = bytearray(len(text))
    for place in filter(None, places):
        spans.keep(known, *place)
    return [n for n, character in enumerate(text) if not known[n] and unicodedata.category(character)[0] in "LMNS"]
