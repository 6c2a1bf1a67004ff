"""Formats and mapping: each known layout becomes the right example without being asked, and what can't be mapped says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from studio.datasets.formats import FORMATS
from studio.datasets.ingest import open_ingest
from studio.datasets.records import Problem
from studio.errors import DatasetError
from studio.types import Example

Json = dict[str, Any]


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> Json:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> Json:
    return {"role": "system", "content": text}


def ingest(folder: Path, rows: list[Any], **how: Any) -> tuple[str, dict[str, str], list[Json], list[Problem]]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with open_ingest(path, **how) as found:
        results = [result for _, result in found]
        examples = [orjson.loads(result) for result in results if isinstance(result, bytes)]
        return found.layout.format.name, found.layout.mapping, examples, [result for result in results if isinstance(result, Problem)]


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CHAT = {"messages": [user("a"), assistant("b")]}
PREFERENCE = {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}

DETECTED: list[tuple[str, Json, Json]] = [
    ("alpaca", {"instruction": "a", "input": "", "output": "b"}, CHAT),
    ("alpaca", {"instruction": "a", "input": "i", "output": "b"}, {"messages": [user("a\n\ni"), assistant("b")]}),
    ("alpaca", {"instruction": "a", "context": "i", "response": "b", "category": "x"}, {"messages": [user("a\n\ni"), assistant("b")]}),
    (
        "alpaca",
        {"instruction": "a", "output": "b", "system": "s", "history": [["q", "r"]]},
        {"messages": [system("s"), user("q"), assistant("r"), user("a"), assistant("b")]},
    ),
    ("prompt-completion", {"prompt": "a", "completion": "b"}, CHAT),
    ("prompt-completion", {"prompt": [user("a")], "completion": [assistant("b")]}, CHAT),
    ("prompt-completion", {"Input": "a", "Output": "b"}, CHAT),
    ("question-answer", {"question": "a", "answer": "b", "id": 7}, CHAT),
    ("question-answer", {"question": "a", "answer": 5}, {"messages": [user("a"), assistant("5")]}),
    ("messages", {"messages": [user("a"), assistant("b")]}, CHAT),
    ("messages", {"conversations": [user("a"), assistant("b")], "system": "s"}, {"messages": [system("s"), user("a"), assistant("b")]}),
    ("messages", {"messages": json.dumps([user("a"), assistant("b")])}, CHAT),
    ("messages", {"messages": repr([user("a"), assistant("b")])}, CHAT),
    ("messages", {"messages": [user("a"), {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]}, CHAT),
    (
        "messages",
        {
            "messages": [
                user("a"),
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
                {"role": "tool", "content": "r", "name": "f", "tool_call_id": "1"},
            ],
            "tools": [TOOL],
        },
        {"messages": [user("a"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "r", "name": "f"}], "tools": [TOOL]},
    ),
    ("sharegpt", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, CHAT),
    (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "r"},
                {"from": "gpt", "value": "b"},
            ],
            "system": "s",
            "tools": '[{"name": "f", "parameters": {}}]',
        },
        {
            "messages": [system("s"), user("a"), assistant("", tool_calls=[CALL]), {"role": "tool", "content": "r"}, assistant("b")],
            "tools": [TOOL],
        },
    ),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, PREFERENCE),
    ("preference", {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}, PREFERENCE),
    ("preference", {"prompt": "a", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}, PREFERENCE),
    ("preference", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, PREFERENCE),
    ("preference", {"instruction": "a", "input": "i", "chosen": "b", "rejected": "c"}, {**PREFERENCE, "prompt": [user("a\n\ni")]}),
    (
        "sharegpt-preference",
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
        PREFERENCE,
    ),
    (
        "openai-preference",
        {"input": {"messages": [user("a")]}, "preferred_output": [assistant("b")], "non_preferred_output": [assistant("c")]},
        PREFERENCE,
    ),
    ("messages-preference", {"messages": [user("a"), assistant("b")], "rejected_response": "c"}, PREFERENCE),
    ("ranked", {"prompt": "a", "answers": [{"answer": "c", "rank": 2}, {"answer": "b", "rank": 1}]}, PREFERENCE),
    ("ranked-lists", {"prompt": "a", "responses": ["c", "b"], "scores": [0.1, 0.9]}, PREFERENCE),
    ("prompt-messages", {"messages": [system("s"), user("a")]}, {"messages": [system("s"), user("a")]}),
    ("kto", {"prompt": "a", "completion": "b", "label": True}, {"prompt": [user("a")], "completion": [assistant("b")], "label": True}),
    ("kto", {"prompt": "a", "completion": "b", "label": "False"}, {"prompt": [user("a")], "completion": [assistant("b")], "label": False}),
    (
        "sharegpt-kto",
        {"messages": [user("a"), assistant("b")], "kto_tag": False},
        {"prompt": [user("a")], "completion": [assistant("b")], "label": False},
    ),
    ("instances", {"instruction": "a", "instances": [{"input": "", "output": "b"}]}, CHAT),
    ("mt-bench", {"question_id": 81, "turns": ["a", "b"]}, {"messages": [user("a"), user("b")]}),
    ("prompts", {"prompt": "a", "category": "x"}, {"messages": [user("a")]}),
    ("text", {"text": "a"}, {"text": "a"}),
    ("text", {"lyrics": "a"}, {"text": "a"}),
]


@pytest.mark.parametrize(("format", "row", "expected"), DETECTED, ids=lambda value: value if isinstance(value, str) else "")
def test_detected_without_a_word(tmp_path: Path, format: str, row: Json, expected: Json) -> None:
    name, _, examples, problems = ingest(tmp_path, [row])
    assert (name, examples, problems) == (format, [expected], [])
    assert Example.model_validate(examples[0]).as_json() == expected  # what is kept is what everyone else reads


def test_every_format_can_be_converted_and_has_a_kind() -> None:
    assert {format.kind for format in FORMATS} == {"sft", "preference", "unpaired-preference", "prompts", "text"}


@pytest.mark.parametrize("row", [{"instruction": "", "input": "", "output": ""}, {"question": "a", "answer": ""}, {"text": ""}])
def test_empty_texts_are_no_problems(tmp_path: Path, row: Json) -> None:
    assert not ingest(tmp_path, [row])[3]


def test_labels_that_say_neither_good_nor_bad_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in ("spam", "true")]
    with pytest.raises(DatasetError, match=r"'label' marks an answer as good or bad .*'spam' is neither") as caught:
        ingest(tmp_path, rows)
    assert "--map label=label" in caught.value.fix
    assert ingest(tmp_path, rows, format="prompt-completion")[0] == "prompt-completion"


def test_several_instances_are_several_examples(tmp_path: Path) -> None:
    row = {"instruction": "a", "instances": [{"input": "x", "output": "b"}, {"input": "y", "output": "c"}]}
    assert [example["messages"][1]["content"] for example in ingest(tmp_path, [row])[2]] == ["b", "c"]


def test_a_mapping_names_the_columns(tmp_path: Path) -> None:
    rows = [{"foo": "a", "bar": "b"}]
    name, mapping, examples, _ = ingest(tmp_path, rows, mapping={"prompt": "foo", "completion": "bar"})
    assert (name, mapping, examples) == ("prompt-completion", {"prompt": "foo", "completion": "bar"}, [CHAT])
    assert ingest(tmp_path, rows, mapping={"text": "bar"})[2] == [{"text": "b"}]
    assert ingest(tmp_path, rows, format="question-answer", mapping={"question": "foo", "answer": "bar"})[0] == "question-answer"


def test_a_continuation_is_taken_only_when_asked_for(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}]
    assert ingest(tmp_path, rows, format="continuation")[2] == rows


@pytest.mark.parametrize(
    ("rows", "how", "message"),
    [
        ([{"foo": "a", "bar": "b"}], {}, "the columns (foo, bar) fit no known format"),
        ([{}], {}, "the rows have no columns"),
        ([{"text": "a"}], {"format": "alpacca"}, "no format 'alpacca'"),
        ([{"text": "a"}], {"format": "alpaca"}, "do not fit the format 'alpaca'"),
        ([{"text": "a"}], {"mapping": {"text": "txt"}}, "no column 'txt'"),
        ([{"text": "a"}], {"mapping": {"txet": "text"}}, "'txet' is no part of any format"),
        ([{f"c{n}": 1 for n in range(10_001)}], {}, "more than 10,000 columns"),
    ],
)
def test_what_fits_nothing_is_said_with_a_fix(tmp_path: Path, rows: list[Json], how: Json, message: str) -> None:
    with pytest.raises(DatasetError) as caught:
        ingest(tmp_path, rows, **how)
    assert message in caught.value.message and "rows.jsonl" in caught.value.message and caught.value.fix


GOOD: dict[str, Json] = {
    "messages": CHAT,
    "question": {"question": "a", "answer": "b"},
    "chosen": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "label": {"prompt": "a", "completion": "b", "label": True},
}
BAD: list[tuple[str, Json, str]] = [
    ("question", {"question": None, "answer": "b"}, "no value in the column 'question'"),
    ("question", {"answer": "b"}, "no value in the column 'question'"),
    ("question", {"question": ["a"], "answer": "b"}, "holds a list where text is expected"),
    ("question", {"question": {"x": 1}, "answer": "b"}, "holds an object where text is expected"),
    ("messages", {"messages": []}, "has no message"),
    ("messages", {"messages": None}, "no value in the column 'messages'"),
    ("messages", {"messages": "hello"}, "holds no list of messages"),
    ("messages", {"messages": ["hello"]}, "Message 1 of 'messages' is no object"),
    ("messages", {"messages": [user("a"), {"role": "alien", "content": "b"}]}, "Message 2 of 'messages' has the unknown role 'alien'"),
    ("messages", {"messages": [{"role": "user"}]}, "has no content"),
    ("messages", {"messages": [{"content": "a"}]}, "unknown role None"),
    ("messages", {"messages": [user("a"), assistant("", tool_calls=[{"function": {}}])]}, "tool call without a name"),
    ("chosen", {"prompt": "a", "chosen": None, "rejected": "c"}, "no value in the column 'chosen'"),
    ("chosen", {"prompt": "a", "chosen": [user("a")], "rejected": [user("a")]}, "nothing but the prompt"),
]


@pytest.mark.parametrize(("good", "row", "message"), BAD, ids=[message for _, _, message in BAD])
def test_a_row_that_can_not_be_mapped_is_a_problem_with_its_line(tmp_path: Path, good: str, row: Json, message: str) -> None:
    _, _, examples, problems = ingest(tmp_path, [GOOD[good], GOOD[good], row])
    assert len(examples) == 2
    assert [problem.line for problem in problems] == [3]
    assert message in problems[0].problem and problems[0].fix


def test_calls_that_are_no_json_stay_the_text_they_are(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f(x)"}]
    assert ingest(tmp_path, [{"conversations": turns}])[2] == [{"messages": [user("a"), assistant("f(x)")]}]


REAL = {
    "alpaca_seed_tasks.jsonl": ("instances", "sft", 175),
    "dpo_en_demo.json.gz": ("sharegpt-preference", "preference", 300),
    "fastchat_dummy_conversation.json": ("sharegpt", "sft", 500),
    "glaive_toolcall_en_demo.json.gz": ("sharegpt", "sft", 300),
    "gsm8k_test.jsonl": ("question-answer", "sft", 1319),
    "gsm8k_train.jsonl.gz": ("question-answer", "sft", 7473),
    "identity.json": ("alpaca", "sft", 91),
    "selfinstruct_user_oriented.jsonl": ("instances", "sft", 252),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_go_in_as_they_are(shared_data: Path, tmp_path: Path, name: str) -> None:
    with open_ingest(shared_data / "data" / "instructions" / name, scratch=tmp_path) as found:
        results = [result for _, result in found]
        assert (found.layout.format.name, found.layout.format.kind, len(results)) == REAL[name]
    assert all(isinstance(result, bytes) for result in results)
    if "glaive" in name:
        examples = [orjson.loads(result) for result in results if isinstance(result, bytes)]
        assert sum("tools" in example for example in examples) == 191  # the other 109 say "[]"
        assert any("tool_calls" in message for example in examples for message in example["messages"])


def test_mt_bench_questions_are_prompts(shared_data: Path) -> None:
    with open_ingest(shared_data / "data" / "judge" / "mtbench_question.jsonl") as found:
        assert (len(list(found)), found.layout.format.kind) == (80, "prompts")
