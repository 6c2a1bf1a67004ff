"""What a probe says, in sentences for people. Asks nothing."""

from __future__ import annotations

from studio.catalogue.reach import sentence
from studio.records import Probe


def described(probe: Probe) -> list[str]:
    """A sentence for each thing that differs between models."""
    found = [f"Loaded as {probe.class_name}; attention: {', '.join(probe.attention)}."]
    if probe.text_prefix:
        found.append(f"Its text model is {probe.text_prefix}; the weights beside it, for images or sound, stay untouched.")
    return [*found, *behaviour(probe)]


def behaviour(probe: Probe) -> list[str]:
    """What LoRA learns of it, and how it answers where that is not as usual."""
    found = [reach(probe)]
    if not probe.mixable:
        found.append(f"The base and several adapters answer one after another: {probe.mixable_reason}.")
    if not probe.padding:
        found.append("Prompts of different lengths are read one after another: padding changes its answers.")
    return found


def reach(probe: Probe) -> str:
    """Which share of the block weights LoRA learns with its default targets, and what is left out by kind."""
    targets = probe.targets
    if not targets.accepted:
        return f"LoRA can't be trained on it: {targets.reason}."
    return sentence(targets.share, targets.left_out)
