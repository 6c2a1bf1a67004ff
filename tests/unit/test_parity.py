"""Parity of training and chat: identical where a chat sends what training saw, the true first difference elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from studio.datasets import parity
from studio.datasets.rendering import TEMPLATE_NAMES, Renderer
from studio.settings import STATIC
from studio.types import Example, Message
from tests.unit.test_rendering import TEMPLATE_FILES

SYSTEM = {"role": "system", "content": "Be brief."}


def talk(*texts: str) -> list[dict[str, Any]]:
    """Questions and answers in turn."""
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


CLEAN = talk("Hi  there\n", "Hello 🎉 you!", "How many is 5 + 5?", "Ten,\nI think.")
CONVERSATIONS = {
    "one": CLEAN[:2],
    "two": CLEAN,
    "system": [SYSTEM, *CLEAN],
    "white space": talk("Hi", "Hello.", "And?", "  Ten,\n\nI think. "),
    "emoji first": talk("Hi", "🎉", "And?", "\n\nTen"),
}


@pytest.fixture(params=["mistral", "starter"])
def folder(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("shared_data") / "models" / "mistral-v1-tokenizer" if request.param == "mistral" else STATIC / "starter"


def compare(renderer: Renderer, *conversations: list[dict[str, Any]], max_length: int | None = None) -> dict[str, Any]:
    rows = [Example(messages=[Message(**turn) for turn in turns]) for turns in conversations]
    return parity.compare(renderer, enumerate(rows, start=1), max_length)


def is_same_word_for_word(renderer: Renderer, turns: list[dict[str, Any]]) -> bool:
    """The claim itself, told another way: each prompt's ids begin the row's, and right behind them stands the answer as it is."""
    row = renderer.example(Example(messages=[Message(**turn) for turn in turns]))
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        prompt = renderer.prompt(turns[:i])
        rest = row.text[len(prompt.text) :]
        lead = "" if rest.startswith(turn["content"]) else " "  # plain and llama-2 teach the space before the answer
        if row.ids[: len(prompt.ids)] != prompt.ids or not row.text.startswith(prompt.text + lead + turn["content"]):
            return False
    return True


@pytest.mark.parametrize("name", TEMPLATE_FILES)
def test_real_templates_are_told_truly(shared_data: Path, folder: Path, name: str) -> None:
    path = shared_data / "data" / "tokenizers" / "chat_templates" / f"{name}.jinja"
    renderer = Renderer.load(folder, re.sub(r" {4}|\n", "", path.read_text()))
    for label, turns in CONVERSATIONS.items():
        found = compare(renderer, turns)
        assert found.rows == 1 and found.same == is_same_word_for_word(renderer, turns), label
        assert found.same or found.first_difference.training != found.first_difference.chat
    assert compare(renderer, *(CONVERSATIONS[label] for label in ("one", "two", "system"))).same


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_the_studios_own_templates_keep_every_word(folder: Path, name: str) -> None:
    renderer = Renderer.load(folder, name)
    words = [CONVERSATIONS[label] for label in ("one", "two", "system", "white space")]
    assert compare(renderer, *words).identical == len(words)


def test_the_published_conversation_of_mistral_is_identical(shared_data: Path) -> None:
    samples = shared_data / "data" / "tokenizers" / "mistral_samples" / "no_tools"
    messages = json.loads((samples / "sample.json").read_text())["messages"]
    turns = [{key: value for key, value in message.items() if value is not None} for message in messages]
    renderer = Renderer.load(shared_data / "models" / "mistral-v1-tokenizer")
    closed = [*turns, {"role": "assistant", "content": "Done."}] if turns[-1]["role"] == "user" else turns
    assert compare(renderer, closed).same


TURN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
ASK = "{% if add_generation_prompt %}<assistant>{% endif %}"
TRIMS = TURN.replace("m.content", "m.content | trim") + ASK
MOVES = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>"
    "{% if m.role == 'user' and (loop.last or loop.revindex == 2) %}{{ system }} {% endif %}"
    "{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}" + ASK
)
THINKS = TURN + "{% if add_generation_prompt %}<assistant><think>{% endif %}"
UNTAUGHT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A: so, {% generation %}{{ m.content }}</s>{% endgeneration %}"
    "{% else %}{{ m.content }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)
REWRITES = TURN.replace("m.content }}", "m.content | replace('Ten', '10') }}") + ASK


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [
        (TRIMS, CONVERSATIONS["white space"], "trims white space"),
        (MOVES, [SYSTEM, *CLEAN], "before this answer differently"),
        (THINKS, CLEAN, "before this answer differently"),
        (UNTAUGHT, CLEAN, "nothing teaches it"),
        (REWRITES, CLEAN, "differently from how it stands"),
    ],
    ids=["trims", "moves the system prompt", "thinks in chat only", "an untaught lead", "rewrites"],
)
def test_a_template_that_differs_shows_where(folder: Path, template: str, turns: list[dict[str, Any]], reason: str) -> None:
    found = compare(Renderer.load(folder, template), turns)
    first = found.first_difference
    at = first.position
    assert not found.same and found.identical == 0 and reason in first.reason
    assert first.training[:at] == first.chat[:at] and first.training[at : at + 1] != first.chat[at : at + 1]
    assert first.training_next != first.chat_next


@pytest.mark.parametrize("template", [TRIMS, MOVES], ids=["trims", "moves"])
def test_the_same_template_is_identical_where_it_has_nothing_to_do(folder: Path, template: str) -> None:
    assert compare(Renderer.load(folder, template), CLEAN[2:]).same


def test_a_token_that_reaches_from_the_prompt_into_the_answer_is_a_difference(folder: Path) -> None:
    # `\n` ends the prompt and begins the answer: training sees one token of two line breaks where chat has sent the first of them
    renderer = Renderer.load(folder, "{% for m in messages %}{{ m.content }}\n{% endfor %}")
    ids = renderer.tokenizer.encode("x\n\n\nx", add_special_tokens=False).ids
    alone = renderer.tokenizer.encode("x\n", add_special_tokens=False).ids
    assert compare(renderer, talk("x", "\n\nx")).same == (ids[: len(alone)] == alone)


def test_rows_are_compared_as_far_as_training_sees_them(folder: Path) -> None:
    renderer = Renderer.load(folder, TRIMS)
    turns = CONVERSATIONS["white space"]
    assert not compare(renderer, turns).same
    assert compare(renderer, turns, max_length=8).same


def test_rows_without_an_answer_are_left_out_and_prove_nothing(folder: Path) -> None:
    renderer = Renderer.load(folder, "chatml")
    found = compare(renderer, CLEAN[:1])
    assert (found.rows, found.skipped, found.same, found.first_difference) == (0, 1, False, None)
    assert compare(renderer, CLEAN[:1], CLEAN).same


def test_chat_that_a_template_refuses_is_a_difference(folder: Path) -> None:
    renderer = Renderer.load(
        folder, TURN + "{% if add_generation_prompt and messages | length > 2 %}{{ raise_exception('no') }}{% endif %}" + ASK
    )
    found = compare(renderer, CLEAN)
    assert not found.same and "Chat can't send" in found.first_difference.reason


def test_texts_and_continuations(folder: Path) -> None:
    rows = [Example(text="Once upon a time."), Example(prompt="2 + 2 =", completion=" 4")]
    renderer = Renderer.load(folder)
    assert parity.compare(renderer, enumerate(rows, start=1)).identical == 2
    # an empty prompt starts from a token that training has only where the tokenizer itself adds it
    started = renderer.tokenizer.encode("Hello").ids[:1] == renderer.completion_prompt("")
    assert parity.compare(renderer, [(1, Example(prompt="", completion="Hello"))]).same == started


def test_calls_of_tools(folder: Path) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    turns = [*talk("Weather?"), {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "rain"}]
    turns.append({"role": "assistant", "content": "It rains."})
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    for name in (*TEMPLATE_NAMES, None):
        row = Example(messages=[Message(**turn) for turn in turns], tools=tools)
        assert parity.compare(Renderer.load(folder, name), [(1, row)]).same, name
