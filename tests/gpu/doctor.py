"""Part `doctor`: a training that runs out of memory and a card that is hidden are told in a sentence, with the remedy."""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
from pathlib import Path
from typing import Any

from jobs import config as job_config
from jobs import recipes
from jobs.trainers.failures import OUT_OF_MEMORY
from studio.catalogue import hardware
from studio.errors import ModelError
from tests.gpu import child, training
from tests.gpu.outcome import Measured
from tests.gpu.scale import GIB, Scale

CAP_GIB = 6.0
ROOM_BYTES = 192 * 1024**2  # reduced: what the trainer may take beside what it has when it starts
TOO_LARGE = {"per_device_train_batch_size": 64, "max_length": 4096}
NAMED_CARD = "NVIDIA GeForce RTX 3090"  # of the driver that stands in where none is here


def measure(scale: Scale) -> Measured:
    full, hidden = _full(scale), _hidden(scale)
    missed = []
    if full["cause"] != OUT_OF_MEMORY or not full["remedy"]:
        missed.append(f"a training without memory ended as {full['cause'] or 'nothing'}: {full['reason']}")
    if "CUDA_VISIBLE_DEVICES is empty" not in hidden["refused"]:
        missed.append(f"with the card hidden, device=auto {'said: ' + hidden['refused'] if hidden['refused'] else 'was not refused'}")
    if hidden["doctor_ok"]:
        missed.append("with the card hidden, the doctor calls the device well")
    if hidden["remedy"] != {"device": "cpu"}:
        missed.append("the refusal of a hidden card names no remedy")
    left_out = ["a driver of this machine, for which one stands in"] * scale.is_reduced
    changes = ", ".join(f"{name}={value}" for name, value in full["remedy"].items())
    return Measured({"full": full, "hidden": hidden}, f"“{full['reason']}” ({changes}); “{hidden['refused']}”", missed, left_out)


def _full(scale: Scale) -> dict[str, Any]:
    """A training of far more rows at once than there is memory for: what it says."""
    config = training.job(scale, "lora-sft", {"max_steps": 1}, TOO_LARGE)
    made = training.run(scale, "doctor-full", "1B", config)
    trained = child.call(scale.folder, "tests.gpu.doctor:train_without_memory", scale.limit_s, folder=str(made.path))
    found = trained["result"]
    return {"cause": found.get("cause"), "reason": found.get("reason") or training.why(trained), "remedy": found.get("remedy") or {}}


def train_without_memory(folder: str) -> dict[str, Any]:
    """In a child: on a card torch may take CAP_GIB of it, on a processor the process little more than it has already."""
    import torch

    if torch.cuda.is_available():
        return training.train(folder, cap_bytes=int(CAP_GIB * GIB))
    taken = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (taken + ROOM_BYTES, taken + ROOM_BYTES))
    return training.train(folder)


def _hidden(scale: Scale) -> dict[str, Any]:
    """What is said of a card that CUDA_VISIBLE_DEVICES hides."""
    env = {"CUDA_VISIBLE_DEVICES": ""}
    if scale.is_reduced:
        from tests.gpus import card, driver, torch_of, variables

        env |= variables(driver=driver(card(NAMED_CARD)), torch=torch_of([card(NAMED_CARD)]), visible="")
    return dict(child.call(scale.folder, "tests.gpu.doctor:look", scale.limit_s, env=env, folder=str(scale.folder)))


def look(folder: str) -> dict[str, Any]:
    """In a child whose card is hidden: the trainer's refusal of device=auto, and the doctor's word."""
    from jobs.trainers import placing
    from jobs.trainers.events import EventLog
    from studio.services import system

    if "TEST_NVML" in os.environ:  # no path of a process that has been forked can change what it has imported
        _use_stand_in()
    wanted = job_config.build(recipes.get("qlora-sft").options, {"device": "auto"})
    log, refused, remedy = EventLog(Path(folder) / "hidden.jsonl"), "", None
    try:
        placing.device_of(wanted, log)
    except ModelError as exc:
        refused, remedy = f"{exc.message} {exc.fix}", exc.details.get("remedy")
    finally:
        log.close()
    hardware.forget()
    check = system._device()
    return {"refused": refused, "remedy": remedy, "doctor_ok": check.ok, "doctor": f"{check.detail} {check.fix}".strip()}


def _use_stand_in() -> None:
    """Ask the driver that tests.gpus has put into TEST_NVML."""
    from studio.catalogue import nvml
    from tests.gpus import STAND_INS

    spec = importlib.util.spec_from_file_location("pynvml", STAND_INS / "nvml" / "pynvml.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["pynvml"] = module
    nvml._library.clear()
