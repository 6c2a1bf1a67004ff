"""`studio doctor`, `studio doctor --clean` and `studio doctor --report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.terminal import JsonFlag, open_studio, say, show, table
from studio.errors import StudioError

if TYPE_CHECKING:
    from studio.records import DoctorCheck
    from studio.services import Studio


def doctor(
    clean: Annotated[bool, typer.Option("--clean", help="List the files that nothing refers to, ask, and delete them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --clean: do not ask.")] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what a bug report needs to this file; no rows, no secrets."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """What works on this machine, and what would make the rest work."""
    if clean and report:
        raise StudioError("--clean and --report are two commands.", "Give one of them.")
    studio = open_studio()
    if clean:
        _clean(studio, yes, json)
        return
    if report:
        made = studio.system.write_report(report)
        show(made, json, f"{made.path} is written ({made.bytes} bytes). Please read it before you send it.")
        return
    found = studio.system.doctor(thorough=True)
    show(found, json, "\n".join(map(_line, found.checks)))


def _line(check: DoctorCheck) -> str:
    mark = {True: "ok ", False: "NO "}[check.ok]
    return ". ".join(filter(None, [f"{mark} {check.name}: {check.detail}", check.fix]))


def _clean(studio: Studio, yes: bool, json: bool) -> None:
    from studio.records import CleanedStorage

    found = studio.storage.show()
    if not found.unused:
        show(
            CleanedStorage(deleted=[], freed_bytes=0, kept=[]),
            json,
            "Every file belongs to something; nothing to delete.",
        )
        return
    rows = [{**one.model_dump(), "MB": f"{one.bytes / 1e6:.1f}"} for one in found.unused]
    say(table(rows, ("noun", "MB", "path", "why"), ""))
    if not yes:
        if json:
            unused = [one.model_dump() for one in found.unused]
            raise StudioError(
                f"To be deleted: {len(rows)}. Nothing has been yet.",
                "Say --yes to delete them.",
                unused=unused,
            )
        typer.confirm(f"Delete these {len(rows)} ({found.unused_bytes / 1e6:.1f} MB)?", abort=True)
    done = studio.storage.clean()
    show(done, json, f"{len(done.deleted)} deleted, {done.freed_bytes / 1e6:.1f} MB freed.")
