"""What follows from columns and message keys that change how a row is to be understood; column_names says how they are spelled.

While a column of this table holds something and no role of the chosen format reads it, a file is refused rather than read as something
weaker; naming the format is how a person says that it may be left out. Knows no formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from studio.datasets.column_names import RELATED, SPELLED


@dataclass(frozen=True)
class RowMeaning:
    """What a column says about a row. A format that reads one of `roles` understands it; none does where there are no roles."""

    names: frozenset[str]
    says: str
    fix: str
    roles: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()  # of rows that are weaker without it; all where empty

    def fits(self, name: str) -> bool:
        return name in self.names or (bool(self.prefixes) and name.startswith(self.prefixes))


def _meaning(part: str, says: str, fix: str, roles: str = "", prefixes: str = "", kinds: str = "") -> RowMeaning:
    names = (*SPELLED.get(part, ()), *RELATED.get(part, ()))
    return RowMeaning(frozenset(names), says, fix, frozenset(roles.split()), tuple(prefixes.split()), frozenset(kinds.split()))


UNREADABLE_MEDIA = "Only text is learned: describe them in words, or leave the rows out"
COLUMNS = (
    _meaning(
        "label",
        "marks an answer as good or bad",
        "Write true or false in it and map it: --map label={column}, with prompt and completion",
        roles="label",
    ),
    _meaning(
        "rejected",
        "holds the worse of two answers",
        "Map both answers: --map chosen=COLUMN --map rejected={column}",
        roles="rejected",
        prefixes="rejected dispreferred_ non_preferred_",
    ),
    _meaning(
        "chosen",
        "holds the better of two answers",
        "Map both answers: --map chosen={column} --map rejected=COLUMN",
        roles="chosen",
        prefixes="chosen_response chosen_answer chosen_output chosen_message preferred_",
    ),
    _meaning(
        "winner",
        "says which of several answers is better",
        "Write the better answer to a column chosen and the other to rejected",
        roles="chosen rejected",
    ),
    _meaning(
        "ranks",
        "ranks several answers",
        "Map the list of answers and their ranks: --map responses=COLUMN --map ranks={column}",
        roles="ranks",
    ),
    _meaning(
        "learned",
        "says what is to be learned of a row",
        'Write it into each message, as {{"role": …, "content": …, "weight": 0 or 1}}, or leave out the rows that it excludes',
    ),
    _meaning(
        "segments", "holds texts with a mark on each that says whether it is learned", 'Write them as messages with "train": true or false'
    ),
    _meaning(
        "images",
        "holds images",
        UNREADABLE_MEDIA,
        prefixes="rejected_image chosen_image",
    ),
    _meaning("sound", "holds sound", UNREADABLE_MEDIA),
    _meaning("videos", "holds videos", UNREADABLE_MEDIA),
    _meaning(
        "tools",
        "holds the tools that answers may call",
        "Use a format with tools, such as --format messages or --format prompt-completion",
        roles="tools request",
    ),
    _meaning(
        "reasoning",
        "holds what is thought before the answer",
        "Map it: --map reasoning={column}, with prompt and completion; or write it into the message of the answer",
        roles="reasoning",
        prefixes="reasoning_content reasoning_text reasoning_trace reasoning_step reasoning_chain reasoning_detail thinking_",
    ),
    _meaning(
        "history",
        "holds earlier turns",
        "Write [[question, answer], …] in it and use --format alpaca, or write rows as messages",
        roles="history",
    ),
    _meaning(
        "system",
        "holds the system message",
        "Map it: --map system={column}, with a format of conversations",
        roles="system",
    ),
    _meaning("parent", "chains rows to conversations", "Join the rows of each conversation to one row of messages"),
    _meaning(
        "choices",
        "holds the answers to choose from",
        "Write the choices into the question",
        roles="turns",
        kinds="sft preference unpaired-preference",
    ),
    _meaning("correction", "corrects the answer", "Write the corrected answer into the column of the answer"),
    _meaning(
        "completion",
        "holds answers",
        "Map it: --map prompt=COLUMN --map completion={column}",
        roles="completion responses",
        kinds="prompts text",
    ),
    _meaning(
        "messages",
        "holds a conversation",
        "Map it: --map messages={column}, and leave out the column that was read instead",
        roles="messages conversations prompt request",
    ),
    _meaning(
        "prompt",
        "holds what is asked",
        "Map it: --map prompt={column}",
        roles="prompt instruction question turns messages conversations",
        kinds="text sft preference unpaired-preference",
    ),
)

LEARNED = next(each for each in COLUMNS if "weight" in each.names)

# keys of a message, and the studio's word for what they are read as
MARKS = frozenset(["weight", "train", "training", "trainable", "loss", "loss_mask", "train_mask", "loss_scale", "loss_weight"])
MASKED = frozenset({"masked"})  # true where a message is not learned
THOUGHTS = frozenset(["reasoning_content", "reasoning", "thinking", "thought", "thoughts", "reasoning_text", "reasoning_details"])
MESSAGE_KEYS = {
    "role": "role",
    "from": "role",
    "content": "content",
    "value": "content",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "name": "name",
    **dict.fromkeys(MARKS | MASKED, "train"),
    **dict.fromkeys(THOUGHTS, "reasoning"),
}
# keys of a message that can't be honoured
REFUSED_KEYS = {
    **dict.fromkeys(("image", "images", "image_url", "image_urls"), "holds images"),
    **dict.fromkeys(("audio", "audios", "input_audio"), "holds sound"),
    **dict.fromkeys(("video", "videos"), "holds videos"),
    "train_detail": "marks parts of a message",
    "mask": "is 1 for what is learned in some tools and for what is not in others",
    **dict.fromkeys(("chosen", "rejected"), "holds one of several answers"),
}
BLANK_WORDS = frozenset(("", "null", "none", "nan", "n/a", "[]", "{}", '""', "[null]", "undefined"))


def is_blank(value: Any) -> bool:
    """Whether a cell holds nothing, in any of the ways in which tools write it."""
    if isinstance(value, str):
        return len(value) < 100 and value.strip().lower() in BLANK_WORDS
    if isinstance(value, (list, tuple)):
        return len(value) <= 100 and all(is_blank(item) for item in value)
    if isinstance(value, dict):
        return not value
    return value is None or (isinstance(value, float) and value != value)


def changes_meaning(says: RowMeaning, value: Any) -> bool:
    """Whether a value of such a column says more than that the row is as usual."""
    if says is LEARNED and str(value).strip().lower() in ("1", "1.0", "true"):
        return False
    return not is_blank(value)


def holds_something(value: Any) -> bool:
    """What counts as a value of a column that was left out."""
    return value is not None and value != "" and value != [] and value != {}


def normal(name: str) -> str:
    """A column's name as it is compared."""
    return name.strip(" \t\r\n\ufeff\xa0\"'").lower().replace(" ", "_").replace("-", "_")


@lru_cache(maxsize=4096)
def meaning(column: str) -> RowMeaning | None:
    name = normal(column)
    return next((each for each in COLUMNS if each.fits(name)), None)


def unread(columns: Iterable[str], mapping: Mapping[str, str], kind: str) -> dict[str, RowMeaning]:
    """The columns that mean something, and are read by no role of `mapping`."""
    used, roles = set(mapping.values()), set(mapping)
    found = {}
    for column in columns:
        says = meaning(column)
        if says is None or column in used or says.roles & roles or (says.kinds and kind not in says.kinds):
            continue
        found[column] = says
    return found
