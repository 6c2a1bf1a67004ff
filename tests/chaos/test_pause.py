"""A pause in the middle of a long step: nothing is killed, no whole step is lost, and the run ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.attempts import PAUSE_GRACE_S
from jobs.rundir import STOPPED, RunDir, manifest_problems
from tests.runs import make_run

# 64 batches of one row a step, two steps
LONG = {"rows": 64, "gradient_accumulation_steps": 64, "per_device_train_batch_size": 1, "save_steps": 100, "eval_steps": 100}
QUIET = {"sample_answers": 0, "measure_drift": False, "lora.lora_dropout": 0.1}


def train(run: RunDir) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "jobs.train", str(run.path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def adapter(run: RunDir) -> bytes:
    return (run.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.skipif("STUDIO_KILLS" not in os.environ, reason="`make chaos` pauses real processes; `make test` does so within one")
def test_a_pause_within_an_accumulation_of_64_keeps_the_last_whole_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unbroken, paused = (make_run(tmp_path / name, recipe="lora-sft", **LONG, **QUIET) for name in ("unbroken", "paused"))
    assert train(unbroken).wait(timeout=600) == 0
    with train(paused) as process:
        first = paused.attempt(1)
        while not any(event["type"] == "progress" for event in first.read_events(0)[0]):
            assert process.poll() is None
            time.sleep(0.005)
        asked = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(timeout=PAUSE_GRACE_S) == STOPPED
    with capsys.disabled():
        print(f"\npaused within an accumulation of 64: {time.monotonic() - asked:.1f} s from the request to the end")
    [kept] = paused.checkpoint_folders()
    assert (kept.name, manifest_problems(kept)) == ("checkpoint-1", [])
    assert train(paused).wait(timeout=600) == 0
    assert adapter(paused) == adapter(unbroken)
