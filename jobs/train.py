"""Train one job: `python -m jobs.train RUN_DIR`. Knows nothing of the UI, the queue or the database.

Exit codes: 0 done, and this attempt's result.json says so; 1 failed, and it says why; 75 stopped at request.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from jobs.rundir import STOPPED, Attempt, RunDir, move_into_place, write_json
from jobs.trainers.events import EventLog
from jobs.trainers.failures import explain
from jobs.trainers.stopping import Stopped, StopWish


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description="Train the job of a run directory.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, help="number of this attempt; the next one where it is left out")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when stdin ends: whoever started this is gone")
    arguments = parser.parse_args(argv)
    run = RunDir(arguments.run_dir.absolute())
    if not run.config.is_file():
        print(f"{run.path} is no run directory: it has no config.json. Name the folder of a run.", file=sys.stderr)
        return 1
    faulthandler.enable()
    stop = StopWish()
    stop.listen(arguments.watch_stdin)
    _prepare_environment()
    return _attempt(run, run.attempt(arguments.attempt or run.next_attempt()), stop)


def _attempt(run: RunDir, attempt: Attempt, stop: StopWish) -> int:
    log = EventLog(attempt.events)
    try:
        figures = _train(run, attempt, log, stop)
        write_json(run.result, figures)
        write_json(attempt.result, {"status": "succeeded", "metrics": figures})
    except Stopped:
        print("Stopped at request.", flush=True)
        return STOPPED
    except BaseException as exc:  # noqa: BLE001 - the edge of the process: record and leave
        traceback.print_exc()
        reason, fix = explain(exc)
        print(f"{reason} {fix}", file=sys.stderr, flush=True)
        write_json(attempt.result, {"status": "failed", "reason": reason, "fix": fix})
        return 1
    finally:
        log.close()
    return 0


def _train(run: RunDir, attempt: Attempt, log: EventLog, stop: StopWish) -> dict[str, Any]:
    config = JobConfig.model_validate_json(run.config.read_text(encoding="utf-8"))
    from jobs.trainers import sft

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
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")


if __name__ == "__main__":
    sys.exit(main())
