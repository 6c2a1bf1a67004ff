"""The parts of the engine that need no model, at their edges: bounds of schemas, sampling, prefixes, drafts, lanes, requests, text."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from studio.engine import leases, limits, outgoing, prefixes, speculation
from studio.engine.lanes import Lanes
from studio.engine.leases import Lease, LoadTimes
from studio.engine.limits import longest_answer
from studio.engine.local import LocalModel
from studio.engine.prefixes import Prefixes, shared_length
from studio.engine.protocol import Contestant, Grammar, ModelFolder
from studio.engine.speculation import Assistant, Gain, PromptLookup
from studio.engine.text import AnswerText
from studio.errors import EngineError
from studio.types import GenerationParams
from tests.engines import answer

# bounds of schemas

INTEGER = {"type": "integer", "minimum": -10, "maximum": 5}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"anyOf": [schema]}
    return schema


def linked(depth: int) -> dict[str, Any]:
    """A chain of references, each of which counts as a level."""
    links = {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(1, depth)}
    return {"$ref": "#/$defs/1", "$defs": {**links, str(depth): {"type": "null"}}}


@pytest.mark.parametrize(
    ("schema", "longest"),
    [
        ({"type": "null"}, 5),
        ({"type": "boolean"}, 5),
        ({"type": "string", "maxLength": 3}, 20),
        ({"type": "string"}, None),
        ({"type": "number"}, 400),
        (INTEGER, 4),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 1000}, 5),
        ({"type": "integer", "minimum": 0}, None),
        ({"type": "integer", "maximum": 0}, None),
        ({"type": "array", "maxItems": 2, "items": {"type": "null"}}, 14),
        ({"type": "array", "items": {"type": "null"}}, None),
        (
            {"type": "object", "properties": {"ab": INTEGER, "c": {"type": "null"}}, "additionalProperties": False},
            2 + (4 + 2 + 4) + (3 + 2 + 5),
        ),
        ({"type": "object", "additionalProperties": False}, 2),
        ({"type": "object", "properties": {}, "additionalProperties": True}, None),
        ({"type": ["null", "integer"], "minimum": 0, "maximum": 123456}, 7),
        ({"enum": ["a", "tie", 1]}, 5),
        ({"const": {"a": 1}}, 8),
        ({"anyOf": [{"type": "null"}, {"const": "longer"}]}, 8),
        ({"oneOf": [{"const": "longer"}, {"type": "null"}]}, 8),
        ({"$ref": "#/$defs/x", "$defs": {"x": INTEGER}}, 4),
        ({"$ref": "#/$defs/y", "$defs": {"x": INTEGER}}, None),
        ({}, None),
        (nested(16), 5),
        (nested(17), None),
        (linked(16), 5),
        (linked(17), None),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"$ref": "#/$defs/x"}}}, None),
    ],
)
def test_the_longest_answer_of_a_schema_and_its_end(schema: dict[str, Any], longest: int | None) -> None:
    found = longest_answer(Grammar("json_schema", json.dumps(schema)))
    assert found == (None if longest is None else longest + 1)
    assert longest_answer(Grammar("gbnf", 'root ::= "a"')) is None


def crossed(width: int, depth: int = 8) -> dict[str, Any]:
    """Definitions that each refer to the next one `width` times: few bytes, width ** depth paths."""
    links: dict[str, Any] = {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * width} for n in range(depth)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(depth): {"type": "null"}}}


def test_a_reference_is_followed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_VISITED", 250)
    assert longest_answer(Grammar("json_schema", json.dumps(crossed(20, 7)))) == 6
    assert longest_answer(Grammar("json_schema", json.dumps(crossed(40, 7)))) is None, "beyond the budget"


@pytest.mark.parametrize("number", ["1e999", "9" * 5000, '"x"', "[]", "null"])
def test_a_bound_that_is_no_number_is_none(number: str) -> None:
    for kind, name in (("string", "maxLength"), ("array", "maxItems"), ("integer", "maximum")):
        source = f'{{"type": "{kind}", "minimum": 0, "items": {{"type": "null"}}, "{name}": {number}}}'
        assert longest_answer(Grammar("json_schema", source)) is None, source


# prefixes


def states(columns: int, size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    made = torch.arange(float(columns * size)).view(1, 1, columns, size)
    return [(made, made + 1)]


def test_what_was_read_is_found_from_sixteen_tokens_on() -> None:
    known = Prefixes()
    known.keep(None, range(15), states(15))
    assert len(known) == 0
    known.keep(None, range(20), states(20))
    known.keep("a", range(20), states(20))
    assert known.find(None, list(range(15)))[0] == 0 and known.find("b", range(20))[0] == 0
    length, ((keys, values),) = known.find(None, [*range(16), 99, 98])
    assert length == 16 and keys.shape[2] == values.shape[2] == 16 and float(values[0, 0, 15, 3]) == 64.0
    known.keep(None, range(17), states(17))
    assert known.find(None, range(20))[0] == 20, "the longest of what is known"
    known.keep(None, range(30), states(30))
    assert len(known) == 2, "what it begins with is dropped"
    known.forget("a")
    assert len(known) == 1 and known.find("a", range(20))[0] == 0
    assert [shared_length(*pair) for pair in (((1, 2), (1, 3)), ((1, 2), (1, 2, 3)), ((), (1,)), ((2,), (1,)))] == [1, 2, 0, 0]


def test_the_oldest_leave_when_there_are_too_many_or_too_much() -> None:
    known = Prefixes()
    for n in range(33):
        known.keep(None, [n, *range(100, 120)], states(21))
    assert len(known) == prefixes.MAX_KEPT == 32 and known.find(None, [0, *range(100, 120)])[0] == 0
    assert known.find(None, [1, *range(100, 120)])[0] == 21
    bytes_each = 2 * 20 * 4 * 4
    small = Prefixes(2 * bytes_each)
    for start in (0, 100, 200):
        small.keep(None, range(start, start + 20), states(20))
        if start == 100:
            assert small.find(None, range(20))[0] == 20  # used last
    assert len(small) == 2 and small.find(None, range(100, 120))[0] == 0 and small.find(None, range(20))[0] == 20
    small.keep(None, range(300, 321), states(21))
    assert len(small) == 2 and small.find(None, range(300, 321))[0] == 0, "more than half of the room"


# drafts


@pytest.mark.parametrize(
    ("ids", "limit", "draft"),
    [
        ([1, 2, 3, 4, 1, 2, 3], 10, [4, 1, 2, 3]),
        ([1, 2, 3, 4, 1, 2, 3], 2, [4, 1]),
        ([9, 2, 3, 7, 1, 2, 3, 8, 5, 2, 3], 1, [8]),  # the last time
        ([5, 1, 2, 3, 6, 9, 2, 3, 7, 1, 2, 3], 1, [6]),  # three in a row go before two
        ([0, 0], 5, [0]),
        ([1], 5, []),
        ([], 5, []),
        ([1, 2, 3], 5, []),
        ([*range(20), 0], 99, list(range(1, 11))),
    ],
)
def test_a_draft_is_what_followed_last_time(ids: list[int], limit: int, draft: list[int]) -> None:
    assert PromptLookup().propose(ids, limit) == draft


class Small:
    """A model that always says the next number, and notes what it reads."""

    device = "cpu"

    def __init__(self) -> None:
        self.cache = SimpleNamespace(
            layers=[SimpleNamespace(is_initialized=True, keys=torch.zeros(1, 1, 0, 1), values=torch.zeros(1, 1, 0, 1))]
        )
        self.read: list[list[int]] = []

    def new_cache(self) -> Any:
        return self.cache

    def forward(self, tokens: Any, mask: Any, places: Any, cache: Any, adapters: Any) -> Any:
        ids = tokens[0].tolist()
        self.read.append(ids)
        (layer,) = cache.layers
        layer.keys = torch.cat([layer.keys, torch.zeros(1, 1, len(ids), 1)], dim=2)
        layer.values = torch.cat([layer.values, torch.zeros(1, 1, len(ids), 1)], dim=2)
        assert mask.shape[1] == layer.keys.shape[2] and places.shape == mask.shape and places[0, -1] == mask.shape[1] - 1
        return torch.nn.functional.one_hot(tokens + 1, 100).float()


def test_a_smaller_model_reads_only_what_is_new() -> None:
    model = Small()
    assistant = Assistant(model)
    assert assistant.propose([1, 2, 3], 0) == [] and model.read == []
    assert assistant.propose([1, 2, 3], 2) == [4, 5] and model.read == [[1, 2, 3], [4]]
    model.read.clear()
    assert assistant.propose([1, 2, 3, 4, 9], 99) == [10, 11, 12, 13, 14] and model.read == [[9], [10], [11], [12], [13]]
    model.read.clear()
    assert assistant.propose([1, 2, 3, 4, 9], 1) == [10] and model.read == [[9]]


def test_drafts_pay_or_stop() -> None:
    gain = Gain(plain_steps=2, plain_s=2.0, passes=11, tokens=33, drafted=40, drafts_s=40.0)
    assert gain.is_measuring and not gain.is_losing and not Gain(plain_steps=3).is_measuring
    gain.leap(time.monotonic(), 2, 3)
    assert gain.passes == 12 and gain.is_losing and gain.as_json()["stopped"] is True
    assert gain.as_json()["tokens_per_pass"] == 3.0 and gain.as_json()["accepted_tokens"] == 24 and gain.drafted == 42
    assert Gain().as_json() == {"drafted_tokens": 0, "accepted_tokens": 0, "tokens_per_pass": None, "speedup": None, "stopped": False}
    assert Gain(2, 2.0, 12, 40, 0, 40.0).is_losing is False, "it is as fast"
    assert speculation.TRIAL_PASSES == 12 and Gain(2, 2.0, 10, 30, 0, 20.0).as_json()["speedup"] == 1.5
    assert Gain(2, 2.0, 10, 29, 0, 20.0).as_json()["speedup"] is None and Gain(0, 0.0, 10, 30, 0, 20.0).as_json()["speedup"] is None


# lanes and leases


def test_a_full_lane_says_when_to_ask_again() -> None:
    lanes = Lanes(3)
    lanes.add([answer() for _ in range(5)], 1.0)  # one request of many answers is taken where nothing waits
    with pytest.raises(EngineError) as refused:
        lanes.add([answer()], 2.4)
    assert refused.value.details["retry_after"] == 12 and refused.value.fix == "Ask again in 12 s." and refused.value.code == "queue_full"
    with pytest.raises(EngineError) as refused:
        lanes.add([answer()], 0.01)
    assert refused.value.details["retry_after"] == 1
    for one in list(lanes)[:3]:
        one.cancel()
    assert len(lanes) == 2
    lanes.add([answer()], 1.0)
    assert len(lanes) == 3
    first = lanes.first()
    assert first is not None and not first.is_over and len(list(lanes)) == 3, "what is over is dropped"


def test_batch_jobs_wait_where_none_is_taken_and_turns_count_only_while_one_waits() -> None:
    lanes = Lanes(9)
    assert lanes.first() is None
    lanes.add([answer(lane="batch")], 1.0)
    assert lanes.first(takes_batch=False) is None and lanes.first() is not None
    lanes.take(lanes.first())  # type: ignore[arg-type]
    lanes.add([answer(lane="chat") for _ in range(9)], 1.0)
    for _ in range(4):
        lanes.take(lanes.first())  # type: ignore[arg-type]
    lanes.add([answer(lane="batch")], 1.0)
    turns = []
    for _ in range(5):
        turns.append(lanes.first().lane)  # type: ignore[union-attr]
        lanes.take(lanes.first())  # type: ignore[arg-type]
    assert turns == ["chat", "chat", "chat", "batch", "chat"]


def test_a_promise_that_nobody_renews_ends_after_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    monkeypatch.setattr(leases.hardware, "usable", lambda: [SimpleNamespace(kind="cpu")])
    monkeypatch.setattr(leases.hardware, "memory", lambda: SimpleNamespace(free_bytes=70))
    lease = Lease.begin("night", 30)
    assert (lease.free_bytes, lease.room_bytes, lease.expires, lease.gave_way) == (70, 40, 1000.0 + 600, False)
    now += 600
    assert not lease.is_over
    now += 1
    assert lease.is_over
    monkeypatch.setattr(leases.hardware, "usable", lambda: [SimpleNamespace(kind="cuda", memory_bytes=100, used_bytes=25)])
    assert leases.free_bytes() == 75


def test_load_times_are_kept_where_there_is_a_file(tmp_path: Path) -> None:
    file, folder = tmp_path / "times.json", ModelFolder("m", Path("/m"))
    for content in (None, "[1]", "not json"):
        if content is not None:
            file.write_text(content)
        assert LoadTimes(file).expected(folder) is None
    LoadTimes(file).record(folder, 3.14159)
    assert LoadTimes(file).expected(folder) == 3.1 and LoadTimes(None).expected(folder) is None
    bare = LoadTimes(None)
    bare.record(folder, 2.0)
    assert bare.expected(folder) == 2.0
    LoadTimes(tmp_path / "no" / "times.json").record(folder, 1.0)  # a disk that refuses costs no answer


# requests


def far(**values: Any) -> Contestant:
    return Contestant(**{"name": "m", "url": "http://far/v1", **values})


def test_what_another_server_is_sent() -> None:
    plain = outgoing.common(far(), GenerationParams(), None)
    assert set(plain) <= {"model", "max_tokens", "temperature", "top_p"} and plain["model"] == "m"
    assert outgoing.common(far(model="real"), GenerationParams(), None)["model"] == "real"
    assert "top_p" not in outgoing.common(far(), GenerationParams(top_p=1.0), None)
    set_ = outgoing.common(far(), GenerationParams(top_p=0.5, top_k=3, stop=("x",), seed=7, presence_penalty=0.5), None)
    assert (set_["top_p"], set_["top_k"], set_["stop"], set_["seed"], set_["presence_penalty"]) == (0.5, 3, ["x"], 7, 0.5)
    schema = Grammar("json_schema", '{"type": "null"}')
    form = outgoing.common(far(), GenerationParams(), schema)
    assert form["response_format"] == {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "null"}, "strict": True}}
    assert "max_tokens" in form and "max_tokens" not in outgoing.common(far(url=""), GenerationParams(), schema)
    assert outgoing.common(far(url=""), GenerationParams(max_new_tokens=5), schema)["max_tokens"] == 5
    assert outgoing.common(far(), GenerationParams(), Grammar("gbnf", "g"))["grammar"] == "g"
    assert outgoing.common(far(), GenerationParams(), Grammar("regex", "r"))["regex"] == "r"
    assert outgoing.plainer(form, 0) is form and outgoing.plainer(plain, 1) is plain
    assert outgoing.plainer(form, 1)["response_format"] == {"type": "json_object", "schema": {"type": "null"}}
    assert "response_format" not in outgoing.plainer(form, 2) and outgoing.plainer(form, 2)["model"] == "m"


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("Unsupported parameter: seed", "seed"),
        ("top_k is not allowed", "top_k"),
        ("max_tokens is unsupported; use max_completion_tokens", "max_tokens"),
        ("max_tokens is unsupported", ""),
        ("seed must be positive", ""),
        ("unknown field top_p", ""),  # not sent
        ("unexpected seeds", ""),
    ],
)
def test_which_field_a_server_refuses(said: str, field: str) -> None:
    body = {"model": "m", "max_tokens": 1, "seed": 2, "top_k": 3}
    assert outgoing.refused_field(body, said) == field
    spared = outgoing.sparing(body, [field])
    assert spared == {"max_tokens": {**{k: v for k, v in body.items() if k != "max_tokens"}, "max_completion_tokens": 1}}.get(
        field, {k: v for k, v in body.items() if k != field}
    )


@pytest.mark.parametrize(
    ("url", "start", "under"),
    [
        ("http://a/v1/x", "http://a/v1", True),
        ("http://a/v1", "http://a/v1/", True),
        ("http://a/v10", "http://a/v1", False),
        ("https://a/v1/x", "http://a/v1", False),
        ("http://b/v1/x", "http://a/v1", False),
        ("http://a:81/v1/x", "http://a/v1", False),
        ("http://a/x", "http://a", True),
    ],
)
def test_which_addresses_lie_under_another(url: str, start: str, under: bool) -> None:
    assert outgoing.is_under(url, start) is under
    assert outgoing.plain([{"role": "user", "content": "x", "name": None, "reasoning": "y"}]) == [
        {"role": "user", "content": "x", "reasoning_content": "y"}
    ]


def test_six_tokens_of_the_prompt_are_decoded_along() -> None:
    seen: list[list[int]] = []

    def decode(ids: Sequence[int]) -> str:
        seen.append(list(ids))
        return "".join(chr(97 + n) for n in ids)

    text = AnswerText(decode, list(range(10)), ["mn"])
    assert text.push(10) == "k" and seen[:2] == [[4, 5, 6, 7, 8, 9], [4, 5, 6, 7, 8, 9, 10]] and seen[2] == [10]
    assert text.push(11) == "l" and seen[-2] == [10, 11], "the window moves on"
    assert (text.push(12), text.finish(), text.finish()) == ("", "m", "")


def test_what_a_row_takes_while_its_prompt_is_read() -> None:
    # three times the inner width of a feed-forward layer and six times the model's own, for each token; a mask of every pair
    config = SimpleNamespace(intermediate_size=5, hidden_size=3)
    base = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config))
    sizes = LocalModel.sizes.func(SimpleNamespace(_base=base, has_columns=False, dtype=torch.float16))  # type: ignore[attr-defined]
    assert (sizes.column, sizes.token, sizes.number) == (0, 2 * (3 * 5 + 6 * 3), 2)
    assert sizes.held(3, 100) == 0 and sizes.reading(2, 4) == 2 * 4 * (66 + 4 * 3)
