"""What chat teaches: good answers as rows to learn from, corrected ones as preference pairs.

Knows conversations and datasets; nothing of engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from studio.errors import StudioError
from studio.records import ChatLessons, ChatMessage, Dataset, LessonKind, Message
from studio.services import naming
from studio.services.chat import ChatService
from studio.services.chat_forms import tools_of
from studio.services.datasets import DatasetService
from studio.types import Example, Role

NAMES = {LessonKind.ANSWERS: "chat-answers", LessonKind.PREFERENCES: "chat-preferences"}
MISSING = {LessonKind.ANSWERS: "marked as good", LessonKind.PREFERENCES: "corrected"}


class HarvestService:
    """Makes datasets of what people marked and corrected in chat."""

    def __init__(self, chat: ChatService, datasets: DatasetService) -> None:
        self.chat = chat
        self.datasets = datasets

    def counts(self) -> ChatLessons:
        """How many rows each kind would have now."""
        return self.chat.lessons()

    def make(self, kind: LessonKind, name: str | None = None) -> Dataset:
        """A dataset of every good answer, or of every corrected one. Raises StudioError when there is none yet."""
        rows = [example.as_json() for example in self._examples(kind)]
        if not rows:
            raise StudioError(f"No answer was {MISSING[kind]} yet.", "Use the buttons under an answer in Chat.")
        text = json.dumps(rows, ensure_ascii=False)  # a list: a single row alone would be read as columns
        taken = {dataset.name for dataset in self.datasets.list()}
        return self.datasets.add_text(text, name=name or naming.unique(NAMES[kind], taken.__contains__))

    def _examples(self, kind: LessonKind) -> Iterator[Example]:
        for conversation in self.chat.conversations():
            heard: list[ChatMessage] = []  # up to the question: several answers to it have not heard each other
            messages = self.chat.messages(conversation.id)
            for index, message in enumerate(messages):
                if message.role != "assistant":
                    heard = messages[: index + 1]
                    continue
                before = context(heard, conversation.system, message.contestant)
                answer = said(message)
                if kind == LessonKind.ANSWERS and message.mark == "good":
                    yield Example(messages=[*before, answer], tools=tools_of(conversation.tools) if conversation.tools else None)
                if kind == LessonKind.PREFERENCES and message.original:
                    yield Example(prompt=before, chosen=[answer], rejected=[Message(role=Role.ASSISTANT, content=message.original)])


def context(messages: Sequence[ChatMessage], system: str, contestant: str) -> list[Message]:
    """What `contestant` has heard: of several answers to one question its own, else the first."""
    heard = [Message(role=Role.SYSTEM, content=system)] if system else []
    answers: list[ChatMessage] = []

    def close_turn() -> None:
        if answers:
            own = next((answer for answer in answers if answer.contestant == contestant), answers[0])
            heard.append(said(own))
            answers.clear()

    for message in messages:
        if message.role == "assistant":
            answers.append(message)
        else:
            close_turn()
            heard.append(said(message))
    close_turn()
    return heard


def said(message: ChatMessage) -> Message:
    """A message as models hear it, and as a row has it: with its calls, or as the result of one."""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls
    ]
    return Message(role=Role(message.role), content=message.content, tool_calls=calls or None, tool_call_id=message.tool_call_id or None)
