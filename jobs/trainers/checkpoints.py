"""Checkpoints that are complete or absent: written aside, fsynced, listed in a manifest, renamed; old ones pruned.

Knows nothing of what is inside one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from jobs.rundir import RunDir, fsync_folder, move_into_place, write_manifest


class CheckpointStore:
    """The checkpoints of one run; `keep` is how many stay."""

    def __init__(self, run: RunDir, keep: int) -> None:
        self.run = run
        self.keep = keep

    def write(self, step: int, fill: Callable[[Path], None]) -> Path:
        """Make checkpoint `step` from what `fill` writes. On any error the earlier ones are untouched."""
        self.run.checkpoints.mkdir(parents=True, exist_ok=True)
        part = self.run.checkpoints / f".part-{step}-{os.getpid()}"
        target = self.run.checkpoints / f"checkpoint-{step}"
        try:
            part.mkdir()
            fill(part)
            write_manifest(part)
            for folder in (part, *(p for p in part.rglob("*") if p.is_dir())):
                fsync_folder(folder)
            move_into_place(part, target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        self._prune()
        return target

    def clean(self) -> None:
        """Remove what an attempt that was killed while writing has left."""
        for rest in (*self.run.checkpoints.glob(".part-*"), *self.run.checkpoints.glob("*.old")):
            shutil.rmtree(rest, ignore_errors=True)

    def _prune(self) -> None:
        for folder in self.run.checkpoint_folders()[: -self.keep]:
            # out of sight first: a deletion that is cut short must not look like a checkpoint
            gone = folder.with_name(f".part-{folder.name}")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
