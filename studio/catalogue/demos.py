"""The demo datasets that ship with the studio. static/starter/recipe/demos.py writes their rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.settings import STATIC

# Options that all three share (dotted names of jobs.config.JobConfig): a tiny model takes a far higher rate.
OPTIONS: dict[str, Any] = {
    "objective": "sft",
    "method": "lora",
    "quantization.load_in_4bit": True,
    "quantization.bnb_4bit_quant_type": "nf4",
    "quantization.bnb_4bit_use_double_quant": True,
    "quantization.bnb_4bit_compute_dtype": "bfloat16",
    "lora.r": 16,
    "lora.lora_alpha": 32,
    "lora.target_modules": "all-linear",
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "per_device_train_batch_size": 16,
    "gradient_checkpointing": False,
    "max_length": 128,
}


@dataclass(frozen=True)
class Demo:
    """One dataset and its held-out rows, with training options that suit the starter (dotted JobConfig keys)."""

    name: str
    title: str
    description: str
    options: dict[str, Any]

    @property
    def train_path(self) -> Path:
        return STATIC / "demo" / f"{self.name}.train.jsonl"

    @property
    def eval_path(self) -> Path:
        return STATIC / "demo" / f"{self.name}.eval.jsonl"


DEMOS: dict[str, Demo] = {
    demo.name: demo
    for demo in (
        Demo(
            "router",
            "Route support messages",
            "A customer writes; the answer is the name of one of four queues.",
            OPTIONS | {"num_train_epochs": 4.0},
        ),
        Demo(
            "voice",
            "Answer in a pirate's voice",
            "Facts that the model knows, said the way a pirate would say them.",
            OPTIONS | {"num_train_epochs": 6.0},
        ),
        Demo(
            "extract",
            "Turn a sentence into JSON",
            "Who ordered what, and where it goes, as one JSON object.",
            OPTIONS | {"num_train_epochs": 4.0},
        ),
    )
}
