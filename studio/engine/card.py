"""Which GPU the engine computes on, where there are several: chosen before anything imports torch, which then sees no other."""

from __future__ import annotations

import os

from studio.catalogue import hardware


def take_freest() -> None:
    """Take the GPU with the most free memory; trainings have theirs named by their worker. With one GPU or none nothing is to choose.

    Where models can run on none of those that are here, torch shall see none: it would count some that it has no code for.
    """
    found = hardware.devices()
    usable = [one for one in found if one.kind == "cuda" and one.is_usable]
    if usable and len(found) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = max(usable, key=lambda one: one.free_bytes).selector
    elif not usable and found[0].kind == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    else:
        return
    hardware.forget()
