"""What came of a part: figures, what it promised and did not keep, and what it left out. As a table line and as a JSON line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a part ended."""

    KEPT = "kept"
    MISSED = "missed"
    FAILED = "failed"  # it ended with an error, or was ended at its limit: nothing is known of its promise
    LEFT_OUT = "left out"  # there was no time for it


@dataclass(frozen=True)
class Measured:
    """What a part hands back. `said`: its figures for the table; `missed`: a sentence for each promise that was not kept."""

    figures: Mapping[str, Any]
    said: str
    missed: Sequence[str] = ()
    left_out: Sequence[str] = ()  # what was not measured, each with its reason

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """A part as it is reported. `hardware` and `date` say of which machine the figures are."""

    part: str
    verdict: Verdict
    seconds: float
    promise: str
    said: str
    reduced: bool
    hardware: Mapping[str, Any]
    date: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    missed: Sequence[str] = ()
    left_out: Sequence[str] = ()

    @property
    def is_bad(self) -> bool:
        return self.verdict in (Verdict.MISSED, Verdict.FAILED)

    def line(self) -> str:
        """Of the table: what was measured, then what was missed or left out."""
        told = "; ".join(filter(None, [self.said, *self.missed, *(f"left out: {what}" for what in self.left_out)]))
        return f"{self.part:<10} {self.seconds:>5.0f} s  {self.verdict:<8}  {told}"

    def json_line(self) -> str:
        return json.dumps(asdict(self))
