"""What takes room in STUDIO_HOME, and what of it nothing refers to: files that no row names and no process works on.

`clean` looks again before each deletion. What is younger than YOUNG_S stays: its row may be on its way.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from sqlalchemy import select

from studio.db.models import AdapterRow, BaseModelRow, DatasetRow, JobRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.records import CleanedStorage, DiskUse, JobStatus, KeptFile, StorageUse, UnusedFile
from studio.settings import COPIES, Settings

NOUNS = ("datasets", "runs", "adapters", "exports", "models", COPIES, "cache")
BEFORE = "before-restore"  # what a restore has set aside: kept until a person deletes it by hand
YOUNG_S = 3600.0
WHY = {
    "datasets": "no dataset of the list",
    "runs": "no job of the list",
    "adapters": "no adapter of the list",
    "exports": "no export of the list",
    "models": "no model of the list",
    COPIES: "a copy of a base in 4 bits, which the next training makes again",
    "cache": "left by something that was cut short",
}
CHECKPOINTS = "checkpoints of a job that has succeeded: its adapter is kept elsewhere"


@dataclass(frozen=True)
class Leftover:
    """`path` is what nothing refers to."""

    noun: str
    path: Path
    bytes: int
    why: str

    def record(self) -> UnusedFile:
        return UnusedFile(noun=self.noun, path=str(self.path), bytes=self.bytes, why=self.why)

    def kept(self, problem: str) -> KeptFile:
        return KeptFile(noun=self.noun, path=str(self.path), bytes=self.bytes, why=self.why, problem=problem)


class StorageService:
    """What a person can ask about disk space, and the one way to get it back."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.settings = settings
        self.db = db

    def show(self) -> StorageUse:
        unused = list(self._leftovers())
        asides = sum(size(path) for path in self.settings.home.glob(f"{BEFORE}-*"))
        nouns = [self._disk_use(noun, unused) for noun in NOUNS]
        if asides:
            nouns.append(DiskUse(noun=BEFORE, bytes=asides, unused_bytes=0))
        return StorageUse(
            nouns=nouns,
            free_bytes=shutil.disk_usage(self.settings.home).free,
            unused=[one.record() for one in unused],
            unused_bytes=sum(one.bytes for one in unused),
        )

    def _disk_use(self, noun: str, unused: list[Leftover]) -> DiskUse:
        of_noun = sum(one.bytes for one in unused if one.noun == noun)
        return DiskUse(noun=noun, bytes=size(self.settings.home / noun), unused_bytes=of_noun)

    def clean(self) -> CleanedStorage:
        """Delete what nothing refers to. Raises StudioError where nothing of it can be deleted."""
        deleted: list[UnusedFile] = []
        kept: list[KeptFile] = []
        for one in list(self._leftovers()):
            if one.path not in {again.path for again in self._leftovers(one.noun)}:
                continue
            try:
                _delete(one.path)
                deleted.append(one.record())
            except OSError as exc:
                kept.append(one.kept(exc.strerror or type(exc).__name__))
        if kept and not deleted:
            problem = f"{kept[0].path} can't be deleted ({kept[0].problem})."
            raise StudioError(problem, "Give this user the right to it.")
        return CleanedStorage(deleted=deleted, freed_bytes=sum(one.bytes for one in deleted), kept=kept)

    def _leftovers(self, noun: str = "") -> Iterator[Leftover]:
        used, finished = self._used()
        busy = _working_folders()
        for name in NOUNS:
            if noun not in ("", name):
                continue
            for path in sorted((self.settings.home / name).iterdir()):
                if not _is_within(used, path) and self._may_go(path, busy):
                    yield Leftover(name, path, size(path), WHY[name])
        if noun not in ("", "runs"):
            return
        for path in sorted(finished):
            if path.is_dir() and self._may_go(path, busy):
                yield Leftover("runs", path, size(path), CHECKPOINTS)

    def _used(self) -> tuple[set[Path], set[Path]]:
        """Every path that a row names, and the checkpoints that nobody will go on from."""
        with self.db.read() as session:
            used = {self.settings.datasets / one for one in session.scalars(select(DatasetRow.id))}
            used |= {Path(path) for path in session.scalars(select(AdapterRow.path))}
            used |= {Path(path) for path in session.scalars(select(BaseModelRow.path))}
            finished = set()
            for run_dir, status, config in session.execute(select(JobRow.run_dir, JobRow.status, JobRow.config)):
                named = [
                    run_dir,
                    config.get("to"),
                    config.get("model_name_or_path"),
                    config.get("adapter_path"),
                    config.get("base_path"),
                ]
                used |= {Path(path) for path in named if isinstance(path, str) and path}
                if run_dir and status == JobStatus.SUCCEEDED:
                    finished.add(Path(run_dir) / "checkpoints")
        return used, {path for path in finished if path.is_relative_to(self.settings.runs)}

    def _may_go(self, path: Path, busy: set[Path]) -> bool:
        is_busy = _is_within(busy, path.resolve())  # a process knows its folder by no link
        return not path.is_symlink() and not is_busy and time.time() - _newest(path) > YOUNG_S


def size(path: Path) -> int:
    """Bytes of a file or of all files of a folder; links count for nothing."""
    return sum(status.st_size for status in _statuses(path))


def _newest(path: Path) -> float:
    return max((status.st_mtime for status in _statuses(path, folders=True)), default=0.0)


def _statuses(path: Path, *, folders: bool = False) -> Iterator[os.stat_result]:
    found = [path]
    while found:
        one = found.pop()
        try:
            status = one.lstat()
            if one.is_dir() and not one.is_symlink():
                found.extend(one.iterdir())
                if not folders:
                    continue
        except OSError:  # it has gone meanwhile
            continue
        yield status


def _is_within(paths: set[Path], folder: Path) -> bool:
    return any(path.is_relative_to(folder) for path in paths)


def _working_folders() -> set[Path]:
    """Folders in which a process of this user stands: a trainer stands in its run."""
    return {Path(process.info["cwd"]) for process in psutil.process_iter(["cwd"]) if process.info["cwd"]}


def _delete(path: Path) -> None:
    """Out of sight first, so that nobody finds half of it."""
    gone = path.with_name(f".gone-{path.name}")
    path.rename(gone)
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
