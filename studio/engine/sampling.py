"""Choosing the next token of one answer from its logits. Its neighbours in the batch play no part in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.engine.answer import GeneratedAnswer


class Sampler:
    """The choice for one answer; the same seed and the same logits give the same tokens."""

    def __init__(self, answer: GeneratedAnswer) -> None:
        self.answer = answer
        self._generator = torch.Generator().manual_seed(answer.seed % 2**63)

    @property
    def takes_likeliest(self) -> bool:
        """The largest logit is the choice and nothing else is wanted, so a whole batch can be decided at once."""
        answer = self.answer
        return (
            answer.params.temperature == 0
            and answer.params.repetition_penalty == 1
            and answer.params.presence_penalty == 0
            and answer.params.frequency_penalty == 0
            and answer.matcher is None
            and answer.top_logprobs is None
        )

    def choose(self, logits: Tensor) -> tuple[int, Sequence[tuple[int, float]]]:
        """`logits`: float32 [vocabulary] on the CPU. Gives the token, and log-probabilities (it first, then the likeliest)."""
        params = self.answer.params
        scores = self._allowed(self._used(self._penalised(logits)))
        if params.temperature == 0:
            chosen = int(scores.argmax())
        else:
            probabilities = torch.softmax((scores - scores.max()) / params.temperature, dim=-1)
            probabilities = _nucleus(probabilities, params.top_k, params.top_p)
            chosen = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return chosen, self._logprobs(logits, chosen)

    def _penalised(self, logits: Tensor) -> Tensor:
        """As transformers' RepetitionPenaltyLogitsProcessor: divide positive, multiply negative logits of tokens seen."""
        penalty = self.answer.params.repetition_penalty
        if penalty == 1:
            return logits
        seen = torch.tensor(sorted({*self.answer.prompt_ids, *self.answer.ids}), dtype=torch.long)
        values = logits[seen]
        return logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))

    def _used(self, scores: Tensor) -> Tensor:
        """OpenAI's penalties: minus presence once and frequency per use, over the answer's own tokens."""
        params, ids = self.answer.params, self.answer.ids
        if not ids or (params.presence_penalty == 0 and params.frequency_penalty == 0):
            return scores
        uses = torch.bincount(torch.tensor(ids), minlength=scores.shape[-1])
        return scores - params.frequency_penalty * uses - params.presence_penalty * (uses > 0)

    def _allowed(self, scores: Tensor) -> Tensor:
        if self.answer.matcher is None:
            return scores
        mask = torch.from_numpy(self.answer.matcher.allowed(scores.shape[-1]))
        return scores.masked_fill(~mask, float("-inf"))

    def _logprobs(self, logits: Tensor, chosen: int) -> Sequence[tuple[int, float]]:
        count = self.answer.top_logprobs
        if count is None:
            return ()
        values = torch.log_softmax(logits, dim=-1)
        best = torch.topk(values, min(count, values.numel()))
        top = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(chosen, float(values[chosen])), *top]


def _nucleus(probabilities: Tensor, top_k: int, top_p: float) -> Tensor:
    """Keep the `top_k` likeliest (0: all), then the fewest of them that reach `top_p`; the likeliest always stays."""
    if top_k == 0 and top_p >= 1:
        return probabilities
    values, order = torch.sort(probabilities, descending=True)
    if top_k:
        values[top_k:] = 0
    before = values.cumsum(-1) - values
    values[before >= top_p * values.sum()] = 0
    return torch.zeros_like(probabilities).scatter_(0, order, values)
