"""Whole blocks of JSON lines, or many rows, to examples at once: the quick way for rows that are nothing but texts or plain messages.

It writes what mapping.py would write, or nothing: a block with any other row is left to the general way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from studio.datasets.formats import Layout
from studio.datasets.row_messages import ROLES
from studio.datasets.telling import holds_something
from studio.datasets.usage import ColumnUsage

Rows = list[Any]  # of records made for one layout
Writer = Callable[[Rows, bool], bytes]

LINE_END, RETURN, QUOTE, BACKSLASH, OPENING, CLOSING = b'\n\r"\\{}'
ENCODE_LINES = msgspec.json.Encoder().encode_lines
PLAIN_ROLES: dict[str, Any] = {name: role for name, role in ROLES.items() if role != "call"}


# of the formats whose rows are conversations: their role, and the keys of a message
MESSAGE_KEYS: dict[str, tuple[str, tuple[bytes, ...]]] = {
    "messages": ("messages", (b'"role"', b'"content"')),
    "sharegpt": ("conversations", (b'"from"', b'"value"')),
}


class _Other(ValueError):
    """A row for the general way."""


# examples of texts, as they are written; their fields stand in the order of mapping.py's


class _User(msgspec.Struct, gc=False, tag_field="role", tag="user"):
    content: str


class _Assistant(msgspec.Struct, gc=False, tag_field="role", tag="assistant"):
    content: str


class _Exchange(msgspec.Struct, gc=False):
    messages: tuple[_User, _Assistant]


class _Question(msgspec.Struct, gc=False):
    messages: tuple[_User]


class _Comparison(msgspec.Struct, gc=False):
    prompt: tuple[_User]
    chosen: tuple[_Assistant]
    rejected: tuple[_Assistant]


class _Continuation(msgspec.Struct, gc=False):
    prompt: str
    completion: str


class _Document(msgspec.Struct, gc=False):
    text: str


MARK = "|"  # stands in no frame


class _Shape:
    """An example of `count` texts, as `make` puts them together."""

    def __init__(self, make: Callable[..., msgspec.Struct], count: int) -> None:
        self._make = make
        self._head, *self._inner, tail = msgspec.json.encode(make(*[MARK] * count)).decode().split(MARK)
        self._tail = tail + "\n"

    def written(self, columns: Sequence[list[str]], is_bare: bool) -> bytes:
        """Examples of rows, whose first, second, … texts the columns hold. Bare ones have nothing that JSON escapes."""
        if not is_bare:
            return ENCODE_LINES(list(map(self._make, *columns)))
        count, step = len(columns[0]), 2 * len(columns)
        pieces = [""] * (count * step)
        for place, (before, column) in enumerate(zip((self._tail + self._head, *self._inner), columns, strict=True)):
            pieces[2 * place :: step] = [before] * count
            pieces[2 * place + 1 :: step] = column
        pieces[0] = self._head
        pieces.append(self._tail)
        return "".join(pieces).encode()


EXCHANGE = _Shape(lambda question, answer: _Exchange((_User(question), _Assistant(answer))), 2)
QUESTION = _Shape(lambda question: _Question((_User(question),)), 1)
CONTINUATION = _Shape(_Continuation, 2)
DOCUMENT = _Shape(_Document, 1)
COMPARISON = _Shape(lambda prompt, *answers: _Comparison((_User(prompt),), *((_Assistant(answer),) for answer in answers)), 3)


def _alpaca(rows: Rows, is_bare: bool) -> bytes:
    gap = GAPS[is_bare]
    questions = [_joined(row.instruction, row.input, gap) if row.input else row.instruction for row in rows]
    return EXCHANGE.written((questions, [row.output for row in rows]), is_bare)


def _question_answer(rows: Rows, is_bare: bool) -> bytes:
    gap = GAPS[is_bare]
    questions = [_joined(row.context, row.question, gap) if row.context else row.question for row in rows]
    return EXCHANGE.written((questions, [row.answer for row in rows]), is_bare)


def _joined(first: str, second: str, gap: str) -> str:
    return f"{first}{gap}{second}" if first and second else first or second


GAPS = ("\n\n", r"\n\n")  # between two texts, and as JSON writes it


def _prompt_completion(rows: Rows, is_bare: bool) -> bytes:
    return EXCHANGE.written((_plain([row.prompt for row in rows]), _plain([row.completion for row in rows])), is_bare)


def _preference(rows: Rows, is_bare: bool) -> bytes:
    gap = GAPS[is_bare]
    prompts = _plain([row.prompt for row in rows])
    questions = [_joined(prompt, row.input, gap) if row.input else prompt for prompt, row in zip(prompts, rows, strict=True)]
    return COMPARISON.written((questions, _plain([row.chosen for row in rows]), _plain([row.rejected for row in rows])), is_bare)


def _plain(texts: list[str]) -> list[str]:
    if any([text[:1] in _OPENING for text in texts]):  # it may hold a conversation
        raise _Other
    return texts


_OPENING = frozenset("[{")


# conversations of plain messages: one with any further key (name, tool_calls, …) is for the general way


class _Message(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    role: Literal["system", "user", "assistant", "tool"]
    content: str


class _Turn(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename={"role": "from", "content": "value"}):
    role: str
    content: str


class _Conversation(msgspec.Struct, gc=False):
    messages: list[_Message]


def _messages(rows: Rows, is_bare: bool) -> bytes:
    return ENCODE_LINES([_Conversation(row.messages) for row in rows])


def _sharegpt(rows: Rows, is_bare: bool) -> bytes:
    try:
        return ENCODE_LINES([_Conversation([_Message(PLAIN_ROLES[turn.role], turn.content) for turn in row.conversations]) for row in rows])
    except KeyError:
        raise _Other from None


WRITERS: dict[str, Writer] = {
    "alpaca": _alpaca,
    "question-answer": _question_answer,
    "prompt-completion": _prompt_completion,
    "continuation": lambda rows, is_bare: CONTINUATION.written(([row.prompt for row in rows], [row.completion for row in rows]), is_bare),
    "text": lambda rows, is_bare: DOCUMENT.written(([row.text for row in rows],), is_bare),
    "prompts": lambda rows, is_bare: QUESTION.written(([row.prompt for row in rows],), is_bare),
    "preference": _preference,
    "messages": _messages,
    "sharegpt": _sharegpt,
}

# the roles that the quick way can read: (name, type[, default])
FIELDS: dict[str, list[tuple[Any, ...]]] = {
    "alpaca": [("instruction", str), ("output", str), ("input", str | None, None)],
    "question-answer": [("question", str), ("answer", str), ("context", str | None, None)],
    "prompt-completion": [("prompt", str), ("completion", str)],
    "continuation": [("prompt", str), ("completion", str)],
    "text": [("text", str)],
    "prompts": [("prompt", str)],
    "preference": [("prompt", str), ("chosen", str), ("rejected", str), ("input", str | None, None)],
    "messages": [("messages", Annotated[list[_Message], msgspec.Meta(min_length=1)])],
    "sharegpt": [("conversations", Annotated[list[_Turn], msgspec.Meta(min_length=1)])],
}


PLAIN_NAME = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
WITHOUT_ANSWERS = frozenset({"text", "continuation", "prompts"})
NO_VALUE = frozenset((b"", b"null", b'""', b"[]", b"{}"))  # of an unused column
MAX_UNUSED = 200  # columns that are counted the quick way
INLINE_REASONING = b"<think>"


class BlockMapper:
    """Maps blocks of whole lines, and counts what the columns hold that are not read; one that is not known is for the general way."""

    def __init__(self, format: str, mapping: Mapping[str, str], usage: ColumnUsage) -> None:
        self._usage = usage
        self._unused = {f"unused_{number}": column for number, column in enumerate(usage.known)}
        self._record = self._record_of(format, mapping, Any, None)
        self._decode = msgspec.json.Decoder(self._record_of(format, mapping, msgspec.Raw, msgspec.Raw())).decode_lines
        self._write = WRITERS[format]
        self._columns = [f'"{column}"'.encode() for column in mapping.values()]
        self._turns, self._keys = MESSAGE_KEYS.get(format, ("", ()))
        self._quotes = -1  # of a row, but for those of its messages, once it is known
        self._has_answers = format not in WITHOUT_ANSWERS

    def _record_of(self, format: str, mapping: Mapping[str, str], held: Any, nothing: Any) -> Any:
        fields: list[Any] = [field for field in FIELDS[format] if field[0] in mapping]
        without = {field[0]: None for field in FIELDS[format] if field[0] not in mapping}
        fields = sorted(fields, key=len) + [(name, held, nothing) for name in self._unused]
        names = {**mapping, **self._unused}
        return msgspec.defstruct("Row", fields, namespace=without, rename=names, gc=False, forbid_unknown_fields=True)

    def lines(self, block: bytes) -> tuple[bytes, int] | None:
        """The examples as JSON lines, and their number; None where a row needs the general way."""
        # the decoder takes the bytes of columns that are not asked for as they are
        if not (block.startswith(b"{") and _is_utf8(block)):
            return None
        try:
            rows = self._decode(block)
            is_bare = b"\\" not in block
            if not (_has_lines(block, len(rows)) and self._are_single(block, rows, is_bare)):
                return None
            return self._written(rows, is_bare, _raw_holds_something), len(rows)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _Other):
            return None

    def examples(self, rows: Sequence[Any]) -> bytes | None:
        """The examples of rows that are dicts, as JSON lines; None where one of them needs the general way."""
        try:
            return self._written(msgspec.convert(rows, list[self._record]), False, holds_something)  # type: ignore[name-defined]
        except (msgspec.ValidationError, UnicodeEncodeError, RecursionError, _Other):
            return None

    def _written(self, rows: Rows, is_bare: bool, holds: Callable[[Any], bool]) -> bytes:
        counts = {}
        for name, column in self._unused.items():
            counts[column] = sum([holds(getattr(row, name)) for row in rows])
            if counts[column] and self._usage.known[column] is not None:
                raise _Other  # it may say how the row is meant
        written = self._write(rows, is_bare)
        if self._has_answers and INLINE_REASONING in written:
            raise _Other
        self._usage.add(counts)
        return written

    def _are_single(self, block: bytes, rows: Rows, is_bare: bool) -> bool:
        """Whether no row can have a key of ours twice.

        It can't where a block has so many quotes as blocks have whose keys were counted; a text that is a key's name is mistaken for one.
        """
        messages = sum([len(getattr(row, self._turns)) for row in rows]) if self._turns else 0
        codes = np.frombuffer(block, np.uint8)
        marks = codes == QUOTE
        if not is_bare:
            marks[1:] &= codes[:-1] != BACKSLASH
        quotes = int(np.count_nonzero(marks)) - 8 * messages
        if quotes == self._quotes * len(rows):
            return True
        if any(block.count(column) > len(rows) for column in self._columns) or any(block.count(key) > messages for key in self._keys):
            return False
        self._quotes = quotes // len(rows)
        return True


def _raw_holds_something(raw: msgspec.Raw) -> bool:
    written = bytes(raw)
    return written not in NO_VALUE and (len(written) > 9 or b"".join(written.split()) not in NO_VALUE)


def block_mapper(layout: Layout, usage: ColumnUsage) -> BlockMapper | None:
    """A mapper for this layout, where there is a quick way."""
    roles = {field[0] for field in FIELDS.get(layout.format.name, [])}
    columns = [*layout.mapping.values(), *usage.known]
    # a record takes each column once, and no name that JSON would write otherwise
    are_plain = len(set(columns)) == len(columns) and all(PLAIN_NAME.fullmatch(column) for column in columns)
    has_all = all(len(field) > 2 or field[0] in layout.mapping for field in FIELDS.get(layout.format.name, []))
    if set(layout.mapping) <= roles and are_plain and has_all and len(usage.known) <= MAX_UNUSED:
        return BlockMapper(layout.format.name, layout.mapping, usage)
    return None


def _has_lines(block: bytes, rows: int) -> bool:
    """Whether each of the rows that were read stands on a line of its own: two on one, or one on two, leave other signs at line ends.

    In a JSON value there is a comma between } and {, and no line end in a text.
    """
    codes = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(codes == LINE_END)
    if block.endswith(b"\n"):
        ends = ends[:-1]
    before = codes[ends - 1]
    before = np.where(before == RETURN, codes[ends - 2], before)
    return len(ends) == rows - 1 and bool(np.all(codes[ends + 1] == OPENING) and np.all(before == CLOSING))


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
