"""Functions in processes of their own: `python -m tests.gpu.child FOLDER` runs the one that FOLDER/call.json names.

A process starts anew, as a card needs it: CUDA does not survive a fork. Where nothing is computed on a card, a process that has done its
imports (`preload`) forks instead, which saves each child ten seconds of imports; all else is the same. A child writes its answer to
FOLDER/answer.json and everything that it prints to FOLDER/log.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOK_S = 0.05
TAIL = 12  # lines of a log that an error quotes
KILLED = "ended at its limit of time"

_preloaded: list[bool] = []


class ChildFailed(RuntimeError):
    """The child's own words: its last line, or why it ended."""


def preload() -> None:
    """Import what children need, so that they can be forked. Nothing is computed: a fork keeps no threads."""
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TORCHDYNAMO_DISABLE="1", OMP_NUM_THREADS="1")
    from jobs.trainers import sft

    sft.import_libraries()
    for name in ("studio.engine.local", "studio.engine.intake", "studio.engine.decoding", "studio.services.scripts", "jobs.export"):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else each collection of each child walks, and copies, all that was imported
    _preloaded.append(True)


class Child:
    """A function that runs in a process of its own. `function` is MODULE:NAME; its arguments and its answer are JSON."""

    _numbers = itertools.count(1)

    def __init__(self, work: Path, function: str, *, leads: bool = False, env: dict[str, str] | None = None, **arguments: Any) -> None:
        """`leads`: its own group of processes, which `kill` ends whole. `env`: variables beside those of this process."""
        name = function.replace("tests.gpu.", "").replace(":", ".")
        self.folder = work / "children" / f"{os.getpid()}-{next(self._numbers)}-{name}"
        self.folder.mkdir(parents=True)
        self._leads = leads
        (self.folder / "call.json").write_text(json.dumps({"function": function, "arguments": arguments}), encoding="utf-8")
        self._code: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        if _preloaded:
            self.pid = self._forked(env or {})
        else:
            self.pid = self._started(env or {})

    def _started(self, env: dict[str, str]) -> int:
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.gpu.child", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
                start_new_session=self._leads,
            )
        return self._process.pid

    def _forked(self, env: dict[str, str]) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            return pid
        code = 1
        try:
            if self._leads:
                os.setsid()
            os.environ.update(env)
            log = os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            nothing = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((nothing, 0), (log, 1), (log, 2)):
                os.dup2(source, target)
            code = run(self.folder)
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:  # noqa: BLE001 - a forked child must never go on as its parent
            traceback.print_exc()
        finally:
            os._exit(code)

    def poll(self) -> int | None:
        """Its exit code, minus the signal that killed it; None while it runs."""
        if self._code is not None:
            return self._code
        if self._process is not None:
            self._code = self._process.poll()
            return self._code
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def kill(self) -> None:
        """End it now, with all that it leads."""
        with contextlib.suppress(ProcessLookupError):
            if self._leads:
                os.killpg(self.pid, signal.SIGKILL)
            elif self.poll() is None:
                os.kill(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(LOOK_S)

    def wait(self, limit_s: float, meanwhile: Callable[[], object] = lambda: None) -> Any:
        """Its answer. `meanwhile` is called again and again. Raises ChildFailed where there is none, at the latest after `limit_s`."""
        deadline = time.monotonic() + limit_s
        while self.poll() is None:
            meanwhile()
            if time.monotonic() > deadline:
                self.kill()
                raise ChildFailed(KILLED)
            time.sleep(LOOK_S)
        if self._leads:
            self.kill()  # whatever it has left behind
        try:
            return json.loads((self.folder / "answer.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise ChildFailed(self.last_words()) from None

    def log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.folder / "log").read_text(encoding="utf-8", errors="replace")
        return ""

    def last_words(self) -> str:
        lines = [line for line in self.log().splitlines() if line.strip()]
        return f"{lines[-1].strip() if lines else 'no words'} (exit code {self._code}, {self.folder / 'log'})"


def call(work: Path, function: str, limit_s: float, *, env: dict[str, str] | None = None, **arguments: Any) -> Any:
    """The answer of a function in a process of its own. Raises ChildFailed."""
    return Child(work, function, env=env, **arguments).wait(limit_s)


def run(folder: Path) -> int:
    """In the child: call the function and write its answer, whole or not at all."""
    asked = json.loads((folder / "call.json").read_text(encoding="utf-8"))
    module, _, name = asked["function"].partition(":")
    try:
        answer = getattr(importlib.import_module(module), name)(**asked["arguments"])
    except Exception:  # noqa: BLE001 - the edge of the process
        traceback.print_exc()
        return 1
    (folder / "answer.part").write_text(json.dumps(answer), encoding="utf-8")
    (folder / "answer.part").replace(folder / "answer.json")
    return 0


if __name__ == "__main__":
    sys.exit(run(Path(sys.argv[1])))
