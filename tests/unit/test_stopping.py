"""One end that is told several times, as Linux does with the children of a process that had threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from jobs import attempts
from jobs.trainers import stopping

TRAINING = """
import time
from jobs.rundir import STOPPED
from jobs.trainers.stopping import StopWish
wish = StopWish()
wish.begin_keeping()
wish.listen(watch_stdin=False)
print("up", flush=True)
while not wish.is_set:
    pass
time.sleep(0.5)  # while more signals come
raise SystemExit(STOPPED)
"""
HANGING = TRAINING.replace("while not wish.is_set", "while True").replace(
    "wish = ", "import jobs.trainers.stopping as it; it.GRACE_S = 1; wish = "
)
WORKER = """
from queue import SimpleQueue
from jobs import worker
ended = SimpleQueue()
worker.listen(ended)
print("up", flush=True)
while not worker._has_come(ended, 60):
    pass
while worker._has_come(ended, 0.5):
    pass
raise SystemExit(75)
"""


def told_often(code: str) -> int:
    """How a process ends that is told to a hundred times within a few milliseconds."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        for _ in range(100):
            os.kill(process.pid, signal.SIGTERM)
            time.sleep(0.00003)
        try:
            return process.wait(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.mark.parametrize("code", [TRAINING, WORKER], ids=["trainer", "worker"])
def test_a_process_that_is_told_to_end_again_and_again_ends_in_good_order(code: str) -> None:
    assert told_often(code) == 75


def test_no_trainer_ends_itself_before_its_worker_would_kill_it() -> None:
    assert max(attempts.GRACE_S.values()) < stopping.GRACE_S


def test_a_training_that_does_not_get_around_to_leaving_is_ended() -> None:
    assert told_often(HANGING) == -signal.SIGALRM
