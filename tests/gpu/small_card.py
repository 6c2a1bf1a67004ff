"""Part `8 GiB`: 8 billion parameters in 4 bits trained with what is free of a card of 8 GiB, by the options that a launch chooses for it.

torch may take no more of the card than that: what is free, less the driver's context.
"""

from __future__ import annotations

from typing import Any

from jobs.config import JobConfig
from studio.catalogue import memory
from studio.records import MemoryPlan
from studio.services import planning, room
from studio.services.planning import FitQuestion
from tests.gpu import models, training
from tests.gpu.child import Child, ChildFailed
from tests.gpu.outcome import Measured
from tests.gpu.scale import GIB, Scale

WANTED = 2048  # tokens of the longest row
LITTLE, ENOUGH = "7.2 GiB", "7.6 GiB"  # with the first a launch has to keep LEAST of them, with the second all
LEAST = 1536
STEPS = 2


def measure(scale: Scale) -> Measured:
    figures: dict[str, Any] = {}
    missed: list[str] = []
    children: dict[str, Child] = {}
    models.base(scale, "8B")
    for name, free in _free(scale).items():
        config, plan = planned(scale, free)
        figures[name] = {"free_bytes": free, "predicted_bytes": plan.needed_bytes, "max_length": config.max_length, **plan.options}
        missed += broken(scale, name, config, plan)
        if scale.is_reduced and children:
            continue
        made = training.run(scale, f"small-{len(children)}", "8B", config)
        cap = scale.of(free - memory.CUDA_CONTEXT, 0)
        children[name] = Child(scale.folder, "tests.gpu.training:train", folder=str(made.path), cap_bytes=cap)
    for name, child in children.items():
        figures[name] |= _trained(scale, name, child, missed)
    left_out = [f"a limit on what torch may take, and the training with {ENOUGH}, which are for a card"] * scale.is_reduced
    return Measured(figures, "; ".join(_said(name, found) for name, found in figures.items()), missed, left_out)


def planned(scale: Scale, free: int) -> tuple[JobConfig, MemoryPlan]:
    """The options that a launch chooses where so much is free, and why."""
    wanted = scale.of(WANTED, WANTED // 8)
    asked = {
        "per_device_train_batch_size": 1,
        "max_length": wanted,
        "max_steps": STEPS,
        "save_steps": STEPS,
        "test_size": 0.1,
        "eval_steps": STEPS,
    }
    config = training.job(scale, "qlora-sft", asked)
    available = room.counted(free).available_bytes
    plan = planning.plan(FitQuestion(models.config(scale, "8B"), config, scale.device, available))
    assert plan is not None
    return training.job(scale, "qlora-sft", asked, plan.options), plan


def broken(scale: Scale, name: str, config: JobConfig, plan: MemoryPlan) -> list[str]:
    """What the options of a launch promise and do not keep."""
    least = {LITTLE: LEAST, ENOUGH: WANTED}[name]
    if not scale.is_reduced and config.max_length < least:
        return [f"with {name} free a launch takes rows of {config.max_length} tokens, not {least}"]
    if not plan.fits:
        return [f"with {name} free a launch finds no options that fit"]
    return []


def _free(scale: Scale) -> dict[str, int]:
    """Bytes that are free. Reduced: too few for the longest rows by one, and enough."""
    if not scale.is_reduced:
        return {LITTLE: round(7.2 * GIB), ENOUGH: round(7.6 * GIB)}
    enough = planned(scale, 0)[1].needed_bytes + room.RESERVE_BYTES
    return {LITTLE: enough - 1, ENOUGH: enough}


def _trained(scale: Scale, name: str, child: Child, missed: list[str]) -> dict[str, Any]:
    try:
        trained = child.wait(scale.limit_s)
    except ChildFailed as exc:
        missed.append(f"with {name} the training ended: {exc}")
        return {}
    if reason := training.why(trained):
        missed.append(f"with {name}: {reason}")
        return {}
    return {"peak_bytes": trained["result"]["metrics"].get("peak_memory_bytes"), "load_peak_bytes": trained["load_peak_bytes"]}


def _said(name: str, found: dict[str, Any]) -> str:
    peak = "not trained"
    if found.get("peak_bytes"):
        peak = f"took {found['peak_bytes'] / GIB:.2f} GiB"
    return f"{name} free: rows of {found['max_length']} tokens, {found['predicted_bytes'] / GIB:.2f} GiB predicted, {peak}"
