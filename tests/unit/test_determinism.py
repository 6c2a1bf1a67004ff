"""full_determinism asks torch for code that gives the same bytes each time, and names what has none."""

from __future__ import annotations

import subprocess
import sys

USE = """
import torch
from jobs.trainers import determinism
determinism.use(print)
for _ in range(2):
    torch.zeros(3).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))  # which of two values stays is nowhere promised
print(torch.are_deterministic_algorithms_enabled())
"""


def test_an_operation_without_deterministic_code_is_named_once() -> None:
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told, enabled = done.stdout.splitlines()
    assert told.startswith("full_determinism: torch's put_ has no deterministic code") and enabled == "True"
    assert "Warning" not in done.stderr
