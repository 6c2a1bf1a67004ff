"""CPU seconds of the steps of one small training, its points written or not in turn: `python -m tests.bench._steps FOLDER BLOCKS`.

Of every four steps the first and the last are reported with all that is read then (loss, rates, memory, use), the two between
are not. A machine's speed wanders by more than is measured here; within four steps it does not. Evaluations and sample answers
are not part of a step. Prints the sums of every four as JSON: {"on": […], "off": […]}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from jobs.config import JobConfig
from jobs.trainers import sft
from jobs.trainers.events import EventLog
from jobs.trainers.stopping import StopWish
from jobs.trainers.watch import Watch
from tests.runs import make_run

BLOCK, ON = 4, (0, 3)
WARM = 5 * BLOCK  # the first steps allocate and compile


class Clock(TrainerCallback):
    """Notes when each step begins, and has only some of them reported."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun.append(time.process_time())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log = (state.global_step - 1) % BLOCK in ON


def measure(folder: Path, blocks: int) -> tuple[list[float], list[float]]:
    clock, attach = Clock(), Watch.attach

    def attach_with_clock(watch: Watch, trainer: Any) -> None:
        attach(watch, trainer)
        trainer.add_callback(clock)

    Watch.attach = attach_with_clock  # type: ignore[assignment, method-assign]
    steps = WARM + blocks * BLOCK + 1  # the last one ends the run
    every: dict[str, Any] = {"max_steps": steps, "save_steps": steps, "eval_steps": steps, "logging_steps": 1}
    run = make_run(folder, recipe="lora-sft", rows=96, sample_answers=0, measure_drift=False, **every)
    log = EventLog(run.attempt(1).events)
    try:
        sft.train(run, JobConfig.model_validate_json(run.config.read_text(encoding="utf-8")), folder / "out", log, StopWish())
    finally:
        Watch.attach = attach  # type: ignore[method-assign]
        log.close()
    took = [later - earlier for earlier, later in zip(clock.begun[WARM:-1], clock.begun[WARM + 1 :], strict=True)]
    groups = [took[start : start + BLOCK] for start in range(0, blocks * BLOCK, BLOCK)]
    on = [sum(seconds for place, seconds in enumerate(group) if place in ON) for group in groups]
    return on, [sum(group) - own for group, own in zip(groups, on, strict=True)]


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers, sys.stdout = sys.stdout, sys.stderr
    on, off = measure(Path(sys.argv[1]) / "run", int(sys.argv[2]))
    json.dump({"on": on, "off": off}, answers)


if __name__ == "__main__":
    main()
