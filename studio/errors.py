"""Errors that a user may see. Each says where, what is wrong and how to fix it, in one line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SHOWN_NAMES = 20  # of a list in a message
MOST_SAID = 200  # characters of a value from outside in a message or a row


def listed(names: Iterable[str], most: int = SHOWN_NAMES) -> str:
    """Names for a message, separated by commas; where they are many, the first and how many more there are."""
    found = list(names)
    if len(found) <= most + 1:  # "and 1 more" would be no shorter than the name
        return ", ".join(found)
    return f"{', '.join(found[:most])} and {len(found) - most:,} more"


def one_line(exc: BaseException, most: int = 300) -> str:
    """Class and message of an error, without its traceback."""
    return " ".join(f"{type(exc).__name__}: {exc}".split())[:most]


def message_of(exc: BaseException, most: int = 200) -> str:
    """The message alone, of a library that says enough in it."""
    return " ".join(str(exc).split())[:most]


def plain(text: object) -> str:
    """A value from outside for a message or a row: on one line, short, without control characters."""
    return "".join(character for character in " ".join(str(text).split()) if character.isprintable())[:MOST_SAID]


class StudioError(Exception):
    """Something the user must change. `fix` says what would work; `details` joins the JSON form of the error."""

    def __init__(self, message: str, fix: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()

    def as_json(self) -> dict[str, Any]:
        return {"message": self.message, "fix": self.fix, **self.details}


class NotFoundError(StudioError):
    """An unknown name or ID."""


class ForbiddenError(StudioError):
    """What only somebody else may do, or only from another place."""


class TakenError(StudioError):
    """A name that is in use already."""


class DatasetError(StudioError):
    """A file or rows that can't be read or mapped."""


class ConfigError(StudioError):
    """Options of a job that can't be run; `details["problems"]` holds all of them."""


class ModelError(StudioError):
    """A base model or an adapter that can't be loaded."""


class EngineError(StudioError):
    """The engine could not answer. `status` is the HTTP status, `code` OpenAI's error code."""

    def __init__(self, message: str, fix: str = "", *, status: int = 502, code: str = "engine_error", **details: Any) -> None:
        super().__init__(message, fix, **details)
        self.status = status
        self.code = code


class BusyError(StudioError):
    """What works again soon by itself: ask again after `retry_after` seconds."""

    def __init__(self, message: str, fix: str = "", *, retry_after: int = 5) -> None:
        super().__init__(message, fix, retry_after=retry_after)


def of_this_machine(exc: Exception) -> StudioError | None:
    """What a person can mend about a disk or a database that refuses; None for anything else, which is our own defect."""
    if isinstance(exc, OSError):
        where = f"{exc.filename}: " if exc.filename else ""
        return StudioError(f"{where}{exc.strerror or exc}.", "Check the path, its rights and the space on the disk.")
    if type(exc).__name__ == "OperationalError":  # the database's, as sqlalchemy or sqlite3 raise it
        said = getattr(exc, "orig", None) or exc
        if "database is locked" in str(said):
            return BusyError("The studio's database is held by another program.", "Ask again in a few seconds.")
        return StudioError(f"The studio's database can't be used: {said}.", "Check STUDIO_HOME, its rights and the space on the disk.")
    return None
