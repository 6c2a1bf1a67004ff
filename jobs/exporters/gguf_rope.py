"""The rotary positions of a model in GGUF's terms: keys, and the tensors that some kinds of scaling are kept in. Knows no weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np

from studio.catalogue.gguf import head_size, rope
from studio.catalogue.rope import LISTS, ORIGINAL, SCALING, WINDOWS

FACTORS = "rope_freqs.weight"
LONGROPE_FACTORS = dict(zip(LISTS, ("rope_factors_short.weight", "rope_factors_long.weight"), strict=True))
DEFAULT_YARN = {"beta_fast": 32.0, "beta_slow": 1.0}
Array = np.ndarray[Any, Any]


def add_keys(writer: Any, config: Mapping[str, Any]) -> None:
    """Base frequency, how much of a head is turned, and scaling, as llama.cpp's converter writes them."""
    positions = rope(config)
    share = float(positions.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    writer.add_rope_dimension_count(int(head_size(config) * share))
    writer.add_rope_freq_base(positions["rope_theta"])
    kind = positions["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(positions["factor"]))
    elif kind == "yarn":
        _add_yarn(writer, positions)
    elif kind == "longrope":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(int(positions[ORIGINAL]))
        writer.add_rope_scaling_attn_factors(_longrope_attention(positions))
    local = (config.get("rope_parameters") or {}).get("sliding_attention")
    if local:  # layers that see a window turn at a pace of their own
        writer.add_rope_freq_base_swa(float(local["rope_theta"]))


def tensors(config: Mapping[str, Any]) -> dict[str, Array]:
    """Tensors that scaled positions need beside the model's own, all of 32 bits."""
    positions = rope(config)
    if positions["rope_type"] == "llama3":
        return {FACTORS: _llama3_factors(config)}
    if positions["rope_type"] == "longrope":
        return {name: np.asarray(positions[key], dtype=np.float32) for key, name in LONGROPE_FACTORS.items()}
    return {}


def read_back(reader: Any, config: Any) -> None:
    """Put the positions that a GGUF file states into transformers' configuration: transformers' own reader passes scaling over."""
    stated = config.rope_parameters
    layers = [value for key, value in stated.items() if isinstance(value, dict) and key not in WINDOWS]
    found = _stated(reader)
    for one in layers or [stated]:
        for key in SCALING & one.keys():
            del one[key]
        one.update(found)


def _stated(reader: Any) -> dict[str, Any]:
    """As rope_parameters. A tensor of divisors is read as what it is to the arithmetic: longrope, the same for every length."""
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()

    def value(key: str) -> Any:
        field = reader.fields.get(key.format(arch=architecture))
        return field and field.contents()

    keys, context = gguf.Keys.Rope, int(value(gguf.Keys.LLM.CONTEXT_LENGTH))
    kind, attention = str(value(keys.SCALING_TYPE) or "default"), value(keys.SCALING_ATTN_FACTOR)
    divisors = {tensor.name: tensor.data.tolist() for tensor in reader.tensors if tensor.name in (FACTORS, *LONGROPE_FACTORS.values())}
    found: dict[str, Any] = {"rope_type": kind, "rope_theta": float(value(keys.FREQ_BASE)), "factor": value(keys.SCALING_FACTOR)}
    if kind == "yarn":
        own = {"beta_fast": value(keys.SCALING_YARN_BETA_FAST), "beta_slow": value(keys.SCALING_YARN_BETA_SLOW)}
        scale = (attention or 1.0) * _yarn_attention(float(found["factor"]))
        found |= {**own, "attention_factor": scale, ORIGINAL: value(keys.SCALING_ORIG_CTX_LEN)}
    elif kind == "longrope":
        original = int(value(keys.SCALING_ORIG_CTX_LEN))
        lists = {key: divisors[name] for key, name in LONGROPE_FACTORS.items()}
        found |= {**lists, "attention_factor": attention, "factor": context / original, ORIGINAL: original}
    elif FACTORS in divisors:
        lists = dict.fromkeys(LISTS, divisors[FACTORS])
        found |= {**lists, "rope_type": "longrope", "attention_factor": 1.0, "factor": 1.0, ORIGINAL: context}
    return {key: each for key, each in found.items() if each is not None}


def _add_yarn(writer: Any, positions: Mapping[str, Any]) -> None:
    factor = float(positions["factor"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(int(positions[ORIGINAL]))
    for key, add in (("beta_fast", writer.add_rope_scaling_yarn_beta_fast), ("beta_slow", writer.add_rope_scaling_yarn_beta_slow)):
        if positions.get(key) and positions[key] != DEFAULT_YARN[key]:
            add(float(positions[key]))
    if attention := positions.get("attention_factor"):  # llama.cpp multiplies with the one that belongs to the factor
        writer.add_rope_scaling_attn_factors(float(attention) / _yarn_attention(factor))


def _yarn_attention(factor: float) -> float:
    """As the paper recommends (Peng et al. 2023, arXiv:2309.00071)."""
    return 0.1 * math.log(factor) + 1.0


def _longrope_attention(positions: Mapping[str, Any]) -> float:
    """As the paper recommends (Ding et al. 2024, arXiv:2402.13753), unless the model says otherwise."""
    if stated := positions.get("attention_factor"):
        return float(stated)
    return math.sqrt(1 + math.log(max(float(positions["factor"]), 1.0)) / math.log(int(positions[ORIGINAL])))


def _llama3_factors(config: Mapping[str, Any]) -> Array:
    """Llama 3.1's scaling as llama.cpp keeps it: a divisor per frequency (transformers' modeling_rope_utils)."""
    positions = rope(config)
    size = head_size(config)
    lengths = 2 * np.pi * positions["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high, factor = (float(positions[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    context = float(positions[ORIGINAL])
    smooth = np.clip((context / lengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
