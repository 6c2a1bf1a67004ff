"""Values of arguments that stand one by one in an answer: where each ends, and what it is by the tool's schema."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from studio.datasets.keyed_format import CallEnds, KeyedFormat, value_written

READ = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}  # whichever the template has
QUOTED = r'"(?:[^"\\]|\\.)*"|' + r"'(?:[^'\\]|\\.)*'"  # as JSON and Python quote texts
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
    "array": (list,),
    "object": (dict,),
}


class NoCallError(Exception):
    """The text is no call after all."""


def stops(form: KeyedFormat, ends: CallEnds) -> list[str]:
    """What may stand after a value."""
    return [stop for stop in (form.following, ends.link, ends.closing) if stop]


def end_of_value(form: KeyedFormat, text: str, start: int) -> int | None:
    """Where the value that begins at `start` ends; None where the text has not come so far."""
    may_follow = stops(form, form.ends)
    if not form.quote or not (text[start:] and (form.quote.startswith(text[start:]) or _is_closed_by_itself(form, text, start))):
        return _first(text, may_follow, start)
    end = _end_of_text(form, text, start) if text[start] not in "[{" else _end_of_brackets(form, text, start)
    if end is None or any(text.startswith(stop, end) for stop in may_follow):
        return end
    if any(stop.startswith(text[end:]) for stop in may_follow):
        return None
    raise NoCallError


def _is_closed_by_itself(form: KeyedFormat, text: str, start: int) -> bool:
    return text.startswith(form.quote, start) or text[start] in "[{" or (len(form.quote) == 1 and text[start] in "'\"")


def _first(text: str, wanted: Sequence[str], start: int) -> int | None:
    return min((place for place in (text.find(one, start) for one in wanted) if place >= 0), default=None)


def _end_of_text(form: KeyedFormat, text: str, start: int) -> int | None:
    is_own = text.startswith(form.quote, start)
    if len(form.quote) == 1 and (form.escapes or not is_own):
        found = re.compile(QUOTED, re.DOTALL).match(text, start)
        return found and found.end()
    if len(form.quote) == 1:  # the text itself may hold the quote: one that ends it stands before what may follow
        place = _first(text, [form.quote + stop for stop in stops(form, form.ends)], start + 1)
    else:
        place = _first(text, [form.quote], start + len(form.quote))
    return None if place is None else place + len(form.quote)


def _end_of_brackets(form: KeyedFormat, text: str, start: int) -> int | None:
    quote = re.escape(form.quote)
    quoted, open_quote = (QUOTED, "[\"']") if len(form.quote) == 1 else (f"{quote}.*?{quote}", quote)
    depth = 0
    for found in re.compile(rf"{quoted}|(?P<open>{open_quote})|[\[\]{{}}]", re.DOTALL).finditer(text, start):
        if found["open"]:
            return None
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found.group(), 0)
        if not depth:
            return found.end()
    return None


def typed(form: KeyedFormat, written: str, schema: Any) -> Any:
    """The value that is written so. A text stays one wherever the schema takes texts only, and wherever nothing else fits."""
    text, is_text = _text(form, written)
    types = types_of(schema)
    for value in plain_values(schema):
        if written == value_written(form, value) or (isinstance(value, str) and text == value):
            return value
    if types == {"string"} or (is_text and (not types or "string" in types)):
        return text
    try:
        value = _parsed(form, text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
    is_new = not isinstance(value, str) and (not types or _fits(value, types))
    return value if is_new else text


def types_of(schema: Any) -> set[str]:
    """The types that a schema names, also one by one in anyOf; empty where it does not say."""
    if not isinstance(schema, Mapping):
        return set()
    named = schema.get("type")
    if isinstance(named, str):
        return {named}
    if isinstance(named, list):
        return {one for one in named if isinstance(one, str)}
    choices = schema.get("anyOf", schema.get("oneOf"))
    found = [types_of(one) for one in choices] if isinstance(choices, list) else []
    return set().union(*found) if all(found) else set()


def plain_values(schema: Any) -> list[Any]:
    """The values that a schema names one by one, but for lists and objects."""
    if not isinstance(schema, Mapping):
        return []
    named = [schema["const"]] if "const" in schema else schema.get("enum")
    return [value for value in named if not isinstance(value, list | dict)] if isinstance(named, list) else []


def _fits(value: Any, types: set[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in types
    whole = isinstance(value, float) and value.is_integer() and "integer" in types
    return whole or any(isinstance(value, TYPES.get(one, ())) for one in types - {"boolean"})


def _text(form: KeyedFormat, written: str) -> tuple[str, bool]:
    """What is between the quotes, and whether there are any."""
    quote = form.quote
    if not quote:
        return written, False
    is_own = written.startswith(quote) and written.endswith(quote) and len(written) >= 2 * len(quote)
    if is_own and not form.escapes:
        return written[len(quote) : -len(quote)], True
    if len(quote) > 1 or not re.fullmatch(QUOTED, written, re.DOTALL):
        return written, False
    try:
        return json.loads(written, strict=False), True
    except ValueError:
        pass
    try:
        return str(ast.literal_eval(written[0] * 2 + written + written[0] * 2)), True  # three quotes: lines may end within
    except (ValueError, SyntaxError):
        return written[1:-1], True


def _parsed(form: KeyedFormat, text: str) -> Any:
    """A word, a number, a list or an object. Raises ValueError and the like where it is none."""
    if text in READ:
        return READ[text]
    try:
        value = json.loads(text)
    except ValueError:
        value = json.loads(_as_json(form, text)) if len(form.quote) > 1 else ast.literal_eval(text.strip())
    json.dumps(value, allow_nan=False)  # no infinity, nor what only Python has
    return value


def _as_json(form: KeyedFormat, text: str) -> str:
    """Lists and objects with quotes of the template's own and bare keys."""
    quote = re.escape(form.quote)

    def piece(found: re.Match[str]) -> str:
        if found[1] is not None:
            return json.dumps(found[1])
        bare = found[2].strip()
        if found.string.startswith(":", found.end()):
            return json.dumps(bare)
        return json.dumps(READ[bare]) if bare in READ else bare

    return re.sub(rf"{quote}(.*?){quote}|([^\[\]{{}},:]+)", piece, text, flags=re.DOTALL)
