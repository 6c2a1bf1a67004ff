"""How a training and the engine share the machine, as a person reads it."""

from __future__ import annotations

import pytest

from studio.records import EngineStatus, Job, LoadedModel, MemoryLease, StatusStrip
from studio.ui import sharing
from tests import job_records

GIB = 1024**3
LOADED = LoadedModel(base="starter", quantization="", device="cpu", adapters=[], bytes=1, adapter_bytes=0, adapter_budget_bytes=0)


def strip(device: str, loaded: LoadedModel | None, gave_way: bool, eta_s: float | None = 120) -> StatusStrip:
    lease = MemoryLease(job="night", room_bytes=3 * GIB, keep_bytes=GIB, gave_way=gave_way)
    running = [job_records.job(name="night", progress=job_records.progress(eta_s=eta_s))]
    return strip_of(device, running, EngineStatus(loaded=loaded, yielded=lease))


def strip_of(device: str, running: list[Job], engine: EngineStatus) -> StatusStrip:
    return StatusStrip(
        device="Device", device_kind=device, memory="1 of 2 GiB", memory_bytes=2 * GIB, used_bytes=GIB,
        running=running, queued=0, paused=False, queue_eta_s=None, engine=engine,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (
            strip("cpu", LOADED, False),
            "night trains (2 min left), and both fit: 1.0 GiB are set aside for it, 3.0 GiB are left for the engine",
        ),
        (strip("cpu", None, False, None), "night trains, and both fit"),
        (strip("cpu", None, True), "the engine gave way: 1.0 GiB are set aside"),
        (strip("cuda", LOADED.model_copy(update={"device": "cuda"}), False), "Both use the same GPU"),
        (strip("cuda", LOADED, True), "answers come from the CPU, slower"),
    ],
)
def test_the_policy_names_the_job_and_what_it_means(reading: StatusStrip, said: str) -> None:
    assert said in sharing.sentence(reading)


def test_without_a_training_there_is_nothing_to_say() -> None:
    assert sharing.sentence(strip_of("cpu", [], EngineStatus(loaded=LOADED))) == ""
    assert sharing.sentence(strip_of("cpu", [], EngineStatus(ok=False))) == ""
