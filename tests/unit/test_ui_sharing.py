"""How a training and the engine share the machine, as a person reads it."""

from __future__ import annotations

from typing import Any

import pytest

from studio.records import EngineStatus, LoadedModel, MemoryLease
from studio.ui import sharing
from tests import job_records

GIB = 1024**3
LOADED = LoadedModel(base="starter", quantization="", device="cpu", adapters=[], bytes=1, adapter_bytes=0, adapter_budget_bytes=0)


def strip(device: str, loaded: LoadedModel | None, gave_way: bool, eta_s: float | None = 120) -> dict[str, Any]:
    lease = MemoryLease(job="night", room_bytes=3 * GIB, keep_bytes=GIB, gave_way=gave_way)
    running = [job_records.job(name="night", progress=job_records.progress(eta_s=eta_s))]
    return {"device_kind": device, "running": running, "engine": EngineStatus(loaded=loaded, yielded=lease)}


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
def test_the_policy_names_the_job_and_what_it_means(reading: dict[str, Any], said: str) -> None:
    assert said in sharing.sentence(reading)


def test_without_a_training_there_is_nothing_to_say() -> None:
    assert sharing.sentence({"device_kind": "cpu", "running": [], "engine": EngineStatus(loaded=LOADED)}) == ""
    assert sharing.sentence({"device_kind": "cpu", "running": [], "engine": EngineStatus(ok=False)}) == ""
