"""Conversations as data of templates/transcript.html and templates/live.html: turns, and answers side by side with their figures.

Knows rows of the chat service; nothing of gradio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from studio.records import AnswerUsage, ChatMessage, MadeCall, MessageState, PromptPreview
from studio.ui import choices, pieces, words
from studio.ui.chat_answering import AnswerColumn

STATES = {MessageState.STOPPED: "stopped here", MessageState.FAILED: "broke off here"}
SPEAKERS = {"tool": "result of the call"}
MAX_TOKENS_SHOWN = 4_000


@dataclass(frozen=True)
class ShownMessage:
    """A message as the template takes it."""

    role: str
    position: int
    who: str
    is_toy: bool
    content: str
    calls: list[MadeCall]
    state: MessageState
    good: bool
    corrected: bool
    note: str  # its figures
    notes: list[str]  # what the reader should know of how it was made


def transcript(messages: Sequence[ChatMessage]) -> str:
    if not messages:
        return pieces.empty("Say something to a model, and change who answers as you go.", "Suggest a question", "suggest")
    turns: list[list[ShownMessage]] = []
    for message in messages:
        shown = _shown(message)
        if turns and turns[-1][0].role == shown.role == "assistant":
            turns[-1].append(shown)
        else:
            turns.append([shown])
    return pieces.piece("transcript", turns=turns)


def live(answers: Sequence[AnswerColumn], waiting: str) -> str:
    shown = [
        {
            "who": answer.contestant,
            "toy": choices.is_toy(answer.contestant),
            "text": answer.before + answer.text,
            "calls": answer.calls,
            "waiting": "" if answer.text or answer.calls or answer.ended else waiting,
        }
        for answer in answers
    ]
    return pieces.piece("live", answers=shown)


def prompt(found: PromptPreview) -> str:
    """The exact prompt: its text as the template wrote it, and how many tokens of the context it takes."""
    return pieces.piece(
        "prompt",
        tokens=found.tokens[:MAX_TOKENS_SHOWN],
        more=max(0, len(found.tokens) - MAX_TOKENS_SHOWN),
        count=len(found.ids),
        context=found.context,
        template=found.template,
    )


def _shown(message: ChatMessage) -> ShownMessage:
    is_answer = message.role == "assistant"
    return ShownMessage(
        role=message.role,
        position=message.position,
        who=message.contestant if is_answer else SPEAKERS.get(message.role, "you"),
        is_toy=is_answer and choices.is_toy(message.contestant),
        content=message.content,
        calls=message.tool_calls,
        state=message.state,
        good=message.mark == "good",
        corrected=bool(message.original),
        note=" · ".join(figures(message)) if is_answer else "",
        notes=notes(message.usage) if is_answer else [],
    )


def figures(message: ChatMessage) -> list[str]:
    """What an answer took, and how it ended, as far as it is known."""
    usage, found = message.usage, []
    if usage.completion_tokens:
        found.append(words.count(usage.completion_tokens, "token"))
    if usage.tokens_per_s:
        digits = 0 if usage.tokens_per_s >= 10 else 1
        found.append(f"{usage.tokens_per_s:,.{digits}f} tokens/s")
    if usage.first_token_s is not None:
        found.append(f"first after {1000 * usage.first_token_s:,.0f} ms")
    if usage.prompt_tokens:
        found.append(f"prompt {words.count(usage.prompt_tokens, 'token')}")
    if usage.reused_tokens:
        found.append(f"{usage.reused_tokens} of them known")
    if usage.recalled:
        found.append("same question as before: answer recalled")
    if usage.finish_reason == "length":
        found.append("cut at the longest answer")
    if message.state in STATES:
        found.append(STATES[message.state])
    return found


def notes(usage: AnswerUsage) -> list[str]:
    """What the reader should know of how an answer was made; the last says what drafts brought."""
    found = list(usage.notes or [])
    gain = usage.speculation
    if gain and gain.drafted_tokens and gain.speedup:
        right = f"{gain.accepted_tokens} of {gain.drafted_tokens} tokens were right"
        end = "; stopped, since they did not pay." if gain.stopped else "."
        found.append(f"Drafts: {right}, {gain.speedup} times the plain speed{end}")
    return found
