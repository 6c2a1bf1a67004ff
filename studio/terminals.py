"""Control characters at a terminal are shown, not obeyed: names, rows and answers come from strangers.

An escape sequence could else clear the screen, rename the window or turn a line around. Our own redrawing goes through `redraw`.
"""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO, cast

# C0 but tab and newline, DEL, C1; what turns or hides text: bidirectional signs, line separators, the byte order mark, tags
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")
CLEAR = "\033[K"  # the rest of the line


class ShownStream:
    """A stream that ends at a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.obeyed = stream

    def write(self, text: str) -> int:
        self.obeyed.write(shown(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.obeyed, name)


def guard() -> None:
    """From now on what this process prints to a terminal is shown as it is."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream.isatty() and not isinstance(stream, ShownStream):
            setattr(sys, name, cast(TextIO, ShownStream(stream)))


def shown(text: str) -> str:
    """`text` with each control character as its escape, such as \\x1b."""
    return CONTROLS.sub(lambda found: _escape(found[0]), text)


def escaped(json_text: str) -> str:
    """JSON with each control character as JSON's own escape: the same value."""
    return CONTROLS.sub(lambda found: "".join(f"\\u{unit:04x}" for unit in _units(found[0])), json_text)


def redraw(text: str, *, is_last: bool) -> None:
    """One line of stderr, written over what it said before."""
    stream = getattr(sys.stderr, "obeyed", sys.stderr)
    stream.write(f"\r{shown(text)}{CLEAR}" + "\n" * is_last)
    stream.flush()


def _escape(sign: str) -> str:
    number = ord(sign)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _units(sign: str) -> list[int]:
    """UTF-16, as JSON counts."""
    code = sign.encode("utf-16-be")
    return [int.from_bytes(code[n : n + 2], "big") for n in range(0, len(code), 2)]
