"""The rotary positions of a model in GGUF's terms: keys, and the tensor that Llama 3.1's scaling is kept in. Knows no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from studio.catalogue.gguf import rope

FACTORS = "rope_freqs.weight"
Array = np.ndarray[Any, Any]


def add_keys(writer: Any, config: Mapping[str, Any]) -> None:
    """Base frequency and scaling, as llama.cpp's converter writes them."""
    positions = rope(config)
    writer.add_rope_freq_base(positions["rope_theta"])
    if positions["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(positions["factor"]))


def tensors(config: Mapping[str, Any]) -> dict[str, Array]:
    """Tensors that scaled positions need beside the model's own, all of 32 bits."""
    if rope(config)["rope_type"] != "llama3":
        return {}
    return {FACTORS: _llama3_factors(config)}


def _llama3_factors(config: Mapping[str, Any]) -> Array:
    """Llama 3.1's scaling as llama.cpp keeps it: a divisor per frequency (transformers' modeling_rope_utils)."""
    positions = rope(config)
    size = int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])
    lengths = 2 * np.pi * positions["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high, factor = (float(positions[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    context = float(positions["original_max_position_embeddings"])
    smooth = np.clip((context / lengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
