"""What a report is asked for. Here, so that who asks need not import what makes it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Wanted:
    """What the report is to be made of. `kind` is the dataset's; `against` are files of rows it shall share nothing with."""

    path: str
    kind: str
    model_folder: str | None = None
    chat_template: str | None = None
    max_length: int = 1024
    against: list[str] = field(default_factory=list)
    date: str | None = None  # of the dataset, for templates that print one
    every_language: bool = False  # ask every row for its language, however many there are
