"""Documented layouts of datasets, as the tools that people come from write them: what is made of a row, what is left out, or why it is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow
import pyarrow.parquet
import pytest

from studio.datasets.ingest import open_ingest
from studio.datasets.records import Problem
from studio.datasets.report.fixing import changed
from studio.errors import DatasetError
from studio.types import Example

Json = dict[str, Any]


def u(text: str = "a") -> Json:
    return {"role": "user", "content": text}


def m(text: str = "b", **more: Any) -> Json:
    return {"role": "assistant", "content": text, **more}


def s(text: str = "s") -> Json:
    return {"role": "system", "content": text}


def human(text: str = "a") -> Json:
    return {"from": "human", "value": text}


def gpt(text: str = "b", **more: Any) -> Json:
    return {"from": "gpt", "value": text, **more}


@dataclass
class Shape:
    """A row of a file and what it must become: `made` (one example or several), or a part of the refusal."""

    name: str
    row: Json
    made: Json | list[Json] | None = None
    refused: str = ""
    columns: Json = field(default_factory=dict)  # left out, with the rows that hold something
    keys: Json = field(default_factory=dict)  # of messages


CHAT = {"messages": [u(), m()]}
PAIR = {"prompt": [u()], "chosen": [m()], "rejected": [m("c")]}
GOOD = {"prompt": [u()], "completion": [m()], "label": True}
BAD = {**GOOD, "label": False}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
BIG = 36893488147419103232

SHAPES = [
    # OpenAI: supervised, tools, preference, reinforcement
    Shape("openai sft", {"messages": [s(), u(), m()]}, {"messages": [s(), u(), m()]}),
    Shape(
        "openai weights",
        {"messages": [u(), m("x", weight=0), u("q"), m(weight=1)]},
        {"messages": [u(), m("x", train=False), u("q"), m(train=True)]},
    ),
    Shape("openai developer", {"messages": [{"role": "developer", "content": "s"}, u(), m()]}, {"messages": [s(), u(), m()]}),
    Shape(
        "openai tools",
        {
            "messages": [
                u(),
                {"role": "assistant", "tool_calls": [{"id": "1", **CALL}]},
                {"role": "tool", "tool_call_id": "1", "content": "r"},
                m(),
            ],
            "tools": [SCHEMA],
            "parallel_tool_calls": False,
        },
        {"messages": [u(), m("", tool_calls=[CALL]), {"role": "tool", "content": "r"}, m()], "tools": [SCHEMA]},
        columns={"parallel_tool_calls": 1},
        keys={"tool_calls.id": 1, "tool_call_id": 1},
    ),
    Shape(
        "openai functions",
        {
            "messages": [u(), {"role": "assistant", "function_call": {"name": "f", "arguments": '{"x": 1}'}}],
            "functions": [SCHEMA["function"]],
        },
        {"messages": [u(), m("", tool_calls=[CALL])], "tools": [SCHEMA]},
    ),
    Shape(
        "openai vision",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}, m()]},
        refused="Message 1 of 'messages', part 2, is of the type 'image_url'",
    ),
    Shape(
        "openai audio",
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, m()]},
        refused="part 1, is of the type 'input_audio'",
    ),
    Shape(
        "openai preference",
        {
            "input": {"messages": [u()], "tools": [SCHEMA], "parallel_tool_calls": True},
            "preferred_output": [m()],
            "non_preferred_output": [m("c")],
        },
        {**PAIR, "tools": [SCHEMA]},
        columns={"input.parallel_tool_calls": 1},
    ),
    Shape(
        "openai reinforcement",
        {"messages": [s(), u()], "reference_answer": {"x": 1}},
        {"messages": [s(), u()]},
        columns={"reference_answer": 1},
    ),
    # TRL
    Shape("trl language modelling", {"text": "a"}, {"text": "a"}),
    Shape("trl conversational language modelling", {"messages": [u(), m()]}, CHAT),
    Shape("trl prompt only", {"prompt": "a"}, {"messages": [u()]}),
    Shape("trl conversational prompt only", {"prompt": [u()]}, {"messages": [u()]}),
    Shape("trl prompt completion", {"prompt": "a", "completion": "b"}, CHAT),
    Shape(
        "trl conversational prompt completion",
        {"prompt": [u("q"), m("r"), u()], "completion": [m()]},
        {"messages": [u("q"), m("r", train=False), u(), m()]},
    ),
    Shape("trl preference", {"prompt": "a", "chosen": "b", "rejected": "c"}, PAIR),
    Shape(
        "trl implicit preference",
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"prompt": [u("The sky is")], "chosen": [m("blue.")], "rejected": [m("green.")]},
    ),
    Shape("trl conversational preference", {"prompt": [u()], "chosen": [m()], "rejected": [m("c")]}, PAIR),
    Shape("trl conversational implicit preference", {"chosen": [u(), m()], "rejected": [u(), m("c")]}, PAIR),
    Shape("trl unpaired preference", {"prompt": "a", "completion": "b", "label": True}, GOOD),
    Shape("trl conversational unpaired preference", {"prompt": [u()], "completion": [m()], "label": False}, BAD),
    Shape(
        "trl stepwise supervision", {"prompt": "a", "completions": ["b", "c"], "labels": [True, False]}, refused="'labels' marks an answer"
    ),
    Shape(
        "trl tools",
        {"prompt": [u()], "completion": [m("", tool_calls=[CALL])], "tools": [SCHEMA]},
        {"messages": [u(), m("", tool_calls=[CALL])], "tools": [SCHEMA]},
    ),
    Shape("trl vision", {"prompt": [u()], "completion": [m()], "images": ["a.png"]}, refused="'images' holds images"),
    # LLaMA-Factory
    Shape(
        "lf alpaca",
        {"instruction": "a", "input": "i", "output": "b", "system": "s", "history": [["q", "r"]]},
        {"messages": [s(), u("q"), m("r"), u("a\n\ni"), m()]},
    ),
    Shape(
        "lf alpaca, blank cells",
        {"instruction": "a", "input": "", "output": "b", "system": "", "history": [], "tools": "", "images": []},
        CHAT,
        columns={"images": 0},
    ),
    Shape("lf ranking", {"instruction": "a", "input": "", "chosen": "b", "rejected": "c"}, PAIR),
    Shape("lf kto", {"instruction": "a", "input": "", "output": "b", "kto_tag": False}, BAD),
    Shape("lf pretraining", {"text": "a"}, {"text": "a"}),
    Shape("lf images", {"instruction": "<image>a", "input": "", "output": "b", "images": ["a.png"]}, refused="'images' holds images"),
    Shape("lf videos", {"messages": [u("<video>a"), m()], "videos": ["a.mp4"]}, refused="'videos' holds videos"),
    Shape("lf audios", {"messages": [u("<audio>a"), m()], "audios": ["a.wav"]}, refused="'audios' holds sound"),
    Shape("lf sharegpt", {"conversations": [human(), gpt()], "system": "s", "tools": "[]"}, {"messages": [s(), u(), m()]}),
    Shape(
        "lf sharegpt tools",
        {
            "conversations": [
                human(),
                {"from": "function_call", "value": json.dumps(CALL["function"])},
                {"from": "observation", "value": "r"},
                gpt(),
            ],
            "tools": json.dumps([SCHEMA["function"]]),
        },
        {"messages": [u(), m("", tool_calls=[CALL]), {"role": "tool", "content": "r"}, m()], "tools": [SCHEMA]},
    ),
    Shape("lf sharegpt ranking", {"conversations": [human()], "chosen": gpt(), "rejected": gpt("c")}, PAIR),
    Shape("lf sharegpt kto", {"conversations": [human(), gpt()], "kto_tag": True}, GOOD),
    # axolotl
    Shape(
        "axolotl train",
        {"messages": [u(), m("x", train=False), u("q"), m(train=True)]},
        {"messages": [u(), m("x", train=False), u("q"), m(train=True)]},
    ),
    Shape("axolotl training", {"conversations": [human(), gpt(training=False)]}, {"messages": [u(), m(train=False)]}),
    Shape(
        "axolotl train_detail",
        {"messages": [u(), m(train_detail=[{"begin_offset": 0, "end_offset": 1, "train": False}])]},
        refused="'train_detail', which marks parts of a message",
    ),
    Shape("axolotl input_output", {"segments": [{"label": True, "text": "a"}]}, refused="fit no known format"),
    Shape("axolotl qa", {"question": "a", "answer": "b"}, CHAT),
    Shape("axolotl context qa", {"article": "i", "question": "a", "answer": "b"}, {"messages": [u("i\n\na"), m()]}),
    Shape(
        "axolotl choices", {"question": "a", "choices": ["x", "y"], "solution": "b"}, refused="'choices' holds the answers to choose from"
    ),
    Shape(
        "axolotl reflection",
        {"instruction": "a", "input": "", "output": "b", "reflection": "r", "corrected": "c"},
        refused="'reflection' corrects the answer",
    ),
    Shape("axolotl dpo", {"messages": [u()], "chosen": m(), "rejected": m("c")}, PAIR),
    Shape("axolotl intel", {"system": "s", "question": "a", "chosen": "b", "rejected": "c"}, {**PAIR, "prompt": [s(), u()]}),
    Shape("axolotl argilla", {"instruction": "a", "chosen_response": "b", "rejected_response": "c"}, PAIR),
    Shape("axolotl icr", {"system": "s", "input": "a", "chosen": "b", "rejected": "c"}, {**PAIR, "prompt": [s(), u()]}),
    Shape(
        "axolotl nectar",
        {"prompt": "a", "answers": [{"answer": "c", "rank": 2.0}, {"answer": "b", "rank": 1.0}, {"answer": "d", "rank": 3}]},
        [PAIR, {**PAIR, "rejected": [m("d")]}],
    ),
    Shape("axolotl kto", {"question": "a", "completion": "b", "label": "true"}, GOOD),
    # ms-swift
    Shape("swift messages", {"messages": [s(), u(), m()]}, {"messages": [s(), u(), m()]}),
    Shape(
        "swift query",
        {"system": "s", "query": "a", "response": "b", "history": [["q", "r"]]},
        {"messages": [s(), u("q"), m("r"), u(), m()]},
    ),
    Shape(
        "swift loss",
        {"messages": [u(), m("x", loss=False), u("q"), m(loss=True)]},
        {"messages": [u(), m("x", train=False), u("q"), m(train=True)]},
    ),
    Shape("swift rlhf", {"messages": [u(), m()], "rejected_response": "c"}, PAIR),
    Shape("swift rejected messages", {"messages": [u(), m()], "rejected_messages": [u(), m("c")]}, PAIR),
    Shape("swift query rlhf", {"query": "a", "response": "b", "rejected_response": "c"}, PAIR),
    Shape("swift kto", {"messages": [u(), m()], "label": False}, BAD),
    Shape("swift pretraining", {"messages": [m()]}, {"messages": [m()]}),
    Shape("swift images", {"messages": [u("<image>a"), m()], "images": ["a.png"]}, refused="'images' holds images"),
    Shape(
        "swift tools",
        {
            "tools": json.dumps([SCHEMA]),
            "messages": [
                u(),
                {"role": "tool_call", "content": json.dumps(CALL["function"])},
                {"role": "tool_response", "content": "r"},
                m(),
            ],
        },
        {"messages": [u(), m("", tool_calls=[CALL]), {"role": "tool", "content": "r"}, m()], "tools": [SCHEMA]},
    ),
    # Unsloth, reasoning sets
    Shape("unsloth sharegpt", {"conversations": [human(), gpt()], "source": "x", "score": 5.2}, CHAT, columns={"source": 1, "score": 1}),
    Shape("unsloth reasoning column", {"Question": "a", "Complex_CoT": "t", "Response": "b"}, {"messages": [u(), m(reasoning="t")]}),
    Shape("unsloth inline reasoning", {"problem": "a", "solution": "<think>t</think>b"}, {"messages": [u(), m(reasoning="t")]}),
    Shape("gpt-oss thinking", {"messages": [u(), m(thinking="t")], "developer": ""}, {"messages": [u(), m(reasoning="t")]}),
    Shape("reasoning_content", {"messages": [u(), m(reasoning_content="t")]}, {"messages": [u(), m(reasoning="t")]}),
    Shape(
        "reasoning parts",
        {"messages": [u(), {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "b"}]}]},
        {"messages": [u(), m(reasoning="t")]},
    ),
    Shape(
        "reasoning without an answer",
        {"messages": [u(), m("", reasoning="t")]},
        refused="Message 2 of 'messages' has reasoning without an answer",
    ),
    Shape(
        "unsloth vision",
        {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}, m()]},
        refused="part 1, is of the type 'image'",
    ),
    # H2O LLM Studio
    Shape("h2o", {"instruction": "a", "output": "b", "id": "1", "parent_id": None}, CHAT, columns={"id": 1, "parent_id": 0}),
    Shape("h2o chained", {"instruction": "a", "output": "b", "id": "2", "parent_id": "1"}, refused="'parent_id' chains rows"),
    Shape("h2o dpo", {"instruction": "a", "output": "b", "rejected_output": "c"}, PAIR),
    # the hub
    Shape("anthropic hh", {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}, PAIR),
    Shape("stack exchange", {"question": "a", "response_j": "b", "response_k": "c", "date": "2020"}, PAIR, columns={"date": 1}),
    Shape("response_k alone", {"question": "a", "response_k": "c"}, refused="'response_k' holds the worse of two answers"),
    Shape(
        "ultrafeedback",
        {"prompt": "a", "chosen": [u(), m()], "rejected": [u(), m("c")], "messages": [u(), m()], "score_chosen": 8.0},
        PAIR,
        columns={"prompt": 1, "score_chosen": 1},
    ),
    Shape("scores in a list", {"prompt": "a", "responses": ["c", "b"], "scores": [1, 5]}, PAIR),
    Shape(
        "better of two",
        {"prompt": "a", "response_0": "b", "response_1": "c", "better_response_id": 0},
        refused="'better_response_id' says which of several answers is better",
    ),
    Shape("sample weight", {"prompt": "a", "completion": "b", "weight": 0.0}, refused="'weight' says what is to be learned of a row"),
    Shape("oasst prompter", {"messages": [{"role": "prompter", "content": "a"}, m()]}, CHAT),
    # answers that repeat the prompt
    Shape(
        "prompt with white space",
        {"prompt": "a", "chosen": [u("a\n"), m("x"), u("q"), m()], "rejected": [u("a\n"), m("x"), u("q"), m("c")]},
        {"prompt": [u("a\n"), m("x"), u("q")], "chosen": [m()], "rejected": [m("c")]},
    ),
    Shape(
        "prompt with a system turn",
        {"prompt": "a", "chosen": [s(), u(), m()], "rejected": [s(), u(), m("c")]},
        {**PAIR, "prompt": [s(), u()]},
    ),
    Shape("prompt in one answer", {"prompt": "a", "chosen": [u(), m()], "rejected": "c"}, PAIR),
    Shape("different prompts", {"chosen": [u(), m()], "rejected": [u("z"), m("c")]}, refused="belong to different prompts"),
    Shape("another prompt", {"prompt": "z", "chosen": [u(), m()], "rejected": [u(), m("c")]}, refused="repeat another prompt"),
    # marks and values
    Shape(
        "contradictory marks",
        {"messages": [u(), m(weight=1, train=False)]},
        refused="Message 2 of 'messages' is marked both to be learned and not to be (train: false and weight: 1)",
    ),
    Shape("half a weight", {"messages": [u(), m(weight=0.5)]}, refused="the mark weight: 0.5"),
    Shape(
        "different reasoning", {"messages": [u(), m(reasoning="t", thinking="v")]}, refused="different reasoning in reasoning and thinking"
    ),
    Shape(
        "whole numbers",
        {"messages": [u(), m("", tool_calls=[{"function": {"name": "f", "arguments": {"x": BIG}}}])]},
        {"messages": [u(), m("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": BIG}}}])]},
    ),
    Shape("a number as answer", {"question": "a", "answer": BIG}, {"messages": [u(), m(str(BIG))]}),
    Shape("an answer in JSON", {"prompt": "a", "completion": '{"x": 1}'}, {"messages": [u(), m('{"x": 1}')]}),
]


def read(path: Path, **how: Any) -> tuple[list[Json], list[Problem], Any]:
    with open_ingest(path, **how) as found:
        results = [result for _, result in found]
        made = [json.loads(result) for result in results if isinstance(result, bytes)]
        return made, [result for result in results if isinstance(result, Problem)], found.usage.unused()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_documented_row_is_read_as_documented_or_refused_by_name(tmp_path: Path, shape: Shape) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(shape.row) + "\n", encoding="utf-8")
    try:
        made, problems, unused = read(path)
    except DatasetError as exc:
        assert shape.refused and shape.refused in exc.message and exc.fix
        return
    if shape.refused:
        assert not made and shape.refused in problems[0].problem and problems[0].fix
        return
    assert problems == []
    expected = shape.made if isinstance(shape.made, list) else [shape.made]
    assert made == expected
    assert [Example.model_validate(each).as_json() for each in made] == expected
    assert (unused.columns, unused.message_keys) == (shape.columns, shape.keys)


def test_there_are_enough_shapes() -> None:
    names = [shape.name for shape in SHAPES]
    assert len(names) == len(set(names)) >= 60


LABELS = {
    "words": [("accept", True), ("refuse", False)],
    "capitals": [("Good", True), ("Bad", False)],
    "python": [("True", True), ("False", False)],
    "signs": [("+", True), ("-", False)],
    "numbers": [(1, True), (-1, False)],
    "numbers as text": [("+1", True), ("-1", False)],
    "decimals": [("1.0", True), ("0.0", False)],
    "thumbs": [("👍🏽", True), ("👎", False)],
    "thumbs in words": [("thumbs up", True), ("thumbs-down", False)],
    "yes": [("yes", True), ("no", False)],
    "desirable": [("desirable", True), ("undesirable", False)],
    "correct": [("correct", True), ("incorrect", False)],
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_are_read_in_their_spellings(tmp_path: Path, case: str) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": "b", "label": label} for label, _ in LABELS[case]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    made, problems, _ = read(path)
    assert [row["label"] for row in made] == [good for _, good in LABELS[case]] and not problems


@pytest.mark.parametrize("labels", [("good", "bad", "neutral"), (1, 0, -1), (1, 2, 3), ("a", "b", "c")])
def test_three_classes_are_refused_and_named(tmp_path: Path, labels: tuple[Any, ...]) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in labels]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DatasetError) as caught:
        read(path)
    assert all(repr(str(label)) in caught.value.message for label in labels)


def test_a_telling_column_that_comes_late_is_a_problem_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows: list[Json] = [{"prompt": "a", "completion": "b", "images": []} for _ in range(3000)]
    rows[2500] = {"prompt": "a", "completion": "b", "rejected_answer": "c"}
    rows[2600]["images"] = ["a.png"]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    with open_ingest(path) as found:
        batches = list(found.batches())
        problems = [problem for batch in batches for problem in batch.problems]
        assert [problem.line for problem in problems] == [2501, 2601]
        assert sum(batch.rows for batch in batches) == 2998
        assert found.usage.unused().columns == {"images": 1, "rejected_answer": 1}
    assert "'rejected_answer' holds the worse of two answers" in problems[0].problem


def test_keys_that_only_other_rows_of_a_parquet_file_have_are_no_values(tmp_path: Path) -> None:
    def row(name: str, arguments: Json) -> Json:
        schema = {"name": name, "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in arguments}}}
        return {
            "messages": [u(), m("", tool_calls=[{"function": {"name": name, "arguments": arguments}}])],
            "tools": [{"type": "function", "function": schema}],
        }

    rows = [row("set_alarm", {"hour": 6}), row("send_mail", {"to": "x"})]
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    made, problems, unused = read(path)
    assert [each["messages"][1]["tool_calls"][0]["function"]["arguments"] for each in made] == [{"hour": 6}, {"to": "x"}]
    assert [list(each["tools"][0]["function"]["parameters"]["properties"]) for each in made] == [["hour"], ["to"]]
    assert not problems and not unused.columns and not unused.message_keys


def test_a_fix_keeps_the_digits_of_whole_numbers() -> None:
    row = {"messages": [u(), m("", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": BIG}}}])]}
    assert json.loads(changed(json.dumps(row).encode(), [lambda each: each]) or b"") == row


def test_message_keys_that_were_read_are_counted_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    marked = {"messages": [u(), m("b", weight=0, reasoning_content="because"), u(), m("c")]}
    plain = {"messages": [u(), m("b")]}
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in [plain] * 50 + [marked] * 3))
    with open_ingest(path) as found:
        assert sum(batch.rows for batch in found.batches()) == 53
        used = {key: (use.read_as, use.messages) for key, use in found.usage.used_message_keys().items()}
    assert used == {"weight": ("train", 3), "reasoning_content": ("reasoning", 3)}
