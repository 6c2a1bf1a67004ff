"""Texts with parts that stay as they are: `<llmlingua, rate=0.5, compress=True>…</llmlingua>` tags, and JSON. Knows no models."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from studio.errors import StudioError

OPEN = re.compile(r"<llmlingua((?:\s*,\s*\w+\s*=\s*[\w.]+)*)\s*>")
CLOSE = "</llmlingua>"
PART = re.compile(r"<llmlingua\b[^<>]*>|</llmlingua>")
SHORTEST = 24  # characters: a shorter JSON string is a value, not prose


@dataclass(frozen=True)
class Section:
    """`rate` None: the rate of the whole. `compress` False: stays as it is."""

    text: str
    rate: float | None = None
    compress: bool = True


def tagged(text: str) -> list[Section]:
    """Sections of a text with tags; what stands outside of tags is compressed at the rate of the whole. Raises StudioError."""
    sections, cursor, opened = [], 0, None
    for match in PART.finditer(text):
        between = text[cursor : match.start()]
        is_close = match.group() == CLOSE
        if is_close == (opened is None):
            line = text.count("\n", 0, match.start()) + 1
            wrong = "closes nothing" if is_close else "opens inside another section"
            raise StudioError(f"Line {line}: {match.group()} {wrong}.", f"Every <llmlingua> needs one {CLOSE}, and none may hold another.")
        if between:
            sections.append(_section(opened, between) if opened else Section(between))
        opened, cursor = match.group(), match.end()
        if is_close:
            opened = None
    if opened is not None:
        raise StudioError(f"{opened} is never closed.", f"End its section with {CLOSE}.")
    if text[cursor:]:
        sections.append(Section(text[cursor:]))
    return sections


def _section(tag: str, text: str) -> Section:
    match = OPEN.fullmatch(tag)
    pairs = dict(re.findall(r"(\w+)\s*=\s*([\w.]+)", match.group(1))) if match else {}
    if match is None or set(pairs) - {"rate", "compress"} or pairs.get("compress", "True") not in ("True", "False"):
        raise StudioError(f"The tag {tag} can't be read.", "Write <llmlingua, rate=0.5> or <llmlingua, compress=False>.")
    rate = None
    if "rate" in pairs:
        rate = _number(pairs["rate"])
        if not 0 < rate <= 1:
            raise StudioError(f"The rate of {tag} is not above 0 and at most 1.", "Write a share such as rate=0.5.")
    return Section(text, rate, pairs.get("compress") != "False")


def _number(text: str) -> float:
    """NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def is_json(text: str) -> bool:
    """Whether a text is meant as a JSON object or list."""
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class Document:
    """A JSON text whose longer strings can be replaced; keys, numbers, literals, short strings and the layout stay."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.doubled = _doubled_keys(text)
        self._places = list(_strings(text))
        self.strings = [value for _, _, value in self._places]

    def rebuilt(self, strings: list[str]) -> str:
        """The text with each of `strings` in its place, escaped."""
        parts, cursor = [], 0
        for (start, end, old), new in zip(self._places, strings, strict=True):
            written = self.text[start:end]
            if new != old:
                written = json.dumps(new, ensure_ascii=False)
            parts += [self.text[cursor:start], written]
            cursor = end
        return "".join([*parts, self.text[cursor:]])


STRING = re.compile(r'(?P<string>"(?:[^"\\]|\\.)*")(?P<colon>\s*:)?', re.S)  # behind a key stands a colon


def _strings(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, value) of the string values that are long enough to be prose; keys are passed by."""
    for match in STRING.finditer(text):
        value = json.loads(match["string"], strict=False)
        is_text = not any("\ud800" <= character <= "\udfff" for character in value)
        if match["colon"] is None and is_text and len(value) >= SHORTEST and " " in value.strip():
            yield *match.span("string"), value


def _doubled_keys(text: str) -> list[str]:
    doubled: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        doubled.extend(sorted({name for name in names if names.count(name) > 1}))
        return dict(pairs)

    hook: Callable[[list[tuple[str, Any]]], Any] = look
    json.loads(text, object_pairs_hook=hook)
    return doubled
