"""Where a job computes: one place for each GPU and one for the processor, and the GPU that holds the job."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest

from jobs import slots
from jobs.slots import PROCESSOR, Slot
from studio.catalogue import hardware
from studio.catalogue.cards import Device, GpuProblem
from studio.engine import card

GIB = 1024**3
CPU = Device("cpu", "CPU", 32 * GIB, 0)


def gpu(name: str, gib: int, used: int = 0) -> Device:
    return Device("cuda", name, gib * GIB, used * GIB, selector=f"GPU-{name}")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(*gpus: Device, problem: GpuProblem | None = None) -> list[Slot]:
        monkeypatch.setattr(hardware, "devices", lambda: list(gpus) or [CPU])
        monkeypatch.setattr(hardware, "usable", lambda: [one for one in gpus if one.is_usable] or [CPU])
        monkeypatch.setattr(hardware, "refusal", lambda: problem)
        monkeypatch.setattr(hardware, "cores", lambda: 9)
        return slots.slots()

    return make


def names(found: list[Slot]) -> list[tuple[str, str | None]]:
    return [(slot.name, slot.visible) for slot in found]


def test_each_gpu_is_a_place_and_the_processor_is_one(machine: Any) -> None:
    # red when two jobs share a card, or a job on the processor sees one
    found = machine(gpu("a", 24), gpu("b", 8))
    assert names(found) == [("device:GPU-a", "GPU-a"), ("device:GPU-b", "GPU-b"), (PROCESSOR, "")]
    assert [slots.threads(slot) for slot in found] == [4, 4, 8]
    assert names(machine()) == [(PROCESSOR, "")]
    assert [slots.threads(slot) for slot in machine(gpu("a", 24))] == [8, 8]


def test_a_trainer_sees_the_gpu_that_it_is_to_name_in_its_refusal(machine: Any) -> None:
    found = machine(problem=GpuProblem("Too old.", "Update."))
    assert names(found) == [(PROCESSOR, None)]
    for kind, device, visible in (("train", "auto", None), ("train", "cpu", ""), ("export", "auto", "")):
        slot = slots.place(kind, {"device": device}, found, ())
        assert slot and slot.visible == visible


@pytest.mark.parametrize(
    ("needed", "busy", "device", "wanted"),
    [
        (1, (), "auto", "GPU-b"),  # more of it is free
        (1, ("GPU-b",), "auto", "GPU-a"),
        (9, (), "auto", "GPU-a"),
        (9, ("GPU-a",), "auto", None),  # it waits for the card that holds it
        (99, ("GPU-b",), "auto", "GPU-a"),  # none does: the largest
        (99, ("GPU-a",), "auto", None),
        (1, (), "cpu", "0"),
        (1, ("0",), "cpu", None),
        (1, ("GPU-a", "GPU-b"), "cuda", None),
    ],
)
def test_a_job_goes_to_the_freest_card_that_holds_it(
    machine: Any, monkeypatch: pytest.MonkeyPatch, needed: int, busy: tuple[str, ...], device: str, wanted: str | None
) -> None:
    found = machine(gpu("a", 24, used=20), gpu("b", 8))
    monkeypatch.setattr(slots, "predicted", lambda kind, config: needed * GIB)
    slot = slots.place("train", {"device": device}, found, {f"device:{name}" for name in busy})
    assert (slot and slot.name) == (wanted and f"device:{wanted}")


def test_alike_cards_need_no_prediction(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine(gpu("a", 24, used=1), gpu("b", 24))
    monkeypatch.setattr(slots, "predicted", lambda kind, config: pytest.fail("nobody needs to know"))
    assert slots.place("train", {}, found, ()) == found[1]
    assert slots.place("export", {"device": "cpu"}, found, {found[1].name}) == found[0]
    assert slots.place("train", {}, found, {found[0].name, found[1].name}) is None


def test_what_can_not_be_predicted_goes_anywhere() -> None:
    assert slots.predicted("train", {"base_model": "gone", "model_name_or_path": "/nowhere"}) == 0
    assert slots.predicted("export", {}) == 0


def test_the_engine_takes_the_freest_of_several_cards(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "as it was")
    monkeypatch.setattr(hardware, "_gpus", (0.0, hardware.Gpus()))
    for cards in ((), (gpu("a", 24),)):
        machine(*cards)
        card.take_freest()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "as it was"
    machine(gpu("a", 24, used=20), gpu("b", 8))
    card.take_freest()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-b" and hardware._gpus[0] == float("-inf")
    old = replace(gpu("old", 11), problem="It has no code for this card.")
    machine(gpu("a", 24, used=20), old)
    card.take_freest()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a"
    machine(old)
    card.take_freest()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
