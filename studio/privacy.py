"""STUDIO_HOME is for its owner's eyes: rows, conversations and keys lie there. What is written for a person elsewhere is as open as the folder they chose."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

OTHERS = 0o077  # what anybody but the owner may do
READING = 0o055  # of a folder: to list it and to go through


def keep_private() -> None:
    """Files that this process and its children make from now on are for their user alone."""
    os.umask(OTHERS)


def close_to_others(path: Path) -> None:
    """Take from other users what they may do with one file or folder. A link is left as it is, and so is another user's file."""
    with contextlib.suppress(PermissionError, FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and mode & OTHERS:
            path.chmod(stat.S_IMODE(mode) & ~OTHERS)


def close_all_to_others(folder: Path) -> None:
    """`folder` and all that lies in it, whatever was there before. Links are not followed."""
    close_to_others(folder)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            close_to_others(Path(place, name))


def hand_out(path: Path) -> None:
    """Give a file, or a folder and all that lies in it, to those who may read the folder that holds it."""
    allowed = path.absolute().parent.stat().st_mode & READING
    if not allowed:
        return
    for one in (path, *_inside(path)):
        mode = stat.S_IMODE(one.lstat().st_mode)
        if one.is_dir():
            one.chmod(mode | allowed)
        elif not one.is_symlink():
            one.chmod(mode | allowed & 0o044)


def umask_of(folder: Path) -> int:
    """With this umask, files in `folder` are as open as it is, or as the folder in which it will be; for a cache that people may share."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return ~there.stat().st_mode & OTHERS


def _inside(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from path.rglob("*")
