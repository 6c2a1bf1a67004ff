"""Keys and values of the rows of a batch, which grow by a column with every token.

Rows are padded on the left, so that the last column is the newest token of every row. Knows tensors; nothing of answers or adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from studio.engine.prefixes import States
from studio.engine.speculation import crop


class Reader(Protocol):
    """What runs the model."""

    def new_cache(self) -> Any: ...

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, adapters: Sequence[str | None], keep: int = ...
    ) -> Tensor: ...


class Held(Protocol):
    """The rows of a batch, wherever their keys and values lie. What changes their number or length says what holds them then."""

    @property
    def columns(self) -> int:
        """Tokens of the longest row that were read."""
        ...

    def ready(self, tokens: int) -> Held:
        """For so many tokens more."""
        ...

    def read(self, ids: Tensor, adapters: Sequence[str | None], keep: int = ...) -> Tensor:
        """Logits of the last `keep` of these tokens, which follow what was read; [rows, keep, vocabulary]."""
        ...

    def crop(self, columns: int) -> None:
        """Forget the last `columns`."""
        ...

    def count(self, row: int) -> int:
        """Tokens of a row that were read."""
        ...

    def states(self, row: int, tokens: int) -> States:
        """A copy of what the first `tokens` of a row have left; nothing where a layer holds nothing."""
        ...

    def select(self, keep: Sequence[int]) -> Held:
        """Let the other rows go, and the columns that only they used."""
        ...

    def absorb(self, other: GrowingRows, adapters: Sequence[str | None]) -> Held:
        """Put the rows of `other`, with these adapters, below the own, both padded on the left to the longer one."""
        ...


class GrowingRows:
    """Rows in the model's own cache, which is made anew and longer with every token; `mask` has all columns."""

    def __init__(self, model: Reader) -> None:
        self._model = model
        self.cache = model.new_cache()
        self.mask = torch.empty(0, 0, dtype=torch.long)

    @property
    def columns(self) -> int:
        return self.mask.shape[1]

    def begin(self, mask: Tensor) -> None:
        """`mask`: of the prompts, which are read next."""
        self.mask = mask

    def ready(self, tokens: int) -> Held:
        return self

    def read(self, ids: Tensor, adapters: Sequence[str | None], keep: int = 1) -> Tensor:
        self.mask = functional.pad(self.mask, (0, ids.shape[1]), value=1)
        return self.read_last(ids, adapters, keep)

    def read_last(self, ids: Tensor, adapters: Sequence[str | None], keep: int = 1) -> Tensor:
        """As `read`, of tokens that the mask has already."""
        positions = (self.mask.cumsum(dim=1) - 1).clamp(min=0)
        return self._model.forward(ids, self.mask, positions, self.cache, adapters, keep)

    def crop(self, columns: int) -> None:
        crop(self.cache, columns)
        self.mask = self.mask[:, : self.columns - columns]

    def select(self, keep: Sequence[int]) -> Held:
        index = torch.tensor(keep, device=self.mask.device)
        mask = self.mask[index]
        start = first_column(mask)
        self.mask = mask[:, start:]
        for layer in self.cache.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[index, :, start:]
                layer.values = layer.values[index, :, start:]
        return self

    def states(self, row: int, tokens: int) -> States:
        if any(not layer.is_initialized for layer in self.cache.layers):
            return ()
        at = self.mask[row].nonzero()[:tokens, 0]
        return [(layer.keys[row : row + 1, :, at], layer.values[row : row + 1, :, at]) for layer in self.cache.layers]

    def count(self, row: int) -> int:
        return int(self.mask[row].sum())

    def absorb(self, other: GrowingRows, adapters: Sequence[str | None]) -> Held:
        length = max(self.columns, other.columns)
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            if mine.is_initialized:
                mine.keys = torch.cat([_padded(mine.keys, length), _padded(theirs.keys, length)])
                mine.values = torch.cat([_padded(mine.values, length), _padded(theirs.values, length)])
        masks = [functional.pad(mask, (length - mask.shape[1], 0)) for mask in (self.mask, other.mask)]
        self.mask = torch.cat(masks)
        return self


def first_column(mask: Tensor) -> int:
    """Where the longest row begins."""
    return int(mask.argmax(dim=1).min())


def _padded(states: Tensor, length: int) -> Tensor:
    """Keys or values [rows, heads, columns, size] with empty columns on the left up to `length`."""
    return functional.pad(states, (0, 0, length - states.shape[2], 0))
