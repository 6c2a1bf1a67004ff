"""Calls of tools in an answer: the grammar that holds them, and the reader that takes them out of the text as it comes.

Knows a template's way of writing calls as a CallFormat; no template, tokens or models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from studio.datasets.call_format import CallFormat, CallPart
from studio.engine.call_text import ID_LENGTH, At, CallsInText, call_id
from studio.engine.protocol import CallDelta, Grammar
from studio.engine.tool_fields import Tools

MOST_CALLS = 16  # in one answer
SPARE = 16  # tokens: of a value whose shortest form is unknown
DEEPEST = 8
# keywords by which an object may have properties that it does not name itself
OPEN = {"additionalProperties", "unevaluatedProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "if", "not"}
# arguments as templates write them, so that what the model has learned is the likeliest
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def grammar(form: CallFormat, tools: Tools, literal: Callable[[str], str], *, from_mark: bool = False) -> Grammar:
    """One call or several, and nothing else; `from_mark` starts at the mark, without what the format has before it.

    `literal`: a text in Lark's syntax, with the tokens that the model writes it with.
    """
    rules = []
    for number, name in enumerate(tools.names):
        parts = [literal(name)]
        for slot, before in zip(form.slots[1:], form.between, strict=True):
            parts += [literal(before), f"arguments_{number}" if slot is CallPart.ARGUMENTS else "ID"]
        rules.append(" ".join(part for part in parts if part))
    opening = form.opening[form.opening.find(form.mark) :] if from_mark else form.opening
    is_single = tools.is_named or not tools.is_parallel or not form.link
    more = "" if is_single else f"({literal(form.link)} call){{0,{MOST_CALLS - 1}}}"
    lines = [f"start: {literal(opening)} call {more} {literal(form.closing)}", "call: " + "\n    | ".join(rules)]
    lines += [f"arguments_{number}: %json {_schema(tools, name)}" for number, name in enumerate(tools.names)]
    if CallPart.ID in form.slots:
        lines.append(f"ID: /[a-zA-Z0-9]{{{ID_LENGTH}}}/")
    again = () if is_single else tuple(form.link + _short(form, tools, name) for name in tools.names)
    steps = tuple({f', "{key}": ""' for name in tools.names for key in _keys(tools.parameters(name))})
    return Grammar("calls", "\n".join(lines), _room(form, tools), steps, again)


def _short(form: CallFormat, tools: Tools, name: str) -> str:
    """About the shortest call of this function, from its name on."""
    required = tools.parameters(name).get("required") or ()
    arguments = ", ".join(f'"{key}": ""' for key in required if isinstance(key, str))
    values = {CallPart.NAME: name, CallPart.ARGUMENTS: f"{{{arguments}}}", CallPart.ID: "a" * ID_LENGTH}
    return "".join(values[slot] + text for slot, text in zip(form.slots, (*form.between, form.closing), strict=True))


def _keys(schema: Any, depth: int = 0) -> Iterator[str]:
    """The names of properties, those within properties among them."""
    properties = schema.get("properties") if isinstance(schema, Mapping) and depth <= DEEPEST else None
    for key, value in properties.items() if isinstance(properties, Mapping) else ():
        yield key
        yield from _keys(value, depth + 1)


def _room(form: CallFormat, tools: Tools) -> int:
    """Tokens that a call with the shortest arguments takes at most: a token is at least one byte."""
    around = len("".join(form.texts).encode())
    longest = max(len(name.encode()) + shortest(tools.parameters(name), tools.parameters(name)) for name in tools.names)
    return around + longest + SPARE


def shortest(schema: Any, root: Any, depth: int = 0) -> int:
    """Bytes of about the shortest value that fits; of what this can't tell, SPARE."""
    if not isinstance(schema, Mapping) or depth > DEEPEST:
        return SPARE
    if "const" in schema:
        return len(json.dumps(schema["const"]))
    if isinstance(schema.get("enum"), list):
        return max((len(json.dumps(value)) for value in schema["enum"]), default=SPARE)
    if "properties" in schema and schema.get("type", "object") == "object":
        required = [name for name in schema.get("required") or () if isinstance(name, str)]
        fields = schema["properties"] if isinstance(schema["properties"], Mapping) else {}
        return 2 + sum(len(json.dumps(name)) + 4 + shortest(fields.get(name), root, depth + 1) for name in required)
    length = schema.get("minLength", 0)
    return SPARE + (length if isinstance(length, int) else 0)


def _schema(tools: Tools, name: str) -> str:
    return json.dumps({**closed(tools.parameters(name)), "x-guidance": WRITTEN})


def closed(schema: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """The same, but an object that names its properties has no others unless it says so: no function takes arguments that it lacks."""
    found = dict(schema)
    if depth > DEEPEST:
        return found
    properties = found.get("properties")
    if isinstance(properties, Mapping):
        found["properties"] = {name: _closed(value, depth) for name, value in properties.items()}
        if not found.keys() & OPEN:
            found["additionalProperties"] = False
    if "items" in found:
        found["items"] = _closed(found["items"], depth)
    return found


def _closed(schema: Any, depth: int) -> Any:
    return closed(schema, depth + 1) if isinstance(schema, Mapping) else schema


class CallReader(CallsInText):
    """Reads calls whose arguments are JSON, which goes on as it comes.

    `is_forced`: the answer is nothing but calls. A text that only looks like a call (another tool's name, broken off in the middle
    of its name) stays content.
    """

    def __init__(self, form: CallFormat, names: Sequence[str], *, is_forced: bool) -> None:
        self._form = form
        self._named = {name + form.between[0]: name for name in sorted(names, key=len, reverse=True)}
        start = form.opening[form.opening.find(form.mark) :]
        # without a mark of its own, a call is known by its whole beginning at the start of a line
        begins = [form.mark] if form.mark else [start + name for name in self._named]
        super().__init__(form.opening, form.mark, begins, is_forced=is_forced)
        self._link, self._closing = form.link, form.closing
        self._slot, self._before = 0, ""  # the next slot, and the text that stands before it
        self._name = ""
        self._arguments = _Braces()

    @property
    def _is_in_call(self) -> bool:
        return self._is_forced or self._at is At.END or self._arguments.is_begun

    def _begin_call(self) -> None:
        self._at, self._slot, self._before, self._arguments = At.SLOT, 0, "", _Braces()

    def _read_slot(self) -> bool:
        if self._before:
            if not self._rest.startswith(self._before):
                return False
            self._rest = self._rest[len(self._before) :]
            self._before = ""
            return True
        slot = self._form.slots[self._slot]
        if slot is CallPart.NAME:
            return self._read_name()
        if slot is CallPart.ID:
            return self._read_id()
        return self._read_arguments()

    def _read_name(self) -> bool:
        found = next((written for written in self._named if self._rest.startswith(written)), None)
        if found is None:
            if not any(written.startswith(self._rest) for written in self._named):
                self._give_up()
            return False
        self._name = self._named[found]
        self._undone += found
        self._rest = self._rest[len(found) :]
        self._slot += 1
        return True

    def _read_id(self) -> bool:
        """The model's own IDs are passed over: ours are unlike those of earlier turns."""
        if len(self._rest) < ID_LENGTH:
            return False
        self._rest = self._rest[ID_LENGTH:]
        return self._next_slot()

    def _read_arguments(self) -> bool:
        if not self._arguments.is_begun:
            if not self._rest.startswith("{"):
                self._give_up()
                return False
            self.count += 1
            self._undone = ""
            self._deltas.append(CallDelta(self.count - 1, call_id(), self._name))
        length = self._arguments.read(self._rest)
        self._deltas.append(CallDelta(self.count - 1, arguments=self._rest[:length]))
        self._rest = self._rest[length:]
        return self._arguments.is_over and self._next_slot()

    def _next_slot(self) -> bool:
        self._slot += 1
        if self._slot == len(self._form.slots):
            self._at = At.END
        else:
            self._before = self._form.between[self._slot - 1]
        return True


class _Braces:
    """Where a JSON object ends, read in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._is_escaped = False
        self.is_begun = self.is_over = False

    def read(self, text: str) -> int:
        """How many characters of `text` belong to it."""
        for number, sign in enumerate(text):
            self._take(sign)
            if self.is_over:
                return number + 1
        return len(text)

    def _take(self, sign: str) -> None:
        self.is_begun = True
        if self._in_string:
            self._in_string = self._is_escaped or sign != '"'
            self._is_escaped = sign == "\\" and not self._is_escaped
        elif sign == '"':
            self._in_string = True
        elif sign in "{[":
            self._depth += 1
        elif sign in "}]":
            self._depth -= 1
            self.is_over = not self._depth
