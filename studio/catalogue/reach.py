"""What a method reaches of a model's blocks, in words. Knows no model."""

from __future__ import annotations

from collections.abc import Mapping

from studio.records import WeightKind

WORDS = {
    WeightKind.MLP: "dense feed-forward layers",
    WeightKind.SHARED_EXPERTS: "shared experts",
    WeightKind.ROUTER: "routers",
    WeightKind.CONVOLUTION: "convolutions",
    WeightKind.STATE_SPACE: "state space layers",
    WeightKind.OTHER: "other weights",
}


def sentence(share: float, left: Mapping[WeightKind, float]) -> str:
    """Which share of the block weights LoRA learns, and what is left out by kind."""
    if not left:
        return "LoRA reaches all weights of its blocks."
    return f"LoRA reaches {percent(share)} of the weights of its blocks; left out: {left_out(left)}."


def left_out(shares: Mapping[WeightKind, float]) -> str:
    """`dense feed-forward layers 20 %, routers 0.2 %`."""
    return ", ".join(f"{WORDS.get(kind, kind.replace('_', ' '))} {percent(share)}" for kind, share in shares.items())


def percent(share: float) -> str:
    """Two significant digits, and never 100 for less than everything."""
    if 0.9999 <= share < 1:
        return "over 99.99 %"
    if 0.995 <= share < 1:
        return f"{100 * share:.2f} %"
    if 0 < share < 0.0001:
        return "below 0.01 %"
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"
