"""The rotary positions of a model in GGUF's terms: keys, and the tensor that Llama 3.1's scaling is kept in. Knows no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from studio.catalogue.gguf import head_size, rope

FACTORS = "rope_freqs.weight"
Array = np.ndarray[Any, Any]


def add_keys(writer: Any, config: Mapping[str, Any]) -> None:
    """Base frequency, how much of a head is turned, and scaling, as llama.cpp's converter writes them."""
    positions = rope(config)
    share = float(positions.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    writer.add_rope_dimension_count(int(head_size(config) * share))
    writer.add_rope_freq_base(positions["rope_theta"])
    if positions["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(positions["factor"]))
    local = (config.get("rope_parameters") or {}).get("sliding_attention")
    if local:  # layers that see a window turn at a pace of their own
        writer.add_rope_freq_base_swa(float(local["rope_theta"]))


def tensors(config: Mapping[str, Any]) -> dict[str, Array]:
    """Tensors that scaled positions need beside the model's own, all of 32 bits."""
    if rope(config)["rope_type"] != "llama3":
        return {}
    return {FACTORS: _llama3_factors(config)}


def _llama3_factors(config: Mapping[str, Any]) -> Array:
    """Llama 3.1's scaling as llama.cpp keeps it: a divisor per frequency (transformers' modeling_rope_utils)."""
    positions = rope(config)
    size = head_size(config)
    lengths = 2 * np.pi * positions["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high, factor = (float(positions[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    context = float(positions["original_max_position_embeddings"])
    smooth = np.clip((context / lengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
