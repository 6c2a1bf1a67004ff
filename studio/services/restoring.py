"""The dangerous moment of a restore: what is here is set aside, the backup takes its place. Whole, or as it was before.

A note in STUDIO_HOME says which moment it is. Where the note is still there at the next start, the restore was cut short:
`undo` puts everything back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import filelock

from jobs.rundir import fsync_folder, write_json
from studio.errors import StudioError
from studio.homepaths import HomePaths
from studio.settings import Settings

FOLDERS = ("datasets", "runs", "adapters")
NOTE = "restore.json"
PLACE_PREFIX = ".restore-"
ABSENT = ".restore-nothing"  # what stands for the folder of what was there, where nothing was
logger = logging.getLogger(__name__)
CUT_SHORT = "A restore was cut short; everything is as it was before it. Restore again."


@contextlib.contextmanager
def replacing(settings: Settings, database: Path) -> Iterator[Path | None]:
    """Inside the block the places of the database and of FOLDERS are free; on any error all is back. Yields where it was put."""
    held = [database, *database.parent.glob(database.name + "-*")]
    present = [path for path in held if path.exists()]
    full = [settings.home / folder for folder in FOLDERS if any((settings.home / folder).iterdir())]
    paths = HomePaths(settings.home)
    aside = [paths.stored(str(path)) for path in (*present, *full)]
    before, name = None, ""
    if aside:
        before = _free_place(settings.home)
        name = before.name
    write_json(settings.home / NOTE, {"before": name, "database": paths.stored(str(database)), "held": aside})
    try:
        if before:
            before.mkdir(mode=0o700)
        for path in (*present, *full):
            assert before
            move(path, before / path.name)
        for folder in FOLDERS:
            shutil.rmtree(settings.home / folder, ignore_errors=True)
        yield before
        fsync_folder(settings.home)
    except BaseException:
        undo(settings)
        raise
    (settings.home / NOTE).unlink()


def recover(settings: Settings) -> str:
    """What to tell a person: "" where no restore was cut short. Raises StudioError while one is under way."""
    if not (settings.home / NOTE).exists():
        return ""
    try:
        with filelock.FileLock(settings.lock_path, timeout=0.5, mode=0o600):
            sentence = undo(settings)
    except filelock.Timeout:
        raise StudioError(f"A restore of {settings.home} is under way.", "Wait until it has ended.") from None
    logger.warning(sentence)
    return sentence


def undo(settings: Settings) -> str:
    """Put back what a restore had set aside. For whoever holds the lock of STUDIO_HOME."""
    note, paths = settings.home / NOTE, HomePaths(settings.home)
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        before = settings.home / (noted["before"] or ABSENT)
        held = [Path(paths.absolute(path)) for path in noted["held"]]
        database = Path(paths.absolute(noted["database"]))
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError):
        fix = "Move back what lies in the newest before-restore folder, then delete that file."
        raise StudioError(f"{note} can't be read.", fix) from None
    for path in (database, *(settings.home / folder for folder in FOLDERS)):
        if path not in held:
            _remove(path)  # it can only come from the backup
    for path in held:
        if (before / path.name).exists():
            _remove(path)
            move(before / path.name, path)
    for folder in FOLDERS:
        (settings.home / folder).mkdir(exist_ok=True)
    with contextlib.suppress(OSError):
        before.rmdir()
    for rest in settings.home.glob(f"{PLACE_PREFIX}*"):
        shutil.rmtree(rest, ignore_errors=True)
    note.unlink()
    return CUT_SHORT


def _free_place(home: Path) -> Path:
    name = time.strftime("before-restore-%Y%m%d-%H%M%S")
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for one in names if not (path := home / one).exists())


def move(source: Path, target: Path) -> None:
    """Complete at `target`, or still at `source`; also from one disk to another."""
    try:
        source.rename(target)
    except OSError:
        part = target.with_name(target.name + ".part")
        if source.is_dir():
            shutil.copytree(source, part)
        else:
            shutil.copy2(source, part)
        part.rename(target)
        _remove(source)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
