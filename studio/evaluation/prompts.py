"""Prompts of a comparison: from lines of a file, from typed text, from the rows of a dataset.

A prompt is `{"id", "turns": [[message, …], …], "reference"?, "category"?}`: each turn adds its messages to the conversation and
is answered before the next (MT-bench asks two). Knows nothing of contestants or judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from studio.errors import DatasetError
from studio.types import Example, Message, Role

Prompt = dict[str, Any]
MAX_PROMPTS = 10_000


def typed(text: str) -> list[Prompt]:
    """One prompt as somebody typed it."""
    if not text.strip():
        raise DatasetError("The prompt is empty.", "Type a question.")
    return [{"id": "1", "turns": [[{"role": "user", "content": text}]]}]


def read(path: Path) -> list[Prompt]:
    """Read prompt lines, MT-bench's `question.jsonl` included; `.txt` is one prompt a line. Raises DatasetError with all problems."""
    lines = _lines(path)
    if path.suffix == ".txt":
        prompts = [{"id": str(number), "turns": [[{"role": "user", "content": line}]]} for number, line in lines]
    else:
        prompts = _parsed(path.name, lines)
    if not prompts:
        raise DatasetError(f"{path.name} holds no prompts.", 'Write one JSON object a line, such as {"prompt": "…", "reference": "…"}.')
    return unique(prompts)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if path.is_dir() or not path.exists():
        raise DatasetError(f"{path} is {'a folder' if path.is_dir() else 'not there'}.", "Name a .jsonl file of prompts.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DatasetError(f"{path.name} is not UTF-8 text (byte {exc.start}).", "Save it as UTF-8.") from None
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _parsed(name: str, lines: Iterable[tuple[int, str]]) -> list[Prompt]:
    prompts, problems = [], []
    for number, line in lines:
        try:
            prompts.append(from_row(orjson.loads(line), default_id=str(number)))
        except orjson.JSONDecodeError as exc:
            problems.append({"line": number, "problem": f"not valid JSON ({exc.msg})", "fix": "Put one JSON object on each line."})
        except (DatasetError, ValidationError) as exc:
            message, fix = (
                (exc.message, exc.fix) if isinstance(exc, DatasetError) else ("messages are malformed", "Give each a role and a content.")
            )
            problems.append({"line": number, "problem": message, "fix": fix})
    if problems:
        first = problems[0]
        raise DatasetError(
            f"{name}, line {first['line']}: {first['problem']} ({len(problems)} problems in all).",
            str(first["fix"]),
            problems=problems[:100],
            count=len(problems),
        )
    return prompts


def from_row(row: Any, default_id: str) -> Prompt:
    """One prompt line or MT-bench question. Raises DatasetError, or pydantic's ValidationError for malformed messages."""
    if not isinstance(row, dict):
        raise DatasetError("not a JSON object", 'Write {"prompt": "…"}.')
    prompt: Prompt = {"id": str(row.get("id", row.get("question_id", default_id)))}
    if isinstance(row.get("turns"), list) and row["turns"] and all(isinstance(t, str) and t.strip() for t in row["turns"]):
        prompt["turns"] = [[{"role": "user", "content": turn}] for turn in row["turns"]]
    elif isinstance(row.get("messages"), list) and row["messages"]:
        prompt["turns"] = [[Message.model_validate(m).model_dump(exclude_none=True) for m in row["messages"]]]
    elif isinstance(row.get("prompt"), str) and row["prompt"].strip():
        prompt["turns"] = [[{"role": "user", "content": row["prompt"]}]]
    else:
        raise DatasetError("no prompt", 'Give "prompt" (text), "messages" (a list) or "turns" (a list of texts).')
    if prompt["turns"][-1][-1]["role"] == "assistant":
        raise DatasetError("the last message is the assistant's", 'End with the user\'s message; put the answer into "reference".')
    reference = row.get("reference")
    if reference is not None and reference != []:
        every = [str(text) for text in reference] if isinstance(reference, list) else [str(reference)]
        prompt["reference"] = every[-1]
        if len(every) > 1:  # one per turn, as MT-bench has them
            prompt["references"] = every
    if isinstance(row.get("category"), str):
        prompt["category"] = row["category"]
    return prompt


def from_examples(examples: Iterable[Example]) -> list[Prompt]:
    """Rows of a dataset as prompts; the last answer becomes the reference. Rows without a prompt are left out."""
    prompts = []
    for number, example in enumerate(examples, 1):
        messages, reference = _split(example)
        if messages:
            prompt: Prompt = {"id": str(number), "turns": [[m.model_dump(exclude_none=True) for m in messages]]}
            if reference:
                prompt["reference"] = reference
            prompts.append(prompt)
    if not prompts:
        raise DatasetError("The dataset has no row with a prompt.", "Choose one with conversations, prompts or preference pairs.")
    return prompts


def _split(example: Example) -> tuple[list[Message], str]:
    if example.messages:
        last = next((i for i in range(len(example.messages) - 1, -1, -1) if example.messages[i].role == "assistant"), None)
        if last is None:
            return example.messages, ""
        return example.messages[:last], example.messages[last].content
    prompt = [Message(role=Role.USER, content=example.prompt)] if isinstance(example.prompt, str) else list(example.prompt or [])
    answer = example.completion or example.chosen or ""
    if example.label is False:  # an answer marked bad is nothing to be held against
        return prompt, ""
    return prompt, answer if isinstance(answer, str) else answer[-1].content


def unique(prompts: list[Prompt]) -> list[Prompt]:
    """The same prompts with IDs made distinct (`7`, `7-2`). Raises DatasetError above MAX_PROMPTS."""
    if len(prompts) > MAX_PROMPTS:
        raise DatasetError(f"{len(prompts)} prompts are too many for one comparison.", f"Take at most {MAX_PROMPTS}.")
    seen: set[str] = set()
    result = []
    for prompt in prompts:
        name, number = prompt["id"], 1
        while name in seen:
            number += 1
            name = f"{prompt['id']}-{number}"
        seen.add(name)
        result.append({**prompt, "id": name})
    return result
