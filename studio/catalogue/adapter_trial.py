"""Whether an adapter belongs to a base, as peft says it: `python -m studio.catalogue.adapter_trial BASE ADAPTER`.

Most LoRAs name the layers as the base stores them, which headers show. Fused experts, renamed layers and multimodal models are loaded
under other names than they are stored; there peft puts the adapter on the model, built without weights in a child process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studio import lifeline, processes
from studio.catalogue import attaching, text_models
from studio.catalogue.library_child import MOST_BYTES, PATIENCE_S
from studio.catalogue.models import tensors, weight_files
from studio.errors import ModelError


def check(weights: Path, base: Path) -> str:
    """Why the LoRA in `weights` can't belong to `base`, as the end of a sentence; "" where it can. Raises ModelError."""
    stored = {name: shape for file in weight_files(base) for name, _, shape in tensors(file)}
    for module, width in _factors(weights):
        shape = stored.get(f"{module}.weight")
        if shape is None:
            return _ask_child(base, weights.parent)
        if width not in shape:
            return f"its layer {module} has another size there"
    return ""


def _factors(weights: Path) -> Iterator[tuple[str, int]]:
    """The layers of the low-rank factors, and the width that each reads."""
    found = [(name.partition(".lora_A"), shape) for name, _, shape in tensors(weights) if ".lora_A" in name and len(shape) == 2]
    if not found:
        raise ModelError(f"{weights} holds no low-rank factors (lora_A).", "Give an adapter saved by peft's save_pretrained.")
    for (module, _, _), shape in found:
        yield module.removeprefix("base_model.model."), shape[1]


def _ask_child(base: Path, adapter: Path) -> str:
    environment = {**processes.child_environment(), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = processes.module_command("studio.catalogue.adapter_trial", str(base), str(adapter))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as child:
        assert child.stdout is not None
        timer = threading.Timer(PATIENCE_S, child.kill)
        timer.start()
        out = child.stdout.read()  # stdin stays open until here: its end tells the child that we are gone
        timer.cancel()
    try:
        answer = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        said = f"{adapter} could not be put on {base}: its process was killed for taking too much memory or time."
        raise ModelError(said, "Check its adapter_config.json.") from None
    return str(answer["misfit"])


# in the child


def misfit(base: Path, adapter: Path) -> str:
    """As `check`. Raises whatever building the model raises."""
    import torch

    family, config = text_models.family_of(text_models.config_of(base))
    with torch.device("meta"):
        model = family._from_config(config).eval()
        try:
            attaching.attach(model, adapter, "trial", "cpu")
        except attaching.Misfit as exc:
            return str(exc)
    return ""


def main() -> None:
    lifeline.end_with_parent()
    with contextlib.suppress(ImportError, ValueError, OSError):  # not everywhere
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print; the pipe carries the answer only
    answer: dict[str, Any] = {}
    try:
        answer["misfit"] = misfit(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as exc:  # noqa: BLE001 - the edge of this process: whatever the libraries say becomes one line
        answer["misfit"] = "peft can't put it there (" + " ".join(f"{type(exc).__name__}: {exc}".split())[:300] + ")"
    print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
