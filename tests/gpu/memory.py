"""Part `memory`: the peak of twelve trainings beside its prediction, several at once where the card holds them.

Measured are what torch had reserved, at the peak and while the base was loaded, and what the driver says of the process. The prediction
counts the driver's context too, which torch does not: it is compared without.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.config import JobConfig
from studio.catalogue import hardware, memory, nvml
from tests.gpu import models, training
from tests.gpu.child import Child, ChildFailed
from tests.gpu.machine import used_bytes
from tests.gpu.outcome import Measured
from tests.gpu.scale import GIB, Scale

MOST_OVER, MOST_UNDER = 0.10, 0.05
AT_ONCE = 4
CASE_S = 40  # of one, beside others
LOOK_S = 0.1
STEPS = 3
AGAIN = {"gradient_checkpointing": True}


@dataclass(frozen=True)
class Case:
    """A training of `size`; `options` as at a launch."""

    name: str
    size: str
    recipe: str
    options: Mapping[str, Any]


def _case(name: str, size: str, recipe: str, rows: int, length: int, **options: Any) -> Case:
    named = {key.replace("__", "."): value for key, value in options.items()}
    return Case(name, size, recipe, {"per_device_train_batch_size": rows, "max_length": length, **named})


EVALUATED = {"test_size": 0.1, "per_device_eval_batch_size": 1, "eval_steps": STEPS}
CASES = (
    _case("1B 4 x 1024", "1B", "lora-sft", 4, 1024),
    _case("1B NF4 8 x 1024, recomputed", "1B", "qlora-sft", 8, 1024, **AGAIN),
    _case("8B NF4 1 x 2048, recomputed", "8B", "qlora-sft", 1, 2048, **AGAIN),
    _case("8B NF4 1 x 512", "8B", "qlora-sft", 1, 512),
    _case("8B NF4 2 x 1024, recomputed", "8B", "qlora-sft", 2, 1024, **AGAIN),
    _case("8B NF4 4 x 1024, recomputed", "8B", "qlora-sft", 4, 1024, **AGAIN),
    _case("8B NF4 1 x 4096, recomputed", "8B", "qlora-sft", 1, 4096, **AGAIN),
    _case("8B NF4 DoRA 1 x 1024, recomputed", "8B", "dora-sft", 1, 1024, **AGAIN),
    _case("1B NF4 packed 4 x 1024", "1B", "qlora-sft", 4, 1024, packing=True),
    _case("8B NF4 DPO 1 x 1024, recomputed", "8B", "dpo", 1, 1024, **AGAIN),
    _case("8B in 8 bits 1 x 1024, recomputed", "8B", "lora-sft", 1, 1024, quantization__load_in_8bit=True, **AGAIN),
    _case("8B NF4 paged 8-bit Adam, r 64, 1 x 2048, evaluated", "8B", "qlora-sft", 1, 2048,
          optim="paged_adamw_8bit", lora__r=64, **AGAIN, **EVALUATED),
)  # fmt: skip
REDUCED = (0, 9)  # of CASES: a plain one, and one of another objective with what saves memory
SHORT = {"per_device_train_batch_size": 1, "max_length": 64}


@dataclass
class Running:
    """A training that is measured."""

    case: Case
    config: JobConfig
    predicted: int
    child: Child
    of_driver: int = 0


def is_kept(predicted: int, peak: int) -> bool:
    """Whether a prediction holds: at most a tenth above what was measured, and never a twentieth below."""
    return 1 - MOST_UNDER <= predicted / peak <= 1 + MOST_OVER


def measure(scale: Scale) -> Measured:
    waiting = [case for number, case in enumerate(CASES) if not scale.is_reduced or number in REDUCED]
    running: list[Running] = []
    others = used_bytes()  # before anything here runs
    figures: dict[str, Any] = {}
    missed: list[str] = []
    left_out: list[str] = []
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            found = _start(scale, waiting[0], running, others, left_out)
            if found is None and running:
                break
            waiting.pop(0)
            if found is not None:
                running.append(found)
        if not scale.left_s:
            left_out += [f"{one.case.name}: it was ended for lack of time" for one in running]
            left_out += [f"{case.name}: no time is left" for case in waiting]
            for one in running:
                one.child.kill()
            break
        for one in [one for one in running if _has_ended(one)]:
            running.remove(one)
            figures[one.case.name] = _figures(one, scale, missed)
        time.sleep(LOOK_S)
    if scale.is_reduced:
        left_out.append("whether predictions hold, which is asked of a card")
    kept = [found for found in figures.values() if found.get("peak_bytes") and is_kept(found["predicted_bytes"], found["peak_bytes"])]
    return Measured(figures, _said(figures, len(kept)), missed, left_out)


def _start(scale: Scale, case: Case, running: list[Running], others: int, left_out: list[str]) -> Running | None:
    """None where there is no room for it now, or neither room nor time at all: then it is named among `left_out`."""
    if not scale.has_time(CASE_S):
        left_out.append(f"{case.name}: {scale.left_s:.0f} s are left")
        return None
    config = training.job(scale, case.recipe, {"max_steps": STEPS, "save_steps": STEPS}, case.options, scale.of({}, SHORT))
    models.base(scale, case.size)
    shape = models.config(scale, case.size)
    predicted = memory.predict(shape, config, device=scale.device).total
    room = _room(scale, others)
    if predicted > room - sum(one.predicted for one in running):
        if not running:
            left_out.append(f"{case.name}: it needs {predicted / GIB:.1f} GiB, and {room / GIB:.1f} GiB are free")
        return None
    made = training.run(scale, f"memory-{len(list(scale.folder.glob('runs/memory-*')))}", case.size, config)
    child = Child(scale.folder, "tests.gpu.training:train", folder=str(made.path))
    return Running(case, config, predicted, child)


def _room(scale: Scale, others: int) -> int:
    """Of the device, for all that run at once; `others` is what somebody else holds of it."""
    if scale.is_reduced:
        return hardware.memory().free_bytes
    return hardware.usable()[0].memory_bytes - others


def _has_ended(one: Running) -> bool:
    for card in hardware.usable():
        held = [process.used_bytes or 0 for process in nvml.holders(card.selector) if process.pid == one.child.pid]
        one.of_driver = max([one.of_driver, *held])
    return one.child.poll() is not None


def _figures(one: Running, scale: Scale, missed: list[str]) -> dict[str, Any]:
    try:
        trained = one.child.wait(0)
    except ChildFailed as exc:
        missed.append(f"{one.case.name} ended: {exc}")
        return {"failed": str(exc)}
    if reason := training.why(trained):
        missed.append(f"{one.case.name}: {reason}")
        return {"failed": reason}
    peak = trained["result"]["metrics"].get("peak_memory_bytes")
    predicted = one.predicted - scale.of(memory.CUDA_CONTEXT, 0)
    if not scale.is_reduced and not is_kept(predicted, peak):
        missed.append(f"{one.case.name}: {predicted / GIB:.2f} GiB predicted, {peak / GIB:.2f} measured, {predicted / peak - 1:+.1%}")
    return {
        "predicted_bytes": predicted,
        "peak_bytes": peak,
        "load_peak_bytes": trained["load_peak_bytes"],
        "driver_bytes": one.of_driver or None,  # None where the driver does not tell processes apart
    }


def _said(figures: Mapping[str, Mapping[str, Any]], kept: int) -> str:
    ratios = [found["predicted_bytes"] / found["peak_bytes"] - 1 for found in figures.values() if found.get("peak_bytes")]
    if not ratios:
        return "nothing was measured"
    return f"{kept} of {len(figures)} within -{MOST_UNDER:.0%} and +{MOST_OVER:.0%}, from {min(ratios):+.1%} to {max(ratios):+.1%}"
