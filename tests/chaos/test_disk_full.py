"""A disk that fills up at every place of a run: the reason is said, what was kept stays whole, and with room it goes on.

A real small file system where that may be mounted (root on Linux); else every opening of a file for writing fails in turn.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import train
from jobs.rundir import RunDir, manifest_problems
from jobs.trainers import checkpoints
from jobs.trainers.checkpoints import CheckpointStore
from tests.chaos import stand_in

STEPS = 6
PAGE = 4096
ROOMS = range(8, 42, 2)  # pages: from not even a log to nearly a whole run


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("A small file system can't be mounted here.")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def attempt(run: RunDir, number: int) -> tuple[int, dict[str, str]]:
    """Exit code and result of an attempt in this process."""
    files = run.attempt(number)
    with contextlib.suppress(OSError):
        files.path.mkdir(parents=True)
    try:
        code = train._attempt(run, files, train.StopWish())
    except OSError:
        return 1, {}  # not even its events could be opened: the process would end with a traceback
    with contextlib.suppress(OSError, ValueError):
        return code, json.loads(files.result.read_text(encoding="utf-8"))
    return code, {}


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_train", stand_in.learn)
    monkeypatch.setattr(checkpoints, "RESERVE_BYTES", 0)  # else no write would ever meet the end of so small a disk


def check_recovery(run: RunDir) -> None:
    assert all(manifest_problems(folder) == [] for folder in run.checkpoint_folders())
    code, result = attempt(run, 2)
    assert (code, result["status"]) == (0, "succeeded")
    assert (run.adapter / stand_in.WEIGHTS).read_bytes() == stand_in.chain(STEPS)
    assert not list(run.checkpoints.glob(".part-*"))


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="Only root may mount a small file system.")
def test_a_disk_that_is_full_at_any_page_costs_no_checkpoint(tmp_path: Path, stand_ins: None) -> None:
    said = 0
    with small_disk(tmp_path / "disk"):
        for pages in ROOMS:
            run = stand_in.make(tmp_path / "disk" / "run", STEPS, step_s=0)
            resize(tmp_path / "disk", str(pages * PAGE))
            code, result = attempt(run, 1)
            assert code == 0 or result == {} or result["cause"] == "disk_full", result
            said += result.get("cause") == "disk_full"
            resize(tmp_path / "disk", "4m")
            check_recovery(run)
            shutil.rmtree(run.path)
            resize(tmp_path / "disk", "1m")
    assert said > len(ROOMS) // 3  # most of them with their reason


class FullDisk:
    """Refuses the N-th opening of a file for writing in this process, and every later one until `is_over`."""

    def __init__(self) -> None:
        self.left: int | None = None
        sys.addaudithook(self.look)  # for good: Python has no way to take one away

    def look(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.left is None or event != "open" or not isinstance(arguments[2], int):
            return
        if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


def test_no_write_that_fails_costs_a_checkpoint(tmp_path: Path, stand_ins: None) -> None:
    disk, writes = FullDisk(), 0
    while True:
        run = stand_in.make(tmp_path / str(writes), STEPS, step_s=0)
        disk.left = writes
        code, result = attempt(run, 1)
        disk.left = None
        if code == 0:
            break
        assert result == {} or result["cause"] == "disk_full", result
        check_recovery(run)
        writes += 1
    assert writes > 20  # six files in each of three checkpoints


def test_a_checkpoint_that_will_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(RunDir(tmp_path), keep=3)
    free = [10**9]

    def fill(folder: Path) -> None:
        (folder / "state").write_bytes(bytes(5_000_000))

    monkeypatch.setattr(CheckpointStore, "_free_bytes", lambda self: free[0])
    for step in (1, 2, 3):
        store.write(step, fill, pinned=1)
    free[0] = 15_000_000
    with pytest.raises(OSError, match="checkpoint-4: 22 MB are needed, 15 MB are free") as full:
        store.write(4, lambda folder: pytest.fail("begun"), pinned=1)
    assert full.value.errno == errno.ENOSPC
    # older ones have made room; the newest and the best are never given up
    assert [folder.name for folder in store.run.checkpoint_folders()] == ["checkpoint-1", "checkpoint-3"]
