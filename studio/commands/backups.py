"""`studio backup` and `studio restore`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio.commands.terminal import JsonFlag, load_settings, say, show
from studio.errors import StudioError


def backup(to: Annotated[Path, typer.Option(metavar="FILE", help="The .zip file to write.")], json: JsonFlag = False) -> None:
    """The whole studio in one file: database, datasets, adapters, runs."""
    from studio.services import backups

    made = backups.backup(load_settings(), to)
    if made.models:
        say(f"Base models are not in it: {', '.join(model.name for model in made.models)}.")
    show(made, json, f"{made.files} files and the database are in {made.path} ({made.bytes / 1e6:.1f} MB).")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `studio backup` has written.")],
    json: JsonFlag = False,
) -> None:
    """Put a backup in the place of this studio, which is kept beside it."""
    import filelock

    from studio.services import backups

    settings = load_settings()
    settings.make_folders()
    try:
        with filelock.FileLock(settings.lock_path, timeout=0.5, mode=0o600):
            done = backups.restore(settings, file)
    except filelock.Timeout:
        raise StudioError(f"A studio of {settings.home} is running.", "Stop it first: Ctrl-C where it was started.") from None
    if done.models:
        say(f"These base models have to be added again: {', '.join(done.models)}.")
    text = f"{done.home} is restored."
    if done.before:
        text = f"{done.home} is restored; what was there is in {done.before}."
    show(done, json, text)
