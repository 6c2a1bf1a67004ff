"""What a job will need, from the model's config.json alone: arithmetic, no torch. Knows nothing of what else runs here.

Sizes follow the shapes that transformers builds for Llama-like models; a config that names no such sizes is predicted from its
parameter count where that is known. Bytes throughout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config import JobConfig

BYTES_4BIT = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # NF4 with double quantisation: a byte per block of 64, its scale per 256 blocks
BYTES_4BIT_SINGLE = (4 + 32 / 64) / 8
HEAD_TILE = 4096  # tokens whose logits trl computes at once
CPU_PROCESS = 500_000_000  # torch, transformers, peft and trl, imported
CUDA_PROCESS = 600_000_000  # CUDA context and fragmentation


@dataclass(frozen=True)
class Shape:
    """Dimensions of a decoder."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_width: int
    vocabulary: int
    tied: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        hidden = _first(config, "hidden_size", "n_embd", "d_model")
        heads = _first(config, "num_attention_heads", "n_head") or 1
        head_width = config.get("head_dim") or hidden // heads
        return cls(
            hidden=hidden,
            layers=_first(config, "num_hidden_layers", "n_layer"),
            intermediate=_first(config, "intermediate_size", "n_inner", "ffn_dim") or 4 * hidden,
            heads=heads,
            kv_width=(config.get("num_key_value_heads") or heads) * head_width,
            vocabulary=_first(config, "vocab_size"),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in_features, out_features) of the linear layers of one block."""
        attention = [(self.hidden, self.hidden), (self.hidden, self.kv_width), (self.hidden, self.kv_width), (self.hidden, self.hidden)]
        return [*attention, (self.hidden, self.intermediate), (self.hidden, self.intermediate), (self.intermediate, self.hidden)]

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(rows * columns for rows, columns in self.linears)

    @property
    def other_parameters(self) -> int:
        """Embeddings, an untied head, norms."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden * (2 * self.layers + 1)


def model_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder; of the text part where a model has several."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {**config, **config.get("text_config", {})}


def adapter_parameters(config: dict[str, Any], job: JobConfig) -> int:
    shape = Shape.of(config)
    return shape.layers * job.lora.r * sum(rows + columns for rows, columns in shape.linears)


def predict_disk_bytes(config: dict[str, Any], job: JobConfig) -> int:
    """Checkpoints at their most (one more while it is written), each adapter + two optimizer states in 32 bit, and the result."""
    adapter = 4 * adapter_parameters(config, job)
    return (job.save_total_limit + 1) * 3 * adapter + adapter + 10_000_000


def predict_training_bytes(config: dict[str, Any], job: JobConfig) -> int:
    """Peak memory of the training process on its device."""
    shape = Shape.of(config)
    if job.quantization.load_in_4bit:
        per_weight = BYTES_4BIT if job.quantization.bnb_4bit_use_double_quant else BYTES_4BIT_SINGLE
        base = shape.linear_parameters * per_weight + 2 * shape.other_parameters
    else:
        base = 2 * (shape.linear_parameters + shape.other_parameters)
    adapter = 4 * 4 * adapter_parameters(config, job)  # weight, gradient, two states of Adam
    tokens = job.per_device_train_batch_size * min(job.max_length, config.get("max_position_embeddings") or job.max_length)
    layer = tokens * (20 * shape.hidden + 4 * (shape.hidden + 2 * shape.kv_width) + 8 * shape.intermediate)
    activations = shape.layers * tokens * shape.hidden * 4 + layer if job.gradient_checkpointing else shape.layers * layer
    head = 8 * min(tokens, HEAD_TILE) * shape.vocabulary * 4
    process = CPU_PROCESS if job.device == "cpu" else CUDA_PROCESS
    return int(base + adapter + activations + head + process)


def _first(config: dict[str, Any], *names: str) -> int:
    return next((int(config[name]) for name in names if config.get(name)), 0)
