"""Freed memory is given back at once only where memory is short: the prediction decides, the worker says so, the trainer tells it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import attempts, executor
from jobs.attempts import TrainingAttempt
from jobs.config import build
from jobs.rundir import RunDir
from studio.catalogue import memory
from tests.predictions import FAMILIES
from tests.runs import STARTER

GIVE_BACK = """
import os, sys
from contextlib import closing
from pathlib import Path
from jobs.trainers import base
from jobs.trainers.events import EventLog
folder = Path(sys.argv[1])
with closing(EventLog(folder / "events.jsonl")) as log:
    for size, large_pages in ((2**27, "0"), (2**20, "1"), (2**27, "1")):
        os.truncate(folder / "model.safetensors", size)
        os.environ["THP_MEM_ALLOC_ENABLE"] = large_pages
        print(base.give_back_freed_memory(folder, log))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
def test_a_large_model_is_trained_with_care_where_that_is_asked_for_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    command = [sys.executable, "-c", GIVE_BACK, str(tmp_path)]
    done = subprocess.run(command, env=executor.trainer_environment(1), capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line in ("True", "False")] == ["False", "False", "True"]
    [event] = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert event["text"].startswith("Memory is short for this job")


def test_a_prediction_with_kept_memory_is_higher_on_a_processor_alone() -> None:
    config, job = {"model_type": "llama", **FAMILIES["llama"]}, build({})
    with_care, without = (memory.predict(config, job, device="cpu", gives_back=gives_back).total for gives_back in (True, False))
    assert with_care < without < 1.3 * with_care
    assert memory.predict(config, job, device="cuda", gives_back=False) == memory.predict(config, job, device="cuda")


@pytest.mark.parametrize(("times", "is_short"), [(0.0, False), (1e9, True)])
def test_memory_is_short_where_the_prediction_does_not_leave_room(monkeypatch: pytest.MonkeyPatch, times: float, is_short: bool) -> None:
    monkeypatch.setattr(attempts, "ROOM", times)
    attempt = TrainingAttempt.__new__(TrainingAttempt)
    assert attempt._is_short_of_memory(build({"model_name_or_path": str(STARTER), "device": "cpu"})) is is_short
    assert not attempt._is_short_of_memory(build({"model_name_or_path": str(STARTER), "device": "cuda"}))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("spares", [True, False])
def test_a_trainer_that_spares_memory_is_started_anew_with_large_pages(tmp_path: Path, spares: bool) -> None:
    asked: list[int] = []

    class Warm:
        def begin(self, run: RunDir, number: int, threads: int, visible: str | None) -> Any:
            asked.append(number)

    child = executor.submit(RunDir(tmp_path), 1, 1, Warm(), module="asyncio", spares_memory=spares)  # it waits on stdin
    try:
        environment = Path(f"/proc/{child.pid}/environ").read_bytes().split(b"\0")
    finally:
        executor.close(child)
    assert (b"THP_MEM_ALLOC_ENABLE=1" in environment) is spares
    assert asked == [1] * (not spares)
