"""What the columns of a file may be, from their names in several languages and from what they hold, and why.

A guess is for a person to correct: `data add` reads a file only as detection or the person says.
Knows nothing of files.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from studio.datasets.column_names import NameMeaning, meaning
from studio.datasets.detecting import detect
from studio.datasets.formats import BY_NAME, FORMATS, Format, Layout
from studio.datasets.records import Row
from studio.datasets.shapes import LABEL, TURNS, Columns, Shapes
from studio.errors import DatasetError
from studio.records import DatasetKind

# roles of different formats that mean the same; the first of each is what column_names calls it
SAME = (
    ("prompt", "question", "instruction"),
    ("completion", "output", "answer"),
    ("messages", "conversations"),
    ("context", "input"),
)
PART = {role: group[0] for group in SAME for role in group}
WORDS = {
    "prompt": "question",
    "completion": "answer",
    "system": "system text",
    "chosen": "better answer",
    "rejected": "worse answer",
    "messages": "conversation",
}  # for parts whose names are no plain words
OFFERED = [format for format in FORMATS if not format.is_chosen_only]
TEXTS: Shapes = frozenset({"text"})
WEAK = (DatasetKind.PROMPTS, DatasetKind.TEXT)  # nothing is answered in them
DEFAULT_FORMAT = "prompt-completion"  # offered where nothing is known
FEW = 0.5  # where less of a column's texts differ, it sorts rows and is no part of them
NOTHING = "nothing"
HOLDS = {"text": "text", "object": "objects", "objects": "lists of objects", "texts": "lists of texts", "lists": "lists"}


@dataclass
class Guess:
    """A format and the columns of its roles. `reasons` says of columns why they play their role, or none."""

    format: str = DEFAULT_FORMAT
    mapping: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    is_certain: bool = True  # false where the place or the contents decided
    refusal: str | None = None  # why the file can't be read without a choice


def part_of(role: str) -> str:
    """What a role is called whatever its format is."""
    return PART.get(role, role)


def role_for(format: Format, role: str) -> str | None:
    """The role of `format` that means the same as `role`."""
    names = format.role_names()
    if role in names:
        return role
    return next((name for name in names if part_of(name) == part_of(role)), None)


def reassign(format: str, mapping: Mapping[str, str], column: str, role: str) -> tuple[str, dict[str, str]]:
    """The format and mapping once `column` plays `role`, or none where `role` is empty.

    The format stays where it has such a role, and the column that had it takes over the one that `column` had.
    Else the format is the one that keeps most of what is mapped already.
    """
    kept = {name: other for name, other in mapping.items() if other != column}
    before = next((name for name, other in mapping.items() if other == column), None)
    current = BY_NAME[format]
    if not role:
        return format, kept
    own = role_for(current, role)
    if own is not None:
        if before is not None and own in kept:
            kept[before] = kept[own]
        return format, {**kept, own: column}
    wanted = {**{name: other for name, other in kept.items() if part_of(name) != part_of(role)}, role: column}
    return best_format(wanted)


def best_format(wanted: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The format that has most of the roles `wanted` (role -> column), certainly the last, and what it calls them."""
    last = list(wanted)[-1]
    able = [each for each in OFFERED if role_for(each, last)]
    if not able:
        return DEFAULT_FORMAT, {}
    found = max(able, key=lambda each: _fits(each, wanted))
    return found.name, translated(found, wanted)


def translated(format: Format, mapping: Mapping[str, str]) -> dict[str, str]:
    """`mapping` in the words of `format`; what it has no role for is left out."""
    named = [(role_for(format, role), column) for role, column in mapping.items()]
    return {role: column for role, column in named if role is not None}


def missing(format: str, mapping: Mapping[str, str]) -> list[str]:
    """The roles that still need a column."""
    return [role.name for role in BY_NAME[format].roles if role.required and not mapping.get(role.name)]


def _fits(format: Format, wanted: Mapping[str, str]) -> tuple[int, bool, bool, int]:
    """More roles first, then formats that need no more of them, that have answers, and that use the same words."""
    found = translated(format, wanted)
    is_complete = not missing(format.name, found)
    return len(found), is_complete, format.kind not in WEAK, len(found.keys() & wanted.keys())


def _best(wanted: Mapping[str, str], columns: Columns) -> Format:
    """As `best_format`, of the formats whose required roles the columns look like."""

    def suits(format: Format) -> bool:
        found = translated(format, wanted)
        return all(_holds(columns[found[role.name]], role.shapes) for role in format.roles if role.required and role.name in found)

    return max(filter(suits, OFFERED), key=lambda each: _fits(each, wanted), default=BY_NAME[DEFAULT_FORMAT])


def guess(columns: Columns, rows: Iterable[Row]) -> Guess:
    """What the columns are, as far as names and contents say."""
    made, sample = Guess(), list(rows)
    try:
        layout = detect(columns)
    except DatasetError as exc:
        made.refusal = exc.message
        _guess_by_name(made, columns)
        _guess_by_content(made, columns, sample)
    else:
        _detected(made, layout)
        _add_named(made, columns)
    for column, counts in columns.items():
        holds = what_it_holds(counts, [row.get(column) for row in sample])
        made.reasons.setdefault(column, _unused(made, column, holds))
    return made


def suggested_mapping(columns: Columns, rows: Iterable[Row]) -> str:
    """What to write at the terminal where the names of the columns say what they are; "" where they don't."""
    made = guess(columns, rows)
    if not made.mapping or not made.is_certain or missing(made.format, made.mapping):
        return ""
    mapped = " ".join(f"--map {role}={shlex.quote(column)}" for role, column in made.mapping.items())
    return f"Say which column is which, such as --format {made.format} {mapped}."


def _detected(made: Guess, layout: Layout) -> None:
    made.format, made.mapping = layout.format.name, dict(layout.mapping)
    for role, column in layout.mapping.items():
        made.reasons[column] = f"The name is known for the {_word(role)}."
        if part_of(role) == "messages":
            made.reasons[column] = "Holds conversations."


def _add_named(made: Guess, columns: Columns) -> None:
    """Columns that detection left out although their name says what they are, so that no answer is only left out."""
    wanted = {part_of(role): column for role, column in made.mapping.items()}
    named = _named(columns, leave_out=made.mapping.values())
    added = [column for column, said in named.items() if wanted.setdefault(said.part, column) == column]
    can_change = BY_NAME[made.format].kind in WEAK or "label" in wanted
    format, mapping = BY_NAME[made.format], made.mapping
    if can_change:
        format = _best(wanted, columns)
    found = translated(format, {**wanted, **mapping})
    if len(found) <= len(mapping) or missing(format.name, found):
        return
    made.format, made.mapping = format.name, found
    for column in added:
        if column in found.values():
            made.reasons[column] = _name_reason(named[column])


def _guess_by_name(made: Guess, columns: Columns) -> None:
    wanted: dict[str, str] = {}
    for column, said in _named(columns).items():
        if said.part not in wanted:
            wanted[said.part] = column
            made.reasons[column] = _name_reason(said)
        else:
            made.reasons[column] = f"Not used: “{wanted[said.part]}” is the {_word(said.part)} already."
    if wanted:
        able = _best(wanted, columns)
        texts = [column for column, counts in columns.items() if _holds(counts, TEXTS)]
        if able.kind == DatasetKind.PROMPTS and len(texts) > 1:
            able = BY_NAME[DEFAULT_FORMAT]  # one of the other columns may be the answer
        made.format, made.mapping = able.name, translated(able, wanted)
    for part, column in wanted.items():
        if column not in made.mapping.values():
            made.reasons[column] = f"Not used: rows of the format {made.format} have no {_word(part)}."


def _named(columns: Columns, leave_out: Iterable[str] = ()) -> dict[str, NameMeaning]:
    """The columns whose names say what they are; names that say nothing more come first."""
    known: dict[str, Shapes] = {}
    for role in (role for format in FORMATS for role in format.roles):
        known[part_of(role.name)] = known.get(part_of(role.name), frozenset()) | role.shapes
    found = {column: meaning(column) for column in columns if column not in set(leave_out)}
    said = {column: name for column, name in found.items() if name and _holds(columns[column], known.get(name.part))}
    return dict(sorted(said.items(), key=lambda item: not item[1].is_whole))


def _holds(counts: Counter[Shapes], shapes: Shapes | None) -> bool:
    """Whether the values look like what the name says: half of them, and nearly all labels."""
    if shapes is None or not counts.total():
        return False
    fitting = sum(count for found, count in counts.items() if found & shapes)
    least = {LABEL: 0.9}.get(shapes, 0.5)
    return fitting >= least * counts.total()


def _guess_by_content(made: Guess, columns: Columns, rows: list[Row]) -> None:
    """Conversations wherever they are; else the one or two columns of text that are left."""
    talks = [column for column, counts in columns.items() if _holds(counts, TURNS)]
    if talks and not made.mapping:
        wanted = {"messages": talks[0]}
        able = _best(wanted, columns)
        made.format, made.mapping = able.name, translated(able, wanted)
        made.reasons[talks[0]] = "Holds conversations."
        return
    needed = missing(made.format, made.mapping)
    texts = [column for column in _texts(columns, rows) if column not in made.mapping.values()]
    if not needed or len(texts) != len(needed) or {part_of(role) for role in needed} - {"prompt", "completion"}:
        return
    for role, column in zip(needed, texts, strict=True):
        made.mapping[role] = column
        made.reasons[column] = f"A guess: text, and the place of the {_word(role)} among the columns."
    made.is_certain = False


def _texts(columns: Columns, rows: list[Row]) -> list[str]:
    """Columns of texts that differ from row to row."""
    found = []
    for column, counts in columns.items():
        values = [row[column] for row in rows if isinstance(row.get(column), str) and row[column].strip()]
        if _holds(counts, TEXTS) and len(set(values)) > FEW * len(values):
            found.append(column)
    return found


def _word(role: str) -> str:
    return WORDS.get(part_of(role), part_of(role))


def _name_reason(said: NameMeaning) -> str:
    if said.language == "English":
        return f"The name says it is the {_word(said.part)}."
    return f"The name is {said.language} for the {_word(said.part)}."


def _unused(made: Guess, column: str, holds: str) -> str:
    if holds == NOTHING:
        return "Not used: empty in the rows looked at."
    said = meaning(column)
    if said is None:
        return f"Not used: {holds}, and the name says nothing that is known."
    if said.part in {part_of(role) for role in made.mapping}:
        return f"Not used: another column is the {_word(said.part)} already."
    return f"Not used: rows of the format {made.format} have no {_word(said.part)}."


def what_it_holds(counts: Counter[Shapes], values: Iterable[Any]) -> str:
    """What a column holds, in a word or two."""
    there = [value for value in values if value not in (None, "")]
    if not there:
        return NOTHING
    if _holds(counts, TURNS):
        return "conversations"
    if all(_is_number(value) for value in there):
        return "numbers"
    shapes = counts.most_common(1)[0][0]
    return next((words for shape, words in HOLDS.items() if shape in shapes), "values")


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
