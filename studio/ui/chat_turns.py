"""Where a conversation stands: its last question, whether its last answer can go on, and which calls wait for their results.

Knows rows of the chat service; nothing of gradio.
"""

from __future__ import annotations

from studio.errors import StudioError
from studio.records import ChatMessage, MadeCall, MessageState

LONGEST_TITLE = 48
ASKING = ("user", "tool")  # roles that an answer follows


def names(chosen: list[str] | str | None) -> list[str]:
    """What a dropdown gives: one name, several, or none."""
    if isinstance(chosen, str):
        return [chosen]
    return list(chosen or [])


def asked(messages: list[ChatMessage]) -> list[ChatMessage]:
    """The conversation up to its last question, or to the last result of a call."""
    last = max((index for index, message in enumerate(messages) if message.role in ASKING), default=-1)
    return messages[: last + 1]


def can_go_on(messages: list[ChatMessage]) -> bool:
    """The last turn has one answer, which did not end by itself."""
    if len(messages) < 2:
        return False
    asked, last = messages[-2:]
    if not (last.role == "assistant" and asked.role in ASKING and last.content and not last.tool_calls):
        return False
    return last.state != MessageState.DONE or last.usage.finish_reason == "length"


def title(text: str) -> str:
    line = " ".join(text.split())
    if len(line) > LONGEST_TITLE:
        return line[: LONGEST_TITLE - 1] + "…"
    return line


def open_calls(messages: list[ChatMessage]) -> list[MadeCall]:
    """The calls of the last answer, whose results nobody has given yet."""
    return messages[-1].tool_calls if messages else []


def results(messages: list[ChatMessage], text: str) -> list[tuple[MadeCall, str]]:
    """What was typed as the results of the last answer's calls: all of it for one call, else a line for each. Raises StudioError."""
    calls = open_calls(messages)
    if not calls:
        raise StudioError("No call waits for a result.", "Send a message first.")
    if len(messages) > 1 and messages[-2].role == "assistant":
        raise StudioError("Several answered, and their calls differ.", "Choose one under Who answers, and press Retry.")
    lines = [text.strip()] if len(calls) == 1 else text.strip().splitlines()
    if len(lines) != len(calls):
        raise StudioError(f"There are {len(calls)} calls and {len(lines)} lines.", "Give one line for each call, in their order.")
    return list(zip(calls, lines, strict=True))


def first_of_last_question(messages: list[ChatMessage]) -> ChatMessage:
    """Of messages that end with a question: it, or the first of the results that were given together."""
    place = len(messages) - 1
    while messages[place].role == "tool" and messages[place - 1].role == "tool":
        place -= 1
    return messages[place]
