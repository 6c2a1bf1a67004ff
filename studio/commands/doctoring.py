"""`studio doctor` and `studio doctor --clean`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.terminal import JsonFlag, open_studio, say, show, table
from studio.errors import StudioError
from studio.records import CleanedStorage, DoctorCheck

if TYPE_CHECKING:
    from studio.services import Studio


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
    show(found, json, "\n".join(map(_line, found.checks)))


def _line(check: DoctorCheck) -> str:
    mark = "ok " if check.ok else "NO "
    return ". ".join(filter(None, [f"{mark} {check.name}: {check.detail}", check.fix]))


def _clean(studio: Studio, yes: bool, json: bool) -> None:
    found = studio.storage.show()
    if not found.unused:
        show(CleanedStorage(deleted=[], freed_bytes=0, kept=[]), json, "Every file belongs to something; nothing to delete.")
        return
    rows = [{**one.model_dump(), "MB": f"{one.bytes / 1e6:.1f}"} for one in found.unused]
    say(table(rows, ("noun", "MB", "path", "why"), ""))
    if not yes:
        if json:
            unused = [one.model_dump() for one in found.unused]
            raise StudioError(f"To be deleted: {len(rows)}. Nothing has been yet.", "Say --yes to delete them.", unused=unused)
        typer.confirm(f"Delete these {len(rows)} ({found.unused_bytes / 1e6:.1f} MB)?", abort=True)
    done = studio.storage.clean()
    show(done, json, f"{len(done.deleted)} deleted, {done.freed_bytes / 1e6:.1f} MB freed.")
