"""Conversations and answers as the chat keeps them, with an engine that says what it was asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from studio.engine.protocol import CallDelta, Contestant, Event, Grammar, Usage
from studio.errors import NotFoundError, StudioError
from studio.records import AnswerUsage, ChatLessons, MadeCall, MessageState
from studio.services import Studio, harvest
from studio.services.chat import ChatService
from studio.services.chat_forms import form_of, tools_of
from studio.types import GenerationParams
from studio.ui import chat_turns
from studio.ui.chat_answering import AnswerColumn
from tests.stores import Clock

GREEDY = GenerationParams(temperature=0)
MESSAGES = [{"role": "user", "content": "Why?"}]


class Saying:
    """An engine that answers in two pieces, and remembers how it was asked."""

    def __init__(self, finish: str | None = "stop") -> None:
        self.asked: list[dict[str, Any]] = []
        self.finish = finish

    def chat(self, contestant: Contestant, messages: Any, params: Any, grammar: Any) -> Any:
        self.asked.append({"quantization": contestant.quantization, "grammar": grammar})
        return SimpleNamespace(text=f"{contestant.name}!", prompt_tokens=3, completion_tokens=2, seconds=1.23456)

    def stream(self, contestant: Contestant, messages: Any, params: Any, grammar: Any, more: dict[str, Any]) -> Iterator[Event]:
        self.asked.append({"quantization": contestant.quantization, "grammar": grammar, **more})
        yield Event(text="Be")
        yield Event(text="cause")
        if self.finish:
            yield Event(finish_reason=self.finish, usage=Usage(7, 2))

    def prompt(self, contestant: Contestant, messages: Any, tools: list[Any]) -> str:
        return f"prompt of {contestant.name}" + "".join(tool["function"]["name"] for tool in tools)


@pytest.fixture
def chat(studio: Studio, clock: Clock) -> ChatService:
    made = studio.chat
    made.engine = Saying()  # type: ignore[assignment]
    return made


CALLS = [MadeCall(id="a1", name="weather", arguments='{"city": "Lima"}'), MadeCall(id="b2", name="news", arguments="{}")]
WEATHER = '{"name": "weather", "parameters": {"type": "object", "properties": {}}}'


def test_calls_and_their_results_are_kept_and_heard_again(chat: ChatService) -> None:
    made = chat.create(system="Be brief.", tools=f"[{WEATHER}]")
    chat.append(made.id, role="user", content="Lima?")
    chat.append(made.id, role="assistant", content="", contestant="starter", tool_calls=CALLS)
    messages = chat.messages(made.id)
    with pytest.raises(StudioError, match="can't be corrected"):
        chat.correct(made.id, 1, "It is warm.")
    assert not chat_turns.can_go_on(messages)
    assert messages[-1].tool_calls == CALLS == chat_turns.open_calls(messages) and chat.show(made.id).tools == f"[{WEATHER}]"
    assert chat_turns.results(messages, " 9\nnone ") == [(CALLS[0], "9"), (CALLS[1], "none")]
    for wrong in ("9", "1\n2\n3"):
        with pytest.raises(StudioError, match="one line for each call"):
            chat_turns.results(messages, wrong)
    for call, result in chat_turns.results(messages, "9\nnone"):
        chat.append(made.id, role="tool", content=result, tool_call_id=call.id)
    messages = chat.messages(made.id)
    heard = harvest.context(messages, "", "starter")
    assert [message.role for message in heard] == ["user", "assistant", "tool", "tool"] and chat_turns.asked(messages) == messages
    assert [call["function"]["name"] for call in heard[1].tool_calls or []] == ["weather", "news"] and heard[2].tool_call_id == "a1"
    assert chat_turns.first_of_last_question(messages).content == "9" and not chat_turns.open_calls(messages)
    exported = chat.export(made.id)
    assert exported.tools and exported.messages[1].tool_calls == CALLS and exported.messages[2].tool_call_id == "a1"


def test_several_answers_with_calls_wait_for_a_choice(chat: ChatService) -> None:
    made = chat.create()
    chat.append(made.id, role="user", content="Lima?")
    for who in ("starter", "base"):
        chat.append(made.id, role="assistant", content="", contestant=who, tool_calls=CALLS[:1])
    with pytest.raises(StudioError, match="Choose one"):
        chat_turns.results(chat.messages(made.id), "9")


def test_an_answer_in_the_making_gathers_its_calls() -> None:
    answer = AnswerColumn("starter")
    for deltas in (
        (CallDelta(0, "a1", "weather"), CallDelta(0, arguments='{"city":')),
        (CallDelta(0, arguments=' "Lima"}'), CallDelta(1, "b2", "news", "{}")),
    ):
        answer.take(Event(calls=deltas))
    assert answer.calls == CALLS


def test_tools_are_read_in_the_ways_that_people_write_them(chat: ChatService) -> None:
    wrapped = {"type": "function", "function": json.loads(WEATHER)}
    assert tools_of(WEATHER) == tools_of(f"[{WEATHER}]") == tools_of(json.dumps([wrapped])) == [wrapped]
    list(chat.stream("starter", MESSAGES, GREEDY, tools=WEATHER))
    assert chat.engine.asked[-1]["tools"] == [wrapped] and chat.engine.asked[-1]["tools_as_instruction"]  # type: ignore[attr-defined]
    for wrong in ("{", "[]", '["weather"]', '[{"name": "a b"}]'):
        with pytest.raises(StudioError):
            tools_of(wrong)


def test_contestants_answer_in_their_order(chat: ChatService) -> None:
    first, second = chat.answer(["starter", "base"], MESSAGES, GREEDY, base_model="starter", quantization="nf4", grammar="g")
    assert first.model_dump() == {"contestant": "starter", "text": "starter!", "prompt_tokens": 3, "completion_tokens": 2, "seconds": 1.235}
    assert second.text == "base!" and chat.engine.asked == [{"quantization": "nf4", "grammar": Grammar("gbnf", "g")}] * 2  # type: ignore[attr-defined]
    assert chat.answer([], MESSAGES, GREEDY) == []
    assert chat.prompt("starter", MESSAGES) == "prompt of starter"  # type: ignore[comparison-overlap]
    with pytest.raises(StudioError, match="Another server writes its prompt itself"):
        chat.prompt("http://127.0.0.1:1#m", MESSAGES)


def test_an_equal_question_is_answered_from_what_was_kept(chat: ChatService) -> None:
    talk = chat.create().id

    def ask(conversation: str | None = talk, **options: Any) -> tuple[str, Event, int]:
        before = len(chat.engine.asked)  # type: ignore[attr-defined]
        events = list(chat.stream("starter", MESSAGES, GREEDY, conversation=conversation, **options))
        return "".join(event.text for event in events), events[-1], len(chat.engine.asked) - before  # type: ignore[attr-defined]

    assert ask(None)[2] == 1 and ask()[2] == 1, "nothing is kept without a conversation"
    text, end, asked = ask()
    assert (text, end.finish_reason, end.usage, end.facts, asked) == ("Because", "stop", Usage(7, 2), {"recalled": True}, 0)
    assert [ask(**other)[2] for other in ({"grammar": "g"}, {"grammar": "g"}, {"goes_on": True}, {"quantization": "nf4"})] == [1, 0, 1, 1]
    assert ask(None)[2] == 1
    chat.delete(talk)
    assert ask()[2] == 1 and ask()[2] == 1, "a conversation that is gone keeps nothing"


def test_an_answer_that_did_not_end_well_is_asked_for_again(chat: ChatService) -> None:
    chat.engine = Saying(finish=None)  # type: ignore[assignment]
    talk = chat.create().id
    for _ in range(2):
        assert "".join(event.text for event in chat.stream("starter", MESSAGES, GREEDY, conversation=talk)) == "Because"
    assert len(chat.engine.asked) == 2  # type: ignore[attr-defined]


def test_how_an_answer_is_made_is_passed_on(chat: ChatService) -> None:
    assert chat._more("", False) == {}
    assert chat._more("", True) == {"continue_final_message": True, "add_generation_prompt": False}
    assert chat._more("prompt_lookup", False) == {"speculation": "prompt_lookup"}
    drafted = chat._more("starter", True)
    assert drafted["speculation"] == "assistant" and drafted["assistant"]["name"] == "starter" and drafted["continue_final_message"] is True


def test_a_form_is_a_grammar_or_a_schema() -> None:
    assert (form_of(None, None), form_of("", ""), form_of("g", None)) == (None, None, Grammar("gbnf", "g"))
    for schema in ({"type": "null"}, '{"type": "null"}'):
        made = form_of(None, schema)
        assert made is not None and (made.kind, json.loads(made.source)) == ("json_schema", {"type": "null"})
    for grammar, schema, said in (("g", {"a": 1}, "both a grammar and"), (None, "{", "is no JSON"), (None, "[1]", "must be a JSON object")):
        with pytest.raises(StudioError, match=said):
            form_of(grammar, schema)  # type: ignore[arg-type]


def test_messages_are_numbered_from_nought_and_whoever_is_changed_last_comes_first(chat: ChatService, clock: Clock) -> None:
    clock.now = 1e10  # rows are made at the real time
    one, other = chat.create(title="one").id, chat.create(title="Other_%").id
    for place, content in enumerate(("hi", "hello", "more")):
        clock.now += 1
        said = chat.append(one, role="user", content=content)
        assert (said.position, said.state, said.usage.model_dump(exclude_unset=True)) == (place, "done", {})

    def listed(search: str = "") -> list[tuple[str, int]]:
        return [(talk.title, talk.messages) for talk in chat.conversations(search)]

    assert listed() == [("one", 3), ("Other_%", 0)] and chat.show(one).messages == 3 and chat.show(other).messages == 0
    assert [listed(text) for text in ("HELL", " one ", "_%", "nothing", " ")] == [
        [("one", 3)],
        [("one", 3)],
        [("Other_%", 0)],
        [],
        listed(),
    ]
    clock.now += 1
    chat.append(other, role="user", content="x")
    assert listed()[0] == ("Other_%", 1)
    for change in (
        lambda: chat.update(one, 0, mark="good"),
        lambda: chat.truncate(one, 2),
        lambda: chat.append(other, role="user", content="y"),
    ):
        clock.now += 1
        change()
        assert chat.conversations()[0].updated_at == clock.now
    assert [message.content for message in chat.messages(one)] == ["hi", "hello"] and listed()[0] == ("Other_%", 2)
    assert chat.delete(other).name == "Other_%" and listed() == [("one", 2)]
    for missing in (lambda: chat.show(other), lambda: chat.messages(other), lambda: chat.update(one, 2, mark="good")):
        with pytest.raises(NotFoundError):
            missing()


def test_what_is_not_named_stays_as_it_was(chat: ChatService) -> None:
    talk = chat.create().id
    usage = AnswerUsage(completion_tokens=2)
    chat.append(talk, role="assistant", content="hel", contestant="starter", state=MessageState.STOPPED, usage=usage)
    assert chat.update(talk, 0, content="hello").state == "stopped"
    assert chat.update(talk, 0, mark="good").content == "hello" and chat.lessons() == ChatLessons(answers=1, preferences=0)
    assert chat.update(talk, 0, content="", mark="", state=MessageState.DONE).model_dump(include={"content", "mark", "state", "usage"}) == {
        "content": "",
        "mark": "",
        "state": "done",
        "usage": usage.model_dump(),
    }
    assert chat.lessons() == ChatLessons(answers=0, preferences=0)


def test_a_corrected_answer_keeps_what_the_model_had_written(chat: ChatService) -> None:
    talk = chat.create(title="t", system="s").id
    chat.append(talk, role="user", content="Why?")
    chat.append(talk, role="assistant", content="So.", contestant="starter")
    assert (chat.correct(talk, 1, "Because.").original, chat.correct(talk, 1, "As it is.").original) == ("So.", "So.")
    assert chat.lessons().preferences == 1
    exported = chat.export(talk)
    assert (exported.title, exported.system, exported.messages[1].original, exported.messages[1].content) == ("t", "s", "So.", "As it is.")
    assert chat.correct(talk, 1, "So.").original == "" and chat.lessons().preferences == 0
    for place, content, said in ((0, "x", "has no answer 0"), (1, " ", "is empty"), (2, "x", "has no message 2")):
        with pytest.raises(StudioError, match=said):
            chat.correct(talk, place, content)
