"""Child processes: they end with their caller's wish, also while they say nothing."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from studio.datasets.children import run_child
from studio.settings import PACKAGE_ROOT


class Enough(Exception):
    pass


@pytest.mark.parametrize("child", ["pdb", "tests.chatterbox"])  # waits for a command that never comes; never stops speaking
def test_a_child_ends_when_its_caller_is_stopped(tmp_path: Path, child: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE_ROOT))
    looks: list[int] = []

    def pulse() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise Enough

    with pytest.raises(Enough):
        run_child(child, {}, tmp_path, pulse=pulse)
    assert not [one for one in psutil.Process().children() if child in one.cmdline()] and not list(tmp_path.iterdir())
