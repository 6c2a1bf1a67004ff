"""Checkpoints that are complete or absent: written aside, fsynced, listed in a manifest, renamed; old ones pruned.

One of them may be pinned: it stays however old it gets. Knows nothing of what is inside one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.rundir import RunDir, checkpoint_step, fsync_folder, move_into_place, write_manifest

RESERVE_BYTES = 16 * 1024**2  # stays free behind a checkpoint, for the log, the result and the database
FULL_BYTES = 1024**2  # with less than this left, whatever failed while writing failed for want of room
MB = 1_000_000


class CheckpointStore:
    """The checkpoints of one run; `keep` is how many stay."""

    def __init__(self, run: RunDir, keep: int) -> None:
        self.run = run
        self.keep = keep

    def write(self, step: int, fill: Callable[[Path], None], expected_bytes: int = 0, pinned: int | None = None) -> Path:
        """Make checkpoint `step` from what `fill` writes, `pinned` being the step whose checkpoint has to stay.

        On any error the earlier ones are untouched; OSError with ENOSPC where the disk has no room for it.
        """
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        part = self.run.checkpoints / f".part-{step}-{os.getpid()}"
        target = self.run.checkpoints / f"checkpoint-{step}"
        self._make_room(target, expected_bytes, pinned)
        try:
            with full_disk_named(part, target.name):
                part.mkdir()
                fill(part)
                write_manifest(part)
                for folder in (part, *(p for p in part.rglob("*") if p.is_dir())):
                    fsync_folder(folder)
                move_into_place(part, target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._prune(self.keep, pinned)
        return target

    def clean(self) -> None:
        """Remove what an attempt that was killed while writing has left."""
        for rest in (*self.run.checkpoints.glob(".part-*"), *self.run.checkpoints.glob("*.old")):
            shutil.rmtree(rest, ignore_errors=True)

    def drop_newer(self, found: Path | None) -> None:
        """Remove checkpoints that proved damaged: they would count among those that are kept."""
        for folder in self.run.checkpoint_folders():
            if found is None or checkpoint_step(folder) > checkpoint_step(found):
                shutil.rmtree(folder, ignore_errors=True)

    def _make_room(self, target: Path, expected_bytes: int, pinned: int | None) -> None:
        """Give up older checkpoints than the newest where the next one would not fit, and say so where that is not enough."""
        sizes = [sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) for folder in self.run.checkpoint_folders()[-1:]]
        needed = max([expected_bytes, *sizes]) * 11 // 10 + RESERVE_BYTES
        if self._free_bytes() < needed:
            self._prune(1, pinned)
        if (free := self._free_bytes()) < needed:
            where = f"{target.name}: {needed / MB:.0f} MB are needed, {free / MB:.0f} MB are free"
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), where)

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self.run.checkpoints).free

    def _prune(self, keep: int, pinned: int | None) -> None:
        for folder in self.run.checkpoint_folders()[:-keep]:
            if checkpoint_step(folder) == pinned:
                continue
            # out of sight first: a deletion that is cut short must not look like a checkpoint
            gone = folder.with_name(f".part-{folder.name}")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def full_disk_named(folder: Path, what: str) -> Iterator[None]:
    """Libraries say in words of their own that they couldn't write: with no room left it is an OSError with ENOSPC."""
    try:
        yield
    except Exception as exc:
        if shutil.disk_usage(folder.parent).free < FULL_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), what) from exc
        raise
