"""What chat teaches: good answers as rows to learn from, corrected ones as preference pairs.

Knows conversations and datasets; nothing of engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

from studio.errors import StudioError
from studio.records import Dataset
from studio.services.chat import ChatService
from studio.services.datasets import DatasetService

Kind = Literal["answers", "preferences"]
NAMES = {"answers": "chat-answers", "preferences": "chat-preferences"}


class HarvestService:
    """Makes datasets of what people marked and corrected in chat."""

    def __init__(self, chat: ChatService, datasets: DatasetService) -> None:
        self.chat = chat
        self.datasets = datasets

    def counts(self) -> dict[str, int]:
        """How many rows each kind would have now."""
        return self.chat.lessons()

    def make(self, kind: Kind, name: str | None = None) -> Dataset:
        """A dataset of every good answer, or of every corrected one. Raises StudioError when there is none yet."""
        rows = list(self._rows(kind))
        if not rows:
            what = "marked as good" if kind == "answers" else "corrected"
            raise StudioError(f"No answer was {what} yet.", "Use the buttons under an answer in Chat.")
        text = json.dumps(rows, ensure_ascii=False)  # a list: a single row alone would be read as columns
        return self.datasets.add_text(text, name=name or self._free(NAMES[kind]))

    def _free(self, wanted: str) -> str:
        taken = {dataset.name for dataset in self.datasets.list()}
        return next(name for name in (wanted, *(f"{wanted}-{n}" for n in range(2, 10_000))) if name not in taken)

    def _rows(self, kind: str) -> Iterator[dict[str, Any]]:
        for conversation in self.chat.conversations():
            messages = self.chat.messages(conversation["id"])
            for index, row in enumerate(messages):
                if row["role"] != "assistant":
                    continue
                before = context(messages[:index], conversation["system"], row["contestant"])
                if kind == "answers" and row["mark"] == "good":
                    yield {"messages": [*before, {"role": "assistant", "content": row["content"]}]}
                if kind == "preferences" and row["original"]:
                    chosen, rejected = ([{"role": "assistant", "content": row[name]}] for name in ("content", "original"))
                    yield {"prompt": before, "chosen": chosen, "rejected": rejected}


def context(messages: list[dict[str, Any]], system: str, contestant: str) -> list[dict[str, str]]:
    """What `contestant` has heard: of several answers to one question its own, else the first."""
    heard = [{"role": "system", "content": system}] if system else []
    answers: list[dict[str, Any]] = []
    for row in [*messages, {"role": "end"}]:
        if row["role"] == "assistant":
            answers.append(row)
            continue
        if answers:
            own = next((answer for answer in answers if answer["contestant"] == contestant), answers[0])
            heard.append({"role": "assistant", "content": own["content"]})
            answers = []
        if row["role"] != "end":
            heard.append({"role": row["role"], "content": row["content"]})
    return heard
