"""Chat as the page and the command line use it: real services, a real engine, a small model with an adapter."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from sqlalchemy import select

from studio import settings as studio_settings
from studio.db import migrations
from studio.db.models import CachedAnswerRow
from studio.db.session import Database
from studio.engine.client import EngineClient
from studio.errors import EngineError, NotFoundError, StudioError
from studio.records import AnswerUsage, ChatLessons, LessonKind, MessageState
from studio.services.adapters import AdapterService
from studio.services.chat import ChatService
from studio.services.datasets import DatasetService
from studio.services.harvest import HarvestService
from studio.services.models import ModelService
from studio.types import GenerationParams
from tests.engines import KEY, RunningEngine, engine, make_adapter

GREEDY = GenerationParams(temperature=0, max_new_tokens=16)
MESSAGES = [{"role": "user", "content": "Tell me a story."}]


def service(home: Path, url: str = "") -> ChatService:
    settings = replace(studio_settings.load({"STUDIO_HOME": str(home)}), engine_url=url, engine_key=KEY)
    settings.make_folders()
    db = Database(settings.db_url, settings.sqlite_journal)
    migrations.migrate(db)
    models = ModelService(settings, db)
    return ChatService(settings, db, models, AdapterService(settings, db, models))


def close(chat: ChatService) -> None:
    chat.engine.close()
    chat.db.dispose()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with engine(tmp_path_factory.mktemp("engine")) as started:
        yield started


@pytest.fixture(scope="module")
def chat(running: RunningEngine, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatService]:
    base = shared_data / "models" / "stories260K"
    made = service(tmp_path_factory.mktemp("home"), running.url)
    made.models.add(base, "stories")
    made.adapters.add(make_adapter(base, tmp_path_factory.mktemp("adapters") / "teller", 1), base_model="stories")
    yield made
    close(made)


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[ChatService]:
    """A chat service without an engine: enough for conversations."""
    made = service(tmp_path / "home")
    yield made
    close(made)


def test_base_and_adapter_answer_side_by_side(chat: ChatService) -> None:
    answers = chat.answer(["base", "teller", "stories:teller"], MESSAGES, GREEDY, base_model="stories")
    assert [answer.contestant for answer in answers] == ["base", "teller", "stories:teller"]
    assert answers[0].text != answers[1].text == answers[2].text
    for answer in answers:
        assert answer.model_dump().keys() == {"contestant", "text", "prompt_tokens", "completion_tokens", "seconds"}
        assert answer.completion_tokens == 16 and answer.prompt_tokens > 5 and answer.seconds > 0
    assert {"stories", "stories:teller"} <= set(chat.available())


def test_a_stream_is_the_same_answer_piece_by_piece(chat: ChatService) -> None:
    events = list(chat.stream("stories:teller", MESSAGES, GREEDY))
    whole = chat.answer(["stories:teller"], MESSAGES, GREEDY)[0]
    assert "".join(event.text for event in events) == whole.text
    assert len(events) > 5 and events[-1].usage is not None and events[-1].usage.completion_tokens == 16


def test_closing_a_stream_stops_the_generation(chat: ChatService) -> None:
    stream = chat.stream("stories", MESSAGES, GREEDY.model_copy(update={"max_new_tokens": 400}))
    next(stream)
    assert chat.engine.status().active == 1
    stream.close()  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while chat.engine.status().active:
        assert time.monotonic() < deadline


def test_an_answer_follows_a_schema_given_as_text_or_as_an_object(chat: ChatService) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    for form in (schema, json.dumps(schema)):
        answer = chat.answer(["stories"], MESSAGES, GREEDY, json_schema=form)[0]
        assert json.loads(answer.text).keys() == {"ok"}
    assert chat.answer(["stories"], MESSAGES, GREEDY, grammar='root ::= "x"')[0].text == "x"
    with pytest.raises(StudioError, match="no JSON"):
        chat.answer(["stories"], MESSAGES, GREEDY, json_schema="{")


def test_an_equal_question_is_recalled_until_its_conversation_is_deleted(chat: ChatService) -> None:
    talk = chat.create().id

    def ask(params: GenerationParams) -> tuple[str, bool]:
        events = list(chat.stream("stories:teller", MESSAGES, params, conversation=talk))
        return "".join(event.text for event in events), bool((events[-1].facts or {}).get("recalled"))

    def rows() -> int:
        with chat.db.read() as session:
            return len(session.scalars(select(CachedAnswerRow)).all())

    first = ask(GREEDY)
    assert not first[1] and ask(GREEDY) == (first[0], True)
    sampled = GREEDY.model_copy(update={"temperature": 1.0})
    seeded = sampled.model_copy(update={"seed": 4})
    assert [ask(params)[1] for params in (sampled, sampled, seeded, seeded)] == [False, False, False, True]
    assert rows() == 2
    chat.delete(talk)
    assert rows() == 0


def test_an_answer_goes_on_where_it_was_cut(chat: ChatService) -> None:
    short = chat.answer(["stories"], MESSAGES, GREEDY.model_copy(update={"max_new_tokens": 8}))[0].text
    begun = [*MESSAGES, {"role": "assistant", "content": short}]
    events = list(chat.stream("stories", begun, GREEDY.model_copy(update={"max_new_tokens": 8}), goes_on=True))
    rest = "".join(event.text for event in events)
    assert rest and not rest.startswith(short[:6]) and events[-1].usage is not None  # on, not from the start


def test_unknown_contestants_and_engine_refusals_are_errors_with_a_fix(chat: ChatService) -> None:
    with pytest.raises(NotFoundError, match="storie"):
        chat.answer(["storie"], MESSAGES, GREEDY)
    with pytest.raises(EngineError, match="512 tokens") as refused:
        chat.answer(["stories"], [{"role": "user", "content": "dog " * 600}], GREEDY)
    assert refused.value.code == "context_length_exceeded"


def test_a_killed_engine_leaves_the_partial_answer_and_the_next_one_works(
    chat: ChatService, running: RunningEngine, tmp_path: Path
) -> None:
    """Last of those with an engine: it kills the one that the tests above share."""
    port = urlsplit(running.url).port
    conversation = chat.create().id
    chat.append(conversation, role="user", content="Tell me a story.")
    stream = chat.stream("stories", MESSAGES, GREEDY.model_copy(update={"max_new_tokens": 400}))
    text = next(stream).text
    running.process.kill()
    with pytest.raises(EngineError) as broken:
        for event in stream:
            text += event.text
    assert broken.value.code == "engine_gone"
    chat.append(conversation, role="assistant", content=text, contestant="stories", state=MessageState.FAILED)
    kept = chat.messages(conversation)[-1]
    assert kept.content and kept.state == "failed"
    with ExitStack() as stack:  # as the supervisor does, a moment later; the question is asked before
        restart = threading.Timer(0.5, lambda: stack.enter_context(engine(tmp_path / "engine", port or 0)))
        restart.start()
        assert chat.answer(["stories"], MESSAGES, GREEDY)[0].text.startswith(text[:4])
        restart.join()


def test_without_an_engine_the_error_says_how_to_get_one(notes: ChatService, shared_data: Path) -> None:
    notes.models.add(shared_data / "models" / "stories260K", "stories")
    with pytest.raises(EngineError, match="studio up"):
        notes.answer(["stories"], MESSAGES, GREEDY)
    notes.engine = EngineClient("")


def test_a_conversation_is_kept_changed_and_deleted(notes: ChatService) -> None:
    first, second = notes.create(title="one", system="be kind"), notes.create()
    for role, content in (("user", "hi"), ("assistant", "hel"), ("user", "more")):
        notes.append(first.id, role=role, content=content, contestant="stories" if role == "assistant" else "")
    notes.update(first.id, 1, content="hello", state=MessageState.STOPPED, usage=AnswerUsage(completion_tokens=2))
    messages = notes.messages(first.id)
    assert [(m.position, m.role, m.content, m.state) for m in messages] == [
        (0, "user", "hi", "done"),
        (1, "assistant", "hello", "stopped"),
        (2, "user", "more", "done"),
    ]
    assert messages[1].contestant == "stories" and messages[1].usage.model_dump(exclude_unset=True) == {"completion_tokens": 2}
    assert [(c.id, c.title, c.messages) for c in notes.conversations()] == [(first.id, "one", 3), (second.id, "", 0)]
    notes.truncate(first.id, 1)
    assert [m.content for m in notes.messages(first.id)] == ["hi"]
    assert notes.append(first.id, role="assistant", content="again").position == 1
    assert notes.rename(second.id, "two").title == "two"
    assert notes.instruct(second.id, "be brief").system == "be brief"
    notes.delete(first.id)
    assert [c.title for c in notes.conversations()] == ["two"]


def test_conversations_are_found_exported_and_teach(notes: ChatService) -> None:
    talk, other = notes.create(title="Rivers", system="be brief").id, notes.create(title="50% off").id
    notes.append(talk, role="user", content="Which is longest?")
    for who, said in (("stories", "The Nile."), ("stories:teller", "The Amazon")):
        notes.append(talk, role="assistant", content=said, contestant=who)
    notes.append(talk, role="user", content="And then?")
    notes.append(talk, role="assistant", content="Who knows", contestant="stories:teller")
    assert [[row.id for row in notes.conversations(text)] for text in ("amazon", "%", "rivers", "sea")] == [[talk], [other], [talk], []]

    notes.update(talk, 1, mark="good")
    notes.correct(talk, 4, "The Yangtze.")
    notes.correct(talk, 4, "The Yangtze")
    exported = notes.export(talk)
    assert exported.messages[4].original == "Who knows" and exported.messages[1].mark == "good"
    assert exported.messages[0].model_dump(mode="json", exclude_unset=True).keys() == {"role", "content", "state", "created_at"}

    harvest = HarvestService(notes, DatasetService(notes.settings, notes.db, notes.models))
    assert harvest.counts() == ChatLessons(answers=1, preferences=1)
    good, pairs = harvest.make(LessonKind.ANSWERS), harvest.make(LessonKind.PREFERENCES)
    row = harvest.datasets.rows(good.id)[0]
    assert [(turn.role, turn.content) for turn in row.messages] == [
        ("system", "be brief"),
        ("user", "Which is longest?"),
        ("assistant", "The Nile."),
    ]
    pair = harvest.datasets.rows(pairs.id)[0]
    assert (pair.chosen[0].content, pair.rejected[0].content) == ("The Yangtze", "Who knows")
    assert [turn.content for turn in pair.prompt] == ["be brief", "Which is longest?", "The Amazon", "And then?"]  # its own answer
    assert harvest.make(LessonKind.ANSWERS).name == "chat-answers-2"


def test_what_is_not_there_is_said_to_be_missing(notes: ChatService) -> None:
    conversation = notes.create().id
    for call in (lambda: notes.messages("nope"), lambda: notes.delete("nope"), lambda: notes.update(conversation, 0, content="x")):
        with pytest.raises(NotFoundError):
            call()
