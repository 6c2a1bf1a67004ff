"""What a base model's tokenizer makes of a row: how long it is, and whether what is learned of it is cut off. Knows no checks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from studio.datasets.rendering import Renderer
from studio.errors import DatasetError
from studio.types import DroppedPart, Example, RowOptions


@dataclass(frozen=True)
class Counted:
    """Counts before cutting; `learns`: whether anything is learned, `is_cut`: whether learned tokens lie behind max_length."""

    length: int
    learned: int
    learns: bool
    is_cut: bool
    text: str
    empty_reasoning: bool = False  # an empty block of reasoning is learned
    left_out: tuple[DroppedPart, ...] = ()  # what the template does not write of the row


@lru_cache(maxsize=1)
def renderer(folder: str, chat_template: str | None, date: str | None = None) -> Renderer:
    return Renderer.load(Path(folder), chat_template, RowOptions(date=date))


def counted(renderer: Renderer, row: dict[str, Any], max_length: int) -> Counted:
    """A row that the template refuses has no token; `text` says why."""
    try:
        rendered = renderer.example(Example.model_validate(row))
    except DatasetError as exc:
        return Counted(0, 0, False, False, exc.message)
    learned = rendered.learned
    return Counted(
        rendered.length, sum(learned), any(learned[:max_length]), any(learned[max_length:]), rendered.text, rendered.teaches_empty_reasoning
    )
