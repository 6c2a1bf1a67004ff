"""Run a module of this room as a child process: work on many rows, outside the process that serves the page.

Hands over OPTIONS and reads OUT as JSON files, passes progress on, and turns what the child says into a StudioError.
"""

from __future__ import annotations

import logging
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from studio import processes
from studio.errors import DatasetError, StudioError

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

PULSE_S = 0.5
READ_BYTES = 65_536

log = logging.getLogger(__name__)


def run_child(
    module: str,
    options: Mapping[str, Any],
    scratch: Path,
    progress: Callable[[str, float], None] | None = None,
    pulse: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """What the child wrote to OUT. Raises StudioError with its words, or one for a defect; a caller that is stopped stops it.

    `pulse` is called every PULSE_S, whether the child speaks or not; what it raises ends the child.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        given, out = folder / "options.json", folder / "out.json"
        given.write_bytes(orjson.dumps(options))
        with (folder / "complaint").open("w+b") as complaint:
            command = processes.module_command(module, str(given), str(out))
            environment = {**processes.child_environment(), **ONE_THREAD}
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaint, env=environment)
            try:
                _listen(child, progress, pulse or (lambda: None))
                code = child.wait()
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
                for pipe in (child.stdin, child.stdout):
                    if pipe:
                        pipe.close()
            if code != 0:
                complaint.seek(0)
                raise _complaint(module, code, complaint.read().decode("utf-8", "replace"))
        answer: dict[str, Any] = orjson.loads(out.read_bytes())
        return answer


def _listen(child: subprocess.Popen[bytes], progress: Callable[[str, float], None] | None, pulse: Callable[[], None]) -> None:
    for line in _lines(child, pulse):
        if progress is not None:
            told = orjson.loads(line)
            progress(told["stage"], told["share"])


def _lines(child: subprocess.Popen[bytes], pulse: Callable[[], None]) -> Iterator[bytes]:
    """What the child writes to its standard output, until it closes it."""
    assert child.stdout is not None
    held, due = b"", time.monotonic() + PULSE_S
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            is_talking = bool(selector.select(max(due - time.monotonic(), 0)))
            if time.monotonic() >= due:
                pulse()
                due = time.monotonic() + PULSE_S
            if not is_talking:
                continue
            read = os.read(child.stdout.fileno(), READ_BYTES)
            if not read:
                return
            *lines, held = (held + read).split(b"\n")
            yield from lines


def _complaint(module: str, code: int, said: str) -> StudioError:
    lines = said.strip().splitlines() or [""]
    if code == 1:
        try:
            error = orjson.loads(lines[-1])
            return DatasetError(error["message"], error["fix"])
        except (orjson.JSONDecodeError, KeyError, TypeError):
            pass
    log.error("%s ended with %s:\n%s", module, code, said)
    if code < 0:
        return StudioError(
            "The rows could not be checked: the process was killed, perhaps for want of memory.", "Try again with less running."
        )
    return StudioError(f"The rows could not be checked because of a defect in the studio ({lines[-1][:200]}).", "Report it, with the log.")
