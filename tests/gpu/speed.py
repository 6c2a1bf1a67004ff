"""Part `speed`: a job beside the bare script that `studio jobs script` writes for it: tokens per second of the middle step.

Job, script, script, job: what a machine does slower with time then counts for both. The first steps, which compile and warm, do not count.
"""

from __future__ import annotations

import itertools
import runpy
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from jobs.rundir import RunDir
from studio.services.scripts import ScriptWriter
from tests.gpu import child, training
from tests.gpu.outcome import Measured
from tests.gpu.scale import Scale

LEAST = 0.97
WARM = 3  # steps


@dataclass(frozen=True)
class Pair:
    """A training that is done by a job and by its script. `seconds`: of one of both, about."""

    name: str
    size: str
    recipe: str
    options: dict[str, Any]
    seconds: int


PAIRS = (
    Pair("1B 4 x 1024", "1B", "lora-sft", {"per_device_train_batch_size": 4, "max_length": 1024}, 16),
    Pair("8B NF4 1 x 2048", "8B", "qlora-sft", {"per_device_train_batch_size": 1, "max_length": 2048, "gradient_checkpointing": True}, 30),
)
SHORT = {"per_device_train_batch_size": 1, "max_length": 64}


def measure(scale: Scale) -> Measured:
    figures: dict[str, Any] = {}
    missed: list[str] = []
    left_out: list[str] = []
    for pair in scale.of(PAIRS, PAIRS[1:]):
        found = _compare(scale, pair, left_out)
        if found is None:
            continue
        figures[pair.name] = found
        if not scale.is_reduced and found["ratio"] < LEAST:
            missed.append(f"{pair.name}: {found['ratio']:.2f} of the script's tokens/s, at least {LEAST} is promised")
    if scale.is_reduced:
        left_out.append("how fast a job is beside its script, which is asked of a card")
    said = ", ".join(f"{name} {one['job']:,.0f} tokens/s beside {one['script']:,.0f} ({one['ratio']:.2f})" for name, one in figures.items())
    return Measured(figures, said, missed, left_out)


def _compare(scale: Scale, pair: Pair, left_out: list[str]) -> dict[str, Any] | None:
    steps = scale.of(20, WARM + 2)
    cadence = {"max_steps": steps, "save_steps": steps, "logging_steps": 1}
    config = training.job(scale, pair.recipe, cadence, pair.options, scale.of({}, SHORT))
    if reason := training.lacks_room(scale, pair.size, config):
        left_out.append(f"{pair.name}: {reason}")
        return None
    tokens, ends = 0, dict[str, list[list[float]]](job=[], script=[])
    for number, who in enumerate(scale.of(("job", "script", "script", "job"), ("job", "script"))):
        if not scale.has_time(pair.seconds) and number >= 2:
            left_out.append(f"the second round of {pair.name}")
            break
        if not scale.has_time(pair.seconds):
            left_out.append(f"{pair.name}: {scale.left_s:.0f} s are left")
            return None
        made = training.run(scale, f"speed-{pair.size}-{number}", pair.size, config)
        if who == "job":
            done = child.call(scale.folder, "tests.gpu.training:train", scale.limit_s, folder=str(made.path))
            if reason := training.why(done):
                raise RuntimeError(f"the job {pair.name} failed: {reason}")
            tokens = done["result"]["metrics"]["tokens"]
        else:
            script = _script(made, pair.name)
            done = child.call(scale.folder, "tests.gpu.speed:run_script", scale.limit_s, script=str(script))
        if len(done["step_ends"]) != steps:
            raise RuntimeError(f"the {who} of {pair.name} took {len(done['step_ends'])} steps, not {steps}")
        ends[who].append(done["step_ends"])
    speeds = {who: tokens / steps / middle_step_s(found) for who, found in ends.items()}
    return {**speeds, "ratio": speeds["job"] / speeds["script"], "steps": steps, "tokens_of_a_step": tokens / steps}


def _script(made: RunDir, name: str) -> Path:
    script = made.path / "bare.py"
    ScriptWriter.of(name, JobConfig.model_validate(made.read_config()), made).write(script)
    return script


def middle_step_s(rounds: list[list[float]]) -> float:
    """Seconds of the middle one of the steps that count."""
    return statistics.median(later - earlier for ends in rounds for earlier, later in itertools.pairwise(ends[WARM - 1 :]))


def run_script(script: str) -> dict[str, Any]:
    """In a child: run a script as `python SCRIPT` does; when its steps ended."""
    ends = training.step_ends()
    sys.argv = [script, str(Path(script).with_name("adapter-of-script"))]
    runpy.run_path(script, run_name="__main__")
    return {"step_ends": ends}
