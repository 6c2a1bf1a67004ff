"""A trainer that is kept ready: it trains to the same bytes as a cold one, and is there only where it does no harm."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs import executor, warm
from jobs.outcome import judge
from jobs.rundir import RunDir, sha256
from jobs.warm import SPARE_BYTES, TIGHT_BYTES, ReadyTrainer
from studio import processes
from studio.catalogue import hardware
from studio.catalogue.hardware import Memory
from tests.chaos import stand_in
from tests.runs import make_run
from tests.workers import wait_for


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReadyTrainer]:
    monkeypatch.setattr(warm, "QUIET_S", 0.0)
    trainer = ReadyTrainer(threads=1)
    yield trainer
    trainer.close()


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "command", lambda *arguments, **_: [sys.executable, "-P", "-m", stand_in.MODULE, *arguments])


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many bytes of memory are free from now on."""

    def say(free_bytes: int) -> None:
        monkeypatch.setattr(hardware, "memory", lambda: Memory(free_bytes, 0))

    say(SPARE_BYTES)
    return say


def finish(run: RunDir, child: executor.Child) -> None:
    ended = wait_for(lambda: executor.poll(child))
    assert ended
    assert judge(ended, run.attempt(1), we_asked=False).kind == "succeeded", executor.logs(run.attempt(1), 20)
    executor.close(child)


def niceness(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, pid)


@pytest.mark.long
def test_a_ready_trainer_makes_the_same_bytes_as_a_cold_one(tmp_path: Path, ready: ReadyTrainer) -> None:
    runs = [make_run(tmp_path / name, rows=8, num_train_epochs=1, eval_steps=1) for name in ("cold", "warm")]
    ready.tend(is_quiet=True)
    child = executor.submit(runs[0], 1, threads=1)
    finish(runs[0], child)
    waiting = ready._process
    assert waiting is not None and "jobs.ready" in psutil.Process(waiting.pid).cmdline()
    assert ready.begin(runs[1], 1, threads=2) is None  # its threads are settled
    child = executor.submit(runs[1], 1, threads=1, warm=ready)
    assert child.pid == waiting.pid and child.born > 0 and ready._process is None
    assert niceness(child.pid) == niceness(os.getpid())
    wait_for(lambda: (runs[1].attempt(1).path / "events.jsonl").exists())
    assert psutil.Process(child.pid).cmdline()[1:8] == executor.command(str(runs[1].path), "--attempt", "1", "--watch-stdin")[1:]
    finish(runs[1], child)
    assert len({sha256(run.adapter / "adapter_model.safetensors") for run in runs}) == 1
    losses = [[e.get("loss") for e in run.attempt(1).read_events(0)[0] if e["type"] in ("progress", "eval")] for run in runs]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert "loss on held-out rows" in runs[1].attempt(1).log.read_text()
    assert {p.name for p in runs[1].attempt(1).path.iterdir()} == {p.name for p in runs[0].attempt(1).path.iterdir()}


def test_it_trains_one_job_and_the_next_one_starts_cold(tmp_path: Path, stand_ins: None, free: object, ready: ReadyTrainer) -> None:
    first, second = (stand_in.make(tmp_path / name, steps=4) for name in ("first", "second"))
    ready.tend(is_quiet=True)
    process = ready._process
    assert process
    one = executor.submit(first, 1, threads=1, warm=ready)
    other = executor.submit(second, 1, threads=1, warm=ready)
    assert one.pid == process.pid != other.pid
    finish(first, one)
    finish(second, other)


def test_one_that_died_while_it_waited_is_no_loss(tmp_path: Path, stand_ins: None, free: object, ready: ReadyTrainer) -> None:
    run = stand_in.make(tmp_path / "run", steps=4)
    ready.tend(is_quiet=True)
    assert ready._process
    ready._process.kill()
    finish(run, executor.submit(run, 1, threads=1, warm=ready))


def test_one_that_somebody_has_stopped_is_not_given_a_job(tmp_path: Path, stand_ins: None, free: object, ready: ReadyTrainer) -> None:
    run = stand_in.make(tmp_path / "run", steps=4)
    ready.tend(is_quiet=True)
    process = ready._process
    assert process
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: processes.is_stopped(process.pid))
    finish(run, executor.submit(run, 1, threads=1, warm=ready))
    ready.tend(is_quiet=True)
    assert process.poll() is not None  # and it does not stay


def test_the_next_one_is_made_once_the_training_has_begun(tmp_path: Path, stand_ins: None, free: object, ready: ReadyTrainer) -> None:
    run = stand_in.make(tmp_path / "run", steps=100)
    ready._quiet_since = time.monotonic() + 1000
    child = executor.submit(run, 1, threads=1, warm=ready)
    ready.tend(is_quiet=False)
    assert ready._process is None
    wait_for(lambda: any(event["type"] == "start" for event in run.attempt(1).read_events(0)[0]))
    ready.tend(is_quiet=False)
    assert ready._process is not None
    executor.close(child)


def test_memory_decides_whether_it_is_there(
    tmp_path: Path, stand_ins: None, free: Callable[[int], None], ready: ReadyTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(SPARE_BYTES - 1)
    ready.tend(is_quiet=True)
    assert ready._process is None
    free(SPARE_BYTES)
    ready.tend(is_quiet=True)
    process = ready._process
    assert process is not None
    free(TIGHT_BYTES)
    ready.tend(is_quiet=True)
    assert ready._process is None and process.poll() is not None
    free(SPARE_BYTES)
    ready.tend(is_quiet=True)
    assert ready._process is None  # not before a training begins
    finish(run := stand_in.make(tmp_path / "run", steps=2), executor.submit(run, 1, threads=1, warm=ready))
    ready.tend(is_quiet=True)
    assert ready._process is not None
    monkeypatch.setattr(warm, "IDLE_S", 0.0)
    ready.tend(is_quiet=True)
    assert ready._process is None  # it waits for nobody for ever


def test_a_process_that_waits_ends_with_its_stdin(stand_ins: None, free: object, ready: ReadyTrainer) -> None:
    ready.tend(is_quiet=True)
    process = ready._process
    assert process and process.stdin
    process.stdin.close()
    assert process.wait(timeout=120) == 0
