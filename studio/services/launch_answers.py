"""What a launch finds by looking at every row: pairs of equal answers, marks of one kind only, control tokens written as text.

Refuses what can't teach anything, with that reason; says what can be trained and still should be known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from jobs.config import MAX_ROWS_WITHOUT_LEARNED_TOKEN, JobConfig
from jobs.objectives import RowForm
from studio.datasets.rendering import Renderer
from studio.datasets.report.control_tokens import ControlTokens
from studio.datasets.report.rows import Row, is_identical
from studio.errors import ConfigError, listed
from studio.records import Dataset

COMPARES = "kto"  # the loss that weighs good answers against bad ones; apo_zero_unpaired moves each kind by itself


@dataclass
class AnswersSeen:
    """What the rows of a dataset have in common; row numbers count from 1."""

    rows: int = 0
    identical: list[int] = field(default_factory=list)
    marks: Counter[bool] = field(default_factory=Counter)
    control: Counter[str] = field(default_factory=Counter)  # control token -> rows
    rows_with_control: int = 0


def look(path: Path, renderer: Renderer, form: RowForm) -> AnswersSeen:
    """Read every row of a dataset."""
    control, seen = ControlTokens.of(renderer), AnswersSeen()
    for row in _rows(path):
        seen.rows += 1
        if form == RowForm.PAIRED and is_identical(row):
            seen.identical.append(seen.rows)
        if form == RowForm.MARKED:
            seen.marks[row.get("label") is True] += 1
        if found := control.in_row(row):
            seen.rows_with_control += 1
            seen.control.update(found)
    return seen


def answer_notices(path: Path, dataset: Dataset, renderer: Renderer, config: JobConfig) -> list[str]:
    """What a person must know of the answers. Raises ConfigError where they can't teach anything."""
    seen = look(path, renderer, config.objective_entry.rows)
    return [*_of_pairs(dataset, seen), *_of_marks(dataset, seen, config), *_of_control_tokens(dataset, seen)]


def _of_pairs(dataset: Dataset, seen: AnswersSeen) -> list[str]:
    if not seen.identical:
        return []
    numbers = listed(map(str, seen.identical), 5)
    said = f"{len(seen.identical)} of {seen.rows} pairs of {dataset.name} have two equal answers (row {numbers})"
    mend = f"`studio data fix {dataset.name} --check identical_pairs` leaves them out"
    if len(seen.identical) > MAX_ROWS_WITHOUT_LEARNED_TOKEN * seen.rows:
        raise ConfigError(f"{said}: there is nothing to prefer, so nothing can be learned from them.", f"{mend}, or bring other pairs.")
    return [f"{said} and are left out; {mend} for good."]


def _of_marks(dataset: Dataset, seen: AnswersSeen, config: JobConfig) -> list[str]:
    if len(seen.marks) != 1:
        return []
    (is_good,) = seen.marks
    kind, other = {True: ("good", "bad"), False: ("bad", "good")}[is_good]
    said = f"All {seen.rows} answers of {dataset.name} are marked {kind}"
    if config.kto.loss_type != COMPARES:
        becomes = {True: "likelier", False: "less likely"}[is_good]
        return [f"{said}: {config.kto.loss_type} makes them {becomes}, with no {other} ones to set them against."]
    fix = f"Add rows that are marked {other}: `studio data merge`."
    if is_good:
        fix += f" Or imitate them: `studio data fix {dataset.name} --check single_class`, then objective=sft."
    raise ConfigError(f"{said}, and kto learns from good answers beside bad ones.", fix)


def _of_control_tokens(dataset: Dataset, seen: AnswersSeen) -> list[str]:
    if not seen.rows_with_control:
        return []
    found = listed(f"{token} in {rows}" for token, rows in seen.control.most_common())
    return [
        f"{seen.rows_with_control} of {seen.rows} rows of {dataset.name} hold control tokens written as text ({found}): the model reads "
        f"them as such, in training as in a chat. `studio data fix {dataset.name} --check control_tokens` breaks them up."
    ]


def _rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:
        for line in lines:
            yield orjson.loads(line)
