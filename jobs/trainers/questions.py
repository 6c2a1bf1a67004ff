"""Rows as questions and as tokens to be judged: what is asked while a training runs, and what its answers are held against.

Only a few rows at the head of a file are ever read. Knows no model and no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from studio.datasets.rendering import Renderer
from studio.errors import DatasetError
from studio.types import Example, Message

READ_ROWS = 2000  # from the head of a file
SHOWN = 600  # characters of a text that is kept to be shown
OPENING = 24  # tokens of a plain text that the model is to go on from


@dataclass(frozen=True)
class RowQuestion:
    """`line` counts from 1. `ids` are what the model reads; `row` and `learned` the whole row, as training sees it."""

    line: int
    prompt: str
    reference: str
    ids: list[int]
    row: list[int]
    learned: list[bool]


def questions(path: Path, renderer: Renderer, max_length: int, most: int) -> list[RowQuestion]:
    """At most `most` rows of the file, evenly spread over its head; rows that can't be asked are passed over."""
    found = list(_readable(path))
    if len(found) > most:
        found = [found[index * len(found) // most] for index in range(most)]
    asked = (_question(line, example, renderer, max_length) for line, example in found)
    return [question for question in asked if question is not None]


def _readable(path: Path) -> Iterator[tuple[int, Example]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(itertools.islice(file, READ_ROWS), 1):
            if line.strip():
                yield number, Example.model_validate_json(line)


def _question(line: int, example: Example, renderer: Renderer, max_length: int) -> RowQuestion | None:
    try:
        row = renderer.example(example, max_length)
        prompt, reference, ids = _asked(example, renderer, row.ids)
    except DatasetError:  # the template refuses it, and training has left it out
        return None
    if not ids or len(ids) > max_length or not any(row.learned[1:]):
        return None
    return RowQuestion(line, prompt[-SHOWN:], reference[:SHOWN], ids, row.ids, row.learned)


def _asked(example: Example, renderer: Renderer, row: list[int]) -> tuple[str, str, list[int]]:
    """The question for people, the answer in the row, and the tokens to go on from."""
    if example.text is not None:
        cut = max(1, min(OPENING, len(row) // 2))
        return renderer.decode(row[:cut]), renderer.decode(row[cut:]), row[:cut]
    answer = example.chosen if example.chosen is not None else example.completion
    if isinstance(example.prompt, str) and isinstance(answer, str):
        return example.prompt, answer, renderer.completion_prompt(example.prompt)
    before = list(example.messages or (example.prompt if isinstance(example.prompt, list) else []))
    turns = [*before, *(answer if isinstance(answer, list) else [])]
    last = _last_answer(turns)
    if not last:
        return "", "", []
    return turns[last - 1].content, renderer.spoken(turns[last]), renderer.prompt(turns[:last], example.tools).ids


def _last_answer(turns: Sequence[Message]) -> int:
    """The place of the last turn of the assistant; 0 where nothing comes before it."""
    return next((place for place in range(len(turns) - 1, 0, -1) if turns[place].role == "assistant"), 0)
