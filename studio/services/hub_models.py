"""Models of the hub: those that lie whole in the person's Hugging Face cache, and the fetching of others into it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from studio import processes
from studio.catalogue import hub_cache
from studio.errors import ModelError
from studio.records import CachedModel, Fetched

Progress = Callable[[Fetched], None]


def cached(added: set[str]) -> list[CachedModel]:
    """Whole models of the cache, by name. `added`: the folders that are listed as base models already."""
    return [
        CachedModel(
            repository=found.repository,
            path=str(found.folder),
            architecture=found.architecture,
            parameters=found.parameters,
            bytes=found.bytes,
            here=str(found.folder) in added,
        )
        for found in hub_cache.whole_models()
    ]


def folder_of(repository: str, progress: Progress | None = None) -> Path:
    """The whole snapshot of a model, from the cache or fetched into it by a process of its own. Raises ModelError.

    `progress` is called with the bytes that are here, about twice a second.
    """
    if found := hub_cache.whole(repository):
        return found.folder
    return fetch(repository, progress=progress)


def fetch(repository: str, *options: str, progress: Progress | None = None) -> Path:
    """Fetch a repository, or what of it is missing, into the cache. `options`: of studio.catalogue.hub. Raises ModelError."""
    command = processes.module_command("studio.catalogue.hub", repository, *options)
    environment = processes.child_environment(for_hub=True)
    answer = None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        for line in child.stdout:  # stdin stays open until its end, which tells the child that we are gone
            said = _read(line)
            if said is None:
                continue
            if "error" in said:
                answer = said
            elif progress:
                progress(Fetched.model_validate(said))
    if answer is None:
        raise ModelError(f"The download of {repository} ended without an answer.", "Try again: what is here already is kept.")
    if isinstance(error := answer["error"], dict):
        raise ModelError(str(error["message"]), str(error["fix"]))
    return Path(str(answer["folder"]))


def _read(line: str) -> dict[str, object] | None:
    """A line of the child; None for one that a library printed."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if isinstance(value, dict) and ("error" in value or "total" in value):
        return value
    return None


def note(folder: Path) -> str:
    """Where the files of a model are that the studio uses in place; "" for a folder elsewhere."""
    if not hub_cache.holds(folder):
        return ""
    return f"Its files lie in your Hugging Face cache, revision {folder.name[:8]}, and are used there."
