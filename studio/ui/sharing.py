"""How a training and the engine share the machine now, in one sentence under "Who answers"."""

from __future__ import annotations

from studio.records import StatusStrip
from studio.ui import words


def sentence(strip: StatusStrip) -> str:
    """ "" while nothing trains; else who holds what, until when, and what that means for answers."""
    lease, loaded = strip.engine.yielded, strip.engine.loaded
    if lease is None:
        return ""
    trains = f"{lease.job} trains"
    eta_s = next((job.progress.eta_s for job in strip.running if job.name == lease.job), None)
    if left := words.left(eta_s):
        trains += f" ({left})"
    on_gpu = strip.device_kind != "cpu"
    if loaded and on_gpu and loaded.device == "cpu":
        where = trains.replace(" trains", " trains on the GPU", 1)
        return f"{where}, and what is left there is too little: answers come from the CPU, slower."
    both = f"{words.size(lease.keep_bytes)} are set aside for it, {words.size(lease.room_bytes)} are left for the engine"
    if loaded or not lease.gave_way:
        cost = "Both use the same GPU." if on_gpu else "Both use the same processor, so each is slower."
        return f"{trains}, and both fit: {both}. {cost}"
    return f"{trains}, and the engine gave way: {both}. A model that fits there answers; others wait for the end."
