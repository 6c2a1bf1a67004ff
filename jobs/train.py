"""Train one job: `python -m jobs.train RUN_DIR`. Knows nothing of the UI, the queue or the database.

With `--stand-by` (as jobs.ready) it does its imports first and waits on stdin for one line, `{"run_dir": …, "attempt": …}`; it
ends when stdin does. Exit codes: 0 done, and this attempt's result.json says so; 1 failed, and it says why; 75 stopped at request.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import faulthandler
import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from jobs.config import JobConfig
from jobs.rundir import BALLAST_BYTES, STOPPED, Attempt, RunDir, move_into_place, write_json
from jobs.trainers import stopping, title
from jobs.trainers.events import EventLog
from jobs.trainers.failures import explain
from jobs.trainers.stopping import Stopped, StopWish


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description="Train the job of a run directory.")
    parser.add_argument("run_dir", type=Path, nargs="?")
    parser.add_argument("--attempt", type=int, help="number of this attempt; the next one where it is left out")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when stdin ends: whoever started this is gone")
    parser.add_argument("--stand-by", action="store_true", help="do the imports, then wait on stdin for what to train; for workers")
    parser.add_argument("--room", help="says nothing: room for the command line that --stand-by will show once it trains")
    arguments = parser.parse_args(argv)
    if arguments.stand_by:
        return _stand_by()
    if arguments.run_dir is None:
        parser.error("name the folder of a run")
    run = RunDir(arguments.run_dir.absolute())
    if not run.config.is_file():
        print(f"{run.path} is no run directory: it has no config.json. Name the folder of a run.", file=sys.stderr)
        return 1
    faulthandler.enable()
    stop = StopWish()
    stop.listen(arguments.watch_stdin)
    _prepare_environment()
    return _attempt(run, run.attempt(arguments.attempt or run.next_attempt()), stop)


def _stand_by() -> int:
    """Train what the first line of stdin names, as a process started for it would."""
    stopping.ask_for_signal_at_death_of_parent()
    _prepare_environment()
    importing = threading.Thread(target=_import_in_background, name="imports", daemon=True)
    importing.start()
    if not (line := _first_line()):
        os._exit(0)  # nobody needs us any more, imports done or not
    order = json.loads(line)
    run = RunDir(Path(order["run_dir"]))
    attempt = run.attempt(int(order["attempt"]))
    log = os.open(attempt.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(run.path)
    title.take([sys.executable, "-P", "-m", "jobs.train", str(run.path), "--attempt", attempt.path.name, "--watch-stdin"])
    faulthandler.enable()
    stop = StopWish()
    stop.listen(watch_stdin=True)
    importing.join()
    return _attempt(run, attempt, stop)


def _import_in_background() -> None:
    """A priority that has been lowered can't be raised again, but on Linux it is a thread's own: this one's, not the training's."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    with contextlib.suppress(Exception):  # it will come again in training, where it is recorded
        from jobs.trainers import sft

        sft.import_libraries()


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        if not (block := os.read(0, 4096)):  # not sys.stdin: a thread that waits in it holds its lock
            return b""
        line += block
    return line


def _attempt(run: RunDir, attempt: Attempt, stop: StopWish) -> int:
    log = EventLog(attempt.events)
    try:
        attempt.ballast.write_bytes(bytes(BALLAST_BYTES))
        figures = _train(run, attempt, log, stop)
        write_json(run.result, figures)
        attempt.ballast.unlink(missing_ok=True)
        write_json(attempt.result, {"status": "succeeded", "metrics": figures})
    except Stopped:
        print("Stopped at request.", flush=True)
        return STOPPED
    except BaseException as exc:  # noqa: BLE001 - the edge of the process: record and leave
        _record(exc, run, attempt)
        return 1
    finally:
        with contextlib.suppress(OSError):  # a full disk: what is in the buffer is lost, the result is not
            log.close()
    return 0


def _record(exc: BaseException, run: RunDir, attempt: Attempt) -> None:
    """Say what went wrong, in the log and for the worker; also where the disk is full."""
    failure = explain(exc, _config(run))
    with contextlib.suppress(OSError):
        attempt.ballast.unlink(missing_ok=True)
        write_json(attempt.result, {"status": "failed", **failure.as_json()})
    with contextlib.suppress(OSError):
        traceback.print_exception(exc)
        print(f"{failure.reason} {failure.fix}", file=sys.stderr, flush=True)


def _config(run: RunDir) -> JobConfig | None:
    try:
        return JobConfig.model_validate(run.read_config())
    except (OSError, ValueError):
        return None


def _train(run: RunDir, attempt: Attempt, log: EventLog, stop: StopWish) -> dict[str, Any]:
    config = JobConfig.model_validate(run.read_config())
    from jobs.trainers import sft

    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run.path / "logs"))  # else among the checkpoints
    folder = attempt.path / "adapter.part"
    shutil.rmtree(folder, ignore_errors=True)
    figures = sft.train(run, config, folder, log, stop)
    move_into_place(folder, run.adapter)
    return figures


def _prepare_environment() -> None:
    """A trainer works with what is on this disk, on one device, in its own threads."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # one GPU, the first of those that it may take: with several, transformers would train on all of them in another way
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def leave(code: int) -> NoReturn:
    """End the process. One that was asked to stop is waited for: it does what libraries want done at the end, and takes nothing apart."""
    if code == STOPPED:
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main())
