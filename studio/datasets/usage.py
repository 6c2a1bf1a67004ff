"""What of a file's columns and message keys is read, how often the others hold something, and what may not be left out unsaid."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from studio.datasets.formats import Layout
from studio.datasets.labels import ALTERNATIVES, read_label, shown, spelling
from studio.datasets.records import Row
from studio.datasets.row_errors import RowError
from studio.datasets.shapes import unpacked
from studio.datasets.telling import MESSAGE_KEYS, RowMeaning, changes_meaning, holds_something, unread
from studio.errors import DatasetError
from studio.records import UnusedParts, UsedKey

IMPLIED = frozenset({"role", "content"})  # what every message has
MAX_NAMES = 1000  # of message keys that are counted
READ_OF_CALLS = frozenset({"function", "name", "arguments", "type"})
READ_OF_REQUESTS = frozenset({"messages", "tools", "functions"})


def check_layout(layout: Layout, rows: Iterable[Row]) -> None:
    """Refuse a guessed layout that would leave out a column which says how rows are meant, and labels of more than two classes."""
    held = list(rows)
    if "label" in layout.mapping:
        _check_classes(layout.mapping["label"], held)
    columns = dict.fromkeys(name for row in held for name in row)
    left_out = {
        column: says
        for column, says in unread(columns, layout.mapping, layout.format.kind).items()
        if any(changes_meaning(says, row.get(column)) for row in held)
    }
    if not left_out:
        return
    told = "; ".join(f"the column {column!r} {says.says}" for column, says in list(left_out.items())[:5])
    column, says = next(iter(left_out.items()))
    if "label" in says.roles:
        told += f" ({_classes(column, held)})"
    reason = f"{told}; reading the rows as {layout.format.name} would leave that out"
    raise DatasetError(f"{reason}.", _way_on(column, says, layout), columns=list(columns)[:100])


def _way_on(column: str, says: RowMeaning, layout: Layout) -> str:
    """What to do about a column that would be left out."""
    return f"{says.fix.format(column=column)}. Or choose --format {layout.format.name} to leave the column out knowingly."


def _check_classes(column: str, rows: list[Row]) -> None:
    spellings = {spelling(row.get(column)) for row in rows if row.get(column) is not None}
    if any(pair <= spellings for pair in ALTERNATIVES):
        fix = "Write true for good answers and false for bad ones, and leave the others out."
        raise DatasetError(f"the label column {column!r} has more than two classes ({_classes(column, rows)}).", fix)


def _classes(column: str, rows: list[Row]) -> str:
    """The values of a label column, counted."""
    values = [row.get(column) for row in rows if row.get(column) is not None]
    counts = Counter(shown(value) for value in values)
    odd = [value for value in values if read_label(value) is None]
    told = ", ".join(f"{value} {count} times" for value, count in counts.most_common(5))
    more = f" and {len(counts) - 5} other values" * (len(counts) > 5)
    which = ""
    if odd:
        which = f"; {shown(odd[0])} is neither good nor bad"
    return f"it holds {told}{more}{which}"


class ColumnUsage:
    """What the rows of one file hold beside what their layout reads."""

    def __init__(self, layout: Layout, is_chosen: bool) -> None:
        self._layout = layout
        self._is_chosen = is_chosen  # a person named the format, and may leave out what it does not read
        self._used = frozenset(layout.mapping.values())
        self._columns: Counter[str] = Counter()
        self._message_keys: Counter[str] = Counter()
        self._used_keys: Counter[str] = Counter()
        self._labels: dict[str, Any] = {}  # the first value of each spelling of which a file may have one
        self.known: dict[str, RowMeaning | None] = {}  # each unused column that was seen, and what may not be left out of it

    def learn(self, columns: Iterable[str]) -> None:
        """Columns that were not seen before."""
        for column in columns:
            if column in self._used or column in self.known:
                continue
            self._columns[column] += 0
            self.known[column] = None
            if not self._is_chosen:
                self.known[column] = unread([column], self._layout.mapping, self._layout.format.kind).get(column)

    def add(self, counts: Mapping[str, int]) -> None:
        """Unused columns of rows that were read at once."""
        self._columns.update(counts)

    def see(self, row: Row) -> None:
        """Count one row. Raises RowError where a column that may not be left out holds something."""
        refused = ""
        for column, value in row.items():
            if column in self._used:
                self._see_used(column, value)
                continue
            if column not in self.known:
                self.learn([column])
            if not holds_something(value):
                continue
            self._columns[column] += 1
            says = self.known[column]
            if says is not None and not refused and changes_meaning(says, value):
                refused = column
        if refused:
            says = self.known[refused]
            assert says is not None
            problem = f"The column {refused!r} {says.says}, which the format {self._layout.format.name} leaves out."
            raise RowError(problem, _way_on(refused, says, self._layout))
        if "label" in self._layout.mapping:
            self._see_label(row.get(self._layout.mapping["label"]))

    def _see_label(self, value: Any) -> None:
        word = spelling(value)
        for pair in ALTERNATIVES:
            if word not in pair:
                continue
            other = next((self._labels[each] for each in pair if each != word and each in self._labels), None)
            if other is not None:
                problem = f"The label {shown(value)} stands beside {shown(other)}, so there are more than two classes."
                raise RowError(problem, "Write true for good answers and false for bad ones, and leave the others out.")
            self._labels.setdefault(word, value)

    def _see_used(self, column: str, value: Any) -> None:
        if isinstance(value, str) and value[:1] not in ("[", "{"):
            return
        value = unpacked(value)
        if isinstance(value, dict):
            if isinstance(value.get("messages"), list):  # a request in a cell
                self._columns.update(
                    f"{column}.{key}" for key, held in value.items() if key not in READ_OF_REQUESTS and holds_something(held)
                )
                value = value["messages"]
            else:
                value = [value]
        if isinstance(value, list):
            for turn in value:
                if isinstance(turn, dict) and ("role" in turn or "from" in turn):
                    self._see_message(turn)

    def _see_message(self, turn: dict[str, Any]) -> None:
        for key, held in turn.items():
            if not holds_something(held):
                continue
            if key in MESSAGE_KEYS:
                self._used_keys[key] += MESSAGE_KEYS[key] not in IMPLIED
            elif key in self._message_keys or len(self._message_keys) < MAX_NAMES:
                self._message_keys[str(key)] += 1
        calls = turn.get("tool_calls")
        if isinstance(calls, list):
            keys = {key for call in calls if isinstance(call, dict) for key, held in call.items() if holds_something(held)}
            self._message_keys.update(f"tool_calls.{key}" for key in keys - READ_OF_CALLS)

    def used_message_keys(self) -> dict[str, UsedKey]:
        """The keys of messages that were read beside role and content."""
        return {key: UsedKey(read_as=MESSAGE_KEYS[key], messages=count) for key, count in self._used_keys.items() if count}

    def unused(self, most: int | None = None) -> UnusedParts:
        """The columns and keys that were not read, the most frequent first where only so many are wanted."""
        if most is None:
            return UnusedParts(columns=dict(self._columns), message_keys=dict(self._message_keys))
        return UnusedParts(columns=dict(self._columns.most_common(most)), message_keys=dict(self._message_keys.most_common(most)))
