"""Tokens that take a JSON text to its end, and how many tools a request may name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from studio.engine import tool_fields
from studio.engine.grammar import Ends, GrammarVocabulary
from studio.errors import EngineError

PIECES = [b"", b"a", b"true", b"1", b'"', b'"}', b'"x', b"}", b"] ", b",", b":1", b" ", b"\xc3", b"stop"]


def ends() -> Ends:
    owner: Any = SimpleNamespace(size=len(PIECES), token_bytes=PIECES.__getitem__, _stop_ids=[13, -1, 99])
    found: Ends = GrammarVocabulary.ends.func(owner)  # type: ignore[attr-defined]
    return found


def ids(bits: Any) -> list[int]:
    return [int(one) for one in np.flatnonzero(np.unpackbits(bits, bitorder="little"))]


def test_kinds_of_tokens() -> None:
    found = ends()
    assert ids(found.stops) == [13]
    assert ids(found.letters) == [1, 13], "true, false and null begin a value"
    assert (ids(found.bare_quotes), ids(found.quotes)) == ([4, 5], [4, 5, 6])
    assert (ids(found.brackets), ids(found.separators)) == ([7, 8], [9, 10])


def tool(name: str = "f", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ([tool(f"f{n}") for n in range(129)], "There are 129 tools, more than 128"),
        ([tool(), tool()], "Two tools have the name f"),
        ([tool(description="x" * 262_144)], "more than 256 KiB"),
        ([{"type": "x"}], "is no function but 'x'"),
        (["f"], "is no function but 'str'"),
        ([{"type": "function"}], r"function is no object"),
        ([tool("")], "name is no name"),
        ([tool(description=1)], "description is no text"),
        ([tool(parameters=[])], "no JSON schema of an object"),
        ([tool(parameters={"type": "string"})], "no JSON schema of an object"),
    ],
)
def test_tools_that_are_refused(tools: list[Any], said: str) -> None:
    with pytest.raises(EngineError, match=said) as refused:
        tool_fields.read_tools(tools, None, None, None)
    assert refused.value.status == 400


def test_tools_up_to_a_number_and_a_size() -> None:
    found = tool_fields.read_tools([tool(f"f{n}") for n in range(128)], None, None, None)
    assert found is not None and len(found.definitions) == 128
    assert tool_fields.read_tools([tool(description="x" * 262_000)], None, None, None) is not None
    assert tool_fields.read_tools([{"function": {"name": "f", "description": None, "parameters": {}}}], None, None, None) is not None


@pytest.mark.parametrize(
    ("choice", "names", "asked", "is_named"),
    [
        (None, ("f", "g"), "auto", False),
        ("auto", ("f", "g"), "auto", False),
        ("required", ("f", "g"), "required", False),
        ("any", ("f", "g"), "required", False),
        ({"type": "function", "function": {"name": "g"}}, ("g",), "required", True),
        ({"function": {"name": "g"}}, ("g",), "required", True),
        ("none", None, "", False),
        ({"type": "function", "function": {"name": "h"}}, None, "names 'h'", False),
        ({"type": "x", "function": {"name": "g"}}, None, "none of its forms", False),
        ("g", None, "none of its forms", False),
    ],
)
def test_which_tool_is_called(choice: Any, names: Any, asked: str, is_named: bool) -> None:
    tools = [tool("f"), tool("g")]
    if names is None and asked:
        with pytest.raises(EngineError, match=asked):
            tool_fields.read_tools(tools, choice, None, None)
        return
    found = tool_fields.read_tools(tools, choice, None, None)
    if not asked:
        assert found is None
        return
    assert found is not None and (found.names, found.choice, found.is_named) == (names, asked, is_named)


@pytest.mark.parametrize(("value", "is_parallel"), [(None, True), (True, True), (False, False)])
def test_several_calls_unless_that_is_refused(value: bool | None, is_parallel: bool) -> None:
    found = tool_fields.read_tools([tool()], None, value, True)
    assert found is not None and found.is_parallel is is_parallel and found.as_instruction


@pytest.mark.parametrize(
    ("allowed", "found"),
    [
        ([13, 1, 7], [13]),
        ([1, 4, 6, 7], [4]),
        ([1, 6, 7], [6]),
        ([4, 7], [7]),
        ([6, 9], [6]),
        ([9, 10], [9, 10]),
        ([1, 9], [9]),
        ([3, 11], [3, 11]),
    ],
)
def test_the_tokens_that_end_a_text_soonest(allowed: list[int], found: list[int]) -> None:
    bits = np.zeros(16, dtype=bool)
    bits[allowed] = True
    assert ids(ends().among(np.packbits(bits, bitorder="little"))) == found


def test_a_choice_without_tools_is_refused_unless_it_asks_for_nothing() -> None:
    for choice in (None, "auto", "none"):
        assert tool_fields.read_tools(None, choice, None, None) is None and tool_fields.read_tools([], choice, None, None) is None
    with pytest.raises(EngineError, match="there are no tools"):
        tool_fields.read_tools([], "required", None, None)
