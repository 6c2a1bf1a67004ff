"""How a chat template writes the calls of an answer, found out by asking it: never by its name. Knows no tokens.

A call is text around a name, its arguments as JSON and perhaps an ID: `<tool_call>\n{"name": "NAME", "arguments": {…}}\n</tool_call>` is
that of Qwen and Hermes, `[TOOL_CALLS] [{"name": "NAME", "arguments": {…}, "id": "ID"}]` one of Mistral's. Of templates that write arguments
one by one (XML elements, Python), see studio/datasets/keyed_format.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from studio.datasets.dialogue import Dialogue
from studio.datasets.turns import Turn, turn_of
from studio.errors import DatasetError

NAMES = ("probe_first_tool", "probe_second_tool")
ARGUMENTS = ({"probe_key": "probe one"}, {"probe_key": "probe two"})
IDS = ("probe1111", "probe2222")  # nine letters and digits: what Mistral's templates ask for
ANSWER = "\ue100answer\ue101"
MARK = re.compile(r"(?:\[[A-Z_]+\]|[^\[{\"'\s])*")  # what stands before a call's JSON


class CallPart(StrEnum):
    """What changes from call to call."""

    NAME = "name"
    ARGUMENTS = "arguments"
    ID = "id"


@dataclass(frozen=True)
class CallFormat:
    """The text around the slots of an answer's calls.

    `between` has one text for each pair of neighbouring `slots`; `link` stands between two calls, "" where only one can be written.
    """

    opening: str
    slots: tuple[CallPart, ...]
    between: tuple[str, ...]
    link: str
    closing: str

    @property
    def mark(self) -> str:
        """What announces a call and no other answer begins with, such as <tool_call>; "" where a call begins with its JSON."""
        return mark_of(self.opening)

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is written around the slots."""
        return (self.opening, *self.between, self.link, self.closing)


def mark_of(opening: str) -> str:
    """What a call that opens so is known by."""
    found = MARK.match(opening.lstrip())
    return found.group() if found else ""


# how calls are told and written where the template has no place for them, see Dialogue.adapted
AS_TEXT = CallFormat('{"name": "', (CallPart.NAME, CallPart.ARGUMENTS), ('", "arguments": ',), '}\n{"name": "', "}")


def call_format(dialogue: Dialogue) -> CallFormat | None:
    """That of this template; None where it shows no calls, or not with arguments as JSON."""
    one, two = _answer(dialogue, 1), _answer(dialogue, 2)
    found = one and _slots(one, 0)
    if not one or not found:
        return None
    slots, edges = found
    between = tuple(one[edges[i][1] : edges[i + 1][0]] for i in range(len(slots) - 1))
    opening, closing = one[: edges[0][0]], one[edges[-1][1] :]
    link, both = "", two and _slots(two, 1)
    if two and both and both[0] == slots:
        first = _slots(two[: both[1][0][0]], 0)
        if first and first[0] == slots:
            link = two[first[1][-1][1] : both[1][0][0]]
    form = CallFormat(opening, slots, between, link, closing)
    if slots[0] is not CallPart.NAME or any(part in text for part in (*IDS, *NAMES) for text in form.texts):
        return None  # a name that comes later, or something that is written twice
    return form


def _answer(dialogue: Dialogue, count: int) -> str | None:
    return answer_of_calls(dialogue, ARGUMENTS[:count])


def answer_of_calls(dialogue: Dialogue, arguments: Sequence[dict[str, Any]]) -> str | None:
    """The answer with a call for each of these arguments as the template writes it, without the end of the turn; None where it does not."""
    calls = [
        {"type": "function", "id": IDS[number], "function": {"name": NAMES[number], "arguments": one}}
        for number, one in enumerate(arguments)
    ]
    tools = [{"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}} for name in NAMES]
    asked = turn_of("user", "Hi")

    def written(answer: Turn) -> str:
        turns = [asked, answer]
        text = dialogue.text(turns, tools)
        spans = dialogue.learned_spans(turns, tools, text)
        return text[spans[0][0] : spans[-1][1]] if spans else ""

    try:
        before, found, end = written(turn_of("assistant", ANSWER)).partition(ANSWER)
        answer = written({**turn_of("assistant", ""), "tool_calls": calls})
    except DatasetError:
        return None
    # an empty thought in front belongs to no call
    return answer.removesuffix(end).removeprefix(before).lstrip("\n") if found else None


def _slots(text: str, number: int) -> tuple[tuple[CallPart, ...], list[tuple[int, int]]] | None:
    """The slots of one call in their order, and where each stands in `text`; None where its name or arguments are not there as JSON."""
    name = text.find(NAMES[number])
    arguments = None if name < 0 else _arguments(text, name + len(NAMES[number]), ARGUMENTS[number])
    if arguments is None:
        return None
    found = [(name, name + len(NAMES[number]), CallPart.NAME), (*arguments, CallPart.ARGUMENTS)]
    call_id = text.find(IDS[number])
    if call_id >= 0:
        found.append((call_id, call_id + len(IDS[number]), CallPart.ID))
    found.sort()
    return tuple(slot for _, _, slot in found), [(start, end) for start, end, _ in found]


def _arguments(text: str, start: int, wanted: dict[str, Any]) -> tuple[int, int] | None:
    decoder = json.JSONDecoder()
    for brace in re.compile(r"\{").finditer(text, start):
        try:
            value, end = decoder.raw_decode(text, brace.start())
        except ValueError:
            continue
        if value == wanted:
            return brace.start(), end
    return None


def calls_written(form: CallFormat, calls: Sequence[tuple[str, str]]) -> str:
    """(name, arguments as JSON) of calls as the template writes them."""
    written = []
    for number, (name, arguments) in enumerate(calls):
        values = {CallPart.NAME: name, CallPart.ARGUMENTS: arguments, CallPart.ID: IDS[number % len(IDS)]}
        pieces = [values[slot] for slot in form.slots]
        written.append("".join(piece + text for piece, text in zip(pieces, (*form.between, ""), strict=True)))
    return form.opening + form.link.join(written) + form.closing
