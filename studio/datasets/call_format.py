"""How a chat template writes the calls of an answer, found out by asking it: never by its name. Knows no tokens.

A call is text around a name and around its arguments as JSON: `<tool_call>\n{"name": "NAME", "arguments": {…}}\n</tool_call>` is that of
Qwen and Hermes. Templates that write arguments in another way (XML elements, Python) have no such format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studio.datasets.dialogue import Dialogue
from studio.datasets.turns import Turn, turn_of
from studio.errors import DatasetError

NAMES = ("probe_first_tool", "probe_second_tool")
ARGUMENTS = ({"probe_key": "probe one"}, {"probe_key": "probe two"})
IDS = ("probe1111", "probe2222")  # nine letters and digits: what Mistral's templates ask for
ANSWER = "\ue100answer\ue101"
OPENERS = re.compile(r"[\[{\"'\s]")  # where the mark of a call ends and its JSON begins


@dataclass(frozen=True)
class Call:
    """One call that an answer makes."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class CallFormat:
    """The text around the names and the arguments of an answer's calls. `link` stands between two calls."""

    opening: str
    middle: str
    link: str
    closing: str

    @property
    def mark(self) -> str:
        """What announces a call and no other answer begins with, such as <tool_call>; "" where a call begins with its JSON."""
        return OPENERS.split(self.opening.lstrip(), maxsplit=1)[0]

    def write(self, calls: Sequence[Call]) -> str:
        """The calls as the template writes them, but for the white space within the arguments."""
        parts = [f"{call.name}{self.middle}{json.dumps(call.arguments, ensure_ascii=False)}" for call in calls]
        return f"{self.opening}{self.link.join(parts)}{self.closing}"


def call_format(dialogue: Dialogue) -> CallFormat | None:
    """That of this template; None where it shows no calls, or not with arguments as JSON."""
    one, two = _answer(dialogue, 1), _answer(dialogue, 2)
    if one is None or (places := _places(one, 1)) is None:
        return None
    ((name, middle, end),) = places
    link = ""  # several calls are more than this template writes
    if two is not None and (both := _places(two, 2)) is not None:
        link = two[both[0][2] : both[1][0]]
    found = CallFormat(one[:name], one[name + len(NAMES[0]) : middle], link, one[end:])
    if any(part in text for part in IDS for text in (found.opening, found.middle, found.link, found.closing)):
        return None  # every call needs an ID in its text
    return found


def _answer(dialogue: Dialogue, count: int) -> str | None:
    """The answer of so many calls as the template writes it, without the end of the turn; None where it does not."""
    calls = [
        {"type": "function", "id": IDS[number], "function": {"name": NAMES[number], "arguments": ARGUMENTS[number]}}
        for number in range(count)
    ]
    tools = [{"type": "function", "function": {"name": name, "description": "", "parameters": {"type": "object"}}} for name in NAMES]
    asked = turn_of("user", "Hi")

    def written(answer: Turn) -> str:
        turns = [asked, answer]
        text = dialogue.text(turns, tools)
        spans = dialogue.learned_spans(turns, tools, text)
        return text[spans[0][0] : spans[-1][1]] if spans else ""

    try:
        _, found, end = written(turn_of("assistant", ANSWER)).partition(ANSWER)
        answer = written({**turn_of("assistant", ""), "tool_calls": calls})
    except DatasetError:
        return None
    return answer.removesuffix(end) if found else None


def _places(text: str, count: int) -> list[tuple[int, int, int]] | None:
    """Of each call: where its name begins, where its arguments begin and end. None where they are not there as JSON, in this order."""
    found, at = [], 0
    for number in range(count):
        name = text.find(NAMES[number], at)
        if name < 0:
            return None
        read = _arguments(text, name + len(NAMES[number]), ARGUMENTS[number])
        if read is None:
            return None
        found.append((name, *read))
        at = read[1]
    return found


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
