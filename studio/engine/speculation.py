"""Drafts of the next tokens, which the model then checks in one pass: from the prompt itself, or from a smaller model.

A draft never changes what is said: only tokens that the model itself would have chosen next are taken. Knows no requests.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from studio.engine.prefixes import shared_length

LONGEST_NGRAM = 3
LOOKUP_TOKENS = 10
ASSISTANT_TOKENS = 5
PLAIN_STEPS = 3  # measured before drafts begin, so that the gain is measured and not claimed
TRIAL_PASSES = 12  # drafts that have not paid by then stop
FEWEST_TOKENS = 30  # of an answer for which a gain is said


class Drafter(Protocol):
    def propose(self, ids: Sequence[int], limit: int) -> list[int]:
        """At most `limit` tokens that may follow `ids`."""
        ...


class PromptLookup:
    """What followed the last time that the text said the same: good where answers repeat their prompt."""

    def propose(self, ids: Sequence[int], limit: int) -> list[int]:
        for size in range(min(LONGEST_NGRAM, len(ids) - 1), 0, -1):
            ending = tuple(ids[-size:])
            for start in range(len(ids) - size - 1, -1, -1):
                if tuple(ids[start : start + size]) == ending:
                    return list(ids[start + size : start + size + min(LOOKUP_TOKENS, limit)])
        return []


class Assistant:
    """A smaller model with the same vocabulary, whose cache has columns; likeliest tokens only."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = model.new_cache()
        self._known: list[int] = []

    def propose(self, ids: Sequence[int], limit: int) -> list[int]:
        wanted = min(ASSISTANT_TOKENS, limit)
        if wanted < 1:
            return []
        known = min(shared_length(self._known, ids), len(ids) - 1)
        if known < len(self._known):
            crop(self._cache, len(self._known) - known)
        draft: list[int] = []
        feed = list(ids[known:])
        self._known = list(ids)
        for _ in range(wanted):
            mask = torch.ones(1, len(self._known), dtype=torch.long, device=self._model.device)
            tokens = torch.tensor([feed], device=self._model.device)
            logits = self._model.forward(tokens, mask, mask.cumsum(1) - 1, self._cache, [None])
            draft.append(int(logits[0, -1].argmax()))
            feed = draft[-1:]
            self._known.append(draft[-1])
        self._known.pop()  # the last one was proposed, not read
        return draft


def crop(cache: Any, columns: int) -> None:
    """Forget the last `columns` of every layer."""
    for layer in cache.layers:
        if columns and layer.is_initialized:
            layer.keys = layer.keys[:, :, :-columns]
            layer.values = layer.values[:, :, :-columns]


@dataclass
class Gain:
    """What drafts brought, measured in the same answer: seconds of plain steps beside seconds of checked drafts."""

    plain_steps: int = 0
    plain_s: float = 0.0
    passes: int = 0
    tokens: int = 0
    drafted: int = 0
    drafts_s: float = 0.0

    @property
    def is_measuring(self) -> bool:
        return self.plain_steps < PLAIN_STEPS

    @property
    def is_losing(self) -> bool:
        return self.passes >= TRIAL_PASSES and self._would_s < self.drafts_s

    @property
    def _would_s(self) -> float:
        """What the same tokens would have taken in plain steps."""
        return self.tokens * self.plain_s / self.plain_steps if self.plain_steps else 0.0

    @property
    def _speedup(self) -> float | None:
        """None below FEWEST_TOKENS, where a few steps' noise decides. Drafts of which no token was right have brought nothing."""
        if not (self.drafts_s and self.plain_steps) or self.tokens < FEWEST_TOKENS:
            return None
        gain = round(self._would_s / self.drafts_s, 2)
        return gain if self.tokens > self.passes else min(gain, 1.0)

    def plain(self, started: float) -> None:
        self.plain_steps += 1
        self.plain_s += time.monotonic() - started

    def leap(self, started: float, drafted: int, tokens: int) -> None:
        self.passes += 1
        self.drafted += drafted
        self.tokens += tokens
        self.drafts_s += time.monotonic() - started

    def as_json(self) -> dict[str, Any]:
        """`speedup`: seconds that the same tokens would have taken in plain steps, by the seconds they took; at most 1 where no drafted
        token was right, None where that is not known."""
        return {
            "drafted_tokens": self.drafted,
            "accepted_tokens": self.tokens - self.passes,
            "tokens_per_pass": round(self.tokens / self.passes, 2) if self.passes else None,
            "speedup": self._speedup,
            "stopped": self.is_losing,
        }
