"""Calls of tools in texts, compared with those of references."""

from __future__ import annotations

import json

import pytest

from studio.datasets.call_format import calls_written
from studio.evaluation import metrics, tool_calls
from studio.evaluation.scores import CantSay
from tests.unit.test_engine_calls import FORMS

LIMA = '{"name": "weather", "arguments": {"city": "Lima", "days": 2}}'
REORDERED = '{"arguments": {"days": 2, "city": "Lima"}, "name": "weather"}'
NESTED = json.dumps({"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima", "days": 2}'}})
QUITO = LIMA.replace("Lima", "Quito")
NEWS = '{"name": "news", "arguments": {}}'


@pytest.mark.parametrize(
    ("answer", "reference", "calls", "functions"),
    [
        (LIMA, LIMA, 1, 1),
        (f"I look.\n<tool_call>\n{REORDERED}\n</tool_call>", LIMA, 1, 1),
        (NESTED, LIMA, 1, 1),
        (LIMA.replace("arguments", "parameters"), LIMA, 1, 1),
        (QUITO, LIMA, 0, 1),
        (NEWS, LIMA, 0, 0),
        ("It is warm.", LIMA, 0, 0),
        (LIMA, "It is warm.", 0, 0),  # not needed
        (f"[{NEWS}, {LIMA}]", f"{LIMA}\n{NEWS}", 1, 1),
        (f"{LIMA}\n{LIMA}", LIMA, 0, 0),  # once too often
        ('{"name": "weather", "arguments": {"city": "Lima", "days"', LIMA, 0, 0),
        ("It is warm.", '{"name": "Bo", "age": 3}', None, None),
        ("[" * 5000, "{" * 5000, None, None),
    ],
)
def test_calls_are_compared(answer: str, reference: str, calls: int | None, functions: int | None) -> None:
    found = tool_calls.same_calls(answer, [reference]), tool_calls.same_functions(answer, [reference])
    assert [None if isinstance(one, CantSay) else one for one in found] == [calls, functions]
    assert metrics.measure([(answer, [reference])])["tool_call_match"] == calls


def test_one_of_several_references_is_enough() -> None:
    assert tool_calls.same_calls(LIMA, [QUITO, LIMA]) == 1 and tool_calls.same_calls(LIMA, [QUITO, NEWS]) == 0


@pytest.mark.parametrize("form", FORMS)
def test_calls_are_found_as_templates_write_them(form: object) -> None:
    made = [("book", '{"seat": 1}'), ("book", '{"seat": 2}')][: 2 if form.link else 1]  # type: ignore[attr-defined]
    text = calls_written(form, made)  # type: ignore[arg-type]
    by_name = "to=functions." not in text  # harmony's name stands outside the JSON
    assert tool_calls.calls(text) == (made if by_name else [])
