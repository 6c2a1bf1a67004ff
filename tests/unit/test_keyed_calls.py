"""Calls whose arguments stand one by one: how templates write them, how they are read, and what holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from studio.datasets.call_format import NAMES, answer_of_calls, call_format
from studio.datasets.keyed_format import CallEnds, Inside, KeyedFormat, keyed_calls_written, keyed_format
from studio.datasets.rendering import Renderer
from studio.engine.answer import GeneratedAnswer
from studio.engine.calling import calling_of
from studio.engine.grammar import GrammarVocabulary
from studio.engine.keyed_calls import KeyedReader
from studio.engine.keyed_grammar import keyed_grammar
from studio.engine.keyed_values import typed
from studio.engine.protocol import Event, GenerationRequest, ModelFolder, Tools
from studio.engine.text import AnswerText
from studio.engine.tool_fields import read_tools
from studio.settings import STATIC
from studio.types import GenerationParams
from tests.unit.test_engine_calls import TEMPLATES, dialogue, read

QWEN = KeyedFormat(
    "<tool_call>\n<function=",
    ">\n<parameter=",
    ">\n",
    "\n</parameter>\n<parameter=",
    CallEnds("\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=", "\n</parameter>\n</function>\n</tool_call>"),
    CallEnds(">\n</function>\n</tool_call>\n<tool_call>\n<function=", ">\n</function>\n</tool_call>"),
    "",
    False,
    False,
    ("true", "false", "null"),
    None,
)
GEMMA = KeyedFormat(
    "<|tool_call>call:",
    "{",
    ":",
    ",",
    CallEnds(
        "}<tool_call|><|tool_call>call:", "}<tool_call|>", "<|tool_response>"
    ),  # and not the beginning of the tool's answer, which follows
    CallEnds("{}<tool_call|><|tool_call>call:", "{}<tool_call|>", "<|tool_response>"),
    '<|"|>',
    False,
    True,
    ("true", "false", "None"),
    Inside(",", "", ":", False),
)
# as Llama's Python-like calls, which nothing announces
PYTHON = KeyedFormat(
    "[",
    "(",
    "=",
    ", ",
    CallEnds("), ", ")]"),
    CallEnds("(), ", "()]"),
    '"',
    True,
    False,
    ("True", "False", "None"),
    Inside(", ", '"', ": ", False),
)
KEYED = (
    "qwen3_5_think",
    "qwen3_6",
    "qwen3_8",
    "nemotron_3_nano",
    "nemotron_3_ultra",
    "glm4moe",
    "lfm2_v2",
    "lfm2_2_5",
    "lfm2_2_5_vl",
    "gemma4",
    "gemma4_v5",
)
FIELDS = {
    "city": {"type": "string"},
    "count": {"type": "integer"},
    "ratio": {"type": "number"},
    "is_on": {"type": "boolean"},
    "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "days": {"type": "array"},
    "more": {"type": "object"},
    "unit": {"enum": ["C", "F", 3, None]},
}


@lru_cache
def form_of(name: str) -> KeyedFormat:
    found = keyed_format(dialogue((TEMPLATES / f"{name}.jinja").read_text()))
    assert found is not None, name
    return found


def tools(*names: str, required: Sequence[str] = (), fields: Any = FIELDS, **more: Any) -> Tools:
    schema = {"type": "object", "properties": fields, "required": list(required), **more}
    found = read_tools([{"type": "function", "function": {"name": name, "parameters": schema}} for name in names], "auto", None, None)
    assert found is not None
    return found


def test_templates_are_asked_how_they_write_arguments_one_by_one() -> None:
    assert form_of("qwen3_6") == QWEN and QWEN.mark == "<tool_call>"
    assert form_of("gemma4") == GEMMA and GEMMA.mark == "<|tool_call>call:"
    glm, lfm, raw = form_of("glm4moe"), form_of("lfm2_v2"), form_of("lfm2_2_5")
    assert (glm.mark, glm.assign, glm.ends.closing) == ("<tool_call>", "</arg_key>\n<arg_value>", "</arg_value>\n</tool_call>")
    assert (lfm.mark, lfm.quote, lfm.escapes, lfm.words) == ("<|tool_call_start|>", "'", True, ("True", "False", "None"))
    assert lfm.inside is None and not raw.escapes and raw.inside == Inside(", ", "'", ": ", True)
    for name in ("gemma", "lfm2", "muse_glimmer"):  # no calls; none either; the name is there twice
        assert keyed_format(dialogue((TEMPLATES / f"{name}.jinja").read_text())) is None
    assert all(call_format(dialogue((TEMPLATES / f"{name}.jinja").read_text())) is None for name in KEYED)


TEXTS = st.text(max_size=8) | st.sampled_from(["12", "true", "null1", 'a "b" <c>, {d}: [e]', "two\nlines ", "\\n", "it's)", ""])
INNER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abc é\n,:1", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab_c", min_size=1, max_size=3), inner, max_size=2),
    max_leaves=4,
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "city": TEXTS,
    "count": st.integers(),
    "ratio": st.floats(allow_nan=False, allow_infinity=False),
    "is_on": st.booleans(),
    "note": TEXTS | st.none(),
    "days": st.lists(INNER, max_size=3),
    "more": st.dictionaries(st.text("ab_c", min_size=1, max_size=3), INNER, max_size=2),
    "unit": st.sampled_from(["C", "F", 3, None]),
}
ARGUMENTS = st.fixed_dictionaries({}, optional=VALUES)


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Without the quote that this template writes as if it ended nothing."""
    return {key: value.replace("'", "") if isinstance(value, str) else value for key, value in arguments.items()}


@pytest.mark.parametrize("name", KEYED)
@settings(max_examples=30)
@given(
    st.lists(ARGUMENTS, min_size=1, max_size=2),
    st.sampled_from(["", "I look.\n", "<tool_cal \n"]),
    st.lists(st.integers(0, 900), max_size=12),
)
def test_calls_come_back_as_the_template_wrote_them(name: str, made: list[dict[str, Any]], before: str, cuts: list[int]) -> None:
    form = form_of(name)
    made = [arguments if form.escapes or len(form.quote) != 1 else plain(arguments) for arguments in made]
    text = answer_of_calls(dialogue((TEMPLATES / f"{name}.jinja").read_text()), made)
    assert text is not None
    text = text.removesuffix("<|tool_response>")  # of Gemma 4: how the tool's answer begins
    content, found = read(KeyedReader(form, tools(*NAMES)), before + text, cuts)
    assert [call["name"] for call in found] == list(NAMES[: len(made)])
    assert [json.loads(call["arguments"]) for call in found] == made
    assert content == before.rstrip()


FORMS = (QWEN, GEMMA, PYTHON)


@given(st.sampled_from(FORMS), st.text('<tool_cal>[=:{}]\n|book(), "', max_size=40), st.lists(st.integers(0, 60), max_size=6))
def test_a_text_without_calls_is_content_to_the_letter(form: KeyedFormat, text: str, cuts: list[int]) -> None:
    assert read(KeyedReader(form, tools("unheard_of")), text, cuts) == (text, [])


BOOK = {"city": "Linz", "unit": "C"}


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (QWEN, "<tool_call>\n<function=steal>\n</function>\n</tool_call>"),
        (QWEN, "<tool_call>\n<function=book>\n<parameter=city>\nLinz"),
        (QWEN, "a <tool_call> is"),
        (GEMMA, '<|tool_call>call:book{city:<|"|>Linz<|"|>)<tool_call|>'),
        (GEMMA, '<|tool_call>call:book{city:<|"|>Linz'),
        (PYTHON, '[book(city="Linz" unit="C")]'),
        (PYTHON, 'see [book(city="Linz")]'),
        (PYTHON, "[book(" + "x" * 300 + '="C")]'),
    ],
)
def test_what_only_looks_like_a_call_stays_content(form: KeyedFormat, text: str) -> None:
    for cuts in ([], list(range(60))):
        assert read(KeyedReader(form, tools("book")), text, cuts) == (text, [])


def test_a_second_call_that_is_none_stays_content_from_its_mark_on() -> None:
    text = keyed_calls_written(QWEN, [("book", BOOK), ("steal", BOOK)])
    content, found = read(KeyedReader(QWEN, tools("book")), text, [])
    assert len(found) == 1 and content.strip() == text[text.rindex("<tool_call>") :]


def test_python_like_calls_with_nothing_before_them() -> None:
    text = """[book(city='It\\'s "Linz"', days=[1, 'two', None], is_on=True), book_room(), book(unit="C")]"""
    content, found = read(KeyedReader(PYTHON, tools("book", "book_room")), "Well.\n" + text, [9, 20, 50])
    assert content == "Well." and [call["name"] for call in found] == ["book", "book_room", "book"]
    first = {"city": 'It\'s "Linz"', "days": [1, "two", None], "is_on": True}
    assert [json.loads(call["arguments"]) for call in found] == [first, {}, {"unit": "C"}]


@pytest.mark.parametrize(
    ("form", "written", "schema", "value"),
    [
        (QWEN, "12", {"type": "string"}, "12"),
        (QWEN, "12", {"type": "integer"}, 12),
        (QWEN, "12", {}, 12),
        (QWEN, "twelve", {"type": "integer"}, "twelve"),
        (QWEN, "True", {"type": "boolean"}, True),
        (QWEN, "true", {"type": ["string", "null"]}, "true"),
        (QWEN, "null", {"type": ["string", "null"]}, None),
        (QWEN, "3", {"enum": ["3", 4]}, "3"),
        (QWEN, "1e999", {"type": "number"}, "1e999"),
        (QWEN, "[" * 100_000, {"type": "array"}, "[" * 100_000),
        (PYTHON, '"12"', {"type": "integer"}, 12),
        (PYTHON, "12", {"type": "string"}, "12"),
        (PYTHON, "{1, 2}", {}, "{1, 2}"),
        (GEMMA, '{a:<|"|>x: "y"<|"|>,b:[None,1]}', {"type": "object"}, {"a": 'x: "y"', "b": [None, 1]}),
    ],
)
def test_a_value_is_what_the_schema_says(form: KeyedFormat, written: str, schema: Any, value: Any) -> None:
    found = typed(form, written, schema)
    assert found == value and type(found) is type(value)


# held by a grammar


TOKENS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", '<|"|>')


@pytest.fixture(scope="module", params=[(), TOKENS], ids=["texts", "tokens"])
def vocabulary(request: pytest.FixtureRequest) -> GrammarVocabulary:
    tokenizer = Tokenizer.from_file(str(STATIC / "starter" / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text) for text in request.param])
    return GrammarVocabulary(tokenizer, [1])


@pytest.mark.parametrize("name", ("qwen3_6", "nemotron_3_nano", "glm4moe", "lfm2_v2", "lfm2_2_5", "gemma4"))
def test_the_grammar_takes_what_the_template_writes_and_no_more(vocabulary: GrammarVocabulary, name: str) -> None:
    form, asked = form_of(name), tools(*NAMES, required=["count"])
    grammar = keyed_grammar(form, asked, vocabulary.literal)
    assert grammar is not None
    made = vocabulary.matcher(grammar)

    def may_be(*arguments: dict[str, Any]) -> bool:
        text = answer_of_calls(dialogue((TEMPLATES / f"{name}.jinja").read_text()), arguments)
        assert text is not None
        return ends(text) and ends(text.removesuffix("<|tool_response>").rstrip())

    def ends(text: str) -> bool:
        """Whether the answer may end there."""
        matcher = made.copy()
        return matcher.follow(text) and (matcher.is_complete or bool(matcher.bits(vocabulary.size)[0] & 2))  # token 1 ends it

    full = {"city": "Linz <b>\n1" if form.quote != "'" else "Linz", "count": -3, "ratio": 2.5, "is_on": True, "note": None}
    full |= {"days": [1, "a", None, [True]], "more": {"a": "b"}, "unit": "F"}
    assert may_be(full) and may_be({"count": 0}) and may_be({"count": 1}, full) and may_be({"city": "x", "count": 0, "unit": None})
    for wrong in ({}, {"city": "x"}, {"count": "x"}, {"count": 1.5}, {"count": 1, "unit": "K"}, {"count": 1, "is_on": "x"}):
        assert not may_be(wrong), wrong
    assert not may_be({"count": 1, "other": 2})
    assert may_be({"count": 1, "city": "x"}) is form.sorts_keys


def test_what_can_not_be_held_is_only_read(vocabulary: GrammarVocabulary) -> None:
    assert keyed_grammar(QWEN, tools("book", additionalProperties=True), vocabulary.literal) is None
    assert keyed_grammar(QWEN, tools("book", required=["unknown"]), vocabulary.literal) is None
    assert keyed_grammar(QWEN, tools("book", fields={"city": {}}), vocabulary.literal) is not None


# joined for a request


@pytest.mark.parametrize("template", ("qwen3_6", "glm4moe", "lfm2_v2", "gemma4"))
def test_an_answer_that_may_call_is_held_from_the_mark_on(template: str) -> None:
    renderer = Renderer.load(STATIC / "starter", str(TEMPLATES / f"{template}.jinja"))
    vocabulary = GrammarVocabulary(renderer.tokenizer, [1])
    model = ModelFolder("starter", STATIC / "starter")
    request = GenerationRequest("starter", model, GenerationParams(), tools=tools("book", fields={"count": {"type": "integer"}}))
    calling = calling_of(request, renderer, vocabulary)
    events: list[Event] = []
    text = AnswerText(calling.decode, ())
    answer = GeneratedAnswer(model, None, [5], 400, request.params, 0, frozenset({1}), text, events.append)
    calling.give(answer)
    form = calling.form
    assert isinstance(form, KeyedFormat) and not answer.notes
    written = keyed_calls_written(form, [("book", {"count": "12"})])
    begun = len(form.opening) + len("bo")
    for token in vocabulary.tokens("Well. " + written[:begun]):
        answer.take(token)
    assert answer.matcher is not None, "the grammar took over"
    for token in vocabulary.tokens(written[begun:]):
        answer.take(token)
    if not answer.is_finished:  # a second call may follow
        answer.take(1)
    told = [delta for event in events for delta in event.calls]
    assert [delta.name for delta in told] == ["book", ""] and told[1].arguments == '{"count": 12}'
    assert "".join(event.text for event in events) == "Well." and events[-1].finish_reason == "tool_calls"
