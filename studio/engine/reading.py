"""What a model says of texts that are given: the probabilities of a prompt's tokens, and the vectors of texts.

Read in pieces, so that what is held at a time depends on no text's length but for its keys and values. Knows nothing of requests or
batches.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from studio.engine.answer import GeneratedAnswer
from studio.engine.budget import KeyValueBudget, too_long
from studio.engine.embedded import EmbeddedTexts
from studio.engine.failures import is_out_of_memory
from studio.engine.prefixes import Prefixes
from studio.engine.protocol import bad_request
from studio.engine.sampling import broken_logits

PIECE_BYTES = 256 * 1024**2  # of scores that are held at a time
SCORE_BYTES = 12  # of a token's score: as computed, in float32, and as a logarithm
LEAST, MOST = 16, 512  # tokens of a piece
PASS_TOKENS = 2048  # of the texts that are embedded together

Scores = list[list[tuple[int, float]]]


class ReadModel(Protocol):
    """What is asked of a model."""

    prefixes: Prefixes

    @property
    def device(self) -> torch.device: ...

    @property
    def vocabulary(self) -> int:
        """Scores per token."""
        ...

    @property
    def has_columns(self) -> bool:
        """Whether a text can be read in pieces."""
        ...

    @property
    def is_padded(self) -> bool: ...

    def recover(self) -> None: ...

    def follows_length(self, key: str | None) -> bool:
        """Whether positions depend on how long a text is, so that a piece of it is read otherwise."""
        ...

    def recalls(self, key: str | None) -> bool: ...

    def lead(self, key: str | None) -> int: ...

    def new_cache(self) -> Any: ...

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, adapters: Sequence[str | None], keep: int = ...
    ) -> Tensor: ...

    def states(self, ids: Tensor, mask: Tensor, positions: Tensor, adapter: str | None) -> Tensor:
        """Last hidden states, [rows, columns, size]."""
        ...


def read(answer: GeneratedAnswer, model: ReadModel, key: str | None, budget: KeyValueBudget) -> None:
    """Do what `answer` wants before it is written, or a part of it where that is much. Fails it where memory runs out."""
    try:
        if isinstance(answer, EmbeddedTexts):
            _embed(answer, model, key)
        elif answer.top_logprobs is None:
            answer.repeat()
        else:
            _echo(answer, model, key, budget.limit)
        return
    except Exception as exc:
        if not is_out_of_memory(exc):
            raise
    model.recover()  # after the error has gone, which holds what the pass has allocated
    answer.fail(too_long(budget, len(answer.prompt_ids)))


def _echo(answer: GeneratedAnswer, model: ReadModel, key: str | None, most_bytes: int) -> None:
    found: Scores = []
    for logits, ids in _pieces(answer, model, key, most_bytes):
        if answer.is_over:
            return
        if not torch.isfinite(logits.max()):
            return answer.fail(broken_logits(answer))
        found += scores(logits, ids, answer.top_logprobs or 0)
    answer.repeat(found)


def scores(logits: Tensor, ids: Sequence[int], top: int) -> Scores:
    """Natural log-probabilities of each of `ids` under its row of `logits` [tokens, vocabulary], it first, then the `top` likeliest."""
    values = torch.log_softmax(logits.float(), dim=-1)
    own = values.gather(1, torch.tensor(ids, device=values.device)[:, None])[:, 0].tolist()
    best = torch.topk(values, min(top, values.shape[-1]))
    told = zip(ids, own, best.indices.tolist(), best.values.tolist(), strict=True)
    return [[(token_id, value), *zip(likely, many, strict=True)] for token_id, value, likely, many in told]


def _pieces(answer: GeneratedAnswer, model: ReadModel, key: str | None, most_bytes: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Logits [tokens, vocabulary] with the ids that follow in the prompt, from its second token on."""
    known, told = list(answer.prompt_ids[:-1]), list(answer.prompt_ids[1:])
    lead, device = model.lead(key), model.device
    size = min(max(min(PIECE_BYTES, most_bytes // 4) // (SCORE_BYTES * model.vocabulary), LEAST), MOST)
    if model.follows_length(key):  # only the whole text tells where its tokens stand
        if len(known) * model.vocabulary * SCORE_BYTES > most_bytes:
            return answer.fail(too_long(None, len(known)))
        size = max(len(known), 1)
    cache = model.new_cache()
    for begin in range(0, len(known), size):
        end = min(begin + size, len(known))
        start = begin
        if not model.has_columns:  # nobody goes on with several tokens on states: each time from the start
            cache, start = model.new_cache(), 0
        ids = torch.tensor([known[start:end]], device=device)
        mask = torch.ones(1, lead + end, dtype=torch.long, device=device)
        with torch.inference_mode():
            logits = model.forward(ids, mask, mask.cumsum(1) - 1, cache, [key], end - begin)[0]
        yield logits, told[begin:end]
    if answer.limit and known and model.recalls(key):  # what is written next goes on from here
        model.prefixes.keep(key, known, [(layer.keys, layer.values) for layer in cache.layers])


def _embed(answer: EmbeddedTexts, model: ReadModel, key: str | None) -> None:
    """One pass."""
    if model.lead(key):
        said = f"Adapter {answer.adapter.name if answer.adapter else ''} puts tokens before a text, whose vectors mean nothing."
        return answer.fail(bad_request(said, "Ask its base model, or another adapter.", param="model"))
    together = model.is_padded and not model.follows_length(key)
    numbers = answer.next_texts(PASS_TOKENS, together)
    longest = max(len(answer.texts[number]) for number in numbers)
    ids = torch.zeros(len(numbers), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, number in enumerate(numbers):
        text = answer.texts[number]
        ids[row, longest - len(text) :] = torch.tensor(text, dtype=torch.long)
        mask[row, longest - len(text) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    with torch.inference_mode():
        found = model.states(ids, mask, (mask.cumsum(1) - 1).clamp(min=0), key)
        vectors = functional.normalize(_mean(found, mask), dim=-1).cpu()
    if not torch.isfinite(vectors).all():
        return answer.fail(broken_logits(answer))
    rows = [base64.b64encode(row.numpy().astype("<f4").tobytes()).decode() for row in vectors]
    answer.keep(dict(zip(numbers, rows, strict=True)))


def _mean(states: Tensor, mask: Tensor) -> Tensor:
    """[rows, size] in float32, of the columns that `mask` has."""
    weights = mask[:, :, None].float()
    return (states.float() * weights).sum(1) / weights.sum(1)
