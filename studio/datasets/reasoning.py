"""What an assistant thought before it answered: written inside an answer, or as a field of its own. Knows no templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

INLINE = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)
EMPTY = re.compile(r"<think(?:ing)?>\s*</think(?:ing)?>|\[THINK\]\s*\[/THINK\]")
NAME = re.compile(r"(?:reasoning|thinking|thoughts?|think)(?:_\w{1,30})?")  # of the fields in which templates look for it
USUAL = ("reasoning_content", "reasoning", "thinking")  # in this order where a template knows several

# makes the keys of a message from its reasoning and its answer
Writer = Callable[[str, str], dict[str, Any]]


def split_reasoning(text: str) -> tuple[str | None, str]:
    """The reasoning at the start of an answer, and the answer.

    None and the text as it is where it does not begin with `<think>` or the block is never closed; "" for an empty block.
    """
    found = INLINE.match(text)
    if found is None:
        return None, text
    return found.group(1).strip(), text[found.end() :].lstrip()


def with_reasoning(reasoning: str, answer: str) -> str:
    """The answer with its reasoning written inside, as models that think write it; split_reasoning's opposite."""
    return f"<think>\n{reasoning}\n</think>\n\n{answer}"


def writers(names: Iterable[str]) -> list[Writer]:
    """How a template that knows fields of these names may want reasoning: as a field, as a part of the content, or inside the answer."""
    wanted = [name for name in names if NAME.fullmatch(name)]
    ordered = sorted(wanted, key=lambda name: (name not in USUAL, USUAL.index(name) if name in USUAL else 0, name))
    return [*(partial(_field, name) for name in ordered), _part, _inline]


def _field(name: str, reasoning: str, answer: str) -> dict[str, Any]:
    return {name: reasoning, "content": answer}


def _part(reasoning: str, answer: str) -> dict[str, Any]:
    return {"content": [{"type": "thinking", "thinking": reasoning}, {"type": "text", "text": answer}]}


def _inline(reasoning: str, answer: str) -> dict[str, Any]:
    return {"content": with_reasoning(reasoning, answer)}
