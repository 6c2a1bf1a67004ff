"""What chat teaches: which answers become rows, after which words, and how the datasets are called."""

from __future__ import annotations

import json

import pytest

from studio.db.models import ChatMessageRow, ConversationRow
from studio.errors import StudioError
from studio.records import ChatLessons, LessonKind
from studio.services import Studio
from tests.stores import add


@pytest.fixture
def chat(studio: Studio) -> Studio:
    """Two models answer the same two questions; of x a good answer is kept, of y a corrected one."""
    add(studio, conversation := ConversationRow(system="Be brief."))
    said = [
        ("user", "1?", {}),
        ("assistant", "x1", {"contestant": "x"}),
        ("assistant", "better", {"contestant": "y", "original": "y1"}),
        ("user", "2?", {"mark": "good"}),
        ("assistant", "x2", {"contestant": "x", "mark": "good"}),
        ("assistant", "z2", {"contestant": "z", "mark": "good"}),
    ]
    rows = [
        ChatMessageRow(conversation_id=conversation.id, position=place, role=role, content=content, **values)
        for place, (role, content, values) in enumerate(said)
    ]
    add(studio, *rows)
    return studio


def made(studio: Studio, kind: LessonKind, name: str | None = None) -> list[object]:
    dataset = studio.harvest.make(kind, name)
    rows = studio.settings.home / "datasets" / dataset.id / "rows.jsonl"
    return [dataset.name, *(json.loads(line) for line in rows.read_text().splitlines())]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


BEFORE = [turn("system", "Be brief."), turn("user", "1?")]


def test_a_good_answer_is_learned_after_what_its_model_has_heard(chat: Studio) -> None:
    assert chat.harvest.counts() == ChatLessons(answers=3, preferences=1)
    name, first, second = made(chat, LessonKind.ANSWERS)
    assert name == "chat-answers"
    assert first == {"messages": [*BEFORE, turn("assistant", "x1"), turn("user", "2?"), turn("assistant", "x2")]}
    # z was not asked the first question: it has heard the first answer to it
    assert second == {"messages": [*BEFORE, turn("assistant", "x1"), turn("user", "2?"), turn("assistant", "z2")]}


def test_a_corrected_answer_is_preferred_to_the_one_that_was_written(chat: Studio) -> None:
    assert made(chat, LessonKind.PREFERENCES) == [
        "chat-preferences",
        {"prompt": BEFORE, "chosen": [turn("assistant", "better")], "rejected": [turn("assistant", "y1")]},
    ]


def test_a_dataset_has_the_name_that_was_asked_for_else_one_that_is_free(chat: Studio) -> None:
    names = [made(chat, LessonKind.PREFERENCES, name)[0] for name in (None, "mine", None)]
    assert names == ["chat-preferences", "mine", "chat-preferences-2"]


def test_without_an_answer_of_that_kind_there_is_no_dataset(studio: Studio) -> None:
    with pytest.raises(StudioError, match="No answer was marked as good yet"):
        studio.harvest.make(LessonKind.ANSWERS)
    with pytest.raises(StudioError, match="No answer was corrected yet"):
        studio.harvest.make(LessonKind.PREFERENCES)
    assert studio.datasets.list() == []
