"""Whole-word self-information: how surprised a causal model is at each word (Selective Context's measure, word by word).

For models whose vocabulary is so small that dropping tokens would cut inside words. Knows a loaded backend; nothing of rates.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import regex
import torch
from torch.nn.functional import cross_entropy

from studio.compress import spans

UNIT_OR_WORD = regex.compile(f"{spans.UNIT.pattern}|{spans.WORD.pattern}")
OVERLAP = 0.25  # of a window that is read again, so that its first words have something before them
REMEMBERED = 200_000  # words of all texts: about 30 MB


@dataclass(frozen=True)
class Word:
    start: int
    end: int
    score: float  # nats


class Information:
    """Words of texts with their self-information; remembers what it has read."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._known: OrderedDict[str, list[Word]] = OrderedDict()
        self._held = 0

    def words(self, text: str) -> list[Word]:
        if text not in self._known:
            self._known[text] = self._read(text)
            self._held += len(self._known[text])
            while self._held > REMEMBERED and len(self._known) > 1:
                self._held -= len(self._known.popitem(last=False)[1])
        self._known.move_to_end(text)
        return self._known[text]

    def _read(self, text: str) -> list[Word]:
        encoded = self.backend.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        losses = self._losses(encoded["input_ids"])
        found, place = [], 0
        offsets = encoded["offset_mapping"]
        for match in _units(text):
            total = 0.0
            while place < len(offsets) and offsets[place][1] <= match[1]:
                total += losses[place]
                place += 1
            found.append(Word(match[0], match[1], total))
        return found

    def _losses(self, ids: list[int]) -> list[float]:
        """Nats per token; the first one of the text has none."""
        window = min(int(self.backend.max_position_embeddings), 1024)
        step = max(1, int(window * (1 - OVERLAP)))
        losses = [0.0] * len(ids)
        with self.backend.lock, torch.inference_mode():
            for start in range(0, max(1, len(ids) - 1), step):
                part = torch.tensor([ids[start : start + window]], device=self.backend.device)
                if part.shape[1] < 2:
                    break
                logits = self.backend.raw_model(part).logits[0, :-1].float()
                found = cross_entropy(logits, part[0, 1:], reduction="none").tolist()
                known = 0 if start == 0 else window - step - 1
                losses[start + 1 + known : start + 1 + len(found)] = found[known:]
        return losses


def _units(text: str) -> list[tuple[int, int]]:
    """Words, numbers and marks; a number is one word."""
    return [match.span() for match in UNIT_OR_WORD.finditer(text)]
