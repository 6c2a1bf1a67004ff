"""Real engine processes and adapters made on the spot, for the tests that need them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from studio.catalogue.models import tensors
from studio.engine.answer import GeneratedAnswer
from studio.engine.protocol import ModelFolder
from studio.engine.text import AnswerText
from studio.types import GenerationParams

KEY = "engine-test-key"
RANK = 4
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class RunningEngine:
    """A process that answers at `url`."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def engine(home: Path, port: int = 0) -> Iterator[RunningEngine]:
    """`python -m studio.engine.server`, on a free port unless one is named; killed in the end if it has not ended."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "cache").mkdir(exist_ok=True)
    environment = {**os.environ, "STUDIO_HOME": str(home), "STUDIO_ENGINE_KEY": KEY}
    command = [sys.executable, "-m", "studio.engine.server", "--port", str(port)]
    with (home / "engine.log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)
    assert process.stdin and process.stdout
    try:
        url = process.stdout.readline().strip()
        assert url, (home / "engine.log").read_text()
        yield RunningEngine(url, process)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def studio_field(base: Path, adapter: Path | None = None) -> dict[str, Any]:
    """What the studio adds to a request so that the engine knows the folders."""
    chosen = None if adapter is None else {"name": adapter.name, "path": str(adapter), "sha256": ""}
    return {"base": {"name": base.name, "path": str(base)}, "adapter": chosen, "chat_template": None}


def make_adapter(base: Path, target: Path, seed: int, *, strength: float = 0.3, use_dora: bool = False) -> Path:
    """A LoRA of `base` with random weights, as peft saves it; strong enough to change what it says."""
    random = np.random.default_rng(seed)
    weights = {}
    matrices = load_file(base / "model.safetensors") if use_dora else {}  # numpy knows no bfloat16
    for name, _, shape in sorted(tensors(base / "model.safetensors")):
        if "_proj." not in name:
            continue
        place = f"base_model.model.{name.removesuffix('.weight')}"
        weights[f"{place}.lora_A.weight"] = random.normal(0, 0.1, (RANK, shape[1])).astype(np.float32)
        weights[f"{place}.lora_B.weight"] = random.normal(0, 1, (shape[0], RANK)).astype(np.float32) * np.float32(strength)
        if use_dora:
            weights[f"{place}.lora_magnitude_vector"] = np.linalg.norm(matrices[name], axis=1).astype(np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": PROJECTIONS,
        "use_dora": use_dora,
    }
    target.mkdir(parents=True)
    save_file(weights, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_text(json.dumps({**config, "bias": "none", "base_model_name_or_path": str(base)}))
    return target


def copy_model(base: Path, target: Path) -> Path:
    """A writable copy, to break it."""
    target.mkdir(parents=True)
    for file in base.iterdir():
        shutil.copyfile(file, target / file.name)
    return target


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def answer(ids: Sequence[int] = (), **values: Any) -> GeneratedAnswer:
    """An answer in the making with `ids` so far, of no model; greedy unless `params` says otherwise."""
    params = GenerationParams(**{"temperature": 0.0, **values.pop("params", {})})
    text = AnswerText(lambda ids: "", [])
    made = GeneratedAnswer(
        ModelFolder("m", Path("/m")), None, values.pop("prompt_ids", [1]), 99, params, values.pop("seed", 0),
        values.pop("stop_ids", frozenset()), text,
        lambda event: None, **values,
    )  # fmt: skip
    made.ids.extend(ids)
    return made
