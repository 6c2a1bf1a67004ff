"""Texts that a tokenizer or a chat template reads as something else than text, such as <|im_end|>, where a person wrote them.

Inside a message the model reads such a text as the control token: a turn ends in the middle of the answer. With a base model the
texts are its own; without one they are those that are widely used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from studio.datasets.rendering import Renderer
from studio.datasets.report.rows import Row, strings_of
from studio.errors import DatasetError

WIDELY_USED = re.compile(
    r"<\|[A-Za-z][\w.-]{1,40}\|>|<｜[^<>\s]{1,40}｜>|\[/?INST\]|<<\s?/?SYS\s?>>|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos)>|<(?:start|end)_of_(?:text|image)>"
)
MARK = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{3,40}\]|<<[^<>\s]{1,20}>>")
# markup that an answer may well write: reasoning and tools have their own places, and templates read them there
OWN_MARKUP = re.compile(
    r"<[/|]*(?:think|thinking|thought|reasoning|tool\w*|function\w*|answer)[\w|]*>|\[/?(?:THINK|TOOL)\w*\]", re.IGNORECASE
)
ASKED = [("system", "\ue100s\ue101"), ("user", "\ue100q\ue101"), ("assistant", "\ue100a\ue101"), ("user", "\ue100r\ue101")]
QUICK = re.compile(r"[<\[]")


class ControlTokens:
    """The texts to look for. `texts` None: those that are widely used."""

    def __init__(self, texts: Iterable[str] | None = None) -> None:
        self._pattern = WIDELY_USED
        if texts is not None:
            longest_first = sorted({text for text in texts if text.strip()}, key=lambda text: (-len(text), text))
            self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    @classmethod
    def of(cls, renderer: Renderer) -> ControlTokens:
        """Special tokens of the tokenizer, and what the chat template writes around messages."""
        special = {token.content for token in renderer.tokenizer.get_added_tokens_decoder().values() if token.special}
        named = {text for text in renderer.special_tokens.values() if text}
        marks = {mark for mark in MARK.findall(_frame(renderer)) if not OWN_MARKUP.fullmatch(mark)}
        headers = {text.strip() for text in renderer.stop_strings if text.strip().startswith(("###", "<", "["))}
        return cls(special | named | marks | headers)

    def found(self, text: str) -> list[str]:
        """In their order, as often as they stand there."""
        return self._pattern.findall(text)

    def in_row(self, row: Row) -> set[str]:
        """Those of a row's messages; a plain text to read on from may be written in a template."""
        if "text" in row:
            return set()
        return {mark for text in strings_of(row) for mark in self.found(text)}

    def broken_up(self, text: str) -> str:
        """Text that is read as text: what stands at either end goes, and inside a space behind the first character breaks it."""
        while True:
            bare = text.strip()
            first, last = self._pattern.match(bare), self._last(bare)
            if first:
                text = bare[first.end() :].lstrip()
            elif last:
                text = bare[: last.start()].rstrip()
            else:
                return self._pattern.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text)

    def _last(self, text: str) -> re.Match[str] | None:
        return next((found for found in self._pattern.finditer(text) if found.end() == len(text)), None)


def _frame(renderer: Renderer) -> str:
    """What the template writes around messages, as far as it takes them."""
    turns: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in ASKED]
    for taken in (turns, turns[1:]):
        try:
            return renderer.dialogue.text(taken, None, add_generation_prompt=True)
        except DatasetError:
            continue
    return ""


@lru_cache(maxsize=4)
def of_model(renderer: Renderer | None) -> ControlTokens:
    """ControlTokens of a renderer, remembered; None: what is widely used."""
    return ControlTokens.of(renderer) if renderer is not None else ControlTokens()
