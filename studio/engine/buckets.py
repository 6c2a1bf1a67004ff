"""Memory that is taken once for the keys and values of rows that are decoded: blocks for 1, 2, 4, 8 or 16 rows of a few lengths.

A token is written in place where the dynamic cache copies all that was read. All blocks lie in the same memory, the arena, since one
batch at a time is decoded there. Imports torch; knows nothing of answers or adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

MOST_ROWS = 16
SHORTEST = 128  # columns


class Shape(NamedTuple):
    rows: int
    columns: int

    @property
    def cells(self) -> int:
        return self.rows * self.columns


def shape_for(rows: int, columns: int) -> Shape:
    """The smallest block: rows by powers of two, columns by these and one and a half times these."""
    length = SHORTEST
    while length < columns:
        length *= 2
    if length > SHORTEST and 3 * length // 4 >= columns:
        length = 3 * length // 4
    return Shape(1 << (rows - 1).bit_length(), length)


class BucketLayer(StaticLayer):
    """A layer whose memory is lent. All layers share `end`, the column that is written next, which a step moves when it is done."""

    def __init__(self, keys: Tensor | None, values: Tensor | None, columns: int, end: Tensor) -> None:
        super().__init__(columns)
        self.keys, self.values = keys, values
        self.is_initialized = keys is not None
        self.cumulative_length = end

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        columns = self.cumulative_length.view(1)
        if key_states.shape[2] > 1:
            columns = columns + torch.arange(key_states.shape[2], device=columns.device)
        self.keys.index_copy_(2, columns, key_states)
        self.values.index_copy_(2, columns, value_states)
        return self.keys, self.values


class Bucket:
    """What a step reads and writes, at addresses that stay: `ids` and `positions` [rows, 1], `mask` [rows, columns], and a cache."""

    def __init__(self, shape: Shape, blocks: Sequence[tuple[Tensor | None, Tensor | None]], device: torch.device) -> None:
        self.shape = shape
        self.ids = torch.zeros(shape.rows, 1, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.ids)
        self.mask = torch.zeros(*shape, dtype=torch.bool, device=device)
        self.end = torch.zeros((), dtype=torch.long, device=device)
        self.cache = Cache(layers=[BucketLayer(keys, values, shape.columns, self.end) for keys, values in blocks])

    def clear(self) -> None:
        for tensor in (self.ids, self.positions, self.mask, self.end):
            tensor.zero_()


@dataclass(frozen=True)
class KeyValueShape:
    """Keys and values of a layer for one column of a row."""

    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.heads * (self.key_width + self.value_width) * self.dtype.itemsize


class Arena:
    """The memory of all buckets, as large as the largest one so far. Layers that hold nothing have none."""

    def __init__(self, layers: Sequence[DynamicLayer], device: torch.device) -> None:
        """`layers`: as the model has filled them."""
        self._device = device
        self._blocks = [
            KeyValueShape(layer.keys.shape[1], layer.keys.shape[3], layer.values.shape[3], layer.keys.dtype)
            if layer.is_initialized
            else None
            for layer in layers
        ]
        self._keys: list[Tensor | None] = [None] * len(layers)
        self._values: list[Tensor | None] = [None] * len(layers)
        self._cells = 0

    def __len__(self) -> int:
        """Layers."""
        return len(self._blocks)

    @property
    def bytes(self) -> int:
        return self.bytes_of(self._cells)

    def bytes_of(self, cells: int) -> int:
        return cells * sum(block.bytes for block in self._blocks if block is not None)

    def holds(self, shape: Shape) -> bool:
        return shape.cells <= self._cells

    def grow(self, cells: int) -> None:
        """From now on layers have memory for so many columns of rows; each takes it when it is asked for, and lets the old one go first."""
        self._cells = max(self._cells, cells)

    def layer(self, number: int, shape: Shape) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values [rows, heads, columns, width] of one layer."""
        block = self._blocks[number]
        if block is None:
            return None, None
        for kept, width in ((self._keys, block.key_width), (self._values, block.value_width)):
            size = self._cells * block.heads * width
            held = kept[number]
            if held is None or held.numel() < size:
                kept[number] = held = None
                kept[number] = torch.zeros(size, dtype=block.dtype, device=self._device)
        return self._view(self._keys[number], shape, block.key_width), self._view(self._values[number], shape, block.value_width)

    def _view(self, memory: Tensor | None, shape: Shape, width: int) -> Tensor:
        assert memory is not None
        rows, columns = shape
        heads = memory.numel() // (self._cells * width)
        return memory[: shape.cells * heads * width].view(rows, heads, columns, width)
