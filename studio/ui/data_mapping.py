"""The first rows of a file that is not kept yet, with a menu above each column for the part it plays.

Knows nothing of where the rows come from, and keeps nothing: the page holds the Reading.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from studio.datasets.guessing import part_of
from studio.errors import StudioError
from studio.records import ColumnChoice, Inspection, RowFormat, RowTable
from studio.services import Studio
from studio.ui import pieces, words

MEANINGS = {
    "prompt": "what is asked",
    "completion": "the answer to it",
    "system": "system text",
    "context": "text beside the question",
    "messages": "a whole conversation",
    "chosen": "the better answer",
    "rejected": "the worse answer",
    "label": "good or bad",
    "tools": "functions to call",
    "history": "earlier turns",
    "reasoning": "thoughts before the answer",
    "text": "a document",
    "turns": "questions of one talk",
    "instances": "inputs with outputs",
}


@dataclass(frozen=True)
class Reading:
    """A file as it is looked at: its table, how the columns are read now, and why."""

    table: RowTable
    choice: ColumnChoice
    start: ColumnChoice  # as it was guessed, or as in `known`
    known: str = ""  # the dataset whose mapping is used again

    def reason(self, column: str) -> str:
        """Why `column` is read as it is."""
        role, at_first = _role(self.choice, column), _role(self.start, column)
        if part_of(role) != part_of(at_first):
            return "Chosen here." if role else "Not used: left out here."
        if self.known:
            return f"As in {self.known}." if role else f"Not used, as in {self.known}."
        return next(each.reason for each in self.table.columns if each.name == column)

    def needed(self) -> str:
        """What still has no column, in a sentence; "" where nothing is missing."""
        if not self.choice.missing:
            return ""
        missing = " and ".join(f"the {role}{_in_words(role)}" for role in self.choice.missing)
        return f"Still needed: the column with {missing}."


def first_reading(studio: Studio, table: RowTable) -> Reading:
    """As these columns were mapped the last time, else as guessed."""
    guessed = studio.datasets.choose_format(table.format, table.mapping)
    known = studio.datasets.remembered([*(column.name for column in table.columns), *table.more_columns])
    if known is None or (table.is_certain and (known.format, known.mapping) == (guessed.format, guessed.mapping)):
        return Reading(table, guessed, guessed)
    again = studio.datasets.choose_format(known.format, known.mapping)
    return Reading(table, again, again, known.name)


def exact(studio: Studio, choice: ColumnChoice) -> dict[str, str]:
    """Role -> column; every other role of the format is mapped to "", so that no column takes it by its name."""
    roles = next(each.roles for each in studio.datasets.formats() if each.name == choice.format)
    return {**dict.fromkeys(roles, ""), **choice.mapping}


def doubt(reading: Reading) -> str:
    """A notice where a person should look at what was guessed; "" where the names are known."""
    table = reading.table
    if table.refusal is None or reading.known or (table.is_certain and not reading.choice.missing):
        return ""
    if reading.choice.missing:
        return pieces.said(table.refusal, "info", "Choose above the columns what they are; the rows follow.")
    return pieces.said(table.refusal, "info", "Guessed from what the columns hold: check the choices above them.")


def card(studio: Studio, source: str, reading: Reading, found: Inspection | None) -> str:
    """The table as HTML. `found` says which of its rows can't be used."""
    table, formats = reading.table, studio.datasets.formats()
    current = next(each for each in formats if each.name == reading.choice.format)
    problems = {problem.line: problem.problem for problem in (found and found.problems) or []}
    columns = [
        {"column": column, "role": _role(reading.choice, column.name), "reason": reading.reason(column.name)} for column in table.columns
    ]
    return pieces.piece(
        "mapping",
        source=source,
        table=table,
        columns=columns,
        unused=[each for each in columns if not each["role"]],
        groups=_menu(current, formats),
        needed=reading.needed(),
        problems=problems,
        whole=words.count(len(table.columns) + len(table.more_columns), "column"),
    )


def _role(choice: ColumnChoice, column: str) -> str:
    return next((role for role, other in choice.mapping.items() if other == column), "")


def _menu(current: RowFormat, formats: Iterable[RowFormat]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What a column can be: the roles of the format, then parts that only other formats have."""
    own = [(role, f"{role}{_in_words(role)}") for role in current.roles]
    parts = dict.fromkeys(part_of(role) for each in formats for role in each.roles)
    others = [part for part in parts if part not in {part_of(role) for role in current.roles}]
    return [
        (f"In the format {current.name}", own),
        ("In another format", [(part, f"{part}{_in_words(part)}") for part in others]),
    ]


def _in_words(role: str) -> str:
    meaning = MEANINGS.get(part_of(role), "")
    return f" ({meaning})" * bool(meaning)


def checked(reading: Reading | None) -> Reading:
    """Raises StudioError where nothing is looked at."""
    if reading is None:
        raise StudioError("There is nothing to read.", "Drop a file above, or paste text.")
    return reading


def complete(reading: Reading | None) -> Reading:
    """Raises StudioError where nothing is looked at, or a column is missing."""
    reading = checked(reading)
    if reading.choice.missing:
        raise StudioError(reading.needed(), "Choose it above its column.")
    return reading
