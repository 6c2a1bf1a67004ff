"""How a chat template writes calls whose arguments stand one by one, found out by asking it: never by its name. Knows no tokens.

`<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>` is that of Qwen 3.5 and Nemotron,
`<|tool_call_start|>[NAME(KEY='VALUE')]<|tool_call_end|>` that of LFM2, `<|tool_call>call:NAME{KEY:<|"|>VALUE<|"|>}<tool_call|>` Gemma 4's.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studio.datasets.call_format import NAMES, answer_of_calls, mark_of
from studio.datasets.dialogue import Dialogue

FIRST, SECOND = "probe_b", "probe_a"  # not in the order of the alphabet
ONE, TWO, TEXT = 77131, 88242, "probe text"
HARD = "a'b\\c\"d"
WORDS = (True, False, None)


@dataclass(frozen=True)
class CallEnds:
    """What may follow a call's last sign: the way to the next call's name ("" where only one can be written), or the end."""

    link: str
    closing: str
    trail: str = ""  # what the template has after the closing and before the end of the turn


@dataclass(frozen=True)
class Inside:
    """How lists, and what is in them, are written where that is no JSON: `key` before and after a key of an object.

    `has_json_objects`: an object that is in no list is JSON all the same.
    """

    separator: str
    key: str
    assign: str
    has_json_objects: bool


@dataclass(frozen=True)
class KeyedFormat:
    """The text around names, keys and values of an answer's calls."""

    opening: str
    head: str  # between a name and its first key
    assign: str  # between a key and its value
    following: str  # between a value and the next key
    ends: CallEnds  # after a value
    bare: CallEnds  # after the name of a call without arguments
    quote: str  # around texts, or ""
    escapes: bool  # the quote and the like are written with a backslash in texts
    sorts_keys: bool
    words: tuple[str, str, str]  # for true, false and null
    inside: Inside | None  # None: lists and objects are JSON

    @property
    def mark(self) -> str:
        """As CallFormat's."""
        return mark_of(self.opening)

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is written around names, keys and values."""
        ends = (self.ends.link, self.ends.closing, self.bare.link, self.bare.closing)
        return (self.opening, self.head, self.assign, self.following, *ends, self.quote)

    def word(self, value: bool | None) -> str:
        """The template's word for true, false or null."""
        return self.words[WORDS.index(value)]


def keyed_format(dialogue: Dialogue) -> KeyedFormat | None:
    """That of this template; None where it shows no calls, or in neither this way nor that of CallFormat."""

    def cut(arguments: Sequence[dict[str, Any]], *parts: Any) -> list[str] | None:
        return _cut(answer_of_calls(dialogue, arguments), *map(str, parts))

    one = cut([{FIRST: ONE}], NAMES[0], FIRST, ONE)
    bare = cut([{}], NAMES[0])
    text = cut([{FIRST: TEXT}], NAMES[0], FIRST, TEXT)
    asked = [{FIRST: ONE, SECOND: TWO}]
    as_given = cut(asked, NAMES[0], FIRST, ONE, SECOND, TWO)
    pair = as_given or cut(asked, NAMES[0], SECOND, TWO, FIRST, ONE)
    if not (one and bare and text and pair) or not _agree(one, bare, text, pair):
        return None
    opening, head, assign, closing = one
    following = pair[3]
    quote = text[2][len(assign) :]
    if not (head and assign and following and closing and bare[1]):
        return None  # nothing says where one part ends
    both = cut([{FIRST: ONE}, {SECOND: TWO}], NAMES[0], FIRST, ONE, NAMES[1], SECOND, TWO)
    both_bare = cut([{}, {}], *NAMES)
    values = _Values(dialogue, opening + NAMES[0] + head + FIRST + assign, closing)
    words = [values.written(value) for value in WORDS]
    try:
        inside = values.inside(quote)
    except ValueError:
        return None
    if None in words:
        return None
    return KeyedFormat(
        opening,
        head,
        assign,
        following,
        _ends(opening, both[3] if both else "", closing),
        _ends(opening, both_bare[1] if both and both_bare else "", bare[1]),
        quote,
        bool(quote) and values.escapes(quote),
        not as_given,
        (str(words[0]), str(words[1]), str(words[2])),
        inside,
    )


def _cut(text: str | None, *parts: str) -> list[str] | None:
    """What is around the parts, which are there once each and in this order."""
    found = []
    if text is None or any(text.count(part) != 1 for part in parts):
        return None
    for part in parts:
        before, is_there, text = text.partition(part)
        if not is_there:
            return None
        found.append(before)
    return [*found, text]


def _agree(one: list[str], bare: list[str], text: list[str], pair: list[str]) -> bool:
    """Whether these answers have in common what is no value."""
    opening, head, assign, closing = one
    quotes = text[2].removeprefix(assign), text[3].removesuffix(closing)
    is_alike = text[:2] == one[:2] and quotes[0] == quotes[1] and text[2:] == [assign + quotes[0], quotes[0] + closing]
    return is_alike and bare[0] == opening and [*pair[:3], *pair[4:]] == [opening, head, assign, assign, closing]


def _ends(opening: str, link: str, closing: str) -> CallEnds:
    """Of what stands at the answer's end, that which belongs to a call: what also stands before another call's opening."""
    tail = link.removesuffix(opening).rstrip()
    if opening and tail and link.endswith(opening) and closing.startswith(tail):
        return CallEnds(link, tail, closing[len(tail) :])
    return CallEnds(link, closing)


@dataclass(frozen=True)
class _Values:
    dialogue: Dialogue
    before: str
    after: str

    def written(self, value: Any) -> str | None:
        """As the template writes it in a call; None where it leaves it out."""
        text = answer_of_calls(self.dialogue, [{FIRST: value}])
        if text is None or not text.startswith(self.before) or not text.endswith(self.after):
            return None
        return text[len(self.before) : len(text) - len(self.after)]

    def escapes(self, quote: str) -> bool:
        try:
            return bool(ast.literal_eval(self.written(HARD) or "") == HARD) and len(quote) == 1
        except (SyntaxError, ValueError):
            return False

    def inside(self, quote: str) -> Inside | None:
        """None where it is JSON. Raises ValueError where it is nothing that is known."""
        values = ([ONE, TEXT, *WORDS], {FIRST: {SECOND: TEXT}})
        is_list, is_object = (_is_json(self.written(value) or "", value) for value in values)
        if is_list and is_object:
            return None
        parts = _cut(self.written([ONE, TWO]), str(ONE), str(TWO))
        key = _cut(self.written([{FIRST: TWO}]), FIRST, str(TWO))
        if not quote or parts is None or key is None or (parts[0], parts[2]) != ("[", "]") or (key[0][:2], key[2]) != ("[{", "}]"):
            raise ValueError("lists in no known way")
        before = key[0][2:]
        return Inside(parts[1], before, key[1].removeprefix(before), is_object)


def _is_json(text: str, value: Any) -> bool:
    try:
        return bool(json.loads(text) == value)
    except ValueError:
        return False


def keyed_calls_written(form: KeyedFormat, calls: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """Calls as the template writes them; of each its name, and its arguments with their values as the template writes those."""
    text = form.opening
    for number, (name, arguments) in enumerate(calls):
        pairs = [key + form.assign + value for key, value in arguments.items()]
        ends = form.ends if pairs else form.bare
        text += name + form.head * bool(pairs) + form.following.join(pairs)
        text += ends.closing if number + 1 == len(calls) else ends.link
    return text


def value_written(form: KeyedFormat, value: str | float | bool | None) -> str:
    """A plain value as the template writes it."""
    if value is None or isinstance(value, bool):
        return form.word(value)
    if not isinstance(value, str):
        return json.dumps(value)
    if form.escapes:
        value = json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', '"').replace(form.quote, "\\" + form.quote)
    return form.quote + value + form.quote
