"""Keys and values of prompts that were read before, so that the next prompt that begins alike is not read again.

Knows tensors and token ids; nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

SHORTEST = 16  # tokens: below, copying costs as much as reading
BUDGET_BYTES = 256_000_000
MAX_KEPT = 32

States = Sequence[tuple[Tensor, Tensor]]  # per layer keys and values, [1, heads, columns, size]


@dataclass(eq=False)
class Kept:
    adapter: str | None
    ids: tuple[int, ...]
    states: States

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for pair in self.states for tensor in pair)


class Prefixes:
    """Latest used last; the oldest leave when the budget is spent."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self._budget_bytes = budget_bytes
        self._room: int | None = None  # what others leave
        self._kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        return sum(kept.bytes for kept in self._kept)

    @property
    def _most(self) -> int:
        return self._budget_bytes if self._room is None else min(self._budget_bytes, self._room)

    def bound(self, room: int | None) -> None:
        """Keep no more than `room` bytes from now on, whatever the budget; None where that needs not be."""
        self._room = room
        self._make_room()

    def clear(self) -> None:
        self._kept = []

    def find(self, adapter: str | None, ids: Sequence[int]) -> tuple[int, States]:
        """How many of the first `ids` are known under `adapter`, and their states; 0 where it is not worth it."""
        best, length = None, SHORTEST - 1
        for kept in self._kept:
            if kept.adapter == adapter and (common := shared_length(kept.ids, ids)) > length:
                best, length = kept, common
        if best is None:
            return 0, ()
        self._kept.remove(best)
        self._kept.append(best)
        return length, [(keys[:, :, :length], values[:, :, :length]) for keys, values in best.states]

    def keep(self, adapter: str | None, ids: Sequence[int], states: States) -> None:
        """Remember `ids`; what they begin with is dropped, since they say it too. `states` must belong to nobody else."""
        new = Kept(adapter, tuple(ids), states)
        if len(ids) < SHORTEST or new.bytes > self._most // 2:
            return
        self._kept = [old for old in self._kept if old.adapter != adapter or shared_length(old.ids, ids) < len(old.ids)]
        self._kept.append(new)
        self._make_room()

    def forget(self, adapter: str) -> None:
        """The adapter has left."""
        self._kept = [kept for kept in self._kept if kept.adapter != adapter]

    def _make_room(self) -> None:
        while len(self._kept) > MAX_KEPT or self.bytes > self._most:
            self._kept.pop(0)


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the common beginning."""
    for number, (mine, theirs) in enumerate(zip(left, right, strict=False)):
        if mine != theirs:
            return number
    return min(len(left), len(right))
