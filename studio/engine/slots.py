"""Plain LoRAs of one base side by side in a pass: each row of the batch has a slot, which holds the LoRA of its answer or nothing.

peft loads the adapters and says which layers they change, with which ranks and scalings; what these layers compute is done here. The
matrices of all rows lie in one block per layer, copied when rows join or leave, so that a layer takes two batched products, however
many adapters there are. Where all rows have the same adapter nothing is copied; where few adapters have many rows, each one once.
Imports torch; knows nothing of requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BASE = "__base__"  # peft's word for a row without adapter
LINEAR, EMBEDDING = ("Linear", "Linear4bit", "Linear8bitLt"), "Embedding"  # layers of peft that are computed here

Part = Callable[..., Tensor]  # what stands for the forward of a layer


class Arrangement:
    """Whose rows the next passes have: `keys`, one per row, None for the base; and what layers have put together for them."""

    def __init__(self, keys: Sequence[str | None]) -> None:
        self.keys = tuple(keys)
        self.among = tuple(sorted({key for key in keys if key is not None}))
        self.parts: dict[_SlotForward, Part] = {}
        self._index: Tensor | None = None
        self._foreign: dict[tuple[str, ...], Tensor] = {}

    @property
    def sole(self) -> str | None:
        """The adapter that every row has, where that stays so."""
        first, *others = set(self.keys)
        return None if others else first

    def index(self, device: torch.device) -> Tensor:
        """[rows, at least]: the place of each row's adapter in `among`, counted from one; 0 for the base."""
        if self._index is None:
            self._index = torch.tensor(self._places(), device=device)
        return self._index

    def foreign(self, owners: tuple[str, ...], device: torch.device) -> Tensor:
        """[rows, at least, 1, owners]: is it another adapter's than the row's own?"""
        if owners not in self._foreign:
            self._foreign[owners] = torch.tensor(self._others(owners), device=device)
        return self._foreign[owners]

    def _places(self) -> list[int]:
        return [(None, *self.among).index(key) for key in self._all_keys()]

    def _others(self, owners: Sequence[str]) -> list[list[list[bool]]]:
        return [[[owner != key for owner in owners]] for key in self._all_keys()]

    def _all_keys(self) -> Sequence[str | None]:
        return self.keys


class Standing(Arrangement):
    """Rows that may change hands: all of `among` are put together once, and only tensors on the device say which one a row has.

    So a step that was recorded is right for whatever rows there are.
    """

    def __init__(self, most: int, among: Sequence[str]) -> None:
        """`most`: rows that there may be."""
        super().__init__(())
        self.among = tuple(among)
        self.hindrance = ""  # why its steps can't be recorded
        self._most = most

    @property
    def sole(self) -> str | None:
        return None

    @torch.inference_mode()
    def assign(self, keys: Sequence[str | None]) -> None:
        if tuple(keys) == self.keys:
            return
        self.keys = tuple(keys)
        if self._index is not None:
            self._index.copy_(torch.tensor(self._places()))
        for owners, foreign in self._foreign.items():
            foreign.copy_(torch.tensor(self._others(owners)))

    def _all_keys(self) -> Sequence[str | None]:
        return [*self.keys, *[None] * (self._most - len(self.keys))]


class Slots:
    """The rows that pass now, and `columns`: tokens per row."""

    def __init__(self) -> None:
        self.now = Arrangement(())
        self.columns = 1

    def compose(self, keys: Sequence[str | None], columns: int) -> None:
        self.columns = columns
        if isinstance(self.now, Standing) or tuple(keys) != self.now.keys:
            self.now = Arrangement(keys)  # what was put together before is not needed beside the new

    def take_up(self, arrangement: Arrangement, columns: int) -> None:
        """Rows whose arrangement somebody keeps."""
        self.now, self.columns = arrangement, columns

    def forget(self) -> None:
        """An adapter was loaded or has left."""
        self.now = Arrangement(())

    def take(self, model: nn.Module, key: str, dtype: torch.dtype) -> None:
        """Compute the layers of peft's `model` here, and keep the matrices of adapter `key` as they are needed."""
        from peft.tuners.lora import LoraLayer

        self.forget()
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                if not isinstance(layer.forward, _SlotForward):
                    layer.forward = _SlotForward(layer, self)
                if holds(layer, key) and is_computed_here(layer, key):
                    _arrange(layer, key, dtype)


def holds(layer: Any, key: str | None) -> bool:
    return key in layer.lora_A or key in layer.lora_embedding_A


def is_computed_here(layer: Any, key: str) -> bool:
    """Whether this layer is a plain linear map or a table: not a convolution, and no variant such as DoRA."""
    return type(layer).__name__ in (*LINEAR, EMBEDDING) and key not in layer.lora_variant


@torch.inference_mode(False)
@torch.no_grad()
def _arrange(layer: Any, key: str, dtype: torch.dtype) -> None:
    """The adapter's matrices in `dtype`, scaled once, and laid out by rank so that those of several adapters can be put together."""
    scaling = layer.scaling[key]
    if key in layer.lora_embedding_A:
        table, up = layer.lora_embedding_A[key], layer.lora_embedding_B[key]
        table.data = table.data.to(dtype).T.contiguous().T
    else:
        layer.lora_A[key].to(dtype)
        up = layer.lora_B[key].weight
        if layer.lora_B[key].bias is not None:
            layer.lora_B[key].bias.data = (layer.lora_B[key].bias.data.float() * scaling).to(dtype)
    up.data = (up.data.float() * scaling).to(dtype).T.contiguous().T
    layer.scaling[key] = 1.0


class _SlotForward:
    """What a layer computes for the rows there are, put together anew when these change."""

    def __init__(self, layer: Any, slots: Slots) -> None:
        self._layer, self._slots = layer, slots

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = self._slots.now.parts
        if self not in parts:
            parts[self] = _part(self._layer, self._slots)
        return parts[self](x, *args, **kwargs)


def _part(layer: Any, slots: Slots) -> Part:
    rows = slots.now
    used = [key for key in rows.among if holds(layer, key)]
    if not used:
        base_layer: Part = layer.base_layer
        return base_layer
    if not all(is_computed_here(layer, key) for key in used):
        if rows.sole is not None:
            return _ByActive(layer, *used)
        if isinstance(rows, Standing):
            rows.hindrance = f"peft itself computes layers of the type {type(layer).__name__}, and takes adapters by name"
        return _ByName(layer, slots)
    if type(layer).__name__ == EMBEDDING:
        return _EmbeddingPart(layer, slots, used)
    if rows.sole is not None:
        return _Single(layer, *used)
    ranks = [len(layer.lora_A[key].weight) for key in used]
    are_few = sum(ranks) <= 2 * max(ranks) or 4 * sum(ranks) <= max(ranks) * len(rows.keys)
    if are_few or isinstance(rows, Standing):
        return _RankColumns(layer, slots, used)
    return _RowBlocks(layer, slots)


class _ByActive:
    """peft's own way with one adapter."""

    def __init__(self, layer: Any, key: str) -> None:
        self._layer, self._key = layer, key

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._layer._active_adapter = [self._key]
        result: Tensor = type(self._layer).forward(self._layer, x, *args, **kwargs)
        return result


class _ByName:
    """peft's own way with several adapters."""

    def __init__(self, layer: Any, slots: Slots) -> None:
        self._layer, self._slots = layer, slots

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = [key or BASE for key in self._slots.now.keys]
        result: Tensor = type(self._layer).forward(self._layer, x, *args, adapter_names=names, **kwargs)
        return result


class _Single:
    """A linear layer with one LoRA for all rows, whatever the shape of its input: y + x A' B'."""

    def __init__(self, layer: Any, key: str) -> None:
        self._base_layer = layer.base_layer
        self._down, self._up = layer.lora_A[key].weight.T, layer.lora_B[key].weight.T
        self._bias = layer.lora_B[key].bias

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self._base_layer(x, *args, **kwargs)
        inner = x.to(self._down.dtype).flatten(0, -2) @ self._down
        return _added(torch.addmm, result, result.flatten(0, -2), inner, self._up, self._bias)


class _RowBlocks:
    """A linear layer with a LoRA of its own for each row."""

    def __init__(self, layer: Any, slots: Slots) -> None:
        self._base_layer, self._slots = layer.base_layer, slots
        keys = slots.now.keys
        self._down = _stacked([_weight(layer.lora_A, key) for key in keys]).transpose(1, 2)
        self._up = _stacked([_transposed(_weight(layer.lora_B, key)) for key in keys])
        self._bias = _biases(layer, keys)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self._base_layer(x, *args, **kwargs)
        rows = _by_row(x, self._slots)
        inner = torch.bmm(rows.to(self._down.dtype), self._down)
        return _added(torch.baddbmm, result, result.reshape(*rows.shape[:2], -1), inner, self._up, self._bias)


class _RankColumns:
    """A linear layer with few LoRAs for many rows, or with ranks that differ much: each LoRA is there once, and rows take theirs.

    Every row is multiplied by all of them, which is more to compute and less to hold than a copy for each row.
    """

    def __init__(self, layer: Any, slots: Slots, used: Sequence[str]) -> None:
        self._base_layer, self._slots = layer.base_layer, slots
        downs, ups = [layer.lora_A[key].weight for key in used], [layer.lora_B[key].weight.T for key in used]
        self._down, self._up = _together(downs).T, _together(ups)
        owners = tuple(key for key, down in zip(used, downs, strict=True) for _ in down)
        self._is_foreign = slots.now.foreign(owners, self._down.device)
        self._biases = _biases(layer, (None, *slots.now.among))
        self._index = slots.now.index(self._down.device)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self._base_layer(x, *args, **kwargs)
        inner = _by_row(x, self._slots).to(self._down.dtype) @ self._down
        rows, columns, _ = inner.shape
        inner = inner.masked_fill(self._is_foreign[:rows], 0).flatten(0, 1)
        bias = self._biases
        if bias is not None:
            bias = bias[self._index[:rows]].expand(-1, columns, -1).flatten(0, 1)
        return _added(torch.addmm, result, result.flatten(0, -2), inner, self._up, bias)


class _EmbeddingPart:
    """A table of embeddings with the LoRAs of its rows. Rows without one read any line, and take nothing of it."""

    def __init__(self, layer: Any, slots: Slots, used: Sequence[str]) -> None:
        self._layer, self._slots = layer, slots
        tables = [layer.lora_embedding_A[key].T for key in used]
        rank = max(table.shape[1] for table in tables)
        lines = len(tables[0])
        self._table = tables[0]
        if len(tables) > 1:
            self._table = torch.cat([functional.pad(table, (0, rank - table.shape[1])) for table in tables])
        firsts = [[lines * used.index(key)] if key in used else [0] for key in (None, *slots.now.among)]
        self._firsts = torch.tensor(firsts, device=self._table.device)
        self._ups = _stacked([_transposed(layer.lora_embedding_B.get(key)) for key in (None, *slots.now.among)])
        self._index = slots.now.index(self._table.device)

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self._layer.base_layer(x, *args, **kwargs)
        lines = _by_row(x, self._slots, 0)
        index = self._index[: len(lines)]
        inner = functional.embedding(lines + self._firsts[index], self._table)
        scale = self._layer._get_embed_scale()
        if scale is not None:
            inner = inner * scale.to(inner.dtype)
        return _added(torch.baddbmm, result, result.reshape(*inner.shape[:2], -1), inner, self._ups[index], None)


def _added(product: Any, result: Tensor, rows: Tensor, inner: Tensor, up: Tensor, bias: Tensor | None) -> Tensor:
    """`result` and the product of `inner` and `up`, in the shape and type of `result`; `rows`: the same as the product needs it."""
    if rows.dtype == up.dtype:
        total = product(rows, inner, up)
    else:  # a layer that computes in another type than the adapters
        total = rows + (inner @ up).to(rows.dtype)
    if bias is not None:
        total = total + bias.to(total.dtype)
    return total.view(result.shape)


def _by_row(x: Tensor, slots: Slots, width: int = 1) -> Tensor:
    """`x` as [rows, columns, …] where a model has put rows and columns together. Raises ValueError where rows are lost.

    `width`: dimensions behind the columns.
    """
    rows, behind = len(slots.now.keys), x.shape[x.dim() - width :]
    if len(x) == rows:
        return x.reshape(rows, -1, *behind)
    if x.numel() == rows * slots.columns * math.prod(behind):
        return x.reshape(rows, slots.columns, *behind)
    raise ValueError(f"a layer was given {len(x)} rows for {rows} of the batch")


def _weight(modules: Any, key: str | None) -> Tensor | None:
    return modules[key].weight if key in modules else None


def _transposed(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.T


def _stacked(matrices: Sequence[Tensor | None]) -> Tensor:
    """[matrices, rank, width] of matrices [rank, width], filled up with zeros to the largest rank; zeros where there is none."""
    given = [matrix for matrix in matrices if matrix is not None]
    rank = max(len(matrix) for matrix in given)
    zeros = given[0].new_zeros(rank, given[0].shape[1])
    pieces = [piece for matrix in matrices for piece in _filled(matrix, zeros)]
    return torch.cat(pieces).view(len(matrices), rank, -1)


def _together(matrices: Sequence[Tensor]) -> Tensor:
    """One below the other; itself where there is one."""
    if len(matrices) == 1:
        return matrices[0]
    return torch.cat(list(matrices))


def _filled(matrix: Tensor | None, zeros: Tensor) -> list[Tensor]:
    if matrix is None:
        return [zeros]
    return [matrix, zeros[len(matrix) :]]


def _biases(layer: Any, keys: Sequence[str | None]) -> Tensor | None:
    """[keys, 1, width], or None where no adapter has one."""
    found = [layer.lora_B[key].bias if key in layer.lora_B else None for key in keys]
    given = [bias for bias in found if bias is not None]
    if not given:
        return None
    zeros = torch.zeros_like(given[0])
    return torch.stack([zeros if bias is None else bias for bias in found])[:, None]
