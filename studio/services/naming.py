"""Names that people give and that files give: which are valid, which are taken, which was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from studio.db.models import AdapterRow, BaseModelRow, ComparisonRow, DatasetRow, JobRow
from studio.errors import NotFoundError, StudioError, TakenError, listed

NamedRow = TypeVar("NamedRow", AdapterRow, BaseModelRow, ComparisonRow, DatasetRow, JobRow)

PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = frozenset({"base", "file", "reference", "likelihood"})  # words of the contestant grammar
LENGTH = 64


def get(session: Session, table: type[NamedRow], wanted: str, *conditions: ColumnElement[bool]) -> NamedRow | None:
    """The row with the ID or name `wanted`, the ID first. `conditions`: which rows of the table are meant, where not all are."""
    rows = session.scalars(select(table).where((table.id == wanted) | (table.name == wanted), *conditions)).all()
    return next((row for row in rows if row.id == wanted), rows[0] if rows else None)


def look_up(session: Session, table: type[NamedRow], wanted: str, noun: str, *conditions: ColumnElement[bool]) -> NamedRow:
    """As `get`; raises NotFoundError with near names. `noun`: what people call it."""
    row = get(session, table, wanted, *conditions)
    if row is None:
        known = session.scalars(select(table.name).where(*conditions).order_by(table.created_at))
        raise NotFoundError(f"There is no {noun} {wanted!r}.", suggest(wanted, known))
    return row


def taken_in(session: Session, *columns: InstrumentedAttribute[Any]) -> Callable[[str], bool]:
    """Says of a name whether one of `columns` holds it."""

    def is_taken(name: str) -> bool:
        return any(session.scalar(select(column).where(column == name)) is not None for column in columns)

    return is_taken


def choose(wanted: str | None, default: str, is_taken: Callable[[str], bool]) -> str:
    """`wanted` as a person gave it, which must be free; left out, `default`, with a number where it is taken."""
    if wanted:
        return claim(wanted, is_taken)
    return unique(default, is_taken)


def valid(name: str) -> bool:
    return PATTERN.fullmatch(name) is not None and name.lower() not in RESERVED


def claim(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """`wanted`, if it is valid and free. Raises StudioError or TakenError otherwise."""
    if wanted.lower() in RESERVED:
        raise StudioError(f"The name {wanted!r} has a meaning of its own here.", "Choose another name.")
    if not valid(wanted):
        raise StudioError(
            f"The name {wanted[:80]!r} can't be used.",
            "Take up to 64 letters, digits, dots, dashes or underscores, a letter or digit first.",
        )
    if is_taken(wanted):
        raise TakenError(f"The name {wanted!r} is taken.", f"Choose another, such as {unique(wanted, is_taken)}.")
    return wanted


def from_stem(stem: str) -> str:
    """A valid name made of a file's stem."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[: LENGTH - 4]
    if valid(name):
        return name
    return f"my-{name}"[:LENGTH] if name else "unnamed"


def unique(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """`wanted`, or `wanted-2`, `wanted-3` … where it is taken."""
    name, number = wanted, 1
    while is_taken(name):
        number += 1
        suffix = f"-{number}"
        name = wanted[: LENGTH - len(suffix)] + suffix
    return name


def suggest(wanted: str, known: Iterable[str]) -> str:
    """The sentence that helps after an unknown name."""
    names = list(known)
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    if not names:
        return "There are none yet."
    return f"There are: {listed(sorted(names))}."
