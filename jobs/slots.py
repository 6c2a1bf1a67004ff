"""Places where a job that computes may run, one job at a time on each: every GPU that models can run on, and the processor.

Knows devices and options of jobs; the database says which places are taken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from studio.catalogue import hardware, memory
from studio.catalogue.cards import Device
from studio.records import JobKind

PROCESSOR = "device:0"
HIDDEN = ""  # CUDA_VISIBLE_DEVICES of a job that computes on the processor


@dataclass(frozen=True)
class Slot:
    """A place by its device. `name` is on the row of the job that runs there; `visible` is that job's CUDA_VISIBLE_DEVICES.

    `visible` None leaves it as it is: where a GPU is here and can't be used, the trainer shall see it and say why.
    """

    name: str
    device: Device
    visible: str | None


def slots() -> list[Slot]:
    """The places of this machine now: the processor is always the last."""
    gpus = [one for one in hardware.usable() if one.kind == "cuda"]
    found = [Slot(f"device:{one.selector or one.name}", one, one.selector or None) for one in gpus]
    return [*found, on_processor()]


def on_processor() -> Slot:
    visible = None if hardware.refusal() else HIDDEN
    return Slot(PROCESSOR, hardware.processor(), visible)


def threads(slot: Slot) -> int:
    """Threads of arithmetic for a job there: jobs on several GPUs share what one would take."""
    return max(1, hardware.thread_budget("trainer") // max(1, len(slots()) - 1 if slot.device.kind == "cuda" else 1))


def place(kind: str, config: dict[str, Any], places: Sequence[Slot], taken: Collection[str]) -> Slot | None:
    """The place for this job that is not `taken`: the GPU with the most free memory among those that hold it; None while there is none.

    A job that no GPU holds takes the largest one: its trainer makes its batches smaller, or says what is wrong.
    """
    gpus = [slot for slot in places if slot.device.kind == "cuda"]
    free = [slot for slot in places if slot.name not in taken]
    wants_processor = kind == JobKind.TRAIN and config.get("device") == "cpu"
    if not gpus or wants_processor:
        found = next((slot for slot in free if slot.device.kind == "cpu"), None)
        if found is not None and (wants_processor or kind != JobKind.TRAIN):
            return replace(found, visible=HIDDEN)
        return found
    most = max(slot.device.memory_bytes for slot in gpus)
    needed = 0
    if min(slot.device.memory_bytes for slot in gpus) < most:
        needed = min(predicted(kind, config), most)
    fitting = [slot for slot in free if slot.device.kind == "cuda" and slot.device.memory_bytes >= needed]
    return max(fitting, key=lambda slot: slot.device.free_bytes, default=None)


def predicted(kind: str, config: dict[str, Any]) -> int:
    """Peak bytes of a training; 0 for what can't be predicted."""
    if kind != JobKind.TRAIN:
        return 0
    try:
        job = JobConfig.model_validate(config)
        return memory.predict_training_bytes(memory.model_config(Path(job.model_name_or_path)), job)
    except (OSError, ValueError, ZeroDivisionError):
        return 0
