"""Conversations as data of templates/transcript.html and templates/live.html: turns, and answers side by side with their figures.

Knows rows of the chat service; nothing of gradio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studio.ui import choices, pieces, words
from studio.ui.chat_answering import AnswerColumn

STATES = {"stopped": "stopped here", "failed": "broke off here"}
MAX_TOKENS_SHOWN = 4_000


def transcript(messages: Sequence[dict[str, Any]]) -> str:
    if not messages:
        return pieces.empty("Say something to a model, and change who answers as you go.", "Suggest a question", "suggest")
    turns: list[list[dict[str, Any]]] = []
    for row in messages:
        shown = _shown(row)
        if turns and row["role"] == "assistant" and turns[-1][0]["role"] == "assistant":
            turns[-1].append(shown)
        else:
            turns.append([shown])
    last = turns[-1]
    if last[0]["role"] == "assistant" and len(last) == 1:
        last[0]["can_go_on"] = messages[-1]["state"] != "done" or (messages[-1]["usage"] or {}).get("finish_reason") == "length"
    return pieces.piece("transcript", turns=turns)


def live(answers: Sequence[AnswerColumn], waiting: str) -> str:
    shown = [
        {
            "who": answer.contestant,
            "toy": choices.is_toy(answer.contestant),
            "text": answer.before + answer.text,
            "waiting": "" if answer.text or answer.ended else waiting,
        }
        for answer in answers
    ]
    return pieces.piece("live", answers=shown)


def prompt(found: dict[str, Any]) -> str:
    """The exact prompt: its text as the template wrote it, and how many tokens of the context it takes."""
    pieces_of = found["tokens"]
    return pieces.piece(
        "prompt",
        tokens=pieces_of[:MAX_TOKENS_SHOWN],
        more=max(0, len(pieces_of) - MAX_TOKENS_SHOWN),
        count=len(found["ids"]),
        context=found["context"],
        template=found["template"],
    )


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    is_answer = row["role"] == "assistant"
    usage = row.get("usage") or {}
    return {
        "role": row["role"],
        "position": row["position"],
        "who": row["contestant"] if is_answer else "you",
        "toy": is_answer and choices.is_toy(row["contestant"]),
        "content": row["content"],
        "state": row.get("state") or "done",
        "good": row.get("mark") == "good",
        "corrected": bool(row.get("original")),
        "can_go_on": False,
        "note": " · ".join(_figures(row, usage)) if is_answer else "",
        "notes": [note for note in usage.get("notes", []) if isinstance(note, str)] + _drafts(usage) if is_answer else [],
    }


def _figures(row: dict[str, Any], usage: dict[str, Any]) -> list[str]:
    tokens, speed, first = usage.get("completion_tokens"), usage.get("tokens_per_s"), usage.get("first_token_s")
    found = [
        words.count(tokens, "token") if tokens else "",
        f"{speed:,.0f} tokens/s" if isinstance(speed, (int, float)) and speed >= 10 else f"{speed:.1f} tokens/s" if speed else "",
        f"first after {1000 * first:,.0f} ms" if isinstance(first, (int, float)) else "",
        f"prompt {words.count(usage['prompt_tokens'], 'token')}" if usage.get("prompt_tokens") else "",
        f"{usage['reused_tokens']} of them known" if usage.get("reused_tokens") else "",
        "same question as before: answer recalled" if usage.get("recalled") else "",
        "cut at the longest answer" if usage.get("finish_reason") == "length" else "",
        STATES.get(row.get("state") or "", ""),
    ]
    return [text for text in found if text]


def _drafts(usage: dict[str, Any]) -> list[str]:
    gain: dict[str, Any] = usage.get("speculation") or {}
    if not {"speedup", "drafted_tokens"} <= gain.keys():
        return []
    said = (
        f"Drafts: {gain.get('accepted_tokens', 0)} of {gain['drafted_tokens']} tokens were right, {gain['speedup']} times the plain speed"
    )
    return [said + ("; stopped, since they did not pay." if gain.get("stopped") else ".")]
