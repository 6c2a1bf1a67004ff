"""Rows of a packed batch attend each to itself: all in one pass where the GPU can (varlen), else each in a pass of its own (SDPA).

trl lays packed rows behind each other in one sequence. For SDPA transformers then makes a mask over all of it, and all of it is
computed to hide most: a square of thousands of tokens instead of a few of hundreds. Here nothing is hidden, since nothing of it is
computed; the numbers are those of the rows alone. FlashAttention does the same by itself. Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, Trainer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from jobs.trainers import varlen

NAME = "sdpa_of_rows"  # under which transformers knows it
TOGETHER = "Packed rows attend each to itself in one pass: PyTorch's variable-length attention."
ONE_BY_ONE = "Packed rows attend each to itself in a pass of its own; not by variable-length attention: {why}."
MASKED = "Packed rows are kept apart by a mask over all of them, which costs time and memory: {why}."
BY_ITSELF = "Packed rows attend each to itself in one pass: {name}."
ADDS = ("position_bias", "s_aux", "cache", "softcap")  # what models give their attention that changes its result


class _Rows:
    """Where the rows of the batch that is computed now begin and end; one training per process, also in the backward pass."""

    bounds: tuple[int, ...] = ()
    tensor: Tensor | None = None  # the same for code on the GPU, there once it is asked for
    tell: Callable[[str], None] = print
    told: frozenset[str] = frozenset()


def use(model: Any, tell: Callable[[str], None] = print, sees_whole_rows: bool = True) -> None:
    """Have `model`, loaded with sdpa, attend row by row where a batch is packed; elsewhere it computes as before.

    `tell` hears once how packed rows are computed, at the first of them where that decides. `sees_whole_rows`: no layer has a window
    narrower than a row.
    """
    _Rows.tell, _Rows.told = tell, frozenset()
    name = model.config._attn_implementation
    if name != "sdpa":
        _say(BY_ITSELF.format(name=name))
    elif not sees_whole_rows:
        _say(MASKED.format(why="some layers see less than a row of max_length"))
    elif not getattr(model, "_supports_attention_backend", False):
        _say(MASKED.format(why=f"{type(model).__name__} takes no other attention code"))
    else:
        AttentionInterface.register(NAME, attend)
        AttentionMaskInterface.register(NAME, mask)
        model.set_attn_implementation(NAME)


@contextmanager
def rows_of(inputs: Mapping[str, Any]) -> Iterator[None]:
    """While this batch is computed. `cu_seq_lens_q`: the rows' bounds, as trl's collator gives them for packed batches."""
    bounds = inputs.get("cu_seq_lens_q")
    _Rows.bounds, _Rows.tensor = (), bounds
    if bounds is not None:
        _Rows.bounds = tuple(bounds.tolist())
    try:
        yield
    finally:
        _Rows.bounds, _Rows.tensor = (), None


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
    dropout, adds = kwargs.get("dropout", 0.0), [name for name in ADDS if kwargs.get(name) is not None]
    if why := varlen.unfit(query, key, value, dropout, args or adds):
        _say(ONE_BY_ONE.format(why=why))
        parts = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
        return torch.cat([sdpa_attention_forward(module, *part, None, *args, **kwargs)[0] for part in parts], dim=1), None
    _say(TOGETHER)
    is_causal = kwargs.get("is_causal")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    assert _Rows.tensor is not None
    _Rows.tensor = _Rows.tensor.to(query.device)
    return varlen.attend(query, key, value, _Rows.tensor, max(lengths), is_causal=is_causal, scaling=kwargs.get("scaling")), None


def _say(sentence: str) -> None:
    if sentence not in _Rows.told:
        _Rows.told |= {sentence}
        _Rows.tell(sentence)


def _is_packed(tokens: int) -> bool:
    return len(_Rows.bounds) > 1 and _Rows.bounds[-1] == tokens
