"""How many answers are made together, by what their keys and values take: of tokens read and reserved, on the device that computes.

A model's bytes per token are measured, the rest is arithmetic. Imports torch; knows no requests.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from studio.catalogue import hardware
from studio.errors import EngineError

SHARE = 0.8  # of what is free: the rest is for what a step needs beside keys and values
STALE_S = 1.0  # of what was promised to a training meanwhile
GIB = 1024**3


@dataclass(frozen=True)
class Sizes:
    """What a model takes of one row: `column` bytes of keys and values per token, `token` bytes of activations while a prompt is read."""

    column: int
    token: int
    number: int  # bytes of a number

    def held(self, rows: int, columns: int) -> int:
        """Bytes of keys and values of a batch; all rows are as wide as the longest."""
        return rows * columns * self.column

    def reading(self, rows: int, length: int) -> int:
        """Bytes beside them while prompts of `length` tokens are read together: activations, and the mask of every pair."""
        return rows * length * (self.token + length * (1 + self.number))


class KeyValueBudget:
    """What answers in the making may take. `room`: what a training leaves to them beside the loaded model, None where none runs."""

    def __init__(
        self,
        sizes: Sizes,
        device: torch.device,
        most: int = 0,
        room: Callable[[], int | None] = lambda: None,
        taken: Callable[[], int] = lambda: 0,
    ) -> None:
        """`most`: bytes that a person has set; 0 for none. `taken`: bytes for keys and values that are taken already, used or not."""
        self._sizes, self._device, self._most, self._room, self._taken = sizes, device, most, room, taken
        self._looked = float("-inf")
        self._promised: int | None = None
        self._learned: int | None = None  # what was too much once
        self._free = self._free_share()

    @property
    def limit(self) -> int:
        """Bytes of keys and values."""
        return min(self._bound(), self._most or self._bound())

    def _bound(self) -> int:
        """Bytes of everything that comes with an answer."""
        if time.monotonic() - self._looked > STALE_S:
            self._looked, self._promised = time.monotonic(), self._room()
        return min(bound for bound in (self._free, self._promised, self._learned) if bound is not None)

    def look_again(self) -> None:
        """Nothing is made now: all that is free counts."""
        self._free, self._learned = self._free_share(), None

    def learn(self, rows: int, columns: int) -> None:
        """Memory ran out with so many rows of so many columns."""
        self._learned = min(self.limit, self._sizes.held(rows, columns)) - 1

    def admits(self, rows: int, columns: int, newcomers: int, length: int) -> bool:
        """Whether `rows` rows of `columns` columns fit, while `newcomers` of them, with prompts of `length` tokens, are read."""
        return self.holds(rows, columns) and self._sizes.held(rows, columns) + self._sizes.reading(newcomers, length) <= self._bound()

    def holds(self, rows: int, columns: int) -> bool:
        """Whether rows that were read may stay."""
        return self._sizes.held(rows, columns) <= self.limit

    def _free_share(self) -> int:
        return int(SHARE * free_bytes(self._device)) + self._taken()


def free_bytes(device: torch.device) -> int:
    """What this process can still take on `device`: free there, or in blocks that its allocator keeps."""
    if device.type != "cuda":
        return hardware.memory().free_bytes
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def too_long(budget: KeyValueBudget | None, columns: int) -> EngineError:
    """One answer alone takes more than there is."""
    what = f"A text of {columns:,} tokens needs more memory for its keys and values than is left for answers"
    if budget is not None:
        what += f" ({budget.limit / GIB:.2f} GiB)"
    fix = "Shorten the prompt or the answer, choose a smaller model, or wait for the running job to end."
    return EngineError(f"{what}.", fix, status=503, code="out_of_memory")
