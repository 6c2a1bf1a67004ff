"""Trainings for the parts of `make gpu`: run directories as a launch writes them, and the trainer itself in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs import config as job_config
from jobs import recipes
from jobs.config import JobConfig
from jobs.rundir import RunDir
from studio.catalogue import hardware, memory
from tests.bench.memory import row
from tests.gpu import models
from tests.gpu.scale import GIB, Scale

HELD_OUT = 8
PLAIN = {"test_size": 0.0, "sample_answers": 0, "measure_drift": False, "load_best_model_at_end": False, "num_threads": 0}


def job(scale: Scale, recipe: str, *options: Mapping[str, Any]) -> JobConfig:
    """The options of a training here; nothing is watched unless `options` say so."""
    here = {"device": scale.device, **PLAIN}
    if scale.is_reduced:
        here["num_threads"] = 1
    return job_config.build(recipes.get(recipe).options, here, *options)


def run(scale: Scale, name: str, size: str, config: JobConfig) -> RunDir:
    """A run directory of `config` on a base of this size, with as many rows as its steps need."""
    made = RunDir(scale.folder / "runs" / name)
    made.path.mkdir(parents=True)
    placed = {"base_model": size, "model_name_or_path": str(models.base(scale, size))}
    made.write_config({**config.model_dump(mode="json"), **placed})
    each = config.per_device_train_batch_size * config.gradient_accumulation_steps
    count = max(config.max_steps, 1) * each
    if config.packing:
        count *= 3  # rows that fill no sequence alone
    made.train.write_text("".join(row(number, config) + "\n" for number in range(count)), encoding="utf-8")
    if config.test_size:
        made.eval.write_text("".join(row(number, config) + "\n" for number in range(HELD_OUT)), encoding="utf-8")
    return made


def lacks_room(scale: Scale, size: str, config: JobConfig) -> str:
    """Why this card is too small for a training, in a few words; empty where it is not, and on a processor."""
    device = hardware.usable()[0]
    if device.kind != "cuda":
        return ""
    needed = memory.predict(models.config(scale, size), config, device="cuda").total
    if needed <= device.memory_bytes:
        return ""
    return f"it needs {needed / GIB:.1f} GiB, and the card has {device.memory_bytes / GIB:.1f}"


def train(folder: str, cap_bytes: int = 0, scaler: list[float] | None = None, killed_at: int = 0) -> dict[str, Any]:
    """In a child: one attempt by the trainer's own program. Its result, the peak while the base was loaded, its notices, its steps' ends.

    `cap_bytes`: the most that torch may take of the card. `scaler`: first scale, growth, back-off and interval of growth of torch's
    GradScaler. `killed_at`: the step whose report is the last thing that this process does.
    """
    import torch

    from jobs import train as trainer
    from jobs.trainers import base

    if cap_bytes and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(cap_bytes / torch.cuda.get_device_properties(0).total_memory)
    if scaler:
        vars(torch.amp.GradScaler)["__init__"].__defaults__ = ("cuda", *scaler, True)  # torch's own, which nobody here overrides
    loaded: list[int] = []
    load = base.load

    def load_and_look(*arguments: Any) -> Any:
        model = load(*arguments)
        if torch.cuda.is_available():
            loaded.append(int(torch.cuda.max_memory_reserved()))
        return model

    vars(base)["load"] = load_and_look
    if killed_at:
        _die_at(killed_at)
    ends = step_ends()
    made = RunDir(Path(folder))
    number = made.next_attempt()
    code = trainer.main([folder, "--attempt", str(number)])
    attempt = made.attempt(number)
    result: dict[str, Any] = {}
    if attempt.result.is_file():
        result = json.loads(attempt.result.read_text(encoding="utf-8"))
    events = attempt.read_events(0)[0]
    return {
        "code": code,
        "result": result,
        "load_peak_bytes": loaded[0] if loaded else None,
        "notices": [event["text"] for event in events if event["type"] == "notice"],
        "losses": [event["loss"] for event in events if event["type"] == "progress"],
        "step_ends": ends,
    }


def _die_at(step: int) -> None:
    """As if somebody had killed this process then."""
    from jobs.trainers.events import EventLog

    write = EventLog.write

    def write_and_die(self: EventLog, kind: str, **values: Any) -> None:
        write(self, kind, **values)
        if kind == "progress" and values["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    written: Any = EventLog
    written.write = write_and_die


def step_ends() -> list[float]:
    """Fills with the time of every step's end, of whatever training of transformers this process runs."""
    from transformers.trainer_callback import CallbackHandler

    ends: list[float] = []
    on_step_end = CallbackHandler.on_step_end

    def note(self: Any, *arguments: Any, **more: Any) -> Any:
        done = on_step_end(self, *arguments, **more)
        ends.append(time.perf_counter())
        return done

    handler: Any = CallbackHandler
    handler.on_step_end = note
    return ends


def why(trained: Mapping[str, Any]) -> str:
    """What a training that has not ended well says of it; empty for one that has."""
    if trained["code"] == 0:
        return ""
    found = trained["result"]
    return f"{found.get('reason', 'It left no result.')} {found.get('fix', '')}".strip()
