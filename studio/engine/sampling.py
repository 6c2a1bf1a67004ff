"""Choosing the next tokens of a whole batch from its logits, on the device that computed them: one copy of token ids per step.

Each row draws with one number between 0 and 1 that depends on its seed and its place in the answer alone. So its text does not
depend on its neighbours in the batch, nor on rows that join or leave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from studio.engine.answer import GeneratedAnswer
from studio.errors import EngineError

LEVELS = (256, 4096)  # likeliest tokens among which a nucleus is looked for, before all tokens are sorted
BLOCK = 256  # tokens whose probabilities are added up first
PIECE = 32  # tokens of which only the likeliest is looked at first
COLDEST = 1e-30  # a temperature that float32 can divide by
UNDECIDED, UNSOUND = -1, -2  # in place of a token id


@dataclass(frozen=True)
class NextToken:
    """The next token of an answer, with log-probabilities (it first, then the likeliest) where they are wanted; or why there is none."""

    token_id: int
    logprobs: Sequence[tuple[int, float]] = ()
    error: EngineError | None = None


class Sampler:
    """What one answer wants of the choice, and which tokens it has seen."""

    def __init__(self, answer: GeneratedAnswer) -> None:
        self.answer = answer
        self._prompt: NDArray[np.int64] | None = None

    @property
    def takes_likeliest(self) -> bool:
        """The largest logit is the choice and nothing else is wanted."""
        return self.answer.params.temperature == 0 and not self.changes_scores and self.answer.top_logprobs is None

    @property
    def changes_scores(self) -> bool:
        """Whether the choice is made from other numbers than the model's logits."""
        return self.repeats_less or self.counts_uses or self.answer.matcher is not None or bool(self.answer.barred)

    @property
    def repeats_less(self) -> bool:
        return self.answer.params.repetition_penalty != 1

    @property
    def counts_uses(self) -> bool:
        return self.answer.params.presence_penalty != 0 or self.answer.params.frequency_penalty != 0

    @property
    def is_cut(self) -> bool:
        """Only some of the likeliest tokens may be drawn."""
        params = self.answer.params
        return params.top_k > 0 or params.top_p < 1 or params.min_p > 0

    @property
    def uniform(self) -> float:
        """In [0, 1], of the answer's seed and of the number of its tokens."""
        place = f"{self.answer.seed % 2**63}:{len(self.answer.ids)}"
        return float(int.from_bytes(hashlib.blake2b(place.encode(), digest_size=8).digest(), "big") / 2**64)

    def uses(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The answer's own tokens, each once, and how often it has used them."""
        return np.unique(np.array(self.answer.ids, dtype=np.int64), return_counts=True)

    def seen(self) -> NDArray[np.int64]:
        """The tokens of the prompt and of the answer, some of them more than once."""
        if self._prompt is None:
            self._prompt = np.unique(np.array(self.answer.prompt_ids, dtype=np.int64))
        return np.concatenate([self._prompt, np.array(self.answer.ids, dtype=np.int64)])


def choose(samplers: Sequence[Sampler], logits: Tensor) -> tuple[list[NextToken], Tensor]:
    """The next token of every row, and the ids once more as a tensor where the logits are.

    `logits`: [rows, vocabulary]. Rows whose answers are over, or get an error, have some token.
    """
    best, tokens = logits.max(dim=-1)  # a NaN anywhere in a row becomes its maximum
    is_sound = torch.isfinite(best)
    errors: dict[int, EngineError] = {}
    live = [row for row, sampler in enumerate(samplers) if not sampler.answer.is_over]
    if any(not samplers[row].takes_likeliest for row in live):
        scores = logits.float()
        if any(samplers[row].changes_scores for row in live):
            scores = _changed(samplers, live, scores.clone(), errors)
            best, tokens = scores.max(dim=-1)
            is_sound &= torch.isfinite(best)
        drawing = [row for row in live if samplers[row].answer.params.temperature > 0 and row not in errors]
        tokens = _drawn(samplers, drawing, scores, tokens)
    found = tokens.where(is_sound, UNSOUND).tolist()
    undecided = [row for row, token in enumerate(found) if token == UNDECIDED]
    for size in (*LEVELS[1:], logits.shape[-1]):
        if undecided:
            index = torch.tensor(undecided, device=tokens.device)
            tokens[index] = _nucleus(scores[index], _wishes(samplers, undecided, scores), size)
            found = tokens.where(is_sound, UNSOUND).tolist()
            undecided = [row for row, token in enumerate(found) if token == UNDECIDED]
    for row in live:
        if found[row] == UNSOUND and row not in errors:
            errors[row] = broken_logits(samplers[row].answer)
    told = _logprobs(samplers, [row for row in live if row not in errors], logits, found)
    return [NextToken(max(token, 0), told.get(row, ()), errors.get(row)) for row, token in enumerate(found)], tokens.clamp(
        0, logits.shape[-1] - 1
    )


def broken_logits(answer: GeneratedAnswer) -> EngineError:
    """For an answer whose model computed NaN or infinity."""
    who, fix = answer.base.name, "Download the model again."
    if answer.adapter:
        who = f"{who} with {answer.adapter.name}"
        fix = "Train the adapter again with a lower learning_rate, or choose another one."
    said = f"{who} computed numbers that are no numbers (NaN or infinite), so its answer would be noise."
    return EngineError(said, fix, status=500, code="broken_logits")


# scores


def _changed(samplers: Sequence[Sampler], live: Sequence[int], scores: Tensor, errors: dict[int, EngineError]) -> Tensor:
    """`scores` [rows, vocabulary], float32, changed in place by penalties and grammars. A grammar that can't go on is in `errors`."""
    _repeat_less(samplers, [row for row in live if samplers[row].repeats_less], scores)
    _count_uses(samplers, [row for row in live if samplers[row].counts_uses], scores)
    for row in live:
        if barred := [token for token in samplers[row].answer.barred if 0 <= token < scores.shape[-1]]:
            scores[row, torch.tensor(barred, device=scores.device)] = float("-inf")
    bits: dict[int, NDArray[np.uint8]] = {}
    for row in live:
        matcher = samplers[row].answer.matcher
        if matcher is not None:
            try:
                bits[row] = matcher.bits(scores.shape[-1])
            except EngineError as exc:
                errors[row] = exc
    if bits:
        packed = torch.from_numpy(np.stack(list(bits.values()))).to(scores.device)
        shifts = torch.arange(8, dtype=torch.uint8, device=scores.device)
        is_allowed = ((packed[:, :, None] >> shifts) & 1).flatten(1)[:, : scores.shape[-1]].bool()
        index = torch.tensor(list(bits), device=scores.device)
        scores[index] = scores[index].masked_fill(~is_allowed, float("-inf"))
    return scores


def _repeat_less(samplers: Sequence[Sampler], rows: Sequence[int], scores: Tensor) -> None:
    """As transformers' RepetitionPenaltyLogitsProcessor: divide positive, multiply negative logits of tokens seen."""
    if not rows:
        return
    seen = [samplers[row].seen() for row in rows]
    at = _places(rows, seen, scores)
    penalty = _repeated([samplers[row].answer.params.repetition_penalty for row in rows], seen, scores)
    flat = scores.view(-1)
    values = flat[at]
    flat[at] = torch.where(values > 0, values / penalty, values * penalty)  # the same twice where a token is there twice


def _count_uses(samplers: Sequence[Sampler], rows: Sequence[int], scores: Tensor) -> None:
    """OpenAI's penalties: minus presence once and frequency per use, over the answer's own tokens."""
    if not rows:
        return
    uses = [samplers[row].uses() for row in rows]
    tokens, counts = [own for own, _ in uses], torch.from_numpy(np.concatenate([count for _, count in uses]))
    params = [samplers[row].answer.params for row in rows]
    frequency = _repeated([each.frequency_penalty for each in params], tokens, scores) * counts.to(scores)
    presence = _repeated([each.presence_penalty for each in params], tokens, scores)
    at, flat = _places(rows, tokens, scores), scores.view(-1)
    flat[at] = flat[at] - frequency - presence


def _places(rows: Sequence[int], tokens: Sequence[NDArray[np.int64]], scores: Tensor) -> Tensor:
    """Where these tokens of each row lie in the flattened `scores`."""
    size = scores.shape[-1]
    return torch.from_numpy(np.concatenate([row * size + each for row, each in zip(rows, tokens, strict=True)])).to(scores.device)


def _repeated(values: Sequence[float], tokens: Sequence[NDArray[np.int64]], scores: Tensor) -> Tensor:
    """Each row's value as often as it has tokens."""
    return torch.from_numpy(np.repeat(np.array(values), [len(each) for each in tokens])).to(scores)


# drawing


@dataclass(frozen=True)
class _Wishes:
    """Of some rows, each [rows, 1] in float64. `top_k` has the vocabulary's size where all tokens count."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor


def _wishes(samplers: Sequence[Sampler], rows: Sequence[int], scores: Tensor) -> _Wishes:
    size = scores.shape[-1]
    params = [samplers[row].answer.params for row in rows]
    told = [
        [each.temperature, min(each.top_k or size, size), each.top_p, each.min_p, samplers[row].uniform]
        for row, each in zip(rows, params, strict=True)
    ]
    return _Wishes(*torch.tensor(told, dtype=torch.float64).to(scores.device, non_blocking=True)[:, :, None].unbind(1))


def _drawn(samplers: Sequence[Sampler], rows: Sequence[int], scores: Tensor, tokens: Tensor) -> Tensor:
    """`tokens` [rows] with those of `rows` drawn, UNDECIDED where the first level does not tell."""
    for is_cut in (False, True):
        some = [row for row in rows if samplers[row].is_cut == is_cut]
        if not some:
            continue
        wishes, theirs, index = _wishes(samplers, some, scores), scores, None
        if len(some) < len(scores):
            index = torch.tensor(some, device=scores.device)
            theirs = scores[index]
        if is_cut:
            drawn = _nucleus(theirs, wishes, LEVELS[0])
        else:
            drawn = _anywhere(theirs, wishes)
        if index is None:
            return drawn
        tokens[index] = drawn
    return tokens


def _anywhere(scores: Tensor, wishes: _Wishes) -> Tensor:
    """Draw one of all tokens, [rows]: by the inverse of the sums of probabilities, block by block and then token by token.

    The order of the sums does not depend on the number of rows.
    """
    weights = _weights(scores, wishes)
    each = _block_sums(weights)
    sums = each.cumsum(-1)
    target = _inside(wishes.uniform * sums[:, -1:], sums[:, -1:])
    block = _first_above(sums, target)
    ids = block * BLOCK + torch.arange(BLOCK, device=scores.device)
    size = scores.shape[-1]
    within = (weights.gather(1, ids.clamp(max=size - 1)).double() * (ids < size)).cumsum(-1)
    rest = _inside(target - (sums - each).gather(1, block), within[:, -1:])
    return ids.gather(1, _first_above(within, rest))[:, 0]


def _nucleus(scores: Tensor, wishes: _Wishes, size: int) -> Tensor:
    """Draw one of the `top_k` likeliest tokens, of the fewest of them that reach `top_p`; the likeliest always stays. [rows]

    Of these, as transformers does, those with `min_p` of the likeliest one's probability. Of equally likely tokens the first ones stay.
    UNDECIDED where the `size` likeliest tokens do not tell who they are.
    """
    is_all = size >= scores.shape[-1]
    values, ids = _likeliest(scores, size)
    weights = ((values - values[:, :1]).double() / wishes.temperature).exp()
    sums = weights.cumsum(-1)
    place = torch.arange(1, values.shape[-1] + 1, device=scores.device)
    is_candidate = place <= wishes.top_k
    mass = (weights * is_candidate).sum(-1, keepdim=True)
    if not is_all:
        whole = _block_sums(_weights(scores, wishes)).sum(-1, keepdim=True)
        mass = torch.where(wishes.top_k < scores.shape[-1], mass, whole)
    kept = kept_tokens(weights, wishes.top_k, wishes.top_p * mass)
    kept = kept.minimum((weights >= wishes.min_p).sum(-1, keepdim=True).clamp(min=1))
    last = kept - 1
    target = _inside(wishes.uniform * sums.gather(1, last), sums.gather(1, last))
    drawn = ids.gather(1, _first_above(sums, target).minimum(last))
    if not is_all:
        is_known = (wishes.top_k <= size) | (wishes.top_k == scores.shape[-1])
        is_known &= values.gather(1, last) > values[:, -1:]  # all that are as likely as the last one are here
        drawn = drawn.where(is_known, UNDECIDED)
    return drawn[:, 0]


def kept_tokens(weights: Tensor, top_k: Tensor, wanted: Tensor) -> Tensor:
    """How many of the likeliest tokens are kept: the fewest of `top_k` whose weights reach `wanted`, at least one. [rows, 1]

    `weights`: [rows, tokens] from the largest on; `top_k` and `wanted`: [rows, 1].
    """
    before = weights.cumsum(-1) - weights
    place = torch.arange(weights.shape[-1], device=weights.device)
    return ((before < wanted) & (place < top_k)).sum(-1, keepdim=True).clamp(min=1)


def _likeliest(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The `size` largest scores from the largest on, the smaller token id first where two are equal; and their ids. [rows, size] each."""
    if size >= scores.shape[-1]:
        return torch.sort(scores, dim=-1, descending=True, stable=True)
    ids = _top(scores, size).sort(dim=-1).values
    values, order = torch.sort(scores.gather(1, ids), dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _top(scores: Tensor, size: int) -> Tensor:
    """Ids of the `size` largest scores in any order, [rows, size]. They lie in the pieces with the `size` largest likeliest tokens."""
    vocabulary = scores.shape[-1]
    if vocabulary < 2 * size * PIECE or vocabulary % PIECE:
        return scores.topk(size, dim=-1, sorted=False).indices
    pieces = scores.unflatten(-1, (-1, PIECE))
    among = pieces.amax(-1).topk(size, dim=-1, sorted=False).indices
    ids = (among[:, :, None] * PIECE + torch.arange(PIECE, device=scores.device)).flatten(1)
    return ids.gather(1, scores.gather(1, ids).topk(size, dim=-1, sorted=False).indices)


def _weights(scores: Tensor, wishes: _Wishes) -> Tensor:
    """Probabilities but for a factor, [rows, vocabulary] in float32: the likeliest token has 1."""
    temperature = wishes.temperature.float().clamp(min=COLDEST)
    return torch.sub(scores, scores.amax(-1, keepdim=True)).div_(temperature).exp_()


def _block_sums(weights: Tensor) -> Tensor:
    """[rows, blocks] in float64, each of BLOCK tokens, the last one of what is left."""
    whole = weights.shape[-1] // BLOCK * BLOCK
    sums = weights[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1)
    return torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=-1).double()


def _inside(target: Tensor, end: Tensor) -> Tensor:
    """Below `end`, so that a token of some weight is found in spite of rounding."""
    return target.minimum(end.nextafter(torch.zeros_like(end)))


def _first_above(sums: Tensor, target: Tensor) -> Tensor:
    """The first place whose sum is above `target`; [rows, 1]. Some place in rows of NaN."""
    return torch.searchsorted(sums, target, right=True).clamp(max=sums.shape[-1] - 1)


def _logprobs(
    samplers: Sequence[Sampler], rows: Sequence[int], logits: Tensor, chosen: Sequence[int]
) -> dict[int, list[tuple[int, float]]]:
    """Log-probabilities of the model itself, before temperature and penalties, for the rows that want them."""
    asked = [(row, count) for row in rows if (count := samplers[row].answer.top_logprobs) is not None]
    if not asked:
        return {}
    index = torch.tensor([row for row, _ in asked], device=logits.device)
    values = torch.log_softmax(logits[index].float(), dim=-1)
    best = torch.topk(values, min(max(count for _, count in asked), values.shape[-1]))
    ids = torch.tensor([[chosen[row]] for row, _ in asked], device=logits.device)
    own, tops, likely = values.gather(1, ids)[:, 0].tolist(), best.indices.tolist(), best.values.tolist()
    told = zip(asked, own, tops, likely, strict=True)
    return {row: [(chosen[row], value), *list(zip(top, many, strict=True))[:count]] for (row, count), value, top, many in told}
