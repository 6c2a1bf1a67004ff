"""Options of a job that say how the rows of its dataset are read; jobs.config lists them among the others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

LearnedTurnsOption = Annotated[
    Literal["marked", "all", "last"],
    Field(
        title="Turns that are learned",
        description="Of a conversation. marked: the assistant's turns, but not those marked otherwise in the data (train or loss false, "
        "weight 0), and other turns marked to be trained; all: every turn of the assistant, whatever is marked; last: its last turn. "
        "Preferences are learned whole.",
    ),
]
ReasoningOption = Annotated[
    Literal["learn", "context", "drop"],
    Field(
        title="Reasoning before an answer",
        description="learn: a part of the answer; context: the model reads it, also an empty block, but does not learn to write it; "
        "drop: it is left out.",
    ),
]
SystemMessageOption = Annotated[
    Literal["keep", "fold"],
    Field(
        title="System messages",
        description="keep: as the chat template writes them; fold: put before the question that follows, for templates that know none. "
        "The changed template goes with the adapter.",
    ),
]
TemplateLossesOption = Annotated[
    Literal["refuse", "accept"],
    Field(
        title="What the template leaves out",
        description="Rows whose system message or reasoning the chat template does not write: refuse the launch, or accept to train "
        "without what is left out.",
    ),
]
TemplateDateOption = Annotated[
    str | None,
    Field(
        pattern=r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$",
        description="The day that a chat template prints, such as 2026-11-30; filled in at launch.",
        json_schema_extra={"hidden": True},
    ),
]
