"""Which GPU the engine computes on, where there are several: chosen before anything imports torch, which then sees no other."""

from __future__ import annotations

import os

from studio.catalogue import hardware


def take_freest() -> None:
    """Take the GPU with the most free memory; trainings have theirs named by their worker. With one GPU or none nothing is to choose."""
    cards = [one for one in hardware.usable() if one.kind == "cuda"]
    if len(cards) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = max(cards, key=lambda one: one.free_bytes).selector
        hardware.forget()
