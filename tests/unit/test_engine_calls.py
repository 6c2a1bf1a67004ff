"""Calls of tools: how templates write them, what holds them, and how they are taken out of an answer."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from studio.datasets.call_format import AS_TEXT, CallFormat, CallPart, call_format, calls_written
from studio.datasets.dialogue import Dialogue
from studio.engine import calls
from studio.engine.calls import CallReader
from studio.engine.grammar import GrammarVocabulary
from studio.engine.protocol import Tools
from studio.engine.tool_fields import read_tools
from studio.errors import EngineError
from studio.settings import STATIC

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Mistral 7B v0.3's, in short: calls as a list behind a token, with IDs that must have nine signs
MISTRAL = """{%- set asked = messages | selectattr("role", "equalto", "user") | list -%}{{ bos_token }}
{%- for message in messages -%}{%- if message.role == "user" -%}
{%- if tools is not none and message == asked[-1] -%}{{ "[AVAILABLE_TOOLS]" + tools | tojson + "[/AVAILABLE_TOOLS]" }}{%- endif -%}
{{ "[INST] " + message.content + "[/INST]" }}
{%- elif message.tool_calls is defined -%}{{ "[TOOL_CALLS] [" }}{%- for call in message.tool_calls -%}
{%- set out = call.function | tojson -%}{%- if call.id | length != 9 -%}{{ raise_exception("nine signs") }}{%- endif -%}
{{ out[:-1] + ', "id": "' + call.id + '"}' }}{%- if not loop.last -%}{{ ", " }}{%- else -%}{{ "]" + eos_token }}{%- endif -%}{%- endfor -%}
{%- elif message.role == "assistant" -%}{{ " " + message.content + eos_token }}{%- endif -%}{%- endfor -%}"""
QWEN = CallFormat(
    '<tool_call>\n{"name": "',
    (CallPart.NAME, CallPart.ARGUMENTS),
    ('", "arguments": ',),
    '}\n</tool_call>\n<tool_call>\n{"name": "',
    "}\n</tool_call>",
)
LLAMA = CallFormat('{"name": "', (CallPart.NAME, CallPart.ARGUMENTS), ('", "parameters": ',), "", "}")
WITH_IDS = CallFormat(
    '[TOOL_CALLS] [{"name": "', (CallPart.NAME, CallPart.ARGUMENTS, CallPart.ID), ('", "arguments": ', ', "id": "'), '"}, {"name": "', '"}]'
)
HARMONY = CallFormat(" to=functions.", (CallPart.NAME, CallPart.ARGUMENTS), ("<|channel|>commentary json<|message|>",), "", "<|call|>")
FORMS = (QWEN, LLAMA, WITH_IDS, HARMONY, AS_TEXT)
NAMES = ("book", "book_room", "weather.now")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def dialogue(template: str) -> Dialogue:
    return Dialogue(template, SPECIAL, frozenset({"</s>", "<|im_end|>", "<|eot_id|>"}))


@pytest.mark.parametrize(
    ("name", "form", "mark"),
    [
        ("qwen2_5", QWEN, "<tool_call>"),
        ("qwen3", QWEN, "<tool_call>"),  # which has an empty thought in front
        ("llama3_1", LLAMA, ""),
        ("gptoss", HARMONY, "to=functions."),
        ("gemma", None, ""),
    ],
)
def test_a_template_is_asked_how_it_writes_calls(name: str, form: CallFormat | None, mark: str) -> None:
    found = call_format(dialogue((TEMPLATES / f"{name}.jinja").read_text()))
    assert found == form and (found is None or found.mark == mark)


def test_calls_that_carry_their_ids() -> None:
    assert call_format(dialogue(MISTRAL)) == WITH_IDS and WITH_IDS.mark == "[TOOL_CALLS]"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
ARGUMENTS = st.dictionaries(st.text(max_size=6), VALUES | st.dictionaries(st.text(max_size=3), VALUES, max_size=2), max_size=3)


def read(reader: CallReader, text: str, cuts: list[int]) -> tuple[str, list[dict[str, str]]]:
    """Content and calls of a text that comes in pieces."""
    content, found = "", []
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [reader.push(text[start:end]) for start, end in pairwise(edges)]
    for piece in [*pieces, reader.finish()]:
        content += piece.content
        for delta in piece.calls:
            if delta.id:
                assert delta.index == len(found)
                found.append({"id": delta.id, "name": delta.name, "arguments": ""})
            found[delta.index]["arguments"] += delta.arguments
    return content, found


@given(
    st.sampled_from(FORMS),
    st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), min_size=1, max_size=3),
    st.sampled_from(["", "I look.\n", 'It {"name": x} is\n', "<tool_cal \n"]),
    st.lists(st.integers(0, 500), max_size=12),
    st.booleans(),
)
def test_calls_come_back_as_they_were_written_however_the_text_is_cut(
    form: CallFormat, made: list[tuple[str, dict[str, Any]]], before: str, cuts: list[int], is_forced: bool
) -> None:
    made = made if form.link else made[:1]
    text = calls_written(form, [(name, json.dumps(arguments)) for name, arguments in made])
    before = "" if is_forced else before
    content, found = read(CallReader(form, NAMES, is_forced=is_forced), before + text, cuts)
    assert [(call["name"], json.loads(call["arguments"])) for call in found] == made
    assert content == before.rstrip() and len({call["id"] for call in found}) == len(found)


@given(st.sampled_from(FORMS), st.text('<tool_cal>{}"name:[ ]\nbook,x', max_size=40), st.lists(st.integers(0, 60), max_size=6))
def test_a_text_without_calls_is_content_to_the_letter(form: CallFormat, text: str, cuts: list[int]) -> None:
    content, found = read(CallReader(form, ("unheard_of",), is_forced=False), text, cuts)
    assert content == text and not found


@pytest.mark.parametrize(
    "text",
    ['<tool_call>\n{"name": "steal", "arguments": {}}\n</tool_call>', '<tool_call>\n{"name": "bo', "<tool_call>", "a <tool_call> is"],
)
def test_what_only_looks_like_a_call_stays_content(text: str) -> None:
    for cuts in ([], list(range(60))):
        assert read(CallReader(QWEN, NAMES, is_forced=False), text, cuts) == (text, [])


def test_a_call_that_is_cut_keeps_what_there_is_of_it() -> None:
    _, found = read(CallReader(QWEN, NAMES, is_forced=False), '<tool_call>\n{"name": "book", "arguments": {"seat": 1', [])
    assert found[0]["name"] == "book" and found[0]["arguments"] == '{"seat": 1'
    content, found = read(CallReader(QWEN, NAMES, is_forced=True), '<tool_call>\n{"name": "bo', [])
    assert (content, found) == ("", [])


# held by a grammar


def tools(choice: Any = "required", **more: Any) -> Tools:
    properties = {"city": {"type": "string"}, "day": {"enum": ["today", "tomorrow"]}, "note": {"type": ["string", "null"]}}
    weather = {"name": "weather.now", "parameters": {"type": "object", "properties": properties, "required": ["city", "day"]}}
    book = {"name": "book", "parameters": {"type": "object", "properties": {"seats": {"type": "array", "items": {"type": "integer"}}}}}
    found = read_tools(
        [{"type": "function", "function": one} for one in (weather, book, {"name": "free"})], choice, more.get("parallel"), None
    )
    assert found is not None
    return found


@pytest.fixture(scope="module")
def vocabulary() -> GrammarVocabulary:
    tokenizer = Tokenizer.from_file(str(STATIC / "starter" / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<tool_call>"), AddedToken("</tool_call>")])
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]"), AddedToken("<|message|>")])
    return GrammarVocabulary(tokenizer, [1])


def write(vocabulary: GrammarVocabulary, form: CallFormat, asked: Tools, seed: int, limit: int) -> tuple[str, bool]:
    """What a model without any idea writes within `limit` tokens, and whether it came to an end."""
    matcher, random, text = vocabulary.matcher(calls.grammar(form, asked, vocabulary.literal)), np.random.default_rng(seed), b""
    for number in range(limit):
        matcher.leave(limit - number)
        bits = np.unpackbits(matcher.bits(vocabulary.size), bitorder="little")[: vocabulary.size]
        if seed % 2:  # one that goes on wherever it may: with another property, with another call
            further = np.unpackbits(vocabulary.ends.separators, bitorder="little")[: vocabulary.size] & bits
            going_on = bits.copy()
            going_on[1] = 0
            bits = next(mask for mask in (further, going_on, bits) if mask.any())
        token = int(random.choice(np.nonzero(bits)[0]))
        if token == 1:
            return text.decode(), True
        matcher.take(token)
        text += vocabulary.token_bytes(token)
        if matcher.is_complete:
            return text.decode(), True
    return text.decode(), False


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_chosen_is_a_whole_call_within_the_limit(vocabulary: GrammarVocabulary, form: CallFormat, seed: int) -> None:
    asked = tools()
    text, is_whole = write(vocabulary, form, asked, seed, 80 + 15 * seed)
    content, found = read(CallReader(form, asked.names, is_forced=True), text, [7, 11])
    assert is_whole and found and not content
    for call in found:
        arguments = json.loads(call["arguments"])
        assert call["name"] in asked.names
        if call["name"] == "book":
            assert arguments.keys() <= {"seats"}
        if call["name"] == "weather.now":
            assert arguments.keys() <= {"city", "day", "note"}
            assert isinstance(arguments["city"], str) and arguments["day"] in ("today", "tomorrow")


OPTIONAL = {
    "a": {"type": "integer"},
    "an_option_whose_name_takes_many_a_token": {"type": "string"},
    "another_one_of_that_kind": {"type": "string"},
}


@pytest.mark.parametrize("left", range(10, 90))
def test_what_may_follow_is_begun_only_where_it_fits(vocabulary: GrammarVocabulary, left: int) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": OPTIONAL, "required": ["a"]}}
    asked = read_tools([{"type": "function", "function": function}], "required", None, None)
    assert asked is not None
    matcher = vocabulary.matcher(calls.grammar(AS_TEXT, asked, vocabulary.literal))
    assert matcher.follow('{"name": "f", "arguments": {"a": 1')
    ends = vocabulary.ends
    while left and not matcher.is_complete:
        matcher.leave(left)
        bits = matcher.bits(vocabulary.size)
        further = bits & ends.separators[: len(bits)]
        going_on = bits & ~ends.stops[: len(bits)]
        unpacked = np.unpackbits(next(mask for mask in (further, going_on, bits) if mask.any()), bitorder="little")
        token, left = int(np.flatnonzero(unpacked)[-1]), left - 1
        if token == 1:
            return
        matcher.take(token)
    assert matcher.is_complete


def test_room_is_kept_for_the_end_and_no_more_than_it_takes(vocabulary: GrammarVocabulary) -> None:
    made = vocabulary.matcher(calls.grammar(QWEN, tools(NAMED), vocabulary.literal))
    assert made.follow('<tool_call>\n{"name": "weather.now", "arguments": {"city": "Li')

    def may_go_on(left: int) -> bool:
        matcher = made.copy()
        matcher.leave(left)
        bits = matcher.bits(vocabulary.size)
        return bool((bits & vocabulary.ends.letters[: len(bits)]).any())

    closed = [left for left in range(1, 120) if not may_go_on(left)]
    assert closed and closed == list(range(closed[0], closed[-1] + 1))
    assert closed[0] > 8 and closed[-1] < 40, "neither where no end fits, nor where there is room enough"


def test_one_call_where_one_was_asked_for(vocabulary: GrammarVocabulary) -> None:
    for asked in (tools({"type": "function", "function": {"name": "book"}}), tools(parallel=False)):
        for seed in range(5):
            text, _ = write(vocabulary, QWEN, asked, seed, 200)
            assert len(read(CallReader(QWEN, asked.names, is_forced=True), text, [])[1]) == 1
    assert tools({"type": "function", "function": {"name": "book"}}).names == ("book",)


def test_a_grammar_follows_what_was_written_without_it_and_nothing_else(vocabulary: GrammarVocabulary) -> None:
    made = vocabulary.matcher(calls.grammar(QWEN, tools("auto"), vocabulary.literal, from_mark=True))
    assert made.copy().follow('<tool_call>\n{"name": "boo') and not made.copy().follow('<tool_call>\n{"name": "steal')


NAMED = {"type": "function", "function": {"name": "weather.now"}}
CALL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("given", "choice", "param"),
    [
        ([{"type": "web_search"}], None, "tools.0"),
        (["f"], None, "tools.0"),
        ([{"type": "function"}], None, "tools.0.function"),
        ([{"type": "function", "function": {"name": "a b"}}], None, "tools.0.function.name"),
        ([{"type": "function", "function": {"name": "f", "description": 3}}], None, "tools.0.function.description"),
        ([CALL, {"type": "function", "function": {"name": "g", "parameters": {"type": "string"}}}], None, "tools.1.function.parameters"),
        ([CALL, CALL], None, "tools"),
        ([{**CALL, "function": {"name": "f", "parameters": {"maximum": 10**40}}}], None, "tools.0.function.parameters"),
        ([CALL], "sometimes", "tool_choice"),
        ([CALL], {"type": "function", "function": {"name": "g"}}, "tool_choice"),
        ([], "required", "tool_choice"),
        ([{**CALL, "function": {"name": f"f{n}"}} for n in range(129)], None, "tools"),
        ([{**CALL, "function": {"name": "f", "description": "x" * 300_000}}], None, "tools"),
    ],
)
def test_tools_that_can_not_be_are_refused_by_place(given: list[Any], choice: Any, param: str) -> None:
    with pytest.raises(EngineError) as caught:
        read_tools(given, choice, None, None)
    assert caught.value.status == 400 and caught.value.details["param"] == param


def test_no_tools_may_be_called() -> None:
    assert (
        read_tools([CALL], "none", None, None) is None
        and read_tools(None, None, None, None) is None
        and read_tools([], "auto", True, None) is None
    )
