"""What a probe says, in sentences for people. Asks nothing."""

from __future__ import annotations

from collections.abc import Mapping

from studio.records import Probe, WeightKind

WORDS = {
    WeightKind.MLP: "dense feed-forward layers",
    WeightKind.SHARED_EXPERTS: "shared experts",
    WeightKind.ROUTER: "routers",
    WeightKind.CONVOLUTION: "convolutions",
    WeightKind.STATE_SPACE: "state space layers",
    WeightKind.OTHER: "other weights",
}


def described(probe: Probe) -> list[str]:
    """A sentence for each thing that differs between models."""
    found = [f"Loaded as {probe.class_name}; attention: {', '.join(probe.attention)}."]
    if probe.text_prefix:
        found.append(f"Its text model is {probe.text_prefix}; the weights beside it, for images or sound, stay untouched.")
    found.append(reach(probe))
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
    if not targets.left_out:
        return "LoRA reaches all weights of its blocks."
    return f"LoRA reaches {percent(targets.share)} of the weights of its blocks; left out: {left_out(targets.left_out)}."


def left_out(shares: Mapping[WeightKind, float]) -> str:
    """`dense feed-forward layers 20 %, routers 0.2 %`."""
    return ", ".join(f"{WORDS.get(kind, kind.replace('_', ' '))} {percent(share)}" for kind, share in shares.items())


def percent(share: float) -> str:
    """Two significant digits, and never 100 for less than everything."""
    if 0.995 <= share < 1:
        return f"{100 * share:.2f} %"
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
