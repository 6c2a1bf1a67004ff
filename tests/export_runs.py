"""Adapters trained and exported in a process of their own (tests.exportings), for the tests that look at what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TRAINED = {"learning_rate": 1e-2, "lora__r": 8, "num_train_epochs": 4, "save_steps": 100, "eval_steps": 100, "sample_answers": 0}


def exported(folder: Path, cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything of `cases`, trained and exported in one process."""
    command = [sys.executable, "-m", "tests.exportings", str(folder)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"folder": folder, **json.loads(done.stdout)}
