"""The quick way for blocks of lines: it gives what the general way gives, byte for byte and line for line, or stands back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from studio.datasets import blocks, records
from studio.datasets import ingest as ingest_module
from studio.datasets.blocks import FIELDS, BlockMapper
from studio.datasets.formats import BY_NAME, Layout
from studio.datasets.ingest import open_ingest
from studio.datasets.json_records import json_line
from studio.datasets.records import Problem
from studio.datasets.usage import ColumnUsage

MANY = hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

HEADS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "a", "input": "", "output": "b"},
    "question-answer": {"question": "a", "answer": "b", "context": "c"},
    "prompt-completion": {"prompt": "a", "completion": "b"},
    "continuation": {"prompt": "a", "completion": "b"},
    "text": {"text": "a"},
    "prompts": {"prompt": "a", "id": 1},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
}


def block_mapper(layout: Layout) -> BlockMapper | None:
    usage = ColumnUsage(layout, is_chosen=False)
    if "id" not in layout.mapping.values():
        usage.learn(["id"])
    return blocks.block_mapper(layout, usage)


texts = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["<think>a</think>b", 'x",', '"],["', '","', "\\", '\\",', "[]", "{}", "\x7f\x00", "\u2028"]
)
odd = texts | st.none() | st.integers(-9, 2**60) | st.booleans() | st.floats() | st.lists(texts, max_size=2)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "alien", "human"]), "content": odd},
    optional={
        "name": texts,
        "tool_calls": st.none(),
        "weight": st.sampled_from([0, 1, None, 0.5]),
        "reasoning": texts,
        "note": texts,
    },
)
shares = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "function_call", "observation"]), "value": odd})
LINES = st.sampled_from(
    [
        b"",
        b"  ",
        b"nope",
        b"[1]",
        b"null",
        b'{"text":',
        b'{"text":"a"} {"text":"b"}',
        b'{"text":"\xff"}',
        b'{"id":"\xff","text":"a"}',
        b"\x00",
        b"}\r",
    ]
)


def rows_of(head: dict[str, Any]) -> st.SearchStrategy[bytes]:
    values = {"messages": st.lists(turns, max_size=3), "conversations": st.lists(shares, max_size=3)}
    fields = {name: values.get(name, texts | odd) for name in head}
    plain = st.fixed_dictionaries({name: values.get(name, texts) for name in head}).map(orjson.dumps)
    telling = {"rejected_2": texts, "label": odd, "images": st.lists(texts, max_size=1), "weight": odd}
    other = st.fixed_dictionaries({}, optional={**fields, "more": odd, **telling}).map(lambda row: json.dumps(row).encode())
    return plain | plain | other | LINES


@pytest.mark.parametrize("name", HEADS)
@MANY
@given(data=st.data())
def test_both_ways_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: st.DataObject) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", data.draw(st.sampled_from([7, 60, 10_000])))
    monkeypatch.setattr(ingest_module, "SMALL_BLOCK_BYTES", data.draw(st.sampled_from([0, 100])))
    monkeypatch.setattr(ingest_module, "SAMPLE_ROWS", 1)  # all but the first row are read in blocks
    end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    lines = [orjson.dumps(HEADS[name]) + b" " * 2000, *data.draw(st.lists(rows_of(HEADS[name]), max_size=12))]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(end.join(lines) + end * data.draw(st.booleans()))

    chosen = name if BY_NAME[name].is_chosen_only else None
    with open_ingest(path, format=chosen) as one_by_one:
        results = list(one_by_one)
        counted = one_by_one.usage.unused()
        assert one_by_one.layout.format.name == name
    with open_ingest(path, format=chosen) as ingest:
        batches = list(ingest.batches())
        assert ingest.usage.unused() == counted

    examples = [result for _, result in results if isinstance(result, bytes)]
    assert b"".join(batch.lines for batch in batches) == b"".join(example + b"\n" for example in examples)
    assert sum(batch.rows for batch in batches) == len(examples)
    assert [problem for batch in batches for problem in batch.problems] == [result for _, result in results if isinstance(result, Problem)]


def test_the_quick_way_takes_plain_rows() -> None:
    for name, head in HEADS.items():
        roles = {role: role for role in head if role in BY_NAME[name].role_names()}
        mapper = block_mapper(Layout(BY_NAME[name], roles))
        block = orjson.dumps(head) + b"\n"
        assert mapper is not None and mapper.lines(block * 3) is not None, name
        assert mapper.lines((block * 3).replace(b"\n", b"\r\n")) is not None, name
    assert HEADS.keys() == FIELDS.keys()  # every quick way is compared with the general one above


@pytest.mark.parametrize(
    "block",
    [
        b'{"text":"a","new":1}\n',  # a column that is not known yet
        b'{"text":"a"} {"text":"b"}\n{"text":\n"c"}\n',  # two values on a line, one on two: as many as lines
        b'{"text":"a"}{"text":"b"}\n{"id":[{}\n,{}],"text":"c"}\n',
        b'{"text":"a","id":"\xff"}\n',  # bytes that the decoder does not look at
        b'\n{"text":"a"}\n',
        b'{"text":"a"}\n\n{"text":"a"}\n',
        b'{"text":1}\n',
    ],
)
def test_the_quick_way_stands_back(block: bytes) -> None:
    mapper = block_mapper(Layout(BY_NAME["text"], {"text": "text"}))
    assert mapper is not None and mapper.lines(block) is None


def test_layouts_without_a_quick_way() -> None:
    assert block_mapper(Layout(BY_NAME["kto"], {"prompt": "p", "completion": "c", "label": "l"})) is None
    assert block_mapper(Layout(BY_NAME["preference"], {"chosen": "c", "rejected": "r"})) is None
    assert block_mapper(Layout(BY_NAME["messages"], {"messages": "messages", "tools": "tools"})) is None
    assert block_mapper(Layout(BY_NAME["continuation"], {"prompt": "same", "completion": "same"})) is None


def test_a_key_that_stands_twice_is_no_quick_row() -> None:
    for name, row in {
        "text": b'{"text":"a","text":"b"}\n',
        "messages": b'{"messages":[{"role":"user","content":"a","content":"b"}]}\n',
        "alpaca": b'{"instruction":"a","output":"b","input":"c","instruction":"d"}\n',
    }.items():
        mapper = block_mapper(Layout(BY_NAME[name], {role: role for role in HEADS[name]}))
        assert mapper is not None and mapper.lines(row) is None, name
        assert isinstance(json_line(1, row), Problem)
