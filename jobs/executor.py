"""Where a run executes: submit, poll, stop, logs. Today a local child process; it leads a session of its own.

The child's stdin is a pipe that nobody writes to: its end tells the trainer that its worker is gone, however that ended.
Knows run directories and processes; no database and no queue.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from jobs.kinds import KINDS
from jobs.rundir import Attempt, RunDir, write_json
from studio import processes
from studio.catalogue import hardware
from studio.records import JobKind
from studio.settings import checkout

ENVIRONMENT_PACKAGES = ("adapter-studio", "torch", "transformers", "peft", "trl", "bitsandbytes", "tokenizers", "safetensors", "numpy")
TRAINER, EXPORTER = (KINDS[kind].program for kind in (JobKind.TRAIN, JobKind.EXPORT))  # they work on a run directory
SPARING = {"THP_MEM_ALLOC_ENABLE": "1"}  # torch asks Linux for large pages, which makes fresh memory cheaper
OOM_SCORE = 800  # when memory runs out the kernel shall take the trainer, not the page or the worker


@dataclass(frozen=True)
class Exit:
    """How a child ended: its exit code, minus the signal that killed it, or None where that can't be known any more."""

    code: int | None
    ran_out_of_memory: bool = False


@dataclass(frozen=True)
class Child:
    """A running attempt. Only the thread that started it may poll it."""

    process: subprocess.Popen[bytes]
    born: float
    oom_kills_before: int

    @property
    def pid(self) -> int:
        return self.process.pid


class WarmTrainers(Protocol):
    """Trainers that have done their imports (jobs.warm)."""

    def begin(self, run: RunDir, number: int, threads: int, visible: str | None = None) -> subprocess.Popen[bytes] | None: ...


def command(*arguments: str, module: str = TRAINER) -> list[str]:
    return processes.module_command(module, *arguments)


def submit(
    run: RunDir,
    number: int,
    threads: int,
    warm: WarmTrainers | None = None,
    module: str = TRAINER,
    visible: str | None = None,
    spares_memory: bool = False,
) -> Child:
    """Start attempt `number` of a run with at most `threads` threads of arithmetic, in a process that is kept `warm` or a new one.

    `visible`: its CUDA_VISIBLE_DEVICES, one GPU or none; None leaves it as it is here. `spares_memory`: see
    jobs.trainers.base.give_back_freed_memory; it has to be known before torch is imported, so never warm.
    """
    attempt = run.attempt(number)
    attempt.path.mkdir(parents=True, exist_ok=True)
    write_json(attempt.path / "environment.json", environment(threads, visible))
    before = processes.oom_kills()
    process = None
    if warm is not None and not spares_memory:
        process = warm.begin(run, number, threads, visible)
    if process is None:
        variables = trainer_environment(threads, visible, for_loggers=module == TRAINER)
        if spares_memory:
            variables |= SPARING
        process = _start(run, number, module, variables)
    return Child(process, processes.born(process.pid) or -1.0, before)


def _start(run: RunDir, number: int, module: str, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    with run.attempt(number).log.open("ab") as log:
        process = subprocess.Popen(
            command(str(run.path), "--attempt", str(number), "--watch-stdin", module=module),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=run.path,
            env=variables,
            start_new_session=True,
        )
    set_oom_score(process.pid, OOM_SCORE)
    return process


def poll(child: Child) -> Exit | None:
    """None while it runs. Afterwards how it ended, and everything it started is gone too."""
    code: int | None
    if hasattr(os, "waitid"):
        try:
            # look without reaping: Popen.poll would call an exit status that somebody else has taken "0", which is success
            found = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return Exit(None)
        if found is None:
            return None
        code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    else:
        code = child.process.poll()
        if code is None:
            return None
    processes.signal_group(child.pid, getattr(signal, "SIGKILL", signal.SIGTERM))  # before reaping: the PID is still taken
    child.process.wait()
    return Exit(code, ran_out_of_memory=processes.oom_kills() > child.oom_kills_before)


def stop(child: Child) -> None:
    """Ask it to write a checkpoint and leave."""
    with contextlib.suppress(ProcessLookupError):
        child.process.send_signal(signal.SIGTERM)


def kill(child: Child) -> None:
    """End it and everything it started, now."""
    processes.kill_group(child.pid, child.born)


def close(child: Child) -> None:
    """Let go of a child that has ended, or end it."""
    kill(child)
    if child.process.stdin:
        child.process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.process.wait(timeout=5)


def environment(threads: int, visible: str | None = None) -> dict[str, Any]:
    """What a run's figures depend on besides its config: versions, device, threads."""
    versions = {}
    for package in ENVIRONMENT_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    found = [one for one in hardware.devices() if one.selector == visible] or hardware.usable()
    devices = [{"name": device.name, "kind": device.kind, "memory_bytes": device.memory_bytes} for device in found]
    machine = {"platform": platform.platform(), "machine": platform.machine(), "devices": devices, "threads": threads}
    return {"versions": {"python": platform.python_version(), **versions}, "hardware": machine}


def logs(attempt: Attempt, tail_lines: int) -> str:
    """The last lines of an attempt's log."""
    return last_lines(attempt.log, tail_lines)


def last_lines(path: Path, count: int) -> str:
    """The end of a text file, read from its end."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size, block = file.seek(0, os.SEEK_END), b""
        while size > 0 and block.count(b"\n") <= count:
            step = min(65536, size)
            size -= step
            file.seek(size)
            block = file.read(step) + block
        return "\n".join(block.decode("utf-8", "replace").splitlines()[-count:])
    return ""


def trainer_environment(threads: int, visible: str | None = None, for_loggers: bool = True) -> dict[str, str]:
    """The environment variables of a trainer: ours without secrets, its GPU (see `submit`), and its share of the threads."""
    ours = processes.child_environment(for_loggers=for_loggers)
    if visible is not None:
        ours["CUDA_VISIBLE_DEVICES"] = visible
    # an installed wheel needs no path: site-packages on PYTHONPATH would come before the standard library
    path = os.pathsep.join(filter(None, [str(checkout() or ""), ours.get("PYTHONPATH", "")]))
    if hardware.has_expandable_segments():  # fewer gaps between blocks; a person's own setting counts
        ours = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **ours}
    return {
        **ours,
        "PYTHONPATH": path,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def set_oom_score(pid: int, score: int) -> None:
    """How much sooner than others the kernel shall take this process when memory runs out; Linux only."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(score), encoding="ascii")
