"""`studio doctor` and `studio doctor --clean`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from studio.commands.terminal import JsonFlag, open_studio, say, show, table
from studio.errors import StudioError


def doctor(
    clean: Annotated[bool, typer.Option("--clean", help="List the files that nothing refers to, ask, and delete them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --clean: do not ask.")] = False,
    json: JsonFlag = False,
) -> None:
    """What works on this machine, and what would make the rest work."""
    studio = open_studio()
    if clean:
        _clean(studio, yes, json)
        return
    found = studio.system.doctor(thorough=True)
    lines = [
        f"{'ok ' if check['ok'] else 'NO '} {check['name']}: {check['detail']}" + (f". {check['fix']}" if check["fix"] else "")
        for check in found["checks"]
    ]
    show(found, json, "\n".join(lines))


def _clean(studio: Any, yes: bool, json: bool) -> None:
    found = studio.storage.show()
    if not found["unused"]:
        show({"deleted": [], "freed_bytes": 0, "kept": []}, json, "Nothing lies about: every file belongs to something.")
        return
    rows = [{**one, "MB": f"{one['bytes'] / 1e6:.1f}"} for one in found["unused"]]
    say(table(rows, ("noun", "MB", "path", "why"), ""))
    if not yes:
        if json:
            raise StudioError(f"To be deleted: {len(rows)}. Nothing has been yet.", "Say --yes to delete them.", unused=found["unused"])
        typer.confirm(f"Delete these {len(rows)} ({found['unused_bytes'] / 1e6:.1f} MB)?", abort=True)
    done = studio.storage.clean()
    show(done, json, f"{len(done['deleted'])} deleted, {done['freed_bytes'] / 1e6:.1f} MB freed.")
