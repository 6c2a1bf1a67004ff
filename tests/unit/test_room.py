"""What a training may take of a device, who holds the rest, and what is promised to whom: with a device whose figures the test says."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from studio.catalogue import hardware, memory, nvml
from studio.catalogue.cards import Device
from studio.catalogue.nvml import CardProcess
from studio.db.models import JobRow
from studio.engine import holders, leases
from studio.engine.holders import HolderKind, ModelHolder
from studio.engine.leases import Lease, LeaseBook
from studio.records import MemoryHolder
from studio.services import Studio, room, system
from studio.services.room import RESERVE_BYTES, Room

MIB, GIB = 1024**2, 1024**3
CARD = Device("cuda", "RTX 3090", 24 * GIB, 6 * GIB, selector="GPU-0")
OTHER = replace(CARD, selector="GPU-1", used_bytes=20 * GIB)
CPU = Device("cpu", "CPU", 16 * GIB, 4 * GIB)


def on(monkeypatch: pytest.MonkeyPatch, *devices: Device, processes: Sequence[CardProcess] = (), held: Sequence[ModelHolder] = ()) -> None:
    monkeypatch.setattr(hardware, "devices", lambda: list(devices))
    monkeypatch.setattr(hardware, "usable", lambda: list(devices))
    monkeypatch.setattr(hardware, "memory", lambda: hardware.Memory(16 * GIB, 4 * GIB))
    monkeypatch.setattr(nvml, "holders", lambda selector: list(processes))
    monkeypatch.setattr(holders, "alive", lambda folder: list(held))


def holder(name: str, size: int, device: str, pid: int = 1) -> ModelHolder:
    return ModelHolder(HolderKind.ENGINE, name, size, device, f"host:boot:{pid}:0")


def training(name: str, pid: int | None, device: str | None = None, **more: Any) -> JobRow:
    config: dict[str, Any] = {}
    if device is not None:
        config["device"] = device
    return JobRow(**{"kind": "train", "status": "RUNNING", "name": name, "pid": pid, "config": config, **more})


def rows(studio: Studio, *jobs: JobRow) -> Room:
    with studio.db.write() as session:
        session.add_all(jobs)
    return Room(studio.settings, studio.db)


def test_memory_of_a_gpu_and_who_holds_it(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [
        CardProcess(10, "python", 2 * GIB, is_ours=True),
        CardProcess(20, "game", GIB),
        CardProcess(30, "", MIB),
        CardProcess(40, "x", None),
    ]
    on(monkeypatch, CARD, processes=seen, held=[holder("small", MIB, "cuda"), holder("large", GIB, "cuda"), holder("other", GIB, "cpu")])
    found = rows(
        studio,
        training("auto", 10),
        training("none", None),
        training("unseen", 99),
        training("processor", 10, "cpu"),
        training("export", 10, kind="export"),
        training("waits", 10, status="QUEUED"),
    ).available("cuda")
    beside = memory.CUDA_CONTEXT
    held = [
        ("large", GIB + beside, True),
        ("small", MIB + beside, True),
        ("the job auto", 2 * GIB, True),
        ("game (PID 20)", GIB, False),
        ("a program outside this container (PID 30)", MIB, False),
    ]
    assert found is not None
    assert [(one.name, one.bytes, one.is_given_back) for one in found.holders[:-1]] == held
    rest = 6 * GIB - sum(size for _, size, _ in held)
    assert found.holders[-1] == MemoryHolder(name="other programs and the driver", bytes=rest, is_given_back=False)
    returned = 3 * GIB + MIB + 2 * beside
    assert (found.free_bytes, found.returned_bytes) == (18 * GIB, returned)
    assert (found.reserve_bytes, found.available_bytes) == (224 * MIB, 18 * GIB + returned - 224 * MIB)


def test_memory_of_the_processor_and_of_a_gpu_that_is_not_here(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, CPU, processes=[CardProcess(20, "game", GIB)], held=[holder("one", GIB, "cpu"), holder("elsewhere", GIB, "cuda")])
    own = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=3 * MIB))
    monkeypatch.setattr(room.psutil, "Process", lambda pid: {7: own}[pid])
    found = rows(studio, training("job", 7, "cpu"), training("gpu", 7, "cuda")).available("cpu")
    assert found is not None
    assert [(one.name, one.bytes) for one in found.holders] == [
        ("one", GIB),
        ("the job job", 3 * MIB),
        ("other programs and the system", 3 * GIB - 3 * MIB),
    ]
    assert Room(studio.settings, studio.db).available("cuda") is None


def test_a_job_that_is_gone_or_that_nobody_measures_holds_what_it_was_promised(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Room(studio.settings, studio.db)
    on(monkeypatch, CARD, processes=[CardProcess(10, "python", None, is_ours=True), CardProcess(11, "python", 0)])
    assert made._bytes_of_job("job", 10, "cuda") == 0
    made._leases.begin("job", 5 * GIB)
    assert [made._bytes_of_job(*one, "cuda") for one in (("job", 10), ("job", 11), ("job", 12), ("other", 10))] == [5 * GIB] * 3 + [0]
    assert made._bytes_of_job("job", 2**22 + 1, "cpu") == 0  # a PID beyond Linux' largest


def test_what_is_given_back_counts_less_the_reserve_and_is_never_negative() -> None:
    held = [MemoryHolder(name="a", bytes=300 * MIB, is_given_back=True), MemoryHolder(name="b", bytes=GIB, is_given_back=False)]
    assert (room.counted(MIB).available_bytes, room.counted(MIB, held).available_bytes) == (0, 77 * MIB)
    assert room.counted(RESERVE_BYTES + 1).available_bytes == 1


def test_a_promise_lasts_ten_minutes_unless_it_is_renewed(studio: Studio, monkeypatch: pytest.MonkeyPatch, clock: Any) -> None:
    on(monkeypatch, CARD, held=[holder("one", GIB, "cuda", os.getpid()), holder("two", 2 * GIB, "cuda", 4), holder("cpu", GIB, "cpu", 4)])
    book = LeaseBook(studio.settings.cache)
    assert (book.now(), book.room_bytes(), LeaseBook(None).holders()) == (None, None, [])
    lease = book.begin("job", 10 * GIB, gave_way=True)
    assert (lease.free_bytes, lease.room_bytes, lease.gave_way, lease.begun) == (21 * GIB, 11 * GIB, True, clock.now)
    assert lease.record().model_dump() == {"job": "job", "room_bytes": 11 * GIB, "keep_bytes": 10 * GIB, "gave_way": True}
    assert book.room_bytes() == 9 * GIB, "beside the models of other processes"
    begun, clock.now = clock.now, clock.now + 600
    assert book.now() == lease
    book.renew("job", 1)
    clock.now += 600
    assert book.now() == replace(lease, expires=begun + 1200), "a renewal changes nothing else"
    clock.now += 1
    assert book.now() is None
    book.renew("new", 20 * GIB)
    assert (book.now(), book.room_bytes()) == (Lease("new", 20 * GIB, 21 * GIB, clock.now + 600, begun=clock.now), 0)
    book.end("new")
    book.end("unknown")
    assert book.now() is None


def test_the_promise_that_leaves_least_counts_and_none_of_another_device(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, CARD, OTHER)
    book = LeaseBook(studio.settings.cache)
    book.begin("a", GIB)
    least = book.begin("b", 3 * GIB)
    assert book.now() == least
    assert book.begin("elsewhere", 2 * GIB, device="GPU-1").free_bytes == 4 * GIB
    assert book.now() == least, "that one leaves less, on another card"
    assert book.begin("elsewhere", GIB).device == "GPU-1", "as it was promised before"
    here = book.begin("here", 4 * GIB, device="GPU-0")
    assert book.now() == here
    assert (leases.free_bytes(), leases.free_bytes("GPU-1"), leases.free_bytes("unknown")) == (18 * GIB, 4 * GIB, 18 * GIB)
    on(monkeypatch, CPU)
    assert leases.free_bytes() == 12 * GIB


def test_a_promise_on_a_disk_that_refuses_is_kept_in_memory(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, CARD)
    studio.settings.cache.mkdir(exist_ok=True)
    (studio.settings.cache / "leases").write_text("no folder")
    book = LeaseBook(studio.settings.cache)
    lease = book.begin("job", GIB)
    assert book.now() == lease and LeaseBook(studio.settings.cache).now() is None
    book.end("job")
    assert book.now() is None


def test_a_file_that_is_no_promise_is_passed_over(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, CARD)
    book = LeaseBook(studio.settings.cache)
    lease = book.begin("a/b", GIB)
    folder = studio.settings.cache / "leases"
    for name, text in (("0", "{"), ("1", '{"unknown": 1}'), ("2", "[]")):
        (folder / f"{name}.json").write_text(text)
    assert book.now() == lease and (folder / "a%2Fb.json").is_file()


@pytest.mark.parametrize(
    ("device", "processes", "said"),
    [
        (replace(CARD, used_bytes=24 * GIB - system.LOW_GPU_BYTES), [], ""),
        (replace(CARD, used_bytes=23 * GIB + 512 * MIB), [], "Only 512 MiB of RTX 3090 are free: another program holds the rest"),
        (replace(CARD, used_bytes=24 * GIB, is_shared=True), [], ""),
        (replace(CPU, used_bytes=16 * GIB), [], ""),
        (replace(CARD, used_bytes=24 * GIB), [CardProcess(1, "a", GIB), CardProcess(2, "b", GIB, is_ours=True)], ""),
        (
            replace(CARD, used_bytes=24 * GIB),
            [CardProcess(1, "a", GIB * 3 // 2), CardProcess(2, "", 0), CardProcess(3, "c", None), CardProcess(4, "d", 1)],
            "Only 0 B of RTX 3090 are free: a (PID 1, 1.5 GiB), a program outside this container (PID 2), c (PID 3) holds the rest",
        ),
    ],
)
def test_who_holds_a_gpu_that_is_nearly_full(
    monkeypatch: pytest.MonkeyPatch, device: Device, processes: list[CardProcess], said: str
) -> None:
    on(monkeypatch, device, processes=processes)
    assert system._taken(device) == said


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (MIB - 1, "1024 KiB"), (MIB, "1 MiB"), (GIB, "1.0 GiB"), (GIB * 1536, "1536.0 GiB")],
)
def test_a_size_in_words(size: int, said: str) -> None:
    assert system._text(size) == said
