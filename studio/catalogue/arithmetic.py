"""Adapters as sums of others: new low-rank factors from those of several LoRAs. NumPy only; knows no names and no database.

`linear` adds the updates themselves, exactly: factors are put beside each other, so ranks add up. `dare` (Yu et al. 2023,
arXiv:2311.03099) thins each adapter's factors out first. `ties` (Yadav et al. 2023, arXiv:2306.01708) works on factors of equal
rank, as peft's add_weighted_adapter does, and divides by the weights that agree, as mergekit does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import deserialize
from safetensors.numpy import save_file

from studio.catalogue.models import read_json
from studio.errors import ModelError
from studio.records import MergeMethod

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SEED = 0  # of what DARE drops: the same merge gives the same bytes
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "F64": np.dtype(np.float64)}
PLAIN = ("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "alpha_pattern", "alora_invocation_tokens")
Array = np.ndarray[Any, Any]
Pair = tuple[Array, Array]


@dataclass(frozen=True)
class AdapterPart:
    """One adapter of a merge: its factors by layer, A [r, in] and B [out, r], and what its update is multiplied by when it is used."""

    factors: dict[str, Pair]
    scaling: float
    rank: int

    def pair(self, layer: str, like: Sequence[AdapterPart]) -> Pair:
        """Its factors of a layer; zeros where it has none. Raises ModelError where another part has other widths there."""
        widths = {(a.shape[1], b.shape[0]) for part in like if layer in part.factors for a, b in [part.factors[layer]]}
        if len(widths) > 1:
            raise ModelError(f"Layer {layer} has different sizes in these adapters.", "Merge adapters of one base model.")
        ((inputs, outputs),) = widths
        nothing = np.zeros((self.rank, inputs), np.float32), np.zeros((outputs, self.rank), np.float32)
        return self.factors.get(layer, nothing)


def read(folder: Path, name: str) -> AdapterPart:
    """Raises ModelError for what can't be added: only plain LoRAs can."""
    config = read_json(folder / CONFIG)
    kind, extra = config.get("peft_type"), next((key for key in PLAIN if config.get(key)), None)
    if kind != "LORA" or extra or config.get("bias", "none") != "none":
        what = f"of kind {kind}" if kind != "LORA" else f"a LoRA with {extra or 'bias'}"
        raise ModelError(f"Adapter {name} is {what}; only plain LoRAs can be added up.", "Leave it out.")
    tensors = _tensors(folder / WEIGHTS)
    factors = {
        key.removesuffix(".lora_A.weight"): (value, tensors[key.replace(".lora_A.", ".lora_B.")])
        for key, value in tensors.items()
        if key.endswith(".lora_A.weight") and key.replace(".lora_A.", ".lora_B.") in tensors
    }
    if len(factors) * 2 != len(tensors):
        raise ModelError(f"Adapter {name} holds more than low-rank factors of layers; only plain LoRAs can be added up.", "Leave it out.")
    rank = next(iter(factors.values()))[0].shape[0]
    if any(a.shape[0] != rank for a, _ in factors.values()):
        raise ModelError(f"Adapter {name} has layers of different ranks, which can't be added up here.", "Leave it out.")
    return AdapterPart(factors, config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank), rank)


def combine(parts: Sequence[AdapterPart], weights: Sequence[float], method: str, density: float) -> dict[str, Pair]:
    """The factors of the sum, to be used with scaling 1. Raises ModelError for ranks that do not fit together."""
    if method == MergeMethod.TIES:
        return _agreed(parts, weights, density)
    if method == MergeMethod.DARE:
        generator = np.random.default_rng(SEED)
        parts = [_thinned(part, density, generator) for part in parts]
    return _beside(parts, weights)


def write(folder: Path, factors: Mapping[str, Pair], base: Mapping[str, Any]) -> None:
    """An adapter folder as peft saves it; `base` is the adapter_config.json of one of the parts."""
    rank = max(a.shape[0] for a, _ in factors.values())
    tensors = {}
    for layer, (a, b) in factors.items():
        tensors[f"{layer}.lora_A.weight"] = np.ascontiguousarray(a, dtype=np.float32)
        tensors[f"{layer}.lora_B.weight"] = np.ascontiguousarray(b, dtype=np.float32)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    layers = sorted(layer.removeprefix("base_model.model.") for layer in factors)
    only = {"r": rank, "lora_alpha": rank, "use_rslora": False, "target_modules": layers, "rank_pattern": {}, "init_lora_weights": True}
    everywhere = {"layers_to_transform": None, "layers_pattern": None, "exclude_modules": None, "lora_dropout": 0.0}
    config = {**base, **only, **everywhere, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _layers(parts: Sequence[AdapterPart]) -> list[str]:
    return sorted({layer for part in parts for layer in part.factors})


def _beside(parts: Sequence[AdapterPart], weights: Sequence[float]) -> dict[str, Pair]:
    """sum of weight·scaling·B·A, as one product: the A's over each other, the weighted B's beside each other."""
    found = {}
    for layer in _layers(parts):
        pairs = [part.pair(layer, like=parts) for part in parts]
        up = [b * np.float32(weight * part.scaling) for (_, b), part, weight in zip(pairs, parts, weights, strict=True)]
        found[layer] = np.concatenate([a for a, _ in pairs], axis=0), np.concatenate(up, axis=1)
    return found


def _agreed(parts: Sequence[AdapterPart], weights: Sequence[float], density: float) -> dict[str, Pair]:
    """TIES: keep the largest values, agree on a sign for each place by weighted sum, take the weighted mean of what has that sign."""
    if len({part.rank for part in parts}) > 1:
        ranks = ", ".join(str(part.rank) for part in parts)
        raise ModelError(f"The adapters have ranks {ranks}; ties needs equal ones.", "Merge them with --method linear or dare.")
    if any(weight < 0 for weight in weights):
        raise ModelError("ties takes no negative weights.", "Merge with --method linear.")
    found = {}
    for layer in _layers(parts):
        pairs = [part.pair(layer, like=parts) for part in parts]
        halves = [np.float32(math.sqrt(part.scaling)) for part in parts]  # half of the scaling goes into either factor, as in peft
        down, up = ([pair[side] * half for pair, half in zip(pairs, halves, strict=True)] for side in (0, 1))
        found[layer] = _elected(down, weights, density), _elected(up, weights, density)
    return found


def _elected(tensors: Sequence[Array], weights: Sequence[float], density: float) -> Array:
    kept = np.stack([_largest(tensor, density) for tensor in tensors])
    shares = np.asarray(weights, np.float32).reshape(-1, 1, 1)
    sign = np.where((shares * kept).sum(axis=0) >= 0, 1, -1)
    agreeing = shares * (np.sign(kept) == sign)
    total = agreeing.sum(axis=0)
    mixed: Array = (agreeing * kept).sum(axis=0) / np.where(total > 0, total, 1)
    return mixed


def _thinned(part: AdapterPart, density: float, generator: np.random.Generator) -> AdapterPart:
    """DARE: drop values at random and rescale the others, so that the expectation of the update stays."""

    def thin(tensor: Array) -> Array:
        kept: Array = tensor * (generator.random(tensor.shape) < density) / np.float32(density)
        return kept

    return replace(part, factors={layer: (thin(a), thin(b)) for layer, (a, b) in sorted(part.factors.items())})


def _largest(tensor: Array, density: float) -> Array:
    """The tensor with all but its share `density` of largest values set to zero."""
    count = int(density * tensor.size)
    kept = np.zeros(tensor.size, np.float32)
    if count == 0:
        return kept.reshape(tensor.shape)
    flat = tensor.reshape(-1)
    chosen = np.argpartition(np.abs(flat), tensor.size - count)[tensor.size - count :] if count < tensor.size else slice(None)
    kept[chosen] = flat[chosen]
    return kept.reshape(tensor.shape)


def _tensors(path: Path) -> dict[str, Array]:
    """All tensors in float32. Raises ModelError for a damaged file."""
    try:
        found = deserialize(path.read_bytes())
    except Exception as exc:  # noqa: BLE001 - the library raises a class of its own
        raise ModelError(f"{path} is damaged ({type(exc).__name__}).", "Import the adapter again.") from None
    return {name: _float32(entry["dtype"], entry["data"]).reshape(entry["shape"]) for name, entry in found}


def _float32(dtype: str, data: bytes) -> Array:
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype not in DTYPES:
        raise ModelError(f"Its tensors are of type {dtype}, which can't be added up.", "Use an adapter in 16 or 32 bit.")
    return np.frombuffer(data, DTYPES[dtype]).astype(np.float32)
