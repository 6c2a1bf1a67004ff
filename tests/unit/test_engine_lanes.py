"""Turns between chat and batch jobs, memory promised to a training, and how long a schema lets an answer get."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from studio.catalogue import hardware
from studio.engine.answer import GeneratedAnswer
from studio.engine.lanes import Lanes
from studio.engine.leases import Lease
from studio.engine.limits import longest_answer
from studio.engine.protocol import Grammar, ModelFolder
from studio.engine.text import AnswerText
from studio.errors import EngineError
from studio.types import GenerationParams


def answer(lane: Any) -> GeneratedAnswer:
    text = AnswerText(lambda ids: "", [])
    return GeneratedAnswer(
        ModelFolder("m", Path("/m")), None, [1], 9, GenerationParams(), 0, frozenset(), text, lambda event: None, lane=lane
    )


def test_chat_goes_first_and_a_batch_job_gets_every_fourth_turn() -> None:
    lanes = Lanes(99)
    lanes.add([answer("batch") for _ in range(3)], 1)
    lanes.add([answer("chat") for _ in range(6)], 1)
    turns = []
    while (first := lanes.first()) is not None:
        lanes.take(first)
        turns.append(first.lane)
    assert turns == ["chat", "chat", "chat", "batch", "chat", "chat", "chat", "batch", "batch"]


def test_a_batch_job_that_fills_its_queue_leaves_chat_its_own() -> None:
    lanes = Lanes(4)
    lanes.add([answer("batch") for _ in range(4)], 1)
    with pytest.raises(EngineError) as refused:
        lanes.add([answer("batch")], 1)
    assert refused.value.status == 429 and refused.value.details["retry_after"] >= 1
    lanes.add([answer("chat")], 1)
    assert len(lanes) == 5 and lanes.first(takes_batch=False) is not None


def test_a_training_keeps_what_it_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "devices", lambda: [hardware.Device("cuda", "GPU", 24_000, 4_000)])
    lease = Lease.begin("night", 15_000)
    assert lease.room_bytes == 5_000 and not lease.is_over and lease.record().job == "night"


@pytest.mark.parametrize(
    ("schema", "longest"),
    [
        ({"type": "string", "maxLength": 3}, '"\\u0000\\u0000\\u0000"'),
        ({"enum": ["a", "tie"]}, '"tie"'),
        ({"type": "object", "properties": {"ab": {"type": "boolean"}}, "additionalProperties": False}, '{"ab":false}'),
        ({"type": "array", "maxItems": 2, "items": {"type": "null"}}, "[null,null]"),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer", "minimum": -10, "maximum": 5}}}, "-10"),
    ],
)
def test_a_bounded_schema_bounds_the_answer(schema: dict[str, Any], longest: str) -> None:
    limit = longest_answer(Grammar("json_schema", json.dumps(schema)))
    assert limit is not None and len(longest) < limit <= len(longest) + 8


@pytest.mark.parametrize(
    "schema", [{"type": "string"}, {"type": "object"}, {"$ref": "#"}, {"type": "array", "items": {"type": "null"}}, True]
)
def test_a_schema_without_bounds_has_no_limit(schema: Any) -> None:
    assert longest_answer(Grammar("json_schema", json.dumps(schema))) is None
