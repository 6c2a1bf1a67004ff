"""Step by step: a batch of answers over one model, which answers join and leave between two steps.

Rows are padded on the left, so that the last column is the newest token of every row. Knows nothing of requests or queues.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from studio.engine.answer import Answer
from studio.engine.sampling import Sampler
from studio.errors import EngineError


class Model(Protocol):
    """What a batch needs of a model."""

    @property
    def device(self) -> torch.device: ...

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, adapters: Sequence[str | None]) -> Tensor:
        """Logits of the last column, [rows, vocabulary]; fills the cache. `adapters`: a key per row, None for the base."""
        ...


class Batch:
    """Answers in the making. `answers` and `adapters` have one entry per row."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._samplers: list[Sampler] = []
        self.adapters: list[str | None] = []
        self._cache = DynamicCache()  # full attention for every layer: rows can be joined, and masks see to sliding windows
        self._mask = torch.empty(0, 0, dtype=torch.long)
        self._next = torch.empty(0, dtype=torch.long)

    @property
    def answers(self) -> list[Answer]:
        return [sampler.answer for sampler in self._samplers]

    def join(self, answers: Sequence[Answer], adapters: Sequence[str | None]) -> None:
        """Read the prompts of `answers` in one pass, choose their first tokens, and take in those that go on."""
        newcomers = Batch(self._model)
        newcomers._read(answers, adapters)
        if not newcomers._samplers:
            return
        if self._samplers:
            self._absorb(newcomers)
        else:
            self.__dict__.update(newcomers.__dict__)

    def step(self) -> None:
        """One more token for every answer; those that are over leave."""
        self._drop_finished()
        if not self._samplers:
            return
        self._mask = functional.pad(self._mask, (0, 1), value=1)
        positions = self._mask.sum(dim=1, keepdim=True) - 1
        logits = self._model.forward(self._next[:, None], self._mask, positions, self._cache, self.adapters)
        self._choose(logits)

    def _read(self, answers: Sequence[Answer], adapters: Sequence[str | None]) -> None:
        self._samplers, self.adapters = [Sampler(answer) for answer in answers], list(adapters)
        length = max(len(answer.prompt_ids) for answer in answers)
        ids = torch.zeros(len(answers), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, answer in enumerate(answers):
            start = length - len(answer.prompt_ids)
            ids[row, start:] = torch.tensor(answer.prompt_ids, dtype=torch.long)
            mask[row, start:] = 1
        self._mask = mask.to(self._model.device)
        positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0)
        self._choose(self._model.forward(ids.to(self._model.device), self._mask, positions, self._cache, self.adapters))

    def _choose(self, logits: Tensor) -> None:
        """Give every answer its next token. `logits`: [rows, vocabulary]."""
        best, likeliest = logits.max(dim=-1)  # a NaN anywhere in a row becomes its maximum
        is_sound, chosen = torch.isfinite(best).tolist(), likeliest.tolist()
        on_cpu = logits.float().cpu() if any(not sampler.takes_likeliest for sampler in self._samplers) else None
        for row, sampler in enumerate(self._samplers):
            if sampler.answer.is_over:
                continue
            if not is_sound[row]:
                sampler.answer.fail(_broken_logits(sampler.answer))
            elif on_cpu is None or sampler.takes_likeliest:
                sampler.answer.take(chosen[row])
            else:
                chosen[row] = _sample(sampler, on_cpu[row])
        self._next = torch.tensor(chosen, dtype=torch.long, device=logits.device)
        self._drop_finished()

    def _drop_finished(self) -> None:
        keep = [row for row, sampler in enumerate(self._samplers) if not sampler.answer.is_over]
        if len(keep) == len(self._samplers):
            return
        self._samplers = [self._samplers[row] for row in keep]
        self.adapters = [self.adapters[row] for row in keep]
        if not keep:
            self._cache = DynamicCache()
            return
        index = torch.tensor(keep, device=self._mask.device)
        self._mask, self._next = self._mask[index], self._next[index]
        # columns that only the dropped rows used
        start = int(self._mask.argmax(dim=1).min())
        self._mask = self._mask[:, start:]
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys = layer.keys[index, :, start:]
                layer.values = layer.values[index, :, start:]

    def _absorb(self, other: Batch) -> None:
        """Put the rows of `other` below these, both padded on the left to the longer one."""
        length = max(self._mask.shape[1], other._mask.shape[1])
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            if mine.is_initialized:
                mine.keys = torch.cat([_padded(mine.keys, length), _padded(theirs.keys, length)])
                mine.values = torch.cat([_padded(mine.values, length), _padded(theirs.values, length)])
        masks = [functional.pad(mask, (length - mask.shape[1], 0)) for mask in (self._mask, other._mask)]
        self._mask, self._next = torch.cat(masks), torch.cat([self._next, other._next])
        self._samplers += other._samplers
        self.adapters += other.adapters


def _padded(states: Tensor, length: int) -> Tensor:
    """Keys or values [rows, heads, columns, size] with empty columns on the left up to `length`."""
    return functional.pad(states, (0, 0, length - states.shape[2], 0))


def _sample(sampler: Sampler, logits: Tensor) -> int:
    try:
        token_id, logprobs = sampler.choose(logits)
        sampler.answer.take(token_id, logprobs)
        return token_id
    except EngineError as exc:  # a grammar that can't go on ends its own answer only
        sampler.answer.fail(exc)
        return 0


def _broken_logits(answer: Answer) -> EngineError:
    who = f"{answer.base.name} with {answer.adapter.name}" if answer.adapter else answer.base.name
    return EngineError(
        f"{who} computed numbers that are no numbers (NaN or infinite), so its answer would be noise.",
        "Train the adapter again with a lower learning_rate, or choose another one." if answer.adapter else "Download the model again.",
        status=500,
        code="broken_logits",
    )
