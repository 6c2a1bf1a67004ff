"""Options that decide what of a row is written and learned. Apart from studio.types, so that the command line's help needs no pydantic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LearnedTurns(StrEnum):
    """Which turns of a conversation carry loss."""

    MARKED = "marked"  # every turn of the assistant but those marked otherwise, and other turns marked to be trained
    ALL = "all"  # every turn of the assistant, whatever is marked
    LAST = "last"  # the last turn of the assistant


class Reasoning(StrEnum):
    """What becomes of reasoning."""

    LEARN = "learn"  # written and learned, as a part of the answer
    CONTEXT = "context"  # written before the answer, but not learned
    DROP = "drop"  # left out


class SystemMessage(StrEnum):
    """What becomes of system messages."""

    KEEP = "keep"  # as the template writes them
    FOLD = "fold"  # put before the question that follows


@dataclass(frozen=True)
class RowOptions:
    """Options of a job of the same names. `date` is what templates that print a date are given, such as 2026-11-30; None: today."""

    learned_turns: LearnedTurns = LearnedTurns.MARKED
    reasoning: Reasoning = Reasoning.LEARN
    system_message: SystemMessage = SystemMessage.KEEP
    date: str | None = None
