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

FEW = 0.25  # of the places of the answers: where rounding moves more than these too far, most of the adapter may be lost
MOST = 1.0  # of the adapter's effect: where computing in 16 bits is off by all of it, that explains nothing
ALIKE = 2.0  # times what computing in 16 bits is off by: the largest of a few figures differs as much by chance
FLIPPED = 0.001  # of all numbers: merged once more, one that lies between two of 16 bits may be rounded to the other


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


def explained(verified: ExportProof, source: MergeSource, read: Callable[[], nn.Module], reference: Reference) -> ExportProof:
    """A failed proof is no proof either way where the merge is right, the file is its rounding, and that explains how far it is off.

    `read`: the model as it is read back from what was written.
    """
    if verified.passed is not False or not verified.same_template_ids:
        return verified
    merged = source.merged()
    before, sent = _judged(merged, reference), choices(merged, reference)
    rounded, precision = rounding_of(merged, source.dtype), next(merged.parameters()).dtype
    del merged
    if not before.passed:
        return verified
    written = read()
    if next(written.parameters()).dtype != precision or not is_same(written, rounded):
        return verified
    effect = _effect(verified, written, sent, source, reference)
    if not effect:
        return verified
    right = f"Before rounding the merge is right (off by {before.worst_share:.2%}), and the file holds its rounding, weight by weight."
    return verified.model_copy(update={"passed": None, "reason": f"{verified.reason} {effect} {right}"})


def rounding_of(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """What a file holds of a model, rounded."""
    return {name: tensor.to(dtype, copy=True) for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def is_same(model: nn.Module, rounded: dict[str, Tensor]) -> bool:
    """Whether the weights of a model are these, but for some that were rounded to the next number."""
    found = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    if {name: tensor.shape for name, tensor in found.items()} != {name: tensor.shape for name, tensor in rounded.items()}:
        return False
    flipped = 0
    for name, half in rounded.items():
        expected, steps = half.double().cpu(), torch.finfo(half.dtype)
        off = (found[name].double().cpu() - expected).abs()
        if not (off <= steps.eps * expected.abs() + steps.smallest_normal * steps.eps).all():
            return False
        flipped += int(off.count_nonzero())
    return flipped <= FLIPPED * sum(half.numel() for half in rounded.values())


def _effect(verified: ExportProof, written: nn.Module, sent: Tensor, source: MergeSource, reference: Reference) -> str:
    """Why rounding changes so much; "" where nothing is known that would."""
    moved = (choices(written, reference) != sent).any(dim=1)
    if moved.any():
        return f"Rounded to 16 bits, the model sends {int(moved.sum())} of {len(moved)} tokens to other experts."
    if choosers(written, WeightKind.STATE_SPACE):
        return "Rounded to 16 bits, its state space carries the rounding of every token on."
    off, places = proof.places_off(reference, proof.forced(written, reference.prompts, reference.behaviour.answers))
    if off <= FEW * places:
        return f"Rounding to 16 bits moves {off} of {places} places of the answers by more than that, and the others by less."
    served = _judged(source.served(), reference).worst_share
    if served is None or verified.worst_share is None or not verified.worst_share / ALIKE <= served < MOST:
        return ""
    return f"The base with the adapter, nothing merged, is off by {served:.1%} itself where it computes in 16 bits."


def _judged(model: nn.Module, reference: Reference) -> ExportProof:
    """The verdict on a model in memory, along the reference's answers."""
    answers = reference.behaviour.answers
    return proof.judge(reference, Behaviour(answers, proof.forced(model, reference.prompts, answers)), same_ids=True)
