"""`studio keys …` and `studio sessions …`"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from studio.commands.terminal import JsonFlag, group, open_studio, plain, show, table
from studio.errors import StudioError

keys = group("Keys for programs: list, add, delete.")
sessions = group("Browsers that are logged in: list, end.")

KEY_COLUMNS = ("id", "name", "scope", "person", "created_at", "used_at", "expires_at")
SESSION_COLUMNS = ("id", "person", "device", "address", "created_at", "used_at", "expires_at")
TIMES = ("created_at", "used_at", "expires_at")
SCOPES = ("chat", "read", "everything")


@keys.command("list")
def list_keys(json: JsonFlag = False) -> None:
    """All keys, newest first, without the keys themselves."""
    rows = open_studio().keys.list()
    show(rows, json, table(map(_dated, rows), KEY_COLUMNS, "No key yet. Make one with `studio keys add NAME`."))


@keys.command("add")
def add_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="After the program that will use it.")],
    scope: Annotated[str, typer.Option(metavar="|".join(SCOPES), help="Ask models; look at everything; or all there is.")] = "everything",
    days: Annotated[int | None, typer.Option(help="How long it is good for; without it, it does not expire.")] = None,
    json: JsonFlag = False,
) -> None:
    """Make a key for a program; it is shown this once."""
    from studio.records import KeyScope

    if scope not in SCOPES:
        raise StudioError(f"--scope {scope} is not known.", f"Choose one of {', '.join(SCOPES)}.")
    made = open_studio().keys.create(name, KeyScope(scope), days)
    show(made, json, made.key)


@keys.command("delete")
def delete_key(key: Annotated[str, typer.Argument(metavar="KEY", help="Its ID or name.")], json: JsonFlag = False) -> None:
    """Take a key back: programs that use it are refused from now on."""
    deleted = open_studio().keys.delete(key)
    show(deleted, json, f"The key {deleted.name} is refused from now on.")


@sessions.command("list")
def list_sessions(json: JsonFlag = False) -> None:
    """The browsers that are logged in, the one used last first."""
    rows = open_studio().sessions.list()
    show(rows, json, table(map(_dated, rows), SESSION_COLUMNS, "Nobody is logged in."))


@sessions.command("end")
def end_session(
    session: Annotated[str | None, typer.Argument(metavar="ID")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="End all of them.")] = False,
    json: JsonFlag = False,
) -> None:
    """Have a browser log in again."""
    if (session is None) is not everyone:
        raise StudioError("Name one session, or say --all.", "`studio sessions list` shows the IDs.")
    service = open_studio().sessions
    ended = list(service.end_all()) if session is None else [service.end(session)]
    show(ended, json, "\n".join(f"{one.id} is over." for one in ended) or "Nobody was logged in.")


def _dated(record: object) -> dict[str, str]:
    """A record for a table, its times as people write them."""
    row = plain(record)
    for name in TIMES:
        if row[name] is not None:
            row[name] = time.strftime("%Y-%m-%d %H:%M", time.localtime(row[name]))
    return dict(row)
