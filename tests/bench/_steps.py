"""CPU seconds of each step of small trainings, all that is watched on and off in turn: `python -m tests.bench._steps FOLDER PAIRS`.

Between the beginning of a step and of the next: points, memory and use are read there, evaluations and samples are not.
Prints the median of every run as JSON, {"on": […], "off": […]}, in the order A B B A.
"""

from __future__ import annotations

import json
import os
import statistics
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

STEPS = 40
OFF = {"logging_steps": 10**6, "sample_answers": 0, "measure_drift": False}


class Clock(TrainerCallback):
    """Notes when each step begins."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.begun.append(time.process_time())


def measure(folder: Path, options: dict[str, Any]) -> float:
    clock, attach = Clock(), Watch.attach

    def attach_with_clock(watch: Watch, trainer: Any) -> None:
        attach(watch, trainer)
        trainer.add_callback(clock)

    Watch.attach = attach_with_clock  # type: ignore[method-assign]
    every = {"max_steps": STEPS, "save_steps": STEPS, "eval_steps": STEPS, "early_stopping_patience": None}
    run = make_run(folder, recipe="lora-sft", rows=96, **{**every, **options})
    log = EventLog(run.attempt(1).events)
    try:
        sft.train(run, JobConfig.model_validate_json(run.config.read_text(encoding="utf-8")), folder / "out", log, StopWish())
    finally:
        Watch.attach = attach  # type: ignore[method-assign]
        log.close()
    return statistics.median(later - earlier for earlier, later in zip(clock.begun[2:-1], clock.begun[3:], strict=True))


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers, sys.stdout = sys.stdout, sys.stderr
    found: dict[str, list[float]] = {"on": [], "off": []}
    folder = Path(sys.argv[1])
    measure(folder / "first", {})
    for pair in range(int(sys.argv[2])):
        for kind in ("on", "off") if pair % 2 == 0 else ("off", "on"):
            found[kind].append(measure(folder / f"{kind}-{pair}", OFF if kind == "off" else {"logging_steps": 1}))
    json.dump(found, answers)


if __name__ == "__main__":
    main()
