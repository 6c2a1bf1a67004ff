"""Whole blocks of JSON lines to examples at once: the quick way for rows that are nothing but texts or plain messages.

It writes what mapping.py would write, or nothing: a block with any other row is left to the general way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec
import orjson

from studio.datasets.formats import Layout
from studio.datasets.mapping import ROLES

Rows = list[Any]  # of records made for one layout
Writer = Callable[[Rows], bytes]

ENCODE_LINES = msgspec.json.Encoder().encode_lines
PLAIN_ROLES: dict[str, Any] = {name: role for name, role in ROLES.items() if role != "call"}


class _Other(ValueError):
    """A row for the general way."""


# rows of texts, handled by column: a loop over rows costs several times as much


class _Frame:
    """The JSON around the texts of an example: what stands before the first, between them, and behind the last."""

    def __init__(self, *parts: bytes) -> None:
        self._head, *self._inner, self._tail = parts
        self._tail += b"\n"

    def lines(self, *columns: list[str]) -> bytes:
        """Examples of rows, whose first, second, … texts the columns hold."""
        count, step = len(columns[0]), 2 * len(columns)
        pieces = [b""] * (count * step)
        for place, (before, column) in enumerate(zip((self._tail + self._head, *self._inner), columns, strict=True)):
            pieces[2 * place :: step] = [before] * count
            pieces[2 * place + 1 :: step] = _written(column)
        pieces[0] = self._head
        pieces.append(self._tail)
        return b"".join(pieces)


def _written(texts: list[str]) -> list[bytes]:
    """Each text in JSON, without its quotes: all in one call, because many small ones spend their time in malloc."""
    written = orjson.dumps(texts)
    if b'\\","' in written:  # a text that ends in ", looks like the end of two
        return [orjson.dumps(text)[1:-1] for text in texts]
    return written[2:-2].split(b'","')


EXCHANGE = _Frame(b'{"messages":[{"role":"user","content":"', b'"},{"role":"assistant","content":"', b'"}]}')
QUESTION = _Frame(b'{"messages":[{"role":"user","content":"', b'"}]}')
CONTINUATION = _Frame(b'{"prompt":"', b'","completion":"', b'"}')
DOCUMENT = _Frame(b'{"text":"', b'"}')


def _alpaca(rows: Rows) -> bytes:
    return EXCHANGE.lines(
        [_joined(row.instruction, row.input) if row.input else row.instruction for row in rows], [row.output for row in rows]
    )


def _question_answer(rows: Rows) -> bytes:
    return EXCHANGE.lines(
        [_joined(row.context, row.question) if row.context else row.question for row in rows], [row.answer for row in rows]
    )


def _joined(first: str, second: str) -> str:
    return f"{first}\n\n{second}" if first and second else first or second


def _prompt_completion(rows: Rows) -> bytes:
    prompts, completions = [row.prompt for row in rows], [row.completion for row in rows]
    if any(text[:1] in _OPENING for text in (*prompts, *completions)):  # it may hold a conversation
        raise _Other
    return EXCHANGE.lines(prompts, completions)


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
    "continuation": lambda rows: CONTINUATION.lines([row.prompt for row in rows], [row.completion for row in rows]),
    "text": lambda rows: DOCUMENT.lines([row.text for row in rows]),
    "prompts": lambda rows: QUESTION.lines([row.prompt for row in rows]),
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
    "messages": [("messages", Annotated[list[_Message], msgspec.Meta(min_length=1)])],
    "sharegpt": [("conversations", Annotated[list[_Turn], msgspec.Meta(min_length=1)])],
}


class BlockMapper:
    """Maps blocks of whole lines."""

    def __init__(self, format: str, mapping: Mapping[str, str]) -> None:
        fields: list[Any] = [field for field in FIELDS[format] if field[0] in mapping]
        without = {field[0]: None for field in FIELDS[format] if field[0] not in mapping}
        record = msgspec.defstruct("Row", fields, namespace=without, rename=dict(mapping), gc=False)
        self._decode = msgspec.json.Decoder(record).decode_lines
        self._write = WRITERS[format]

    def lines(self, block: bytes) -> tuple[bytes, int] | None:
        """The examples as JSON lines, and their number; None where a row needs the general way."""
        # the decoder passes over columns that are not asked for, and takes their bytes as they are
        if not (block.startswith(b"{") and _is_utf8(block)):
            return None
        try:
            rows = self._decode(block)
            if block.count(b"}\n{") != len(rows) - 1 and block.count(b"}\r\n{") != len(rows) - 1:
                return (
                    None  # two values on a line or one on two: in a JSON value there is a comma between } and {, and no line end in a text
                )
            return self._write(rows), len(rows)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _Other):
            return None


def block_mapper(layout: Layout) -> BlockMapper | None:
    """A mapper for this layout, where there is a quick way."""
    roles = {field[0] for field in FIELDS.get(layout.format.name, [])}
    columns = list(layout.mapping.values())
    # a record takes each column once, and no name that JSON would write otherwise
    are_plain = len(set(columns)) == len(columns) and all(re.fullmatch(r'[^"\\\x00-\x1f\ud800-\udfff]+', column) for column in columns)
    return BlockMapper(layout.format.name, layout.mapping) if set(layout.mapping) <= roles and are_plain else None


def _is_utf8(block: bytes) -> bool:
    if block.isascii():
        return True
    try:
        block.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
