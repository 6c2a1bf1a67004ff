"""Whole blocks of JSON lines, or many rows, to examples at once: the quick way for rows that are nothing but texts or plain messages.

It writes what mapping.py would write, or nothing: a block with any other row is left to the general way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from studio.datasets.formats import Layout
from studio.datasets.mapping import ROLES

Rows = list[Any]  # of records made for one layout
Writer = Callable[[Rows], bytes]

ENCODE_LINES = msgspec.json.Encoder().encode_lines
PLAIN_ROLES: dict[str, Any] = {name: role for name, role in ROLES.items() if role != "call"}


# of the formats whose rows are conversations: their role, and the keys of a message
MESSAGE_KEYS: dict[str, tuple[str, tuple[bytes, ...]]] = {
    "messages": ("messages", (b'"role"', b'"content"')),
    "sharegpt": ("conversations", (b'"from"', b'"value"')),
}


class _Other(ValueError):
    """A row for the general way."""


# examples, as they are written; their fields stand in the order of mapping.py's


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


def _alpaca(rows: Rows) -> bytes:
    return ENCODE_LINES(
        [_Exchange((_User(_joined(row.instruction, row.input) if row.input else row.instruction), _Assistant(row.output))) for row in rows]
    )


def _question_answer(rows: Rows) -> bytes:
    return ENCODE_LINES([_Exchange((_User(_joined(row.context, row.question)), _Assistant(row.answer))) for row in rows])


def _joined(first: str | None, second: str | None) -> str:
    return f"{first}\n\n{second}" if first and second else first or second or ""


def _prompt_completion(rows: Rows) -> bytes:
    _demand_plain(text for row in rows for text in (row.prompt, row.completion))
    return ENCODE_LINES([_Exchange((_User(row.prompt), _Assistant(row.completion))) for row in rows])


def _preference(rows: Rows) -> bytes:
    _demand_plain(text for row in rows for text in (row.prompt, row.chosen, row.rejected))
    return ENCODE_LINES(
        [_Comparison((_User(_joined(row.prompt, row.input)),), (_Assistant(row.chosen),), (_Assistant(row.rejected),)) for row in rows]
    )


def _demand_plain(texts: Iterable[str]) -> None:
    if any(text[:1] in _OPENING for text in texts):  # it may hold a conversation
        raise _Other


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


def _messages(rows: Rows) -> bytes:
    return ENCODE_LINES([_Conversation(row.messages) for row in rows])


def _sharegpt(rows: Rows) -> bytes:
    try:
        return ENCODE_LINES([_Conversation([_Message(PLAIN_ROLES[turn.role], turn.content) for turn in row.conversations]) for row in rows])
    except KeyError:
        raise _Other from None


WRITERS: dict[str, Writer] = {
    "alpaca": _alpaca,
    "question-answer": _question_answer,
    "prompt-completion": _prompt_completion,
    "continuation": lambda rows: ENCODE_LINES([_Continuation(row.prompt, row.completion) for row in rows]),
    "text": lambda rows: ENCODE_LINES([_Document(row.text) for row in rows]),
    "prompts": lambda rows: ENCODE_LINES([_Question((_User(row.prompt),)) for row in rows]),
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


class BlockMapper:
    """Maps blocks of whole lines."""

    def __init__(self, format: str, mapping: Mapping[str, str]) -> None:
        fields: list[Any] = [field for field in FIELDS[format] if field[0] in mapping]
        without = {field[0]: None for field in FIELDS[format] if field[0] not in mapping}
        record: Any = msgspec.defstruct("Row", fields, namespace=without, rename=dict(mapping), gc=False)
        self._record = record
        self._decode = msgspec.json.Decoder(record).decode
        self._write = WRITERS[format]
        self._columns = [f'"{column}"'.encode() for column in mapping.values()]
        self._turns, self._keys = MESSAGE_KEYS.get(format, ("", ()))
        self._quotes = -1  # of a row, but for those of its messages, once it is known

    def lines(self, block: bytes) -> tuple[bytes, int] | None:
        """The examples as JSON lines, and their number; None where a row needs the general way."""
        # the decoder passes over columns that are not asked for, and takes their bytes as they are
        if not _is_utf8(block):
            return None
        try:
            rows = list(map(self._decode, block.removesuffix(b"\n").split(b"\n")))
            return (self._write(rows), len(rows)) if self._are_single(block, rows) else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _Other):
            return None

    def examples(self, rows: Sequence[Any]) -> bytes | None:
        """The examples of rows that are dicts, as JSON lines; None where one of them needs the general way."""
        try:
            return self._write(msgspec.convert(rows, list[self._record]))  # type: ignore[name-defined]
        except (msgspec.ValidationError, UnicodeEncodeError, RecursionError, _Other):
            return None

    def _are_single(self, block: bytes, rows: Rows) -> bool:
        """Whether no row can have a key of ours twice.

        It can't where a block has so many quotes as blocks have whose keys were counted; a text that is a key's name is mistaken for one.
        """
        messages = sum([len(getattr(row, self._turns)) for row in rows]) if self._turns else 0
        quotes = block.count(b'"') - 8 * messages - (block.count(b'\\"') if b"\\" in block else 0)
        if quotes == self._quotes * len(rows):
            return True
        if any(block.count(column) > len(rows) for column in self._columns) or any(block.count(key) > messages for key in self._keys):
            return False
        self._quotes = quotes // len(rows)
        return True


def block_mapper(layout: Layout) -> BlockMapper | None:
    """A mapper for this layout, where there is a quick way."""
    roles = {field[0] for field in FIELDS.get(layout.format.name, [])}
    columns = list(layout.mapping.values())
    # a record takes each column once, and no name that JSON would write otherwise
    are_plain = len(set(columns)) == len(columns) and all(re.fullmatch(r'[^"\\\x00-\x1f\ud800-\udfff]+', column) for column in columns)
    has_all = all(len(field) > 2 or field[0] in layout.mapping for field in FIELDS.get(layout.format.name, []))
    return BlockMapper(layout.format.name, layout.mapping) if set(layout.mapping) <= roles and are_plain and has_all else None


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
