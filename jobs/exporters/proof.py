"""The proof of an export: what was written is read back and must behave like the base with its adapter.

Both answer the same prompts. It passes when, at every position of the answers, the difference of logits is below 5 % of what the
adapter changes there, the next token is the same wherever the adapter's lead (its likeliest token over the second) is larger than
that difference, and the conversation becomes the same token ids. Measured on two small models, position by position: rounding to
8 bits is off by 3 %, one layer's scale doubled by at least 8 %, whichever the layer. Knows no format.

A router that stands between two experts chooses the other one when its logits are rounded, and what follows reads that token
otherwise. Such positions, near a tie in the reference, may be off, and those behind one by some more than the limit; they are named by
their number, and must be few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from studio.records import ExportProof, ReaderProof

NEW_TOKENS = 16  # of each answer
MAX_SHARE = 0.05  # of the adapter's effect that the written file may be off
TIE = 0.1  # of the spread of a router's logits: nearer than that to the experts that it leaves out, rounding decides
AFTER_A_TIE = 4.0  # times the limit: what a position behind a tie may be off
MOST_TIES = 0.25  # of all positions that may be left out for that
LEAST_EFFECT = 0.25  # of the median: where the adapter changes less than that, the file is measured against that
Ids = list[int]


@dataclass(frozen=True)
class Behaviour:
    """What a model does with prompts: its greedy answers, and the logits at the positions of the reference's answers."""

    answers: list[Ids]
    logits: list[Tensor]


@dataclass(frozen=True)
class Reference:
    """The base with its adapter, at each position of the answers.

    `effects`: the largest change of a logit that the adapter makes. `ties`: whether a router is near a tie, `behind_ties`: or was before.
    """

    prompts: list[Ids]
    behaviour: Behaviour
    effects: Tensor
    ties: Tensor | None = None
    behind_ties: Tensor | None = None

    @property
    def effect(self) -> float:
        return float(self.effects.median())


def refer(model: nn.Module, base: Any, prompts: Sequence[Ids], stops: Sequence[int]) -> Reference:
    """Ask the base with its adapter, and within `base`, a context that takes the adapter away, the base alone."""
    asked = list(prompts)
    behaviour = observe(model, asked, stops)
    with base:
        without = [_forced(model, prompt, answer) for prompt, answer in zip(asked, behaviour.answers, strict=True)]
    ties, behind = zip(*(_ties(model, prompt, answer) for prompt, answer in zip(asked, behaviour.answers, strict=True)), strict=True)
    return Reference(asked, behaviour, _differences(behaviour.logits, without), torch.cat(ties), torch.cat(behind))


def observe(model: nn.Module, prompts: Sequence[Ids], stops: Sequence[int], answers: Sequence[Ids] | None = None) -> Behaviour:
    """Greedy answers, and the logits along `answers` (its own where they are left out)."""
    own = [_answer(model, prompt, stops) for prompt in prompts]
    return Behaviour(own, forced(model, prompts, own if answers is None else answers))


def forced(model: nn.Module, prompts: Sequence[Ids], answers: Sequence[Ids]) -> list[Tensor]:
    """The logits at every position of `answers`."""
    return [_forced(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]


def judge(reference: Reference, found: Behaviour, same_ids: bool, max_share: float = MAX_SHARE, reader: str | None = None) -> ExportProof:
    """The verdict on what `found` did, against the reference."""
    off = _differences(reference.behaviour.logits, found.logits)
    shares = shares_of(reference, off)
    counts = _counted(reference, shares, max_share)
    expected, actual = torch.cat(reference.behaviour.logits), torch.cat(found.logits)
    best = expected.topk(2, dim=-1)
    clear = ((best.values[:, 0] - best.values[:, 1]) > off) & counts
    difference, held = float(off[counts].max()), int(clear.sum())
    wrong = int((clear & (actual.argmax(-1) != best.indices[:, 0])).sum())
    share = float(shares[counts].max())
    identical = sum(a == b for a, b in zip(reference.behaviour.answers, found.answers, strict=True))
    reasons = list(_reasons(reference.effect, share, max_share, wrong, held, same_ids))
    return ExportProof(
        prompts=len(reference.prompts),
        identical=identical,
        max_logit_diff=difference,
        effect=reference.effect,
        worst_share=share,
        clear_tokens=held,
        wrong_tokens=wrong,
        same_template_ids=same_ids,
        router_ties=int((~counts).sum()),
        passed=not reasons,
        reason=" ".join(reasons),
        reader=reader,
    )


def places_off(reference: Reference, logits: Sequence[Tensor]) -> tuple[int, int]:
    """How many positions of the answers are off by more than the proof allows, and how many there are."""
    shares = shares_of(reference, _differences(reference.behaviour.logits, logits))
    return int((shares >= MAX_SHARE).sum()), len(shares)


def shares_of(reference: Reference, off: Tensor) -> Tensor:
    """Differences of logits at each position, as shares of what the adapter changes there."""
    if not reference.effect:
        return torch.zeros_like(off)
    return (off / reference.effects.clamp(min=LEAST_EFFECT * reference.effect)).nan_to_num()  # JSON has no infinity


def _counted(reference: Reference, shares: Tensor, max_share: float) -> Tensor:
    """The positions that are counted: all but those that are off near a tie of a router, where these are few."""
    everything = torch.ones_like(shares, dtype=torch.bool)
    if reference.ties is None or reference.behind_ties is None:
        return everything
    limit = min(max_share, MAX_SHARE)
    left_out = (shares >= limit) & (reference.ties | (reference.behind_ties & (shares < AFTER_A_TIE * limit)))
    if left_out.float().mean() > MOST_TIES:
        return everything
    return ~left_out


def together(verdicts: Sequence[ExportProof]) -> ExportProof:
    """The verdict of the first reader with those of the others beside it; it passes where all do."""
    first, *others = verdicts
    reasons = [first.reason, *(f"Read by {other.reader}: {other.reason}" for other in others if other.reason)]
    update = {
        "readers": {str(other.reader): ReaderProof.model_validate(other.model_dump()) for other in others} or None,
        "passed": all(verdict.passed for verdict in verdicts),
        "reason": " ".join(filter(None, reasons)),
    }
    return first.model_copy(update=update)


def unproved(prompts: int, reasons: Sequence[str]) -> ExportProof:
    """What is said of files that no program here can read."""
    return ExportProof(prompts=prompts, passed=None, reason=" ".join(filter(None, reasons)))


def _reasons(effect: float, share: float, max_share: float, wrong: int, held: int, same_ids: bool) -> Iterator[str]:
    if effect == 0:
        yield "The adapter changes nothing on these prompts, so nothing can be proved."
    elif not share < max_share:
        yield f"Its logits are off by up to {share:.1%} of what the adapter changes (allowed: {max_share:.0%})."
    if wrong:
        yield f"{wrong} of {held} tokens that the adapter is sure of come out differently."
    if not same_ids:
        yield "Its tokenizer and template turn a conversation into other token ids."


def _differences(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """The largest difference of a logit at each position; the largest number there is (JSON has no infinity) where one is none."""
    found = torch.cat([(a - b).abs().max(dim=-1).values for a, b in zip(one, other, strict=True)])
    return found.nan_to_num(nan=torch.finfo(torch.float32).max)


def _answer(model: Any, prompt: Ids, stops: Sequence[int]) -> Ids:
    given = torch.tensor([prompt], device=next(model.parameters()).device)
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=list(stops) or None, pad_token_id=0, repetition_penalty=1.0
    )
    with torch.inference_mode():
        answer: Ids = model.generate(input_ids=given, attention_mask=torch.ones_like(given), generation_config=greedy)[0].tolist()
    return answer[len(prompt) :]


def _ties(model: Any, prompt: Ids, answer: Ids) -> tuple[Tensor, Tensor]:
    """Whether a router of any layer is near a tie at each position of the answer, and whether one was before."""
    recorder: Any = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")  # transformers' own word for routers
    kind = getattr(recorder, "target_class", None)
    routers = [module for module in model.modules() if kind is not None and isinstance(module, kind)]
    near = torch.zeros(len(prompt) + len(answer) - 1, dtype=torch.bool)

    def look(_: nn.Module, __: Any, given: Any) -> None:
        if not isinstance(given, tuple) or given[-1].is_floating_point():  # of those that do not say what they chose, nothing is known
            return
        logits, chosen = (part.reshape(-1, part.shape[-1]) for part in (given[recorder.index].float(), given[-1]))
        is_chosen = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, chosen.long(), True)
        least = logits.masked_fill(~is_chosen, torch.inf).amin(-1)
        next_best = logits.masked_fill(is_chosen, -torch.inf).amax(-1)
        near.logical_or_(((least - next_best) < TIE * logits.std(-1)).cpu())

    handles = [router.register_forward_hook(look) for router in routers]
    try:
        if handles:
            _forced(model, prompt, answer)
    finally:
        for handle in handles:
            handle.remove()
    return near[-len(answer) :], near.cumsum(0)[-len(answer) :] > 0


def _forced(model: Any, prompt: Ids, answer: Ids) -> Tensor:
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=next(model.parameters()).device)
    with torch.inference_mode():
        logits: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(answer) :]
    return logits.float().cpu()
