"""Which characters llmlingua kept: followed through its filters by place, never guessed from its output.

Knows nothing of models or rates. A mask is a bytearray, one byte per character of a text, 1 where it was kept.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

WINDOW = 4000  # characters in a row that no word speaks of: letters that a tokenizer does not know
JOIN = "\n\n"  # what llmlingua puts between contexts


class Trace:
    """One call of the library. `contexts`: indexes of the documents it chose, in the order it chose; None for all of them."""

    def __init__(self) -> None:
        self.contexts: list[int] | None = None
        self.places: list[int] | None = None  # of the tokens that are left
        self.is_lost = False  # the library went a way on which places can't be followed
        self.chunks: list[Any] | None = None  # of every context, where a classifier chooses among them
        self.words: list[list[tuple[str, int]]] | None = None  # a classifier's words and labels, per chosen context
        self.probabilities: list[list[float]] = []  # of the words of each chunk, in the order in which they were read
        self._popped: list[int] = []
        self._joined = ""
        self._lengths: list[int] = []
        self._sentences: list[bytearray] | None = None
        self._tokens: list[bytearray] | None = None

    def follow(self, length: int) -> list[int]:
        """Places of the `length` tokens that are in the library's hands now; it may have set the first ones aside."""
        if self.places is None:
            self.places = list(range(length))
        gone = len(self.places) - length
        if gone > 0:
            self._popped += self.places[:gone]
            self.places = self.places[gone:]
        return self.places

    def begin(self, contexts: Sequence[str]) -> None:
        self._joined = JOIN.join(contexts)
        self._lengths = [len(text) for text in contexts]

    def end(self, tokenizer: Any, start: int, count: int) -> None:
        """Turn the places of kept tokens into characters of each context; `start` tokens in front are the question."""
        if self.is_lost:
            return
        offsets = tokenizer(self._joined, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        kept = set(range(len(offsets)))
        if self.places is not None:
            kept = {*self._popped, *self.places}
        mask = token_mask(self._joined, offsets, kept)
        self._tokens, begin = [], 0
        for length in self._lengths:
            self._tokens.append(mask[begin : begin + length])
            begin += length + len(JOIN)
        if start:
            self._tokens = self._tokens[1:]

    def keep_sentences(self, before: Sequence[str], after: Sequence[str], split: Callable[[str], list[str]]) -> None:
        self._sentences = [sentence_mask(text, short, split(text)) for text, short in zip(before, after, strict=True)]

    def choose_chunks(self, chosen: Sequence[Any]) -> None:
        """The classifier goes on with these; the very objects that it was given before, where it chose among them."""
        if self.chunks is not None:
            self.contexts = [next(n for n, chunks in enumerate(self.chunks) if chunks is one) for one in chosen]

    def masks(self, contexts: Sequence[str]) -> list[bytearray] | None:
        """A mask per context that was given to the library, or None where it can't be known."""
        if self.is_lost:
            return None
        chosen = self.contexts
        if chosen is None:
            chosen = list(range(len(contexts)))
        found = [bytearray(len(text)) for text in contexts]
        for n, index in enumerate(chosen):
            if self.words is not None:
                found[index] = word_mask(contexts[index], self.words[n])[0]
                continue
            found[index] = bytearray(b"\1" * len(contexts[index]))
            if self._sentences:
                found[index] = self._sentences[n]
            if self._tokens:
                if len(self._tokens[n]) != sum(found[index]):
                    return None
                rest = iter(self._tokens[n])
                found[index] = bytearray(bit and next(rest) for bit in found[index])
        return found


def token_mask(text: str, offsets: Sequence[tuple[int, int]], kept: set[int]) -> bytearray:
    """Characters whose tokens were all kept. White space that a tokenizer gives to no token belongs to the token after it."""
    mask, end, n = bytearray(len(text)), 0, 0
    while n < len(offsets):
        begin, stop = offsets[n]
        last = n
        while last + 1 < len(offsets) and offsets[last + 1][0] < stop:  # several pieces of one character
            last += 1
            stop = max(stop, offsets[last][1])
        is_kept = all(place in kept for place in range(n, last + 1))
        if begin > end and not text[end:begin].strip():
            begin = end
        if is_kept:
            mask[begin:stop] = b"\1" * (stop - begin)
        end, n = max(end, stop), last + 1
    return mask


def sentence_mask(text: str, short: str, pieces: Sequence[str]) -> bytearray:
    """Which sentences of `text` make up `short`; each goes with the white space after it."""
    starts, cursor = [], 0
    for piece in pieces:
        cursor = text.index(piece, cursor)
        starts.append(cursor)
        cursor += len(piece)
    spans = list(pairwise((*starts, len(text))))
    reached: list[dict[int, bool]] = [{0: False}]  # position in `short` -> whether the sentence before it was kept
    for begin, stop in spans:
        step: dict[int, bool] = {}
        for position in reached[-1]:
            step.setdefault(position, False)
            if short.startswith(text[begin:stop], position):
                step[position + stop - begin] = True
        reached.append(step)
    mask, position = bytearray(len(text)), len(short)
    for (begin, stop), step in zip(reversed(spans), reversed(reached[1:]), strict=True):
        if step.get(position):
            mask[begin:stop] = b"\1" * (stop - begin)
            position -= stop - begin
    return mask


def word_mask(text: str, labelled: Sequence[tuple[str, int]]) -> tuple[bytearray, bytearray]:
    """(kept, known) from a classifier's labelled words, found again in order; `known` covers what some word speaks of."""
    kept, known = bytearray(len(text)), bytearray(len(text))
    for (_, is_kept), place in zip(labelled, word_places(text, [word for word, _ in labelled]), strict=True):
        if place is None:
            continue
        begin, stop = place
        known[begin:stop] = b"\1" * (stop - begin)
        if is_kept:
            kept[begin:stop] = b"\1" * (stop - begin)
    return kept, known


def word_places(text: str, words: Sequence[str]) -> list[tuple[int, int] | None]:
    """(start, end) of a classifier's words, found again in order; None for one that is not there."""
    letters, places = _plain(text)
    found: list[tuple[int, int] | None] = []
    cursor = 0
    for word in words:
        wanted = _plain(word)[0]
        at = letters.find(wanted, cursor, cursor + WINDOW)
        if not wanted or at < 0:
            found.append(None)
            continue
        cursor = at + len(wanted)
        found.append((places[at], places[cursor - 1] + 1))
    return found


def _plain(text: str) -> tuple[str, Sequence[int]]:
    """The text as tokenizers normalise it, and for each of its characters the place in `text`."""
    if text.isascii():
        return text.lower(), range(len(text))
    letters, places = [], []
    for place, character in enumerate(text):
        for letter in unicodedata.normalize("NFKC", character).lower():
            letters.append(letter)
            places.append(place)
    return "".join(letters), places
