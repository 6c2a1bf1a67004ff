"""Child processes: they end with their caller's wish, also while they say nothing."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from studio.datasets.children import run_child


class Enough(Exception):
    pass


def test_a_silent_child_ends_when_its_caller_is_stopped(tmp_path: Path) -> None:
    looks: list[int] = []

    def pulse() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise Enough

    with pytest.raises(Enough):
        run_child("pdb", {}, tmp_path, pulse=pulse)  # waits for a command that never comes
    assert not [child for child in psutil.Process().children() if "pdb" in child.cmdline()] and not list(tmp_path.iterdir())
