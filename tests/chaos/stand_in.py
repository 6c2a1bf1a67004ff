"""A trainer without torch: jobs.train with another arithmetic, so that a test can break hundreds of runs.

Its weights are a chain of hashes, one per step, so an adapter tells whether every step was made exactly once, in order.
Files, events, checkpoints, stops and standing by are the real ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from jobs import train
from jobs.config import JobConfig
from jobs.rundir import PROGRESS, RunDir, checkpoint_step, move_into_place
from jobs.trainers.checkpoints import CheckpointStore
from jobs.trainers.events import EventLog
from jobs.trainers.stopping import Stopped, StopWish

MODULE = "tests.chaos.stand_in"
WEIGHTS = "adapter_model.safetensors"


def make(path: Path, steps: int = 10, step_s: float = 0.05, **options: Any) -> RunDir:
    """A run directory for it; `step_s` is how long a step takes."""
    from tests.runs import make_run  # not above: it brings the database, and a trainer has none

    run = make_run(path, rows=2, max_steps=steps, save_steps=2, **options)
    (path / "step_s").write_text(str(step_s), encoding="ascii")
    return run


def chain(steps: int, state: bytes = b"", begun: int = 0) -> bytes:
    for step in range(begun + 1, steps + 1):
        state = hashlib.sha256(state + step.to_bytes(4)).digest()
    return state


def loss(state: bytes) -> float:
    return int.from_bytes(state[:4]) / 2**32


def learn(run: RunDir, attempt: Any, log: EventLog, stop: StopWish) -> dict[str, Any]:
    """As jobs.train._train."""
    config = JobConfig.model_validate(run.read_config())
    step_s = float((run.path / "step_s").read_text(encoding="ascii"))
    with (run.path / "busy").open("w") as busy:
        _refuse_company(run, busy)
        store = CheckpointStore(run, config.save_total_limit)
        store.clean()
        step, state = _resume(run, log)
        stop.begin_keeping()
        log.write("start", step=step, max_steps=config.max_steps)
        while step < config.max_steps:
            time.sleep(step_s)
            step, state = step + 1, chain(step + 1, state, step)
            log.write("progress", step=step, max_steps=config.max_steps, loss=loss(state))
            if step % (config.save_steps or 1) == 0 or stop.is_set or step == config.max_steps:
                store.write(step, lambda folder, state=state: _fill(folder, state))  # type: ignore[misc]
                log.write("checkpoint", step=step)
            if stop.is_set and step < config.max_steps:
                raise Stopped
        _save(attempt.path / "adapter.part", state)
        move_into_place(attempt.path / "adapter.part", run.adapter)
    return {"steps": step}


def _refuse_company(run: RunDir, busy: Any) -> None:
    try:
        fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (run.path / "doubled").touch()
        raise


def _resume(run: RunDir, log: EventLog) -> tuple[int, bytes]:
    found, damaged = run.last_verified_checkpoint()
    for sentence in damaged:
        log.notice(f"Checkpoint {sentence}")
    return (checkpoint_step(found), (found / "adapter" / WEIGHTS).read_bytes()) if found else (0, b"")


def _fill(folder: Path, state: bytes) -> None:
    _save(folder / "adapter", state)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(state * 40)
    (folder / "trainer_state.json").write_text(json.dumps({"state": state.hex()}), encoding="utf-8")
    (folder / PROGRESS).write_text(json.dumps({"seconds": 0.0}), encoding="utf-8")


def _save(folder: Path, state: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_bytes(state)


def take_over() -> None:
    """Make jobs.train of this process a stand-in."""
    train._train = learn
    train._import_in_background = lambda: None


if __name__ == "__main__":
    take_over()
    train.leave(train.main())
