"""Part `exact`: a training that is killed and resumed beside an unbroken one, with and without full_determinism, and what that costs."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from jobs.rundir import RunDir
from tests.gpu import training
from tests.gpu.child import Child, ChildFailed
from tests.gpu.outcome import Measured
from tests.gpu.scale import Scale

STEPS, KILLED_AT = 12, 7  # the checkpoint is that of step 6
WARM = 3
DETERMINISTIC, PLAIN = "deterministic", "plain"


def measure(scale: Scale) -> Measured:
    ways = scale.of((PLAIN, DETERMINISTIC), (DETERMINISTIC,))
    whole = _together(scale, {way: _run(scale, f"exact-{way}-whole", way) for way in ways})
    broken = {way: _run(scale, f"exact-{way}-broken", way) for way in ways}
    _together(scale, broken, killed_at=KILLED_AT)
    resumed = _together(scale, broken)
    figures: dict[str, Any] = {}
    missed = []
    for way in ways:
        for what, done in (("the unbroken run", whole[way]), ("the resumed run", resumed[way])):
            if reason := training.why(done):
                raise RuntimeError(f"{what}, {way}, failed: {reason}")
        steps = len(resumed[way]["losses"])
        if steps != STEPS - KILLED_AT + 1:
            missed.append(f"{way}: the killed run was resumed {steps} steps before its end, not {STEPS - KILLED_AT + 1}")
        difference = largest_difference(_path(scale, f"exact-{way}-whole"), _path(scale, f"exact-{way}-broken"))
        notices = [text for text in whole[way]["notices"] if text.startswith("full_determinism")]
        figures[way] = {"difference": difference, "step_s": _step_s(whole[way]), "notices": notices}
    if figures[DETERMINISTIC]["difference"]:
        missed.append(f"with full_determinism a resumed run differs by {figures[DETERMINISTIC]['difference']:.2g}")
    left_out = []
    if PLAIN not in figures:
        left_out.append("what full_determinism costs, which is asked of a card")
    else:
        figures["cost"] = figures[DETERMINISTIC]["step_s"] / figures[PLAIN]["step_s"]
    return Measured(figures, _said(figures), missed, left_out)


def _said(figures: dict[str, Any]) -> str:
    told = [f"{way} {found['difference']:.2g}" for way, found in figures.items() if way != "cost"]
    cost = f"; full_determinism costs {figures['cost'] - 1:+.0%} per step" if "cost" in figures else ""
    return f"largest difference of a weight after a kill at step {KILLED_AT} of {STEPS}: {', '.join(told)}{cost}"


def _run(scale: Scale, name: str, way: str) -> RunDir:
    options = {
        "max_steps": STEPS, "save_steps": KILLED_AT - 1, "gradient_accumulation_steps": 1, "lora.lora_dropout": 0.1,
        "per_device_train_batch_size": scale.of(4, 1), "max_length": scale.of(1024, 64), "full_determinism": way == DETERMINISTIC,
    }  # fmt: skip
    return training.run(scale, name, "1B", training.job(scale, "qlora-sft", options))


def _path(scale: Scale, name: str) -> RunDir:
    return RunDir(scale.folder / "runs" / name)


def _together(scale: Scale, runs: dict[str, RunDir], killed_at: int = 0) -> dict[str, Any]:
    """An attempt of each, side by side. Those that are to be killed leave nothing but their checkpoints."""
    children = {
        way: Child(scale.folder, "tests.gpu.training:train", folder=str(made.path), killed_at=killed_at) for way, made in runs.items()
    }
    found: dict[str, Any] = {}
    for way, one in children.items():
        try:
            found[way] = one.wait(scale.limit_s)
        except ChildFailed:
            if not killed_at:
                raise
        else:
            if killed_at:
                raise RuntimeError(f"the run {way} should have been killed at step {killed_at}, and ended")
    return found


def largest_difference(one: RunDir, other: RunDir) -> float:
    """Of any weight of two adapters."""
    from safetensors.torch import load_file

    first, second = (load_file(made.adapter / "adapter_model.safetensors") for made in (one, other))
    if first.keys() != second.keys():
        raise RuntimeError("the adapters have other tensors")
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


def _step_s(done: dict[str, Any]) -> float:
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(done["step_ends"][WARM:]))
