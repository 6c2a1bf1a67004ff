"""The first rows of a file that is not kept yet, with a menu above each column for the part it plays.

Knows nothing of where the rows come from, and keeps nothing: the page holds the TableReading.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from studio.datasets.guessing import part_of
from studio.datasets.telling import unread
from studio.errors import StudioError
from studio.records import ColumnChoice, FirstRows, Inspection, RowFormat
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
    "request": "a request with its messages",
    "responses": "several answers",
    "ranks": "the ranks of the answers",
}


@dataclass(frozen=True)
class TableReading:
    """A file as it is looked at: its table, how the columns are read now, and why."""

    table: FirstRows
    choice: ColumnChoice
    start: ColumnChoice  # as it was guessed, or as in `known`
    known: str = ""  # the dataset whose mapping is used again
    left_out: frozenset[str] = frozenset()  # columns that a person has said are not used

    def reason(self, column: str) -> str:
        """Why `column` is read as it is."""
        role, at_first = _role(self.choice, column), _role(self.start, column)
        if part_of(role) != part_of(at_first):
            return "Chosen here." if role else "Not used: left out here."
        if self.known:
            return f"As in {self.known}." if role else f"Not used, as in {self.known}."
        return next(each.reason for each in self.table.columns if each.name == column)

    def unread(self, studio: Studio) -> dict[str, str]:
        """The columns that say how rows are meant and are not used, and what each says."""
        kind = next(each.kind for each in studio.datasets.formats() if each.name == self.choice.format)
        says = {column.name: column.says for column in self.table.columns if column.says}
        return {column: says[column] or "" for column in unread(says, self.choice.mapping, kind)}

    def undecided(self, studio: Studio) -> list[str]:
        """Those of which nobody has said yet that they are left out."""
        return [column for column in self.unread(studio) if column not in self.left_out]

    def assigned(self, column: str, choice: ColumnChoice) -> TableReading:
        """The same once a person has chosen what `column` is."""
        left_out = self.left_out - {column}
        if column not in choice.mapping.values():
            left_out |= {column}
        return replace(self, choice=choice, left_out=left_out)

    def needed(self) -> str:
        """What still has no column, in a sentence; "" where nothing is missing."""
        if not self.choice.missing:
            return ""
        missing = " and ".join(f"the {role}{_in_words(role)}" for role in self.choice.missing)
        return f"Still needed: the column with {missing}."


def first_reading(studio: Studio, table: FirstRows) -> TableReading:
    """As these columns were mapped the last time, else as guessed."""
    guessed = studio.datasets.choose_format(table.format, table.mapping)
    known = studio.datasets.remembered([*(column.name for column in table.columns), *table.more_columns])
    is_same = known is not None and (known.format, known.mapping) == (guessed.format, guessed.mapping)
    if known is None or (table.is_certain and is_same):
        return TableReading(table, guessed, guessed)
    again = studio.datasets.choose_format(known.format, known.mapping)
    reading = TableReading(table, again, again, known.name)
    return replace(reading, left_out=frozenset(reading.unread(studio)))


def exact(studio: Studio, choice: ColumnChoice) -> dict[str, str]:
    """Role -> column; other roles of the format are mapped to "", so that no column takes them by its name."""
    roles = next(each.roles for each in studio.datasets.formats() if each.name == choice.format)
    return {**dict.fromkeys(roles, ""), **choice.mapping}


def doubt(reading: TableReading) -> str:
    """A notice where a person should look at what was guessed; "" where the names are known."""
    table = reading.table
    if table.refusal is None or reading.known or (table.is_certain and not reading.choice.missing):
        return ""
    if reading.choice.missing:
        return pieces.said(table.refusal, "info", "Choose above the columns what they are; the rows follow.")
    guessed = "Guessed from what the columns hold: check the choices above them."
    return pieces.said(table.refusal, "info", guessed)


def card(studio: Studio, source: str, reading: TableReading, found: Inspection | None) -> str:
    """The table as HTML. `found` says which of its rows can't be used."""
    table, formats = reading.table, studio.datasets.formats()
    telling, undecided = reading.unread(studio), reading.undecided(studio)
    current = next(each for each in formats if each.name == reading.choice.format)
    problems = {problem.line: problem.problem for problem in (found and found.problems) or []}
    reasons = {name: f"Not used, although it {says}." for name, says in telling.items()}
    counts = {column.name: column.filled for column in table.columns}
    if found is not None:
        counts |= found.unused.columns
    columns = [
        {
            "name": column.name,
            "role": _role(reading.choice, column.name),
            "reason": reasons.get(column.name) or reading.reason(column.name),
            "says": telling.get(column.name),
            "is_open": column.name in undecided,
            "filled": counts[column.name],
        }
        for column in table.columns
    ]
    return pieces.piece(
        "mapping",
        source=source,
        table=table,
        columns=columns,
        unused=[each for each in columns if not each["role"]],
        groups=_menu(current, formats),
        needed=reading.needed(),
        undecided=undecided,
        looked_at=(found is None and table.looked_at) or 0,
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


def checked(reading: TableReading | None) -> TableReading:
    """Raises StudioError where nothing is looked at."""
    if reading is None:
        raise StudioError("There is nothing to read.", "Drop a file above, or paste text.")
    return reading


def complete(studio: Studio, reading: TableReading | None) -> TableReading:
    """Raises StudioError where nothing is looked at, a column is missing, or one that says a lot is not decided on."""
    reading = checked(reading)
    undecided = reading.undecided(studio)
    if undecided:
        says = reading.unread(studio)
        lost = "; ".join(f"the column “{column}” {says[column]}" for column in undecided)
        raise StudioError(f"Not used: {lost}.", "Choose above the column what it is, or “not used” to leave it out.")
    if reading.choice.missing:
        raise StudioError(reading.needed(), "Choose it above its column.")
    return reading
