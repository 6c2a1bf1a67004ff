"""Models that lie in the person's Hugging Face cache: where it is, and which of them are whole. Fetches and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from studio.catalogue.models import inspect_folder, weight_files
from studio.errors import ModelError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")  # of a repository; never a path
COMMIT = re.compile(r"[0-9a-f]{40}")
PREFIX = "models--"
MOST = 500  # repositories that are looked at


@dataclass(frozen=True)
class CachedFolder:
    """A model of the hub that is whole in the cache."""

    repository: str
    folder: Path  # a snapshot: its files are links, which nothing here writes to
    architecture: str
    parameters: int
    bytes: int  # of its weights


def place() -> Path:
    """The folder of the cache, as HF_HOME or HF_HUB_CACHE choose it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def repository_folder(repository: str) -> Path:
    """Where the cache keeps a repository. Raises ModelError for what is no name of one."""
    if not NAME.fullmatch(repository) or ".." in repository:
        raise ModelError(f"The hub has no model {repository[:200]!r} that you may read.", "Write it as OWNER/NAME.")
    return place() / f"{PREFIX}{repository.replace('/', '--')}"


def whole(repository: str) -> CachedFolder | None:
    """The newest snapshot that is a whole model, of the branch `main` where that one is; None where there is none."""
    for folder in snapshots(repository):
        facts = inspect_folder(folder)
        if facts.loadable:
            size = sum(file.stat().st_size for file in weight_files(folder))
            return CachedFolder(repository, folder, facts.architecture, facts.parameters, size)
    return None


def whole_models() -> Iterator[CachedFolder]:
    """All whole models of the cache, by name. Reads headers, not weights."""
    for repository in repositories():
        if found := whole(repository):
            yield found


def repositories() -> list[str]:
    """Models of the hub of which the cache holds anything, by name."""
    try:
        names = sorted(path.name.removeprefix(PREFIX).replace("--", "/", 1) for path in place().glob(f"{PREFIX}*") if path.is_dir())
    except OSError:
        return []
    return [name for name in names if NAME.fullmatch(name)][:MOST]


def holds(folder: Path) -> bool:
    """Whether a folder is a snapshot of the cache."""
    return folder.is_relative_to(place()) and folder.parent.name == "snapshots"


def snapshots(repository: str) -> list[Path]:
    """What the cache holds of a repository, whole or not: that of `main` first, then the newest."""
    folder = repository_folder(repository)
    try:
        found = [path for path in (folder / "snapshots").iterdir() if path.is_dir() and COMMIT.fullmatch(path.name)]
        found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return []
    try:
        main = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        main = ""
    return sorted(found, key=lambda path: path.name != main)
