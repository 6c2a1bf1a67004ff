"""How the reply of a judge is read: reasoning is left out, then a JSON object or the last line that states something decides.

Texts in, verdicts and ratings out; how people word them is studio.evaluation.wording. A reply that hedges, contradicts itself or leaves
the scale is invalid, with the reason.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from studio import python_source
from studio.evaluation import ordinals
from studio.evaluation.wording import Level, RatingWords, Statement, VerdictWords, cleaned, is_heading
from studio.records import InvalidReason

READ = 40_000  # characters of a reply, from its end
SENTENCE = 1000  # characters of a sentence, from its end
OBJECTS = 200  # braces of a reply that are tried as the beginning of an object
DEPTH = 6
FENCES = ("json", "text", "plaintext")
REFUSED = "(no verdict: "  # begins the reply that stands for a question which the server refused
_THOUGHTS = "think|thinking|thoughts?|reasoning|reflection|scratchpad|seed:think"
_BEGINS = re.compile(rf"<\s*(?:{_THOUGHTS})\s*>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|channel\|>\s*analysis", re.IGNORECASE)
_ENDS = re.compile(
    rf"<\s*/\s*(?:{_THOUGHTS})\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>\s*final(?:\s*<\|message\|>)?", re.IGNORECASE
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。!?;])|;\s*")


@dataclass(frozen=True)
class Reading:
    """What a reply says; `reason` where it says nothing that counts."""

    value: str = ""
    reason: InvalidReason | None = None
    by_order: bool = False  # answers were named by their order, not by their letters


class Words(Protocol):
    """What makes a statement: of who is better, or of a rating."""

    keys: frozenset[str]

    def of_value(self, value: Any) -> str | None: ...

    def of_line(self, line: str) -> str | None: ...

    def of_lead(self, line: str) -> str | None: ...

    def of_sentence(self, sentence: str) -> list[Statement]: ...

    def is_hedged(self, sentence: str) -> bool: ...


def verdict(reply: str) -> str:
    """What a reply says: a, b, tie, or invalid."""
    return verdict_reading(reply).value or "invalid"


def rating(reply: str) -> float | None:
    """A score from 1 to 10, or None."""
    found = rating_reading(reply)
    if not found.value:
        return None
    return float(found.value)


def verdict_reading(reply: str) -> Reading:
    """The verdict of a reply, or why it has none. Where it names no letter, answers may be named by their order."""
    found = _read(reply, VerdictWords())
    if found.reason not in (InvalidReason.NO_VERDICT, InvalidReason.UNREADABLE):
        return found
    text = without_reasoning(reply) or ""
    lettered = ordinals.in_letters(text)
    if lettered == text[-ordinals.MOST :]:
        return found
    named = _read(lettered, VerdictWords())
    if named.value in ("a", "b"):
        return replace(named, by_order=True)
    if named.value or named.reason is InvalidReason.TWO_VERDICTS:
        return named
    return found


def rating_reading(reply: str) -> Reading:
    """The rating of a reply, or why it has none."""
    return _read(reply, RatingWords())


def without_reasoning(reply: str) -> str | None:
    """The part of a reply that is meant to be read; None where its reasoning never ends."""
    text = unicodedata.normalize("NFKC", reply)
    ends = list(_ENDS.finditer(text))
    if ends:
        text = text[ends[-1].end() :]
    if _BEGINS.search(text):
        return None
    return text.strip()


def _read(reply: str, words: Words) -> Reading:
    if reply.startswith(REFUSED):
        return Reading(reason=InvalidReason.REFUSED)
    text = without_reasoning(reply)
    if text is None:
        return Reading(reason=InvalidReason.UNFINISHED_REASONING)
    if not text:
        return Reading(reason=InvalidReason.EMPTY)
    lines = _lines(text[-READ:], words)
    if not lines:
        return Reading(reason=InvalidReason.NO_VERDICT)
    return _decided(lines, words)


@dataclass(frozen=True)
class Line:
    """What one line states, sentence by sentence."""

    text: str
    sentences: tuple[tuple[Statement, ...], ...]

    def all(self) -> Iterator[Statement]:
        for sentence in self.sentences:
            yield from sentence

    def states(self, least: Level) -> bool:
        return any(statement.level >= least for statement in self.all())


def _lines(text: str, words: Words) -> list[Line]:
    parts: list[str | Statement] = []
    for piece in _split_objects(text, words):
        if isinstance(piece, Statement):
            parts.append(piece)
        else:
            parts += [line for line in map(cleaned, piece.splitlines()) if any(map(str.isalnum, line)) and line.lower() not in FENCES]
    bare, leads = _bare_lines(parts, words), _leads(parts, words)
    return [_line(part, bare.get(number), leads.get(number), words) for number, part in enumerate(parts)]


def _bare_lines(parts: Sequence[str | Statement], words: Words) -> dict[int, str]:
    """Lines that are nothing but a verdict: the last, the first, or under a heading. Several that differ head a list."""
    bare = {number: said for number, part in enumerate(parts) if isinstance(part, str) and (said := words.of_line(part)) is not None}
    last = len(parts) - 1
    if len({said for number, said in bare.items() if number != last}) > 1:
        return {number: said for number, said in bare.items() if number == last}
    return {number: said for number, said in bare.items() if number in (0, last) or _is_heading(parts[number - 1])}


def _leads(parts: Sequence[str | Statement], words: Words) -> dict[int, str]:
    """What the first line begins with, where no other line begins like it."""
    said = {number: lead for number, part in enumerate(parts) if isinstance(part, str) and (lead := words.of_lead(part)) is not None}
    if len(set(said.values())) > 1:
        return {}
    return {number: lead for number, lead in said.items() if number == 0}


def _is_heading(part: str | Statement) -> bool:
    return isinstance(part, str) and is_heading(part)


def _line(part: str | Statement, bare: str | None, lead: str | None, words: Words) -> Line:
    if isinstance(part, Statement):
        return Line("", ((part,),))
    if bare is not None:
        return Line(part, ((Statement(Level.PLAIN, bare),),))
    said = [words.of_sentence(sentence.strip()[-SENTENCE:]) for sentence in _SENTENCE.split(part) if sentence and sentence.strip()]
    if lead is not None:
        said[0].append(Statement(Level.PLAIN, lead))
    return Line(part, tuple(map(tuple, said)))


def _decided(lines: Sequence[Line], words: Words) -> Reading:
    """The last line that states something plainly; softer words count where nothing contradicts them."""
    least = Level.WHOLE
    if any(statement.level == Level.SCHEMA for line in lines for statement in line.all()):
        least = Level.PLAIN
    if lines[-1].states(least):
        return _of_line(lines[-1], least)
    for line in reversed(lines):
        if line.states(Level.PLAIN):
            return _of_line(line, Level.PLAIN)
    soft = {statement.value for line in lines for statement in line.all()}
    if len(soft) > 1:
        return Reading(reason=InvalidReason.TWO_VERDICTS)
    if not soft or words.is_hedged(lines[-1].text):
        return Reading(reason=InvalidReason.NO_VERDICT)
    return _one(soft)


def _of_line(line: Line, least: Level) -> Reading:
    """Of the last sentence that states something; what it says twice must be the same."""
    own = next(sentence for sentence in reversed(line.sentences) if any(statement.level >= least for statement in sentence))
    values = {statement.value for statement in own if statement.level >= Level.WHOLE}
    if max(statement.level for statement in own) == Level.WHOLE:
        values |= {statement.value for statement in line.all() if statement.level == Level.WHOLE}
    return _one(values)


def _one(values: set[str]) -> Reading:
    if "tie" in values:
        values = values - {""}  # "A and B: a tie" names both and means neither
    if len(values) > 1:
        return Reading(reason=InvalidReason.TWO_VERDICTS)
    (value,) = values
    if not value:
        return Reading(reason=InvalidReason.UNREADABLE)
    return Reading(value)


# JSON objects: of a schema, in a fence, or behind some words


def _split_objects(text: str, words: Words) -> Iterator[str | Statement]:
    """The text, with a statement in place of each object that holds one."""
    begin, place = 0, text.find("{")
    for _ in range(OBJECTS):
        if place < 0:
            break
        found = _object_at(text, place)
        if found is None:
            place = text.find("{", place + 1)
            continue
        value, end = found
        stated = _stated(value, words)
        if stated is not None:
            yield text[begin:place]
            yield stated
            begin = end
        place = text.find("{", end)
    yield text[begin:]


def _object_at(text: str, place: int) -> tuple[Any, int] | None:
    """The value that begins at `place` and where it ends: JSON, or as Python prints it."""
    try:
        return _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError):
        pass
    end = text.find("}", place) + 1
    if not end or end - place > 2000:
        return None
    try:
        value = python_source.literal(text[place:end])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    return list(value.items()), end


# fields as pairs: one that comes twice with two values is a contradiction, not the last one
_DECODER = json.JSONDecoder(object_pairs_hook=list)


def _stated(value: Any, words: Words) -> Statement | None:
    said = list(_fields(value, words, 0))
    if not said:
        return None
    readable = {text for text in said if text}
    if len(readable) == 1:
        return Statement(Level.SCHEMA, readable.pop())
    return Statement(Level.SCHEMA, "")


def _fields(value: Any, words: Words, depth: int) -> Iterator[str]:
    """What the fields that mean something say; "" where one can't be read."""
    if not isinstance(value, list) or depth > DEPTH:
        return
    for item in value:
        if isinstance(item, tuple) and len(item) == 2:
            key, held = item
            if isinstance(held, dict):
                held = list(held.items())
            if not isinstance(held, list) and _key(key) in words.keys:
                yield words.of_value(held) or ""
            yield from _fields(held, words, depth + 1)
        else:
            yield from _fields(item, words, depth + 1)


def _key(name: Any) -> str:
    return re.sub(r"[\W_]+", "", str(name)).lower()
