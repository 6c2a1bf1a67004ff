"""How alike two rows are, exactly, and which rows of many are alike, by MinHash and banding (rensa).

Alike are two rows when, without case and punctuation,
- their numbers are the same,
- the five-character shingles of what they say have a Jaccard similarity of at least 0.8,
- and so have those that remain when the phrases of a tenth of all rows are left out (a template, a shared instruction); 0.7 where
  all have at least 0.9, because of the few that remain one added word makes a quarter,
- and those of their answers one of at least 0.5.
Banding finds a pair at 0.8 with 99.99 %; every pair that it finds is then compared by its shingles. Knows no files.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import rensa

from studio.datasets.report.rows import Row, answers_of, messages_of, question_of, turns_of

Hashes = npt.NDArray[np.uint64]

SHINGLE = 5
ALIKE, ALIKE_ANSWERS = 0.8, 0.5
AKIN = 0.7  # rows that a split keeps together; looser, so that no sample of common phrases makes two of them alike
NEARLY_ALL = 0.9
COMMON_SHARE, COMMON_ROWS = 0.1, 20  # a shingle is common from this share of rows and this many on
SLOTS, BANDS, BAND = 128, 25, 5
DOUBT = 0.14  # four standard errors of an estimate by 128 slots
READ_CHARS = 100_000  # of a message
CROWD = 64  # rows of one bucket that others are compared with
KEPT_CONTENTS = 4096
ASKED_CHARS = 20  # a shorter question ("who are you") is anybody's
SEED = 1

SEPARATORS = re.compile(r"[\W_]+")
NUMBER = re.compile(r"\d+")
ASCII_WORDS = bytes(code if chr(code).isalnum() else 32 for code in range(128)) + bytes(128)
ASCII_NUMBERS = bytes(code if chr(code).isdecimal() else 32 for code in range(128)) + bytes(128)
NOTHING: Hashes = np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Content:
    """A row as it is compared: sorted shingles of all it says, of what is its own, of its answers; and its numbers."""

    shingles: Hashes
    own: Hashes
    answers: Hashes
    numbers: int


def plain(text: str) -> str:
    """Without case, punctuation and extra space; of a very long text the beginning."""
    text = text[:READ_CHARS]
    if text.isascii():  # several times faster than the pattern, and the same
        words = text.lower().encode().translate(ASCII_WORDS).split()
        return b" ".join(words).decode() or text.strip()
    return SEPARATORS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip() or text.strip()


def said(row: Row) -> str:
    """All that a row says, as it is compared."""
    return " ".join(map(plain, messages_of(row)))


def numbers(text: str) -> int:
    """A hash of the numbers of a plain text, whatever their order."""
    found = text.encode().translate(ASCII_NUMBERS).split() if text.isascii() else [number.encode() for number in NUMBER.findall(text)]
    return int.from_bytes(blake2b(b" ".join(sorted(found)), digest_size=8).digest(), "little") if found else 0


def asked(row: Row) -> int:
    """A hash of what the user asks, and under which system message, as rows are compared; 0 where that is too little to be one's own."""
    text = plain(question_of(row))
    if len(text) < ASKED_CHARS:
        return 0
    system = (turn["content"] for turn in turns_of(row) if turn["role"] == "system")
    return int.from_bytes(blake2b("\n".join([text, *system]).encode(), digest_size=8).digest(), "little")


def shingles(texts: Sequence[str]) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Hashes of every five characters of plain texts, one text after the other, and where each text begins (and the last ends)."""
    padded = [f" {text} ".ljust(SHINGLE) for text in texts]
    ends = np.cumsum([len(text) for text in padded])
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    if not len(codes):
        return NOTHING, np.zeros(1, np.int64)
    count = len(codes) - SHINGLE + 1
    hashes = np.zeros(count, np.uint64)
    for i in range(SHINGLE):
        hashes *= np.uint64(0x100000001B3)
        hashes += codes[i : i + count]
    hashes ^= hashes >> np.uint64(31)
    hashes *= np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> np.uint64(29)
    # those that would reach from one text into the next are left out
    inside = np.ones(count, bool)
    for i in range(1, SHINGLE):
        inside[ends[:-1] - i] = False
    offsets = np.concatenate([[0], ends - (SHINGLE - 1) * np.arange(1, len(texts) + 1)]).astype(np.int64)
    return hashes[inside], offsets


def common_shingles(texts: Sequence[str]) -> Hashes:
    """What at least a tenth of the texts share (and at least 20 of them), sorted."""
    least = max(COMMON_ROWS, COMMON_SHARE * len(texts))
    if len(texts) < COMMON_ROWS:
        return NOTHING
    hashes, offsets = shingles(texts)
    each = [np.unique(hashes[start:end]) for start, end in itertools.pairwise(offsets)]
    found, counts = np.unique(np.concatenate(each), return_counts=True)
    return found[counts >= least]


def is_in(hashes: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    """For each hash whether it is among the sorted `known`."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    return known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes


def content(row: Row, common: Hashes) -> Content:
    text = said(row)
    every, own = _set(text), NOTHING
    if len(common):
        own = every[~is_in(every, common)]
    return Content(every, own if len(own) else every, _set(plain(" ".join(answers_of(row)))), numbers(text))


def _set(text: str) -> Hashes:
    return np.unique(shingles([text])[0]) if text else NOTHING


def jaccard(one: Hashes, other: Hashes) -> float:
    if not len(one) and not len(other):
        return 1.0
    shared = int(is_in(one, other).sum())
    return shared / (len(one) + len(other) - shared)


def are_alike(one: Content, other: Content, least: float = ALIKE) -> bool:
    if one.numbers != other.numbers or (own := jaccard(one.own, other.own)) < min(least, AKIN):
        return False
    every = jaccard(one.shingles, other.shingles)
    return every >= (least if own >= least else NEARLY_ALL) and jaccard(one.answers, other.answers) >= ALIKE_ANSWERS


def signatures(texts: Sequence[str], common: Hashes) -> tuple[npt.NDArray[np.uint32], Hashes]:
    """MinHash of each text's own shingles (n × 128), and the hash of its numbers."""
    hashes, offsets = shingles(texts)
    keep = ~is_in(hashes, common)
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    bare = kept_before[offsets[1:]] == kept_before[offsets[:-1]]
    for row in np.flatnonzero(bare):  # nothing of its own: compared by all it says
        keep[offsets[row] : offsets[row + 1]] = True
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes[keep], kept_before[offsets].astype(np.uint64), SLOTS, SEED)
    rows = np.array(matrix.to_rows(), np.uint32).reshape(len(texts), SLOTS)
    return rows, np.array([numbers(text) for text in texts], np.uint64)


class Neighbours:
    """Rows that may be alike: those that share a bucket of a band. Rows are inserted in order and asked for those inserted before.

    `matrix` holds a signature per row and may lie on a disk; `rows`: which of its rows count.
    """

    def __init__(self, matrix: npt.NDArray[np.uint32], number_hashes: Hashes, rows: npt.NDArray[np.int64]) -> None:
        self._matrix = matrix
        self._buckets: dict[int, list[int]] = {}
        found = [_shared(_band_keys(matrix, number_hashes, band, rows)) for band in range(BANDS)]
        members, keys = np.concatenate([rows[places] for places, _ in found]), np.concatenate([keys for _, keys in found])
        order = np.argsort(members, kind="stable")
        self._rows, self._keys = members[order], keys[order]

    def rows(self) -> npt.NDArray[np.int64]:
        """Every row that shares a bucket with another, ascending."""
        return np.unique(self._rows)

    def _keys_of(self, row: int) -> list[int]:
        start, end = np.searchsorted(self._rows, [row, row + 1])
        return [int(key) for key in self._keys[start:end]]

    def near(self, row: int, least: float) -> list[int]:
        """Inserted rows whose signature is close enough to this one's, ascending."""
        candidates = sorted({other for key in self._keys_of(row) for other in self._buckets.get(key, ())})
        if not candidates:
            return []
        agreement = (self._matrix[candidates] == self._matrix[row]).mean(axis=1)
        return [other for other, share in zip(candidates, agreement, strict=True) if share >= least - DOUBT]

    def insert(self, row: int) -> None:
        for key in self._keys_of(row):
            members = self._buckets.setdefault(key, [])
            if len(members) < CROWD:
                members.append(row)


def _band_keys(matrix: npt.NDArray[np.uint32], number_hashes: Hashes, band: int, rows: npt.NDArray[np.int64]) -> Hashes:
    """One number per row for a band of its signature, its numbers included."""
    keys = number_hashes[rows] + np.uint64(band + 1)
    for slot in range(band * BAND, (band + 1) * BAND):
        keys = (keys ^ matrix[rows, slot].astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys


def _shared(keys: Hashes) -> tuple[npt.NDArray[np.int64], Hashes]:
    """The rows whose key another row has too, and those keys."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    same = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(keys), bool)
    shared[1:] |= same
    shared[:-1] |= same
    return order[shared], ordered[shared]


class Contents:
    """Contents of rows, read when they are needed; the last few thousand stay."""

    def __init__(self, read: Callable[[int], Row], common: Hashes) -> None:
        self._read = read
        self._common = common
        self._kept: OrderedDict[int, Content] = OrderedDict()

    def __getitem__(self, row: int) -> Content:
        found = self._kept.get(row)
        if found is None:
            found = self._kept[row] = content(self._read(row), self._common)
            if len(self._kept) > KEPT_CONTENTS:
                self._kept.popitem(last=False)
        return found

    def alike(self, row: int, others: Sequence[int]) -> Iterator[int]:
        """Those of `others` that are alike to `row`."""
        for other in others:
            if are_alike(self[row], self[other]):
                yield other


def repetitions(neighbours: Neighbours, contents: Contents) -> dict[int, int]:
    """Row -> the earlier row it is alike to. Only rows that repeat no earlier one count as earlier ones."""
    found: dict[int, int] = {}
    for row in neighbours.rows().tolist():
        first = next(contents.alike(row, neighbours.near(row, AKIN)), None)
        if first is None:
            neighbours.insert(row)
        else:
            found[row] = first
    return found


def matches(neighbours: Neighbours, contents: Contents, foreign: int) -> dict[int, int]:
    """Row -> the row of another dataset it is alike to; the first `foreign` rows are the other's."""
    found: dict[int, int] = {}
    for row in neighbours.rows().tolist():
        if row < foreign:
            neighbours.insert(row)
        elif (first := next(contents.alike(row, neighbours.near(row, AKIN)), None)) is not None:
            found[row] = first
    return found


def families(neighbours: Neighbours, contents: Contents) -> dict[int, int]:
    """Row -> the first row it is connected to by likeness, where that is another one."""
    heads: dict[int, int] = {}

    def head(row: int) -> int:
        while row in heads:
            row = heads[row]
        return row

    for row in neighbours.rows().tolist():
        for other in neighbours.near(row, AKIN):
            mine, other_head = head(row), head(other)
            if mine != other_head and are_alike(contents[row], contents[other], AKIN):
                heads[max(mine, other_head)] = min(mine, other_head)
        neighbours.insert(row)
    return {row: head(row) for row in list(heads)}
