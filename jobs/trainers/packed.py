"""Rows of a packed batch attend each to itself, in passes of their own, with the attention that torch has (SDPA).

trl lays packed rows behind each other in one sequence. For SDPA transformers then makes a mask over all of it, and all of it is
computed to hide most: a square of thousands of tokens instead of a few of hundreds. Here nothing is hidden, since nothing of it is
computed; the numbers are those of the rows alone. FlashAttention does the same by itself. Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Trainer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_of_rows"  # under which transformers knows it


class _Rows:
    """Where the rows of the batch that is computed now begin and end; one training per process, also in the backward pass."""

    bounds: tuple[int, ...] = ()


def use(model: Any) -> None:
    """Have `model`, loaded with sdpa, attend row by row where a batch is packed; elsewhere it computes as before."""
    if model.config._attn_implementation == "sdpa" and getattr(model, "_supports_attention_backend", False):
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, mask)
        model.set_attn_implementation(NAME)


@contextmanager
def rows_of(inputs: Mapping[str, Any]) -> Iterator[None]:
    """While this batch is computed. `cu_seq_lens_q`: the rows' bounds, as trl's collator gives them for packed batches."""
    bounds = inputs.get("cu_seq_lens_q")
    _Rows.bounds = () if bounds is None else tuple(bounds.tolist())
    try:
        yield
    finally:
        _Rows.bounds = ()


class PackedSteps(Trainer):
    """Put before a trainer whose batches may be packed."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with rows_of(inputs):
            return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with rows_of(inputs):
            return super().prediction_step(model, inputs, *args, **kwargs)


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """transformers' mask for SDPA; none for packed rows, which `attend` keeps apart."""
    is_whole = kwargs["attention_mask"] is None and kwargs["q_length"] == kwargs["kv_length"]
    return None if is_whole and _is_packed(kwargs["q_length"]) else sdpa_mask(*args, **kwargs)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attention of one layer. `query`, `key`, `value`: [1, heads, tokens, size]; the result: [1, tokens, heads, size]."""
    if attention_mask is not None or not _is_packed(query.shape[2]) or key.shape[2] != query.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, *args, **kwargs)
    lengths = [end - start for start, end in pairwise(_Rows.bounds)]
    parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *part, None, *args, **kwargs)[0] for part in parts], dim=1), None


def _is_packed(tokens: int) -> bool:
    return len(_Rows.bounds) > 1 and _Rows.bounds[-1] == tokens
