"""One JSON document of any size, value by value: a cursor over a file, with line numbers. Knows nothing of rows."""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

CHUNK_BYTES = 1024**2
MAX_SEARCHED = 4 * 1024**2  # characters or bytes of a value in which keys are counted: that takes many times as much memory
_LONGEST_START = 1000
_SPACE = re.compile(r"[ \t\r\n]*")
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\\n]|\\.){1,200}")\s*:')


class JsonStreamError(ValueError):
    """Where and why the document can't be read on."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


def key_twice(written: str, value: Any) -> str:
    """A key that an object of a value has twice, by how it is written; ""."""
    if '" :' not in written and written.count('":') - written.count('\\":') <= _keys_in(value):
        return ""
    found: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(pairs) > len({key for key, _ in pairs}):
            keys = [key for key, _ in pairs]
            found.append(next(key for key in keys if keys.count(key) > 1))

    with suppress(RecursionError, ValueError):
        json.loads(written, object_pairs_hook=look)
    return next(iter(found), "")


def _keys_in(value: Any) -> int:
    """How many keys all objects of a value have together."""
    count, rest = 0, [value]
    while rest:
        each = rest.pop()
        if type(each) is dict:
            count += len(each)
            rest += [item for item in each.values() if type(item) is dict or type(item) is list]
        elif type(each) is list:
            rest += [item for item in each if type(item) is dict or type(item) is list]
    return count


class JsonStream:
    """Holds one value in memory at a time, of at most `max_chars` characters."""

    def __init__(self, file: Any, max_chars: int) -> None:
        self._file = file
        self._max_chars = max_chars
        # bytes that are no UTF-8 become lone surrogates, which the writer of rows refuses: the row is at fault, not the file
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._json = json.JSONDecoder(parse_constant=self._constant)
        self._text = ""
        self._position = 0
        self._ended = False
        self.line = 1  # of the current position
        self.bad_constant = ""  # NaN or Infinity in the last value
        self.twice = ""  # a key that one of its objects has twice

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        self._skip_space()
        return self._text[self._position : self._position + 1]

    def peek_inside(self) -> str:
        """The first character inside the list that starts here."""
        while True:
            match = _SPACE.match(self._text, self._position + 1)
            end = match.end() if match else len(self._text)
            if end < len(self._text) or self._ended or end - self._position > self._max_chars:
                return self._text[end : end + 1]
            self._fill()

    def value(self) -> Any:
        """Parse the value that starts here and move behind it."""
        self._skip_space()
        while True:
            self.bad_constant = ""
            try:
                value, end = self._json.raw_decode(self._text, self._position)
            except RecursionError:
                raise JsonStreamError("The value is nested too deeply", self.line) from None
            except ValueError as exc:
                if self._ended or self._is_full() or self._is_hopeless(exc):
                    raise self._error(exc) from None
            else:
                if end < len(self._text) or self._ended:
                    is_short = end - self._position <= MAX_SEARCHED
                    self.twice = key_twice(self._text[self._position : end], value) if is_short else ""
                    self._advance(end)
                    return value
            self._fill(grow=True)

    def items(self) -> Iterator[tuple[int, Any]]:
        """(line, value) of each element of the list that starts here; a broken one is a JsonStreamError.

        After a broken element the next object that begins with the same key is looked for; raises where there is none.
        """
        self._expect("[")
        if self.peek() == "]":
            return self._expect("]")
        start = re.compile(r"\{")
        while True:
            self._skip_space()
            line = self.line
            start = self._row_start() or start
            try:
                value = self.value()
            except JsonStreamError as exc:
                self._advance(min(self._position + 1, len(self._text)))
                yield from self._skipped_to(start, exc)
                continue
            yield line, value
            try:
                if self.peek() == "]":
                    return self._expect("]")
                self._expect(",")
            except JsonStreamError as exc:
                yield from self._skipped_to(start, exc)

    def _skipped_to(self, start: re.Pattern[str], exc: JsonStreamError) -> Iterator[tuple[int, JsonStreamError]]:
        """Move to the next place that looks like `start`, giving the error that made it necessary; raises it where there is none."""
        while not (match := start.search(self._text, self._position)):
            if self._ended:
                raise exc
            self._advance(max(self._position, len(self._text) - _LONGEST_START))
            self._fill()
        self._advance(match.start())
        yield exc.line, exc

    def _row_start(self) -> re.Pattern[str] | None:
        """How the object that starts here begins."""
        match = _FIRST_KEY.match(self._text, self._position)
        return re.compile(r"\{\s*" + re.escape(match[1]) + r"\s*:") if match else None

    def members(self) -> Iterator[str]:
        """Each key of the object that starts here; the caller reads the value before asking for the next."""
        self._expect("{")
        if self.peek() == "}":
            return self._expect("}")
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise JsonStreamError("A key of the object is no text", self.line)
            self._expect(":")
            yield key
            if self.peek() != ",":
                return self._expect("}")
            self._expect(",")

    def _constant(self, name: str) -> None:
        self.bad_constant = name

    def _expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            what = repr(found) if found else "the end of the file"
            raise JsonStreamError(f"Not valid JSON: {what} where {character!r} is expected", self.line)
        self._position += 1

    def _skip_space(self) -> None:
        while True:
            match = _SPACE.match(self._text, self._position)
            self._advance(match.end() if match else self._position)
            if self._position < len(self._text) or self._ended:
                return
            self._fill()

    def _advance(self, end: int) -> None:
        self.line += self._text.count("\n", self._position, end)
        self._position = end

    def _fill(self, grow: bool = False) -> None:
        """Read on, dropping what is behind us; `grow` keeps the retries on a long value few."""
        left = self._text[self._position :]
        chunk = self._file.read(max(CHUNK_BYTES, min(len(left), 4 * CHUNK_BYTES)) if grow else CHUNK_BYTES)
        self._ended = not chunk
        self._text = left + self._decoder.decode(chunk, final=not chunk)
        self._position = 0

    def _is_full(self) -> bool:
        """Whether no more of a value may be held; with one character outside of the basic plane, each takes four bytes."""
        return sys.getsizeof(self._text) > self._max_chars

    def _is_hopeless(self, exc: ValueError) -> bool:
        """Whether reading on would not help: what is wrong stands well before the end of what is in memory."""
        if not isinstance(exc, json.JSONDecodeError):
            return True  # a number of thousands of digits
        return not exc.msg.startswith("Unterminated") and exc.pos < len(self._text) - 16

    def _error(self, exc: ValueError) -> JsonStreamError:
        if not isinstance(exc, json.JSONDecodeError):
            return JsonStreamError("Not valid JSON: a number has too many digits", self.line)
        line = self.line + self._text.count("\n", self._position, exc.pos)
        if not self._ended and not self._is_hopeless(exc):
            return JsonStreamError(
                f"A value is longer than {self._max_chars // 1024**2} MB, or than a quarter of that with characters such as emoji", line
            )
        if exc.pos >= len(self._text) or exc.msg.startswith("Unterminated"):
            return JsonStreamError("The file ends in the middle of a value", line)
        return JsonStreamError(f"Not valid JSON: {exc.msg}", line)
