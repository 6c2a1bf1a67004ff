"""How much a token classifier wants to keep each word of a text, read once: another rate is then a matter of milliseconds.

Words, chunks and probabilities are llmlingua's (LLMLingua-2); only the threshold is set here, finer than in whole percents.
"""

from __future__ import annotations

import unicodedata
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from numpy.typing import NDArray

from studio.compress import spans
from studio.compress.tracing import word_places

REMEMBERED = 200_000  # words of all texts
Numbers = NDArray[Any]


@dataclass(frozen=True)
class ClassifierReading:
    """One text of `length` characters.

    `places`: (start, end) of each word, None where it was not found again. `chunks`: probability and tokens of each word, chunk by
    chunk. `unknown`: places of letters and digits that the classifier's tokenizer has no word for.
    """

    length: int
    places: list[tuple[int, int] | None]
    chunks: list[tuple[Numbers, Numbers]]
    unknown: list[int]

    def mask(self, rate: float) -> bytearray:
        """The words of greatest importance that make up about `rate` of the tokens of each chunk, and every unknown letter."""
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
        for character in self.unknown:
            mask[character] = 1
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
                probabilities = numpy.array(next(chunks), dtype=float)
                here = words[count : count + len(probabilities)]
                mine.append((probabilities, numpy.array([self.backend.oai_tokenizer.count(word) for word in here], dtype=int)))
                count += len(probabilities)
            places = word_places(text, words)
            found.append(ClassifierReading(len(text), places, mine, _unknown(text, places)))
        return found


def _unknown(text: str, places: Sequence[tuple[int, int] | None]) -> list[int]:
    known = bytearray(len(text))
    for place in filter(None, places):
        spans.keep(known, *place)
    return [n for n, character in enumerate(text) if not known[n] and unicodedata.category(character)[0] in "LMNS"]
