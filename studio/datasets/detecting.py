"""Which row format a file has, and which of its columns plays which role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from studio.datasets.formats import BY_NAME, FORMATS, Format, Layout, RowRole
from studio.datasets.shapes import ASKED, LABEL, Columns, Shapes
from studio.datasets.telling import normal
from studio.errors import DatasetError


def detect(columns: Columns, format: str | None = None, mapping: Mapping[str, str] | None = None) -> Layout:
    """The format of rows with these `columns`; `format` and `mapping` (role -> column) narrow the choice.

    A role that is mapped to "" has no column, whatever the names of the columns say.

    Raises DatasetError when nothing fits, naming the columns and what would help.
    """
    given = dict(mapping or {})
    _check_given(columns, format, given)
    for candidate in FORMATS:
        if format != candidate.name and (format or candidate.is_chosen_only):
            continue
        found = _fit(candidate, columns, given, strict=not format)
        if found is not None:
            return Layout(candidate, found)
    if len(columns) == 1 and not given and format in (None, "text"):
        name, counts = next(iter(columns.items()))
        if any("text" in shapes for shapes in counts):
            return Layout(BY_NAME["text"], {"text": name})
    if not columns:
        raise DatasetError("the rows have no columns.", 'Write each row as {"column": value, …}.')
    wanted, which = ["prompt", "completion"], "fit no known format"
    if format:
        wanted, which = BY_NAME[format].role_names(), f"do not fit the format {format!r}"
    example = " ".join(f"--map {role}=COLUMN" for role in wanted[:3])
    raise DatasetError(
        f"the columns ({', '.join(list(columns)[:20])}) {which}.",
        f"Say which column is which: {example}.",
        columns=list(columns)[:100],
    )


def _check_given(columns: Columns, format: str | None, given: dict[str, str]) -> None:
    if format and format not in BY_NAME:
        raise DatasetError(f"there is no format {format!r}.", f"Choose one of {', '.join(BY_NAME)}.")
    known, where = list(dict.fromkeys(name for each in FORMATS for name in each.role_names())), "any format"
    if format:
        known, where = BY_NAME[format].role_names(), f"the format {format!r}"
    for role, column in given.items():
        if column and column not in columns:
            raise DatasetError(f"there is no column {column!r}.", f"The columns are {', '.join(list(columns)[:20])}.")
        if role not in known:
            raise DatasetError(f"{role!r} is no part of {where}.", f"The parts are {', '.join(known)}.")


def _fit(format: Format, columns: Columns, given: dict[str, str], strict: bool) -> dict[str, str] | None:
    if not set(given) <= set(format.role_names()):
        return None
    found = dict(given)
    by_key = {normal(name): name for name in reversed(list(columns))}
    for role in format.roles:
        if role.name in found:  # given, perhaps as ""
            continue
        names = [by_key[alias] for alias in role.aliases if alias in by_key and by_key[alias] not in found.values()]
        column = next((name for name in names if not strict or _has_shape(columns[name], role)), None)
        if column is not None:
            found[role.name] = column
        elif role.required:
            return None
    if any(role.required and not found[role.name] for role in format.roles):
        return None
    return {role: column for role, column in found.items() if column}


def _has_shape(counts: Counter[Shapes], role: RowRole) -> bool:
    """Half of the values look right; of labels nearly all, so that another number is none, and a slip of the pen is a row's problem."""
    total = counts.total()
    fitting = sum(count for shapes, count in counts.items() if shapes & role.shapes)
    if not total:
        return not role.required
    if role.shapes in (LABEL, ASKED):
        return fitting >= 0.9 * total
    return fitting >= 0.5 * total
