"""Kept characters to text and words. A mask is a bytearray, one byte per character; only those that are no white space count."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import regex

COUNTED = "[十百千万萬億亿兆]*[年月日時时分秒週周歳岁号號階阶层名人個个本枚回次度点點元円圆圓块塊倍番]?"  # 3万円 is no 3
# what is whole or gone: numbers with what they count, contractions, addresses
UNIT = re.compile(rf"https?://\S+|[\w.+-]+@[\w-]+(?:\.\w+)+|\d+(?:[.,:/]\d+)*%?{COUNTED}|[^\W\d]+['’]\w+")
CLUSTER = regex.compile(r"\X")  # a letter with its marks, a family or a flag of several emoji
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=\S)|(?<=[。！？])|\n+")
CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
IDEOGRAPH = re.compile(f"[{CJK}]")
LETTERS = rf"(?:(?![{CJK}])[\p{{L}}\p{{M}}\p{{N}}_])+"  # marks too: the vowels of many scripts are marks
WHOLE = regex.compile(rf"[{CJK}]|{LETTERS}(?:['’]{LETTERS})*|(?!\s)\X")  # words, and whatever else is one character to a reader
WORD = regex.compile(rf"[{CJK}]|{LETTERS}(?:['’.,:]{LETTERS})*|[^\w\s]")


def units(text: str) -> list[tuple[int, int]]:
    """(start, end) of what is whole or gone: numbers, contractions, addresses, and characters that are made of several."""
    found = [match.span() for match in UNIT.finditer(text)]
    clusters = () if text.isascii() else CLUSTER.finditer(text)
    return found + [match.span() for match in clusters if match.end() - match.start() > 1]


def whole_words(text: str) -> list[tuple[int, int]]:
    """(start, end) of the words of more than one letter; scripts without spaces have none."""
    return [match.span() for match in WHOLE.finditer(text) if match.end() - match.start() > 1]


def settle_words(mask: bytearray, places: Sequence[tuple[int, int]]) -> None:
    """Of each word, keep all where at least half of it is kept, and nothing otherwise: compressors cut by pieces."""
    for start, end in places:
        kept = sum(mask[start:end])
        if 0 < kept < end - start:
            settle = keep if 2 * kept >= end - start else drop
            settle(mask, start, end)


def close_units(mask: bytearray, places: Sequence[tuple[int, int]]) -> None:
    """Keep all of each of `places` of which something is kept."""
    for start, end in places:
        if any(mask[start:end]):
            keep(mask, start, end)


def keep(mask: bytearray, start: int, end: int) -> None:
    mask[start:end] = b"\1" * (end - start)


def drop(mask: bytearray, start: int, end: int) -> None:
    mask[start:end] = bytes(end - start)


def full(text: str) -> bytearray:
    return bytearray(b"\1" * len(text))


def assemble(text: str, mask: Sequence[int]) -> str:
    """The kept characters. Where nothing is missing the white space stays as it was; a cut leaves a line break or a space."""
    parts: list[str] = []
    end = -1  # behind the last kept character
    for start, stop in _runs(text, mask):
        if end >= 0:
            parts.append(_seam(text, end, start))
        parts.append(text[start:stop])
        end = stop
    return "".join(parts)


def _runs(text: str, mask: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Stretches of kept characters that are no white space."""
    start = None
    for place, character in enumerate(text):
        is_kept = bool(mask[place]) and not character.isspace()
        if is_kept and start is None:
            start = place
        elif not is_kept and start is not None:
            yield start, place
            start = None
    if start is not None:
        yield start, len(text)


def _seam(text: str, end: int, start: int) -> str:
    gap = text[end:start]
    if gap.isspace():
        return gap
    if "\n" in gap:
        return "\n"
    has_space = any(character.isspace() for character in gap)
    return " " * (has_space or _would_join(text[end - 1], gap, text[start]))


def _would_join(left: str, gap: str, right: str) -> bool:
    """Whether two words, or two numbers, would become one that is not in the text: 4月3日 is no 43."""
    if not (left.isalnum() and right.isalnum()):
        return False
    if left.isdigit() and right.isdigit():
        return True
    if IDEOGRAPH.match(left) or IDEOGRAPH.match(right):
        return False
    return not gap.isalnum() or bool(IDEOGRAPH.search(gap))


def share(part: float, whole: float) -> float:
    """Of nothing, all is there."""
    return part / whole if whole else 1.0


def words(text: str, mask: Sequence[int]) -> list[tuple[str, bool]]:
    """(word, kept) in order; a word of which a part was kept comes in pieces."""
    found: list[tuple[str, bool]] = []
    for match in re.finditer(r"\S+", text):
        start = match.start()
        for place in range(match.start(), match.end()):
            if place + 1 == match.end() or bool(mask[place + 1]) != bool(mask[place]):
                found.append((text[start : place + 1], bool(mask[place])))
                start = place + 1
    return found


def passages(text: str, limit: int, count: Callable[[str], int]) -> list[tuple[int, int]]:
    """Lines and paragraphs as (start, end) that together are the whole text; each ends with the white space behind it.

    One of more than `limit` by `count` is cut behind sentences, and a sentence that is longer still is cut anywhere.
    """
    edges = [0, *(match.end() for match in re.finditer(r"\n+\s*", text) if match.end() < len(text)), len(text)]
    found: list[tuple[int, int]] = []
    for start, end in pairwise(edges):
        if end > start:
            is_short = count(text[start:end]) <= limit
            found += [(start, end)] if is_short else _sentences(text, start, end, limit, count)
    return found


def _sentences(text: str, start: int, end: int, limit: int, count: Callable[[str], int]) -> Iterator[tuple[int, int]]:
    """Stretches of whole sentences, each as long as `limit` allows."""
    edges = [start, *(start + match.end() for match in SENTENCE_END.finditer(text[start:end]) if start + match.end() < end), end]
    begin, held = start, 0
    for first, last in pairwise(edges):
        size = count(text[first:last])
        if held and held + size > limit:
            yield begin, first
            begin, held = first, 0
        held += size
        if held > limit:  # one sentence alone
            step = -(-(last - begin) // -(-held // limit))
            yield from ((at, min(last, at + step)) for at in range(begin, last, step))
            begin, held = last, 0
    if begin < end:
        yield begin, end
