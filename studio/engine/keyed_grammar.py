"""The grammar (Lark, for llguidance) that holds calls whose arguments stand one by one (KeyedFormat), from their mark on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from studio.datasets.keyed_format import CallEnds, KeyedFormat, value_written
from studio.engine.calls import MOST_CALLS, OPEN, WRITTEN, closed
from studio.engine.keyed_values import plain_values, stops, types_of
from studio.engine.protocol import Grammar, Tools

Literal = Callable[[str], str]
NUMBER = r"NUMBER: /-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/"
ANYTHING = "/(?s:.*)/"


def keyed_grammar(form: KeyedFormat, tools: Tools, literal: Literal) -> Grammar | None:
    """One call or several; None where the arguments can't be held: a tool takes some that it does not name, or nothing ends a text."""
    if not all(_is_closed(tools.parameters(name), form) for name in tools.names):
        return None
    shared = _common(stops(form, form.ends)) * (not form.quote)
    if all(literal(stop).startswith("<[") for stop in stops(form, form.ends)):
        shared = ""  # tokens of their own, which no text holds
    elif not form.quote and not (
        shared.strip() and all(literal(stop).startswith(json.dumps(shared)[:-1]) for stop in stops(form, form.ends))
    ):
        return None
    return _Rules(form, tools, literal, shared).grammar()


def _common(texts: Sequence[str]) -> str:
    """What they all begin with."""
    pairs = zip(min(texts), max(texts), strict=False)
    return "".join(sign for sign, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _is_closed(schema: Mapping[str, Any], form: KeyedFormat) -> bool:
    fields = schema.get("properties")
    if not isinstance(fields, Mapping) or any(schema.get(key) not in (None, False) for key in OPEN):
        return False
    return fields.keys() >= set(schema.get("required") or ()) and not any(form.assign in key or not key for key in fields)


class _Rules:
    """`shared` is what begins all that may follow a value: the rules of values hold it, since it is what ends a text without quotes."""

    def __init__(self, form: KeyedFormat, tools: Tools, literal: Literal, shared: str) -> None:
        self._form, self._tools, self._literal, self._shared = form, tools, literal, shared
        self._lines: list[str] = []

    def grammar(self) -> Grammar:
        form = self._form
        linked, last = [], []
        for number, name in enumerate(self._tools.names):
            has_required = self._add_arguments(number, self._tools.parameters(name))
            called = self._literal(name)
            if has_required is not None:
                linked.append(self._joined(called, f"arguments_{number}", self._after(form.ends.link)))
                last.append(self._joined(called, f"arguments_{number}", self._closing(form.ends, self._shared)))
            if not has_required:
                linked.append(self._joined(called, self._literal(form.bare.link)))
                last.append(self._joined(called, self._closing(form.bare)))
        is_single = self._tools.is_named or not self._tools.is_parallel or not form.ends.link
        more = "" if is_single else f"linked{{0,{MOST_CALLS - 1}}}"
        lines = [self._joined("start:", self._literal(form.opening[form.opening.find(form.mark) :]), more, "last")]
        if more:
            lines.append("linked: " + "\n    | ".join(linked))
        lines += ["last: " + "\n    | ".join(last), *self._lines, *self._texts(), NUMBER]
        return Grammar("calls", "\n".join(lines))

    @staticmethod
    def _joined(*parts: str) -> str:
        return " ".join(part for part in parts if part)

    def _after(self, stop: str) -> str:
        return self._literal(stop[len(self._shared) :])

    def _closing(self, ends: CallEnds, shared: str = "") -> str:
        """With its trail or without: a model that has learned to write that must not be led to another call, which begins alike."""
        whole = [ends.closing, ends.closing + ends.trail] if ends.trail else [ends.closing]
        return f"({' | '.join(self._literal(text[len(shared) :]) for text in whole)})"

    def _add_arguments(self, number: int, schema: Mapping[str, Any]) -> bool | None:
        """Whether some must be there; None where there are none. Those that need not be there may be left out, in their order."""
        form, fields = self._form, schema["properties"]
        required = set(schema.get("required") or ())
        keys = sorted(fields, key=str.lower) if form.sorts_keys else list(fields)
        if not keys:
            return None

        def next_of(place: int) -> tuple[str, bool]:
            """The keys that may come from here on, and whether one must."""
            found = []
            for later in range(place, len(keys)):
                found.append(f"key_{number}_{later}")
                if keys[later] in required:
                    return " | ".join(found), True
            return " | ".join(found), False

        for place, key in enumerate(keys):
            self._add_value(f"value_{number}_{place}", fields[key], schema)
            later, must = next_of(place + 1)
            more = [self._after(form.following), f"({later})"] if later else []
            after = self._joined("(", *more, ")" + "?" * (not must)) * bool(later)
            self._lines.append(self._joined(f"key_{number}_{place}:", self._literal(key + form.assign), f"value_{number}_{place}", after))
        first, must = next_of(0)
        self._lines.append(self._joined(f"arguments_{number}:", self._literal(form.head), f"({first})"))
        return must

    def _add_value(self, rule: str, schema: Any, root: Mapping[str, Any]) -> None:
        values, types = plain_values(schema), types_of(schema)
        if values:
            choices = [self._literal(value_written(self._form, value)) or '""' for value in values]
        elif not self._form.quote and (not types or "string" in types):
            self._lines.append(f"{rule}: text")  # which holds everything else too
            return
        else:
            choices = []
            for kind in sorted(types or {"string", "boolean", "null", "number", "array", "object"}):
                choices.append(self._choice(f"{rule}_{kind}", kind, schema, root))
        self._lines.append(self._joined(f"{rule}:", f"({' | '.join(choices)})", self._literal(self._shared)))

    def _choice(self, rule: str, kind: str, schema: Any, root: Mapping[str, Any]) -> str:
        form = self._form
        if kind == "string":
            return "text"
        if kind in ("boolean", "null"):
            return " | ".join(self._literal(form.word(value)) for value in ([True, False] if kind == "boolean" else [None]))
        if form.inside is not None and (kind == "array" or (kind == "object" and not form.inside.has_json_objects)):
            return kind
        own = closed(schema) if isinstance(schema, Mapping) and isinstance(schema.get("type"), str | list) else {}
        defined = {key: root[key] for key in ("$defs", "definitions") if key in root}
        self._lines.append(f"{rule}: %json " + json.dumps({**defined, **own, "type": kind, "x-guidance": WRITTEN}))
        return rule

    def _texts(self) -> Sequence[str]:
        """The rules for texts, and for lists and objects that are no JSON."""
        form = self._form
        if not form.quote:
            return [f"text[suffix={json.dumps(self._shared)}]: {ANYTHING}" if self._shared else f"text: {ANYTHING}"]
        quote = self._literal(form.quote)
        if len(form.quote) == 1:
            inner = rf"([^{form.quote}\\\n]|\\[^\n])*" if form.escapes else f"[^{form.quote}]*"
            lines = [f"text: /{form.quote}{inner}{form.quote}/"]
        elif quote.startswith("<["):
            lines = [f"text: {quote} rest_of_text {quote}", f"rest_of_text: {ANYTHING}"]
        else:
            lines = [f"text: {quote} rest_of_text", f"rest_of_text[suffix={quote}]: {ANYTHING}"]
        if form.inside is None:
            return lines
        words = " | ".join(self._literal(word) for word in form.words)
        key, separator = self._literal(form.inside.key), self._literal(form.inside.separator)
        pair = self._joined("pair:", key, "KEY", key, self._literal(form.inside.assign), "any")
        return [
            *lines,
            f"any: text | NUMBER | {words} | array | object",
            f'array: "[" (any ({separator} any)*)? "]"',
            f'object: "{{" (pair ({separator} pair)*)? "}}"',
            pair,
            "KEY: /[A-Za-z_][A-Za-z0-9_.-]*/",
        ]
