"""Which part of a rendered conversation is learned: by role, by the marks of its messages, with or without reasoning.

Spans are characters of the rendered text. Knows no tokens: that is rendering.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from studio.datasets.dialogue import Dialogue
from studio.datasets.reasoning import EMPTY
from studio.datasets.sandbox import Span
from studio.datasets.turns import Tools, Turn
from studio.errors import DatasetError
from studio.types import LearnedTurns, Reasoning, RowOptions

CLOSING = re.compile(r"\s*(?:</[^<>\s]{1,40}>|\[/[A-Z_]{1,40}\]|<\|[^<>|]{1,40}\|>)\s*")

Marks = Sequence[bool | None]


@dataclass(frozen=True)
class Mask:
    """`learned` is what a job learns, of `turns`; `barred` is never learned, also by a job that learns every word."""

    turns: list[int]
    learned: list[Span]
    barred: list[Span]


def mask(dialogue: Dialogue, turns: list[Turn], tools: Tools, text: str, marks: Marks, options: RowOptions) -> Mask:
    """`marks` has one entry per turn: Message.train. Raises DatasetError where the template does not show which words are whose."""
    chosen = chosen_turns([turn["role"] for turn in turns], marks, options.learned_turns)
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    is_plain = chosen == answers and options.reasoning is not Reasoning.CONTEXT
    barred = [i for i, mark in enumerate(marks) if mark is False and i not in chosen]
    if options.learned_turns is LearnedTurns.LAST:
        barred = [i for i in answers if i not in chosen]
    elif options.learned_turns is LearnedTurns.ALL:
        barred = []
    if is_plain and not barred:
        return Mask(chosen, dialogue.learned_spans(turns, tools, text), [])
    finder = _Finder(dialogue, turns, tools, text)
    learned = [span for i in chosen for span in finder.spans(i, options.reasoning)]
    return Mask(chosen, learned, [span for i in barred for span in finder.spans(i, Reasoning.LEARN)])


def chosen_turns(roles: Sequence[str], marks: Marks, which: LearnedTurns) -> list[int]:
    """Places of the turns that are learned."""
    answers = [i for i, role in enumerate(roles) if role == "assistant"]
    if which is LearnedTurns.ALL:
        return answers
    if which is LearnedTurns.LAST:
        return answers[-1:]
    return [i for i, role in enumerate(roles) if marks[i] or (role == "assistant" and marks[i] is None)]


class _Finder:
    """Where in the text each turn stands."""

    def __init__(self, dialogue: Dialogue, turns: list[Turn], tools: Tools, text: str) -> None:
        self._dialogue, self._turns, self._tools, self._text = dialogue, turns, tools, text
        self._answers: dict[int, list[Span]] | None = None

    def spans(self, i: int, reasoning: Reasoning) -> list[Span]:
        if self._turns[i]["role"] != "assistant":
            return self._words(i)
        if self._answers is None:
            self._answers = self._dialogue.answer_spans(self._turns, self._tools, self._text)
        found = self._answers[i]
        if reasoning is not Reasoning.CONTEXT or not found:
            return found
        start = self._end_of_reasoning(i, found[0][0])
        return [(max(start, first), last) for first, last in found if last > start]

    def _words(self, i: int) -> list[Span]:
        """The content of a turn that is not the assistant's; nothing where the template leaves it out."""
        found = self._dialogue.content_span(self._turns, self._tools, self._text, i)
        if found is not None:
            return [found]
        if self._dialogue.shows(self._turns, self._tools, i, "content"):
            raise DatasetError(
                f"Message {i + 1} ({self._turns[i]['role']}) is marked, but the chat template rewrites it, so its words can't be told apart.",
                "Set learned_turns=all to ignore the marks, or choose chatml, alpaca or plain.",
            )
        return []

    def _end_of_reasoning(self, i: int, start: int) -> int:
        """Where the words of answer `i`, which begins at `start`, begin: behind its reasoning, also an empty block."""
        words = self._dialogue.content_span(self._turns, self._tools, self._text, i)
        if "reasoning" in self._turns[i]:
            if words is not None and self._turns[i]["content"]:
                return max(start, words[0])
            thought = self._dialogue.content_span(self._turns, self._tools, self._text, i, "reasoning")
            if thought is None:
                if self._dialogue.shows(self._turns, self._tools, i, "reasoning"):
                    raise DatasetError(
                        "The chat template rewrites reasoning, so it can't be told apart from the answer.",
                        "Set reasoning=learn or reasoning=drop, or choose chatml, alpaca or plain.",
                    )
                return start
            closing = CLOSING.match(self._text, thought[1])
            return closing.end() if closing else thought[1]
        if words is not None and EMPTY.search(self._text[start : words[0]]):
            return words[0]
        return start
