"""Texts whose vectors are wanted: what an embedding is in the scheduler's queue. Knows no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.engine.answer import GeneratedAnswer
from studio.engine.protocol import Event, Usage

POOLING = "mean of the last hidden states"


@dataclass(eq=False)
class EmbeddedTexts(GeneratedAnswer):
    """`texts` are read in several passes, the longest first, between which answers go on."""

    texts: Sequence[Sequence[int]] = ()
    vectors: dict[int, str] = field(default_factory=dict)  # by the text's number, as base64 of float32

    @property
    def is_read_first(self) -> bool:
        return True

    def next_texts(self, most_tokens: int, together: bool) -> list[int]:
        """Numbers of the texts to read next: as many as have no more than `most_tokens` with their padding, at least one."""
        left = sorted(set(range(len(self.texts))) - self.vectors.keys(), key=lambda number: -len(self.texts[number]))
        if not together:
            return left[:1]
        return left[: max(1, most_tokens // len(self.texts[left[0]]))]

    def keep(self, found: dict[int, str]) -> None:
        """May finish it."""
        self.vectors |= found
        if len(self.vectors) == len(self.texts):
            self.is_finished = True
            usage = Usage(sum(map(len, self.texts)), 0)
            vectors = tuple(self.vectors[number] for number in range(len(self.texts)))
            self.deliver(Event(self.index, finish_reason="stop", usage=usage, facts=self.facts(), vectors=vectors))

    def facts(self) -> dict[str, Any]:
        """How the vectors were made."""
        made = super().facts()
        return {"pooling": POOLING, "normalized": True, "seconds": made["seconds"], "notes": made["notes"]}
