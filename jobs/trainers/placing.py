"""Where a training computes: on the GPU, or on the processor where that was chosen or no GPU is here. Never there without a word."""

from __future__ import annotations

from jobs.config import JobConfig
from jobs.trainers.events import EventLog
from studio.catalogue import hardware, nvml, torch_view
from studio.errors import ModelError


def device_of(config: JobConfig, log: EventLog) -> str:
    """cuda or cpu. Raises ModelError where a GPU is here and this torch can't use it, unless the job asks for the processor."""
    if config.device == "cpu":
        if names := [card.name for card in nvml.read().cards]:
            log.notice(f"device=cpu: this job computes on the processor and leaves {' and '.join(dict.fromkeys(names))} unused.")
        return "cpu"
    view = torch_view.look()
    found = hardware.look(view)
    if found.refusal is not None:
        raise ModelError(found.refusal.problem, found.refusal.fix, remedy={"device": "cpu"})
    if view.is_available:
        return "cuda"
    if config.device == "cuda":
        raise ModelError("device=cuda, but torch sees no GPU here.", "Set device to auto or cpu, or install torch for this machine's GPU.")
    for note in found.notes:
        log.notice(f"{note}. This job computes on the processor.")
    return "cpu"
