"""Preference rows: pairs of answers, ranked answers, answers with a label. The prompt stands once, and answers hold only the answer."""

from __future__ import annotations

import math
import re
from typing import Any

from studio.datasets.labels import read_label, shown
from studio.datasets.parts import Example, answer, is_turns, joined, optional, question, with_history, with_system, with_tools
from studio.datasets.records import Row
from studio.datasets.row_errors import RowError
from studio.datasets.row_messages import ROLES, Turn, content_of, tool_schemas, turns_of
from studio.datasets.shapes import ANSWER_KEYS, RANK_KEYS, SCORE_KEYS, unpacked
from studio.datasets.telling import normal

SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
ASKING = frozenset({"system", "user"})
HIGH_IS_BETTER = frozenset({*SCORE_KEYS, "scores", "ratings", "rewards", "overall_scores"})


# pairs


def preference(row: Row, mapping: dict[str, str]) -> list[Example]:
    chosen, rejected = _spoken(answer(row, mapping, "chosen")), _spoken(answer(row, mapping, "rejected"))
    if not _is_conversation(chosen) and not _is_conversation(rejected) and not {"prompt", "conversations"} & set(mapping):
        return [_written_as_text(row, mapping, chosen, rejected)]
    return [_example(row, mapping, _given_prompt(row, mapping), chosen, rejected)]


def continued(row: Row, mapping: dict[str, str]) -> list[Example]:
    """A conversation that ends with the chosen answer, and another answer to its end."""
    column = mapping["messages"]
    turns, rejected = turns_of(row.get(column), column), answer(row, mapping, "rejected")
    asked = _asked(turns)
    if asked == len(turns):
        raise RowError(f"The conversation in {column!r} does not end with an answer of the assistant.", "Add the chosen answer.")
    return [_example(row, mapping, turns[:asked], turns[asked:], rejected)]


def openai_preference(row: Row, mapping: dict[str, str]) -> list[Example]:
    """{"input": {"messages": […], "tools": […]}, "preferred_output": […], "non_preferred_output": […]}."""
    column = mapping["request"]
    asked = unpacked(row.get(column))
    if not isinstance(asked, dict) or "messages" not in asked:
        raise RowError(f"The column {column!r} holds no object with messages.", 'Write {"messages": [{"role": "user", "content": "…"}]}.')
    prompt = turns_of(asked["messages"], f"{column}.messages")
    pair = _example(row, mapping, prompt, answer(row, mapping, "chosen"), answer(row, mapping, "rejected"))
    tools = tool_schemas(asked.get("tools") or asked.get("functions"), f"{column}.tools")
    return [{**pair, "tools": tools} if tools else pair]


def _example(row: Row, mapping: dict[str, str], given: list[Turn], chosen: list[Turn], rejected: list[Turn]) -> Example:
    prompt, chosen, rejected = _parted(given, chosen, rejected)
    if not (_answers(chosen) and _answers(rejected)):
        raise RowError("An answer holds nothing but the prompt.", "Add the answer, or leave the row out.")
    if not any(turn["role"] != "system" for turn in prompt):
        raise RowError("There is no prompt that both answers share.", "Add a column with the prompt, or leave the row out.")
    made = {"prompt": with_system(row, mapping, prompt), "chosen": chosen, "rejected": rejected}
    return with_tools(row, mapping, made)


def _answers(turns: list[Turn]) -> bool:
    return bool(turns) and turns[-1]["role"] not in ASKING


def _given_prompt(row: Row, mapping: dict[str, str]) -> list[Turn]:
    if "conversations" in mapping:
        return turns_of(row.get(mapping["conversations"]), mapping["conversations"])
    if "prompt" not in mapping:
        return []
    prompt = question(row, mapping)
    if len(prompt) == 1:
        spoken = _spoken(prompt)
        if len(spoken) > 1 and not spoken[-1]["content"]:
            spoken = spoken[:-1]  # "…\n\nAssistant:" with the answer to come
        if spoken is not prompt:
            return spoken
        prompt = [{**prompt[0], "content": joined(prompt[0]["content"], optional(row, mapping, "input"))}]
    return with_history(row, mapping, prompt)


def _parted(given: list[Turn], chosen: list[Turn], rejected: list[Turn]) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """The prompt, and the answers without it; either answer may repeat the conversation or a part of it.

    Turns are compared without their outer white space. Raises RowError where the answers belong to different prompts.
    """
    repeats = [any(turn["role"] in ASKING for turn in turns) for turns in (chosen, rejected)]
    if not any(repeats):
        return given, chosen, rejected
    if not all(repeats):
        return _parted_alone(given, chosen, rejected)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and _same(chosen[shared], rejected[shared]):
        shared += 1
    if chosen[shared]["role"] in ASKING or rejected[shared]["role"] in ASKING:
        if _same(chosen[shared], rejected[shared]):
            raise RowError("An answer holds nothing but the prompt.", "Add the answer, or leave the row out.")
        raise RowError("The chosen and the rejected answer belong to different prompts.", "Pair answers to the same prompt.")
    lead = chosen[:shared]
    prompt = _joined_prompt(given, lead, chosen[shared:], rejected[shared:])
    return prompt, chosen[shared:], rejected[shared:]


def _parted_alone(given: list[Turn], chosen: list[Turn], rejected: list[Turn]) -> tuple[list[Turn], list[Turn], list[Turn]]:
    """One of the answers repeats the prompt, and the other does not."""
    whole = chosen if any(turn["role"] in ASKING for turn in chosen) else rejected
    end = _asked(whole)
    lead = whole[:end]
    if not (given and (_ends_with(given, lead) or _ends_with(lead, given))):
        fix = "Write the prompt in both or in neither, or in a column of its own."
        raise RowError("Only one of the two answers holds the conversation before it.", fix)
    prompt = max(given, lead, key=len)
    if whole is chosen:
        return prompt, chosen[end:], rejected
    return prompt, chosen, rejected[end:]


def _joined_prompt(given: list[Turn], lead: list[Turn], *rests: list[Turn]) -> list[Turn]:
    """The whole prompt, of what its column and the answers say of it."""
    if not given or _holds(lead, given):
        return lead
    if _ends_with(given, lead):
        return given
    if _holds(given[: len(lead)], lead) and any(_holds(given[len(lead) :], rest) or _holds(rest, given[len(lead) :]) for rest in rests):
        return lead  # the column holds the whole conversation
    raise RowError(
        "The answers repeat another prompt than the column of the prompt holds.", "Correct one of them, or leave the column out."
    )


def _holds(turns: list[Turn], part: list[Turn]) -> bool:
    """Whether `part` stands somewhere in `turns`, one turn behind the other."""
    starts = range(len(turns) - len(part) + 1)
    return any(all(map(_same, turns[start:], part)) for start in starts)


def _ends_with(turns: list[Turn], end: list[Turn]) -> bool:
    return len(turns) >= len(end) and all(map(_same, turns[len(turns) - len(end) :], end))


def _same(one: Turn, other: Turn) -> bool:
    """The same turn but for white space and marks."""
    alike = all(one.get(key) == other.get(key) for key in ("role", "tool_calls", "name"))
    if not alike or (one.get("reasoning") or "").split() != (other.get("reasoning") or "").split():
        return False
    return bool(one["content"].split() == other["content"].split())


def _asked(turns: list[Turn]) -> int:
    """How many turns stand before the last answer, with its tool calls."""
    return next((number for number in range(len(turns), 0, -1) if turns[number - 1]["role"] in ASKING), 0)


def _is_conversation(turns: list[Turn]) -> bool:
    return len(turns) > 1 or turns[0]["role"] != "assistant"


def _spoken(turns: list[Turn]) -> list[Turn]:
    """The turns of a conversation that is written as one text, as Anthropic's hh-rlhf has them; else what it was."""
    if len(turns) != 1:
        return turns
    before, *parts = SPEAKER.split(turns[0]["content"])
    spoken = [{"role": ROLES[name.lower()], "content": said.strip()} for name, said in zip(parts[::2], parts[1::2], strict=True)]
    if len(spoken) > 1 and not before.strip():
        return spoken
    return turns


def _written_as_text(row: Row, mapping: dict[str, str], chosen: list[Turn], rejected: list[Turn]) -> Example:
    """Two texts that begin with their prompt, as TRL's preference rows without one: cut at the last blank of what they share."""
    one, other = chosen[0]["content"], rejected[0]["content"]
    count = next((n for n, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other)))
    cut = max(one.rfind(mark, 0, count + 1) for mark in (" ", "\n"))
    prompt = one[: max(cut, 0)].strip()
    if not prompt:
        raise RowError("There is no prompt that both answers share.", "Add a column with the prompt, or leave the row out.")
    answers = [[{"role": "assistant", "content": said[cut:].strip()}] for said in (one, other)]
    if not all(said[0]["content"] for said in answers):
        raise RowError("An answer holds nothing but the prompt.", "Add the answer, or leave the row out.")
    return _example(row, mapping, [{"role": "user", "content": prompt}], *answers)


# ranked answers


def ranked(row: Row, mapping: dict[str, str]) -> list[Example]:
    """The best answer beside each of the worse ones."""
    column = mapping["responses"]
    given = unpacked(row.get(column))
    if not isinstance(given, list) or len(given) < 2:
        raise RowError(f"The column {column!r} holds no list of two answers and more.", "Add answers, or leave the row out.")
    if "ranks" in mapping:
        ranks = unpacked(row.get(mapping["ranks"]))
        if not isinstance(ranks, list) or len(ranks) != len(given):
            raise RowError(f"The column {mapping['ranks']!r} does not hold one number for each answer.", "Give every answer its rank.")
        texts, places = given, [_place(rank, normal(mapping["ranks"])) for rank in ranks]
    else:
        keys = _rank_keys(given, column)
        texts, places = [item[keys[0]] for item in given], [_place(item[keys[1]], keys[1]) for item in given]
    best = min(places)
    worse = [number for number, place in enumerate(places) if place > best]
    if not worse:
        raise RowError("All answers have the same rank.", "Rank them, or leave the row out.")
    answers = [_ranked_answer(said, f"Answer {number} of {column!r}") for number, said in enumerate(texts, start=1)]
    prompt = _given_prompt(row, mapping)
    return [_example(row, mapping, prompt, answers[places.index(best)], answers[number]) for number in worse]


def _rank_keys(given: list[Any], column: str) -> tuple[str, str]:
    """The keys of the answer and of its rank or score."""
    if all(isinstance(item, dict) for item in given):
        keys = set.intersection(*(set(item) for item in given))
        said = next((key for key in ANSWER_KEYS if key in keys), None)
        place = next((key for key in (*RANK_KEYS, *SCORE_KEYS) if key in keys), None)
        if said and place:
            return said, place
    fix = 'Write [{"answer": "…", "rank": 1}, …], or map a column of ranks: --map ranks=COLUMN.'
    raise RowError(f"The answers in {column!r} have no rank or score each.", fix)


def _place(value: Any, key: str) -> float:
    """A number that is lower for better answers."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise RowError(f"The {key} {shown(value)} is no number.", "Write a rank (1 is the best) or a score (higher is better).")
    return -number if key in HIGH_IS_BETTER else number


def _ranked_answer(said: Any, where: str) -> list[Turn]:
    if is_turns(said):
        return turns_of(said, where)
    content, _ = content_of(said, where)
    if content is None:
        raise RowError(f"{where} is empty.", "Fill it in, or leave the row out.")
    return turns_of([{"role": "assistant", "content": content}], where)


# single answers with a label


def kto(row: Row, mapping: dict[str, str]) -> list[Example]:
    prompt = _given_prompt(row, mapping)
    completion = without_prompt(prompt, answer(row, mapping, "completion"))
    made = {"prompt": with_system(row, mapping, prompt), "completion": completion, "label": _label(row, mapping)}
    return [with_tools(row, mapping, made)]


def sharegpt_kto(row: Row, mapping: dict[str, str]) -> list[Example]:
    turns = with_system(row, mapping, turns_of(row.get(mapping["conversations"]), mapping["conversations"]))
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise RowError("The conversation does not end with an answer of the assistant.", "Add the answer that the label is about.")
    return [with_tools(row, mapping, {"prompt": turns[:-1], "completion": turns[-1:], "label": _label(row, mapping)})]


def _label(row: Row, mapping: dict[str, str]) -> bool:
    value = row.get(mapping["label"])
    label = read_label(value)
    if label is None:
        fix = "Write true for good answers and false for bad ones."
        raise RowError(f"The label {shown(value)} in {mapping['label']!r} is neither true nor false.", fix)
    return label


def without_prompt(prompt: list[Turn], completion: list[Turn]) -> list[Turn]:
    """A completion, which may repeat the conversation before it."""
    end = _asked(completion)
    if end == 0:
        return completion
    lead = completion[:end]
    if not (_ends_with(prompt, lead) or _ends_with(lead, prompt)):
        fix = "Write only the answer there, or repeat the prompt as it is."
        raise RowError("The completion holds a message of the user that is not of the prompt.", fix)
    if end == len(completion):
        raise RowError("The completion holds nothing but the prompt.", "Add the answer, or leave the row out.")
    return completion[end:]
