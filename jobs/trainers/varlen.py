"""Rows of unequal length behind each other in one pass: torch's own variable-length attention (FlashAttention 2), on GPUs that have it.

Nothing has to be installed and nothing is fetched: it is part of torch. Imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

LEAST_CAPABILITY = (8, 0)  # of the GPU: Ampere
WIDEST_HEAD, WIDEST_ON_SMALL = 256, 192  # numbers of a head; the second where the backward pass has less memory on the chip
WITH_LARGE_CHIPS = ((8, 0), (9, 0), (10, 0))
HALVES = (torch.bfloat16, torch.float16)
NEEDED = {"scale", "window_size"}  # arguments that torch 2.10 does not have yet


@lru_cache
def lacking(device: torch.device) -> str:
    """Why `device` can't compute them in one pass, in a few words; empty where it can."""
    if device.type != "cuda":
        return "it is for GPUs"
    if torch.version.hip:
        return "PyTorch has it for NVIDIA's GPUs"
    if (capability := torch.cuda.get_device_capability(device)) < LEAST_CAPABILITY:
        least, here = (".".join(map(str, one)) for one in (LEAST_CAPABILITY, capability))
        return f"it needs compute capability {least}, and this GPU has {here}"
    if function() is None:
        return f"PyTorch {torch.__version__} does not have it"
    return ""


@lru_cache
def function() -> Callable[..., Tensor] | None:
    """torch's varlen_attn; None where this torch has none that takes a scale."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if not inspect.signature(varlen_attn).parameters.keys() >= NEEDED:
        return None
    found: Callable[..., Tensor] = varlen_attn
    return found


def unfit(query: Tensor, key: Tensor, value: Tensor, dropout: float, more: Any) -> str:
    """Why this layer can't be computed so; empty where it can. `more`: what else the model gives its attention that changes the result."""
    if why := lacking(query.device):
        return why
    if _dtype(query) not in HALVES:
        return f"it computes in 16 bits, and this training in {str(_dtype(query)).removeprefix('torch.')}"
    widths = {one.shape[-1] for one in (query, key, value)}
    if len(widths) > 1 or max(widths) > widest_head(query.device) or max(widths) % 8:
        return f"its heads are {' and '.join(map(str, sorted(widths)))} numbers wide"
    if dropout or more:
        return "the model drops scores or adds to them"
    return ""


@lru_cache
def widest_head(device: torch.device) -> int:
    """Numbers of the widest head that the backward pass takes there."""
    if torch.cuda.get_device_capability(device) in WITH_LARGE_CHIPS:
        return WIDEST_HEAD
    return WIDEST_ON_SMALL


def attend(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, *, is_causal: bool, scaling: float | None) -> Tensor:
    """`query`, `key`, `value`: [1, heads, tokens, size]; `bounds`: where rows begin and end, int32. Returns [1, tokens, heads, size]."""
    compute = function()
    assert compute is not None
    dtype = _dtype(query)
    rows = [one[0].transpose(0, 1).to(dtype) for one in (query, key, value)]
    groups: dict[str, Any] = {}
    if rows[0].shape[1] != rows[1].shape[1] and "enable_gqa" in inspect.signature(compute).parameters:
        groups["enable_gqa"] = True  # earlier ones do it unasked
    window = {True: (-1, 0), False: (-1, -1)}[is_causal]
    return compute(*rows, bounds, bounds, longest, longest, scale=scaling, window_size=window, **groups)[None]


def _dtype(query: Tensor) -> torch.dtype:
    """Of the arithmetic: as autocast has torch's own attention compute."""
    if torch.is_autocast_enabled(query.device.type):
        return torch.get_autocast_dtype(query.device.type)
    return query.dtype
