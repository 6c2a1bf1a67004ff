"""What rounding to 16 bits does to a merge whose written file fails its proof.

It may send tokens of a mixture to other experts, the state of a state space carries every difference on, and where an adapter changes little
rounding may change as much. No file in 16 bits then behaves as the adapter does in 32, however right the merge is. Knows no format's bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jobs.exporters import models, proof
from jobs.exporters.proof import Behaviour, Reference
from studio.catalogue import anatomy
from studio.records import ExportProof, WeightKind

SAME = 1e-4  # of a logit, between the rounded model in memory and the one that was read back
MOST = 1.0  # of the adapter's effect: where computing in 16 bits is off by all of it, that explains nothing


@dataclass(frozen=True)
class MergeSource:
    """What a merge is made from, to make it once more: only where its proof fails is it looked at."""

    base: Path
    adapter: Path

    def merged(self) -> nn.Module:
        return models.merge(models.load_adapted(self.base, self.adapter))

    def served(self) -> nn.Module:
        """The base with its adapter, nothing merged, computing in the base's 16 bits."""
        return models.load_adapted(self.base, self.adapter, self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return models.half(self.base)


@dataclass(frozen=True)
class Rounding:
    """What rounding does to a merge: the verdict on it before, the logits of the rounded model, how many of its tokens go elsewhere, and whether a
    state space carries differences from token to token.
    """

    before: ExportProof
    logits: list[Tensor]
    moved: int
    tokens: int
    has_state: bool


def choosers(model: Any, kind: WeightKind) -> list[nn.Module]:
    """The modules that hold weights of a kind in the model's blocks, each once."""
    _, blocks = anatomy.blocks_of(model)
    found = [part.module for block in blocks for part in anatomy.parts(block) if part.kind == kind]
    return list({id(module): module for module in found}.values())


def choices(model: Any, reference: Reference) -> Tensor:
    """The experts that every token of the reference's texts is sent to, [tokens, places x experts], each place's in order.

    Experts are told their tokens; where they are not, a router's highest figures count.
    """
    told: dict[int, list[Tensor]] = {}
    ranked: dict[int, list[Tensor]] = {}
    each = int(getattr(model.config.get_text_config(), "num_experts_per_tok", None) or 1)

    def note_told(module: nn.Module, inputs: Any, options: Any) -> None:
        numbers = [one for one in (*inputs, *options.values()) if isinstance(one, Tensor) and one.dtype == torch.int64]
        if numbers:
            told.setdefault(id(module), []).append(_in_order(numbers[0]))

    def note_ranked(module: nn.Module, inputs: Any, outputs: Any) -> None:
        figures = outputs[0] if isinstance(outputs, tuple) else outputs
        ranked.setdefault(id(module), []).append(_in_order(figures.topk(min(each, figures.shape[-1]), dim=-1).indices))

    hooks = [module.register_forward_pre_hook(note_told, with_kwargs=True) for module in choosers(model, WeightKind.EXPERTS)]
    hooks += [module.register_forward_hook(note_ranked) for module in choosers(model, WeightKind.ROUTER)]
    try:
        proof.forced(model, reference.prompts, reference.behaviour.answers)
    finally:
        for hook in hooks:
            hook.remove()
    found = [torch.cat(parts) for parts in (told or ranked).values()]
    return torch.cat(found, dim=1) if found else torch.zeros(0, 0)


def _in_order(numbers: Tensor) -> Tensor:
    return numbers.flatten(0, -2).sort(dim=-1).values.cpu()


def measure(merged: nn.Module, dtype: torch.dtype, reference: Reference) -> Rounding:
    """Rounds the weights of `merged` to `dtype`, and has it compute in its own precision before and after."""
    before, sent = _judged(merged, reference), choices(merged, reference)
    buffers = {name: buffer.clone() for name, buffer in merged.named_buffers()}  # those that no file holds
    own = next(merged.parameters()).dtype
    rounded = merged.to(dtype).to(own)
    for name, buffer in rounded.named_buffers():
        buffer.data = buffers[name]
    logits = proof.forced(rounded, reference.prompts, reference.behaviour.answers)
    moved = (choices(rounded, reference) != sent).any(dim=1)
    return Rounding(before, logits, int(moved.sum()), len(moved), bool(choosers(rounded, WeightKind.STATE_SPACE)))


def explained(verified: ExportProof, source: MergeSource, read: Callable[[], nn.Module], reference: Reference) -> ExportProof:
    """A failed proof is no proof either way where the merge is right, the file is its rounding to the bit, and that explains how far it is off.

    `read`: the model as it is read back from what was written.
    """
    if verified.passed is not False or not verified.same_template_ids:
        return verified
    rounding = measure(source.merged(), source.dtype, reference)
    if not rounding.before.passed:
        return verified
    found = proof.forced(read(), reference.prompts, reference.behaviour.answers)
    if not all(torch.allclose(a, b, rtol=0, atol=SAME) for a, b in zip(rounding.logits, found, strict=True)):
        return verified
    effect = _effect(verified, rounding, source, reference)
    if not effect:
        return verified
    right = f"Before rounding the merge is right (off by {rounding.before.worst_share:.2%}), and the file holds exactly its rounding."
    return verified.model_copy(update={"passed": None, "reason": f"{verified.reason} {effect} {right}"})


def _effect(verified: ExportProof, rounding: Rounding, source: MergeSource, reference: Reference) -> str:
    """Why rounding changes so much; "" where nothing is known that would."""
    if rounding.moved:
        return f"Rounded to 16 bits, the model sends {rounding.moved} of {rounding.tokens} tokens to other experts."
    if rounding.has_state:
        return "Rounded to 16 bits, its state space carries the rounding of every token on."
    served = _judged(source.served(), reference).worst_share
    if served is None or verified.worst_share is None or not verified.worst_share <= served < MOST:
        return ""
    return f"The base with the adapter, nothing merged, is off by {served:.1%} itself where it computes in 16 bits."


def _judged(model: nn.Module, reference: Reference) -> ExportProof:
    """The verdict on a model in memory, along the reference's answers."""
    answers = reference.behaviour.answers
    return proof.judge(reference, Behaviour(answers, proof.forced(model, reference.prompts, answers)), same_ids=True)
