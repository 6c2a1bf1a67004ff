"""Folders that a row names: how large they are, and deleting them only where they are the studio's own."""

from __future__ import annotations

import shutil
from pathlib import Path


def size_of(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def is_inside(folder: Path, *places: Path) -> bool:
    """Whether `folder` lies below one of `places` once links and `..` are followed."""
    real = folder.resolve()
    return any(place.resolve() in real.parents for place in places)


def delete_inside(folder: Path, *places: Path) -> bool:
    """Delete `folder` if it lies below one of `places`. A row may come from a restored backup: it must not name what to delete."""
    if not is_inside(folder, *places):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True
