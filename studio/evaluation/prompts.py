"""Prompts of a comparison: from lines of a file, from rows of a request, from the rows of a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeGuard, cast

import orjson
from pydantic import ValidationError

from studio.errors import DatasetError
from studio.records import ComparisonPrompt, PromptMessage
from studio.types import Example, Message, Role

MAX_PROMPTS = 10_000
NOTE_WORDS = 5  # of a reference to the last of several turns, which then is a note
ESSAY = 200  # characters of a reference that nobody equals word for word


def read(path: Path) -> list[ComparisonPrompt]:
    """Read prompt lines, MT-bench's `question.jsonl` included; `.txt` is one prompt a line. Raises DatasetError with all problems."""
    lines: Iterator[tuple[int, Any]] = _lines(path)
    if path.suffix == ".txt":
        lines = ((number, {"prompt": line}) for number, line in lines)
    prompts = _parsed(f"{path.name}, line", lines)
    if not prompts:
        raise DatasetError(f"{path.name} holds no prompts.", 'Write one JSON object a line, such as {"prompt": "…", "reference": "…"}.')
    return unique(prompts)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if path.is_dir() or not path.exists():
        what = "a folder" if path.is_dir() else "not there"
        raise DatasetError(f"{path} is {what}.", "Name a .jsonl file of prompts.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DatasetError(f"{path.name} is not UTF-8 text (byte {exc.start}).", "Save it as UTF-8.") from None
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def from_rows(rows: Iterable[Any]) -> list[ComparisonPrompt]:
    """Rows as the lines of a prompt file have them, or prompts that were read before. Raises DatasetError with all problems."""
    return unique(_parsed("prompts, row", enumerate(rows, 1)))


def _parsed(where: str, rows: Iterable[tuple[int, Any]]) -> list[ComparisonPrompt]:
    """Rows, or lines of JSON, by their numbers; `where` stands before a number in an error."""
    prompts, problems = [], []
    for number, row in rows:
        try:
            value = orjson.loads(row) if isinstance(row, str) else row
            prompts.append(from_row(value, default_id=str(number)))
        except orjson.JSONDecodeError as exc:
            problems.append({"line": number, "problem": f"not valid JSON ({exc.msg})", "fix": "Put one JSON object on each line."})
        except DatasetError as exc:
            problems.append({"line": number, "problem": exc.message, "fix": exc.fix})
        except ValidationError:
            problems.append({"line": number, "problem": "messages are malformed", "fix": "Give each a role and a content."})
    if problems:
        first = problems[0]
        raise DatasetError(
            f"{where} {first['line']}: {first['problem']} ({len(problems)} problems in all).",
            str(first["fix"]),
            problems=problems[:100],
            count=len(problems),
        )
    return prompts


def from_row(row: Any, default_id: str) -> ComparisonPrompt:
    """One prompt line or MT-bench question. Raises DatasetError, or pydantic's ValidationError for malformed messages."""
    if not isinstance(row, dict):
        raise DatasetError("not a JSON object", 'Write {"prompt": "…"}.')
    turns = _turns(row)
    if turns[-1][-1]["role"] == "assistant":
        raise DatasetError("the last message is the assistant's", 'End with the user\'s message; put the answer into "reference".')
    prompt = ComparisonPrompt(id=str(row.get("id", row.get("question_id", default_id))), turns=turns)
    references = _references(row)
    if references:
        prompt["reference"] = references[-1]
    if len(references) > 1:  # one per turn, as MT-bench has them
        prompt["references"] = references
    if isinstance(row.get("category"), str):
        prompt["category"] = row["category"]
    return prompt


def _turns(row: dict[str, Any]) -> list[list[PromptMessage]]:
    turns, messages = row.get("turns"), row.get("messages")
    if _is_filled(turns) and all(isinstance(turn, str) and turn.strip() for turn in turns):
        return [[_asked(turn)] for turn in turns]
    if _is_filled(turns) and all(map(_is_filled, turns)):  # as a comparison itself has them
        return [_messages(Message.model_validate(message) for message in turn) for turn in turns]
    if _is_filled(messages):
        return [_messages(Message.model_validate(message) for message in messages)]
    if isinstance(row.get("prompt"), str) and row["prompt"].strip():
        return [[_asked(row["prompt"])]]
    raise DatasetError("no prompt", 'Give "prompt" (text), "messages" (a list) or "turns" (a list of texts).')


def _is_filled(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and bool(value)


def _asked(text: str) -> PromptMessage:
    return {"role": "user", "content": text}


def _messages(messages: Iterable[Message]) -> list[PromptMessage]:
    return [cast(PromptMessage, message.model_dump(exclude_none=True, exclude={"train"})) for message in messages]


def _references(row: dict[str, Any]) -> list[str]:
    given = row.get("references") or row.get("reference")
    if isinstance(given, list):
        return [str(text) for text in given]
    return [str(text) for text in (given,) if text is not None]


def from_examples(examples: Iterable[Example]) -> list[ComparisonPrompt]:
    """Rows of a dataset as prompts; the last answer becomes the reference. Rows without a prompt are left out."""
    prompts = []
    for number, example in enumerate(examples, 1):
        messages, reference = _split(example)
        if messages:
            prompt = ComparisonPrompt(id=str(number), turns=[_messages(messages)])
            if reference:
                prompt["reference"] = reference
            prompts.append(prompt)
    if not prompts:
        raise DatasetError("The dataset has no row with a prompt.", "Choose one with conversations, prompts or preference pairs.")
    return prompts


def _split(example: Example) -> tuple[list[Message], str]:
    if example.messages:
        answers = [place for place, message in enumerate(example.messages) if message.role == Role.ASSISTANT]
        if not answers:
            return example.messages, ""
        return example.messages[: answers[-1]], example.messages[answers[-1]].content
    prompt = example.prompt or []
    if isinstance(prompt, str):
        prompt = [Message(role=Role.USER, content=prompt)]
    answer = example.completion or example.chosen or ""
    if example.label is False:  # an answer marked bad is nothing to be held against
        return prompt, ""
    if not isinstance(answer, str):
        answer = answer[-1].content
    return prompt, answer


def essays(prompts: Iterable[ComparisonPrompt]) -> set[str]:
    """The prompts whose references are to judge by and not to be equalled: essays, and notes to questions of several turns.

    Where one question of several turns has notes in words, all have: those of MT-bench are of every length.
    """
    found: set[str] = set()
    of_turns: set[str] = set()
    has_notes = False
    for prompt in prompts:
        reference, has_turns = prompt.get("reference") or "", len(prompt["turns"]) > 1
        if has_turns:
            of_turns.add(prompt["id"])
            has_notes = has_notes or len(reference.split()) > NOTE_WORDS
        elif len(reference) > ESSAY:
            found.add(prompt["id"])
    if has_notes:
        found |= of_turns
    return found


def unique(prompts: list[ComparisonPrompt]) -> list[ComparisonPrompt]:
    """The same prompts with IDs made distinct (`7`, `7-2`). Raises DatasetError above MAX_PROMPTS."""
    if len(prompts) > MAX_PROMPTS:
        raise DatasetError(f"{len(prompts)} prompts are too many for one comparison.", f"Take at most {MAX_PROMPTS}.")
    seen: set[str] = set()
    result: list[ComparisonPrompt] = []
    for prompt in prompts:
        name, number = prompt["id"], 1
        while name in seen:
            number += 1
            name = f"{prompt['id']}-{number}"
        seen.add(name)
        result.append({**prompt, "id": name})
    return result
