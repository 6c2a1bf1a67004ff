"""The child that compresses: what it answers, and what is said when it dies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from studio.compress.process import CompressorProcess
from studio.errors import StudioError

ECHO = """
import json, sys
for line in sys.stdin:
    json.loads(line)
    print(json.dumps({"error": {"message": "Nothing to compress.", "fix": "Give a text."}}), flush=True)
"""


def children(monkeypatch: pytest.MonkeyPatch, *codes: str) -> list[subprocess.Popen[str]]:
    """Children that run these programs, one after the other, in place of the compressor's."""
    started: list[subprocess.Popen[str]] = []

    def start(self: CompressorProcess) -> subprocess.Popen[str]:
        if self._child is None:
            code = codes[len(started)]
            command = [sys.executable, "-c", code]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            started.append(self._child)
        return self._child

    monkeypatch.setattr(CompressorProcess, "_running", start)
    return started


def test_a_child_that_dies_twice_is_said_to_be_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    started = children(monkeypatch, "pass", "pass")
    with pytest.raises(StudioError, match="was killed") as caught:
        CompressorProcess().compress(Path("m"), Path("m"), {})
    assert len(started) == 2 and caught.value.fix


def test_a_child_that_has_just_ended_is_started_again_and_its_refusal_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    started = children(monkeypatch, "pass", ECHO)
    process = CompressorProcess()
    with pytest.raises(StudioError, match="Nothing to compress") as caught:
        process.compress(Path("m"), Path("m"), {})
    assert len(started) == 2 and caught.value.fix == "Give a text."
    process.close()
    assert all(child.poll() is not None for child in started)
