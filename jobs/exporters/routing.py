"""What rounding to 16 bits does to a merge that it may change much. It may send tokens of a mixture to other experts, and the state of a
state space carries every difference on: no file in 16 bits then behaves as the adapter does in 32, however right the merge is.
Knows no format's bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jobs.exporters import proof
from jobs.exporters.proof import Reference
from studio.catalogue import anatomy
from studio.records import ExportProof, WeightKind

SAME = 1e-4  # of a logit, between the rounded model in memory and the one that was read back


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


@dataclass(frozen=True)
class Whole:
    """A merge before it is rounded: the verdict on it, where it sends tokens, and the buffers that no file holds."""

    verdict: ExportProof
    sent: Tensor
    buffers: dict[str, Tensor]


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


def before(model: nn.Module, reference: Reference, stops: Sequence[int]) -> Whole | None:
    """A merge that is not rounded yet; None where there are neither experts nor a state space."""
    if not choosers(model, WeightKind.ROUTER) and not choosers(model, WeightKind.STATE_SPACE):
        return None
    seen = proof.observe(model, reference.prompts, stops, reference.behaviour.answers)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return Whole(proof.judge(reference, seen, same_ids=True), choices(model, reference), buffers)


def after(whole: Whole, rounded: nn.Module, reference: Reference) -> Rounding:
    """`rounded`: the same model after its weights went through 16 bits, in the precision of `whole`."""
    for name, buffer in rounded.named_buffers():
        buffer.data = whole.buffers[name]
    logits = proof.forced(rounded, reference.prompts, reference.behaviour.answers)
    moved = (choices(rounded, reference) != whole.sent).any(dim=1)
    has_state = bool(choosers(rounded, WeightKind.STATE_SPACE))
    return Rounding(whole.verdict, logits, int(moved.sum()), len(moved), has_state)


def explained(verified: ExportProof, rounding: Rounding | None, read: Callable[[], nn.Module], reference: Reference) -> ExportProof:
    """A failed proof is no proof either way where the merge is right and the file is its rounding to the bit.

    `read`: the model as it is read back from what was written.
    """
    if rounding is None or verified.passed is not False or not verified.same_template_ids:
        return verified
    if not rounding.before.passed or not (rounding.moved or rounding.has_state):
        return verified
    found = proof.forced(read(), reference.prompts, reference.behaviour.answers)
    if not all(torch.allclose(a, b, rtol=0, atol=SAME) for a, b in zip(rounding.logits, found, strict=True)):
        return verified
    effect = "its state space carries the rounding of every token on"
    if rounding.moved:
        effect = f"the model sends {rounding.moved} of {rounding.tokens} tokens to other experts"
    right = f"Before rounding the merge is right (off by {rounding.before.worst_share:.2%}), and the file holds exactly its rounding."
    reason = f"{verified.reason} Rounded to 16 bits, {effect}. {right}"
    return verified.model_copy(update={"passed": None, "reason": reason})
