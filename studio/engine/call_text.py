"""What readers of calls have in common: content goes on as it comes, and a call is waited for from its first sign on."""

from __future__ import annotations

import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from studio.engine.protocol import CallDelta

ID_SIGNS, ID_LENGTH = string.ascii_letters + string.digits, 9  # what Mistral's templates take; all others take any


class At(Enum):
    """What the reader waits for."""

    CONTENT = auto()
    OPENING = auto()
    SLOT = auto()
    END = auto()  # of a call: another one, or the closing


@dataclass
class Read:
    """What a piece of the answer's text held."""

    content: str = ""
    calls: tuple[CallDelta, ...] = ()


class CallsInText(ABC):
    """Takes the calls out of one answer's text, piece by piece; everything else is content.

    `begins`: what a call begins with, at the start of a line where the format has no `mark`.
    """

    def __init__(self, opening: str, mark: str, begins: Sequence[str], *, is_forced: bool) -> None:
        self._whole_opening, self._opening = opening, opening[opening.find(mark) :]
        self._mark, self._begins = mark, begins
        self._is_forced = is_forced
        self._at = At.OPENING if is_forced else At.CONTENT
        self._rest = ""
        self._is_new_line = True
        self._space = ""  # at the content's end, which is dropped before a call
        self._link = self._closing = ""  # of the call that is being read
        self._undone = ""  # what is content after all where no call comes of it
        self._content: list[str] = []
        self._deltas: list[CallDelta] = []
        self.count = 0  # of calls begun

    @abstractmethod
    def _begin_call(self) -> None:
        """What follows is a call's name."""

    @abstractmethod
    def _read_slot(self) -> bool:
        """The next part of a call."""

    @property
    @abstractmethod
    def _is_in_call(self) -> bool:
        """Whether the text of a call that has been told of is being read."""

    @property
    def opened(self) -> str:
        """The text of the calls from their mark on, while a grammar could still begin there; "" before."""
        return "" if self._at is At.CONTENT else self._undone + self._rest

    def push(self, text: str) -> Read:
        """Take the next piece of the answer."""
        self._rest += text
        steps = {At.CONTENT: self._read_content, At.OPENING: self._read_opening, At.SLOT: self._read_slot, At.END: self._read_end}
        while self._rest and steps[self._at]():
            pass
        return self._drain()

    def finish(self) -> Read:
        """The answer is over: what was held back is content, or the end of a call that was cut."""
        rest = "" if self._is_in_call and self._at is not At.CONTENT else self._undone + self._rest
        if rest or not self.count:
            self._content.append(self._space + rest)
        self._rest = self._undone = self._space = ""
        return self._drain()

    def _drain(self) -> Read:
        found = Read("".join(self._content), tuple(self._deltas))
        self._content, self._deltas = [], []
        return found

    # each returns whether it got on

    def _read_content(self) -> bool:
        place = self._beginning()
        if place is None:
            self._say(self._rest)
            self._rest = ""
            return False
        self._say(self._rest[:place])
        self._rest = self._rest[place:]
        if not any(self._rest.startswith(begin) for begin in self._begins):
            return False  # perhaps: the next piece says
        self._at = At.OPENING
        return True

    def _beginning(self) -> int | None:
        """Where in the rest a call begins, or may begin; None where none does."""
        for place in range(len(self._rest)):
            tail = self._rest[place:]
            begins = any(tail.startswith(begin) or begin.startswith(tail) for begin in self._begins)
            if begins and (self._mark or self._starts_line(place)):
                return place
        return None

    def _starts_line(self, place: int) -> bool:
        before = self._rest[:place]
        line = before.rpartition("\n")[2]
        return not line.strip() and (self._is_new_line or "\n" in before)

    def _say(self, text: str) -> None:
        if not text:
            return
        line = text.rpartition("\n")
        self._is_new_line = not line[2].strip() and (bool(line[1]) or self._is_new_line)
        text = self._space + text
        bare = text.rstrip()
        self._space = text[len(bare) :]
        if bare:
            self._content.append(bare)

    def _read_opening(self) -> bool:
        opening = self._whole_opening if self._is_forced and not self.count else self._opening
        if not self._took(opening):
            return False
        self._begin_call()
        return True

    def _took(self, text: str) -> bool:
        """Whether the rest began with `text`, which is then taken; where it can't any more, there is no call here."""
        if self._rest.startswith(text):
            self._undone += text
            self._rest = self._rest[len(text) :]
            return True
        if not text.startswith(self._rest):
            self._give_up()
        return False

    def _give_up(self) -> None:
        """What looked like a call is none."""
        text, self._rest, self._undone = self._undone + self._rest, "", ""
        self._at = At.CONTENT
        self._say(text[:1])  # whatever begins it does not begin a call
        self._rest = text[1:]
        self._is_new_line = False
        self._read_content()

    def _read_end(self) -> bool:
        link, closing = self._link, self._closing
        if link and self._rest.startswith(link):
            self._rest = self._rest[len(link) :]
            self._undone = link[link.rfind(self._mark) :] * bool(self._mark)
            self._begin_call()
            return True
        if link and link.startswith(self._rest):
            return False
        if closing.startswith(self._rest) and closing != self._rest:
            return False
        self._rest = self._rest.removeprefix(closing)
        self._at, self._is_new_line = At.CONTENT, True
        return True


def call_id() -> str:
    return "".join(secrets.choice(ID_SIGNS) for _ in range(ID_LENGTH))
