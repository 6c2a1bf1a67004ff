"""What an assistant thought before it answered: written inside an answer, or as a field of its own. Knows no templates."""

from __future__ import annotations

import re

INLINE = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


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
