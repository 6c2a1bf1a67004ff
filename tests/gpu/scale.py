"""How large the parts of `make gpu` are: whole, on a card, or reduced, on a processor. The code is the same."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

Sized = TypeVar("Sized")
GIB = 1024**3
MARGIN_S = 5.0


@dataclass(frozen=True)
class Scale:
    """`work`: a folder for models and runs, kept from part to part. `until`: when the part that asks has to be done (time.time())."""

    work: str
    is_reduced: bool
    until: float

    @property
    def folder(self) -> Path:
        return Path(self.work)

    @property
    def cache(self) -> Path:
        """What is found out once for all parts."""
        return self.folder / "cache"

    @property
    def device(self) -> str:
        return self.of("cuda", "cpu")

    def of(self, whole: Sized, reduced: Sized) -> Sized:
        """The one for a card, or the reduced one."""
        if self.is_reduced:
            return reduced
        return whole

    @property
    def left_s(self) -> float:
        return max(0.0, self.until - time.time())

    @property
    def limit_s(self) -> float:
        """For a process that this part waits for: some seconds are kept to write down what it has measured."""
        return max(self.left_s - MARGIN_S, 1.0)

    def has_time(self, seconds: float) -> bool:
        """Whether something that takes so long on a card can still be done. What is reduced takes no time worth counting."""
        return self.is_reduced or self.left_s > seconds

    def as_json(self) -> dict[str, Any]:
        return asdict(self)
