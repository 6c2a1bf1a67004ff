"""Questions to transformers and peft, asked in a child process: `python -m MODULE FOLDER …` answers with one line of JSON.

The web process imports no library, and a config.json may describe a model that takes all memory or crashes the library.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from studio import lifeline, processes
from studio.errors import ModelError, one_line

PATIENCE_S = 300.0
MOST_BYTES = 12 * 1024**3  # of the child's memory: a config.json may ask for any number of layers
MOST_ANSWER = 64 * 1024**2  # bytes
MOST_CHILDREN = 2  # at a time, each with all that memory

_children = threading.BoundedSemaphore(MOST_CHILDREN)


class Unanswered(ModelError):
    """The child was killed, or said more than an answer holds. Another try may end otherwise."""


def ask(module: str, folder: Path, *arguments: str, failure: str = "", cause: str = "config.json") -> Any:
    """What `module` answers about `folder`. Raises ModelError with its reason.

    `failure` and `cause` are for a child that was killed: what did not happen, and the file that may be to blame.
    """
    environment = {**processes.child_environment(), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = processes.module_command(module, str(folder), *arguments)
    with _children:
        printed = processes.output_of(command, environment, PATIENCE_S, MOST_ANSWER)
    try:
        found = json.loads(printed.splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        failure = failure or f"{folder} describes a model that could not be built"
        said = f"{failure}: its process was killed for taking too much memory or time."
        raise Unanswered(said, f"Check its {cause}.") from None
    if error := found["error"]:
        raise ModelError(error["message"], error["fix"])
    return found["answer"]


def answer(work: Callable[[Path, list[str]], Any]) -> None:
    """The child's side: prints what `work` returns for the folder and the other arguments, or why it can't."""
    lifeline.end_with_parent()
    _limit_memory()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print; the pipe carries the answer only
    folder = Path(sys.argv[1])
    said: dict[str, Any] = {"error": None}
    try:
        said["answer"] = work(folder, sys.argv[2:])
    except ModelError as exc:
        said["error"] = exc.as_json()
    except Exception as exc:  # noqa: BLE001 - the edge of this process: whatever transformers says about a config.json becomes one line
        said["error"] = {"message": f"{folder} describes a model that can't be built ({one_line(exc)}).", "fix": "Check its config.json."}
    print(json.dumps(said), file=out, flush=True)


def _limit_memory() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):  # not everywhere
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
