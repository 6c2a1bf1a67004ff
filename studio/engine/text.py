"""Tokens become text as they arrive: never half a character, never the start of a stop text that may still complete.

Knows a tokenizer only as `decode`; nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"  # what decoding shows for bytes that are no whole character yet
PROMPT_TAIL = 6  # prompt tokens decoded along, so that the answer's first word gets the space it has


class AnswerText:
    """The text of one answer. `decode` maps ids to text without special tokens; `stop` are texts that end it, after `least` tokens."""

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt_ids: Sequence[int], stop: Sequence[str] = (), least: int = 0) -> None:
        self._decode = decode
        self._ids = list(prompt_ids[-PROMPT_TAIL:])
        self._known = decode(self._ids) if self._ids else ""  # text of the window before the ids not yet shown
        self._window = 0  # decoding starts here: whole answers would cost quadratic time
        self._read = len(self._ids)
        self._free = self._read + least  # ids from which on a stop text counts
        self._held = ""
        self._stop = [text for text in stop if text]
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Take one token; return the text that may be shown now. After a stop text `is_stopped` is true."""
        self._ids.append(token_id)
        text = self._decode(self._ids[self._window :])
        if len(text) <= len(self._known) or text.endswith(REPLACEMENT):
            return ""  # half a character, or a token without text
        new = text[len(self._known) :]
        self._window, self._read = self._read, len(self._ids)
        self._known = self._decode(self._ids[self._window : self._read])
        return self._release(new)

    def finish(self) -> str:
        """What was held back, without bytes that never became a character."""
        if self.is_stopped:
            return ""
        text = self._decode(self._ids[self._window :])[len(self._known) :].rstrip(REPLACEMENT)
        rest = self._release(text) + self._held
        self._held = ""
        return rest

    def _release(self, new: str) -> str:
        text = self._held + new
        if len(self._ids) < self._free:
            return text
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)[0]]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper start of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
