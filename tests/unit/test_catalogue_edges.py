"""The machine, sums of adapters and fetching at their edges: what a container allows, how much room a model needs, what is kept."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from studio.catalogue import arithmetic, hardware, hub
from studio.catalogue.arithmetic import AdapterPart
from studio.errors import ModelError

GIB = 1024**3


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 GiB, 3 of them free, 8 cores; what limits it is written into the folder."""
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    monkeypatch.setattr(hardware.psutil, "virtual_memory", lambda: SimpleNamespace(total=8 * GIB, available=3 * GIB))
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, (8 * GIB, 5 * GIB)),
        ({"memory.max": "max", "memory.current": "1"}, (8 * GIB, 5 * GIB)),
        ({"memory.max": str(8 * GIB), "memory.current": "1"}, (8 * GIB, 5 * GIB)),
        ({"memory.max": str(8 * GIB - 1), "memory.current": "7"}, (8 * GIB - 1, 7)),
        ({"memory.max": "100"}, (100, 0)),
        ({"memory.max": "100", "memory.current": "150"}, (100, 100)),
        ({"memory.max": "100", "memory.current": "50", "memory.stat": "anon 9\ninactive_file 20\n"}, (100, 30)),
        ({"memory.max": "100", "memory.current": "50", "memory.stat": "inactive_file 70\n"}, (100, 0)),
        ({"memory.max": "100", "memory.current": "50", "memory.stat": "active_file 70\n"}, (100, 50)),
    ],
)
def test_memory_is_the_containers_where_that_is_less(container: Path, files: dict[str, str], memory: tuple[int, int]) -> None:
    for name, text in files.items():
        (container / name).write_text(text)
    found = hardware.memory()
    assert (found.total_bytes, found.used_bytes, found.free_bytes) == (*memory, memory[0] - memory[1])
    assert hardware.Memory(1, 5).free_bytes == 0


@pytest.mark.parametrize(
    ("quota", "cores"),
    [(None, 8), ("max 100000", 8), ("200000 100000", 2), ("250000 100000", 2), ("10000 100000", 1), ("990000 100000", 8), ("x", 8)],
)
def test_cores_are_those_of_the_quota(container: Path, quota: str | None, cores: int) -> None:
    if quota is not None:
        (container / "cpu.max").write_text(quota)
    assert hardware.cores() == cores
    device = hardware.processor()
    assert (device.kind, device.name, device.memory_bytes, device.used_bytes) == (
        "cpu",
        f"CPU, {cores} core{'s' * (cores > 1)}",
        8 * GIB,
        5 * GIB,
    )


def test_the_processor_says_how_large_its_numbers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(machine: str, text: str) -> int:
        monkeypatch.setattr(hardware.platform, "machine", lambda: machine)
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
        hardware.cpu_number_bytes.cache_clear()
        return hardware.cpu_number_bytes()

    found = [size("x86_64", text) for text in ("flags: avx2", "flags: avx512_bf16", "flags: amx_tile")] + [
        size(m, "") for m in ("arm64", "aarch64")
    ]
    hardware.cpu_number_bytes.cache_clear()
    assert found == [4, 2, 2, 2, 2]


def test_devices_are_asked_for_again_after_five_seconds(monkeypatch: pytest.MonkeyPatch, container: Path) -> None:
    now, asked = 1000.0, []
    monkeypatch.setattr(hardware.time, "monotonic", lambda: now)
    monkeypatch.setattr(hardware, "_gpus", (float("-inf"), hardware.Gpus()))
    gpus = [hardware.Device("cuda", "GPU", 10, 1)]
    monkeypatch.setattr(hardware, "look", lambda: asked.append(now) or hardware.Gpus(tuple(gpus)))
    assert hardware.devices() == gpus
    now += 5.0
    assert hardware.devices() == gpus and asked == [1000.0]
    now += 0.1
    gpus.clear()
    assert [device.kind for device in hardware.devices()] == ["cpu"] and asked == [1000.0, 1005.1]


def test_models_run_where_they_can(monkeypatch: pytest.MonkeyPatch, container: Path) -> None:
    # red when a card that torch rejects counts as a place for models, or is no longer shown
    rejected, good = hardware.Device("cuda", "old", 10, 1, problem="Too old.", fix="Update."), hardware.Device("cuda", "new", 9, 1)
    for cards, usable in (((good, rejected), ["new"]), ((rejected,), ["CPU, 8 cores"]), ((), ["CPU, 8 cores"])):
        monkeypatch.setattr(hardware, "gpus", lambda cards=cards: hardware.Gpus(cards))
        assert [one.name for one in hardware.usable()] == usable
        assert [one.name for one in hardware.devices()] == ([one.name for one in cards] or usable)


@pytest.mark.parametrize(("needed", "free", "fits"), [(100, 105, True), (100, 104, False), (1_000_000_000, 1_050_000_000, True)])
def test_a_model_needs_a_twentieth_more_room_than_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, free: int, fits: bool
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda place: usage(0, 0, free))
    if fits:
        hub._check_space("a/b", needed, tmp_path)
    else:
        with pytest.raises(ModelError, match=r"a/b needs 0.0 GB and .* has 0.0 GB free"):
            hub._check_space("a/b", needed, tmp_path)


def test_a_search_lists_twenty_models(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: dict[str, Any] = {}

    def list_models(self: Any, **options: Any) -> list[Any]:
        asked.update(options)
        return [SimpleNamespace(id="a/b", downloads=None, gated="auto"), SimpleNamespace(id="c/d", downloads=7, gated=False)]

    monkeypatch.setattr(huggingface_hub.HfApi, "list_models", list_models)
    found = [(one.repository, one.downloads, one.gated) for one in hub.search("lla")]
    assert found == [("a/b", 0, True), ("c/d", 7, False)]
    assert asked == {"search": "lla", "filter": "text-generation", "sort": "downloads", "limit": 20}


# sums of adapters


def part(down: Any, up: Any, scaling: float = 1.0) -> AdapterPart:
    a = np.asarray(down, np.float32)
    return AdapterPart({"layer": (a, np.asarray(up, np.float32))}, scaling, a.shape[0])


@pytest.mark.parametrize(
    ("density", "kept"),
    [(0.5, [0, 0, -3, 4]), (0.74, [0, 0, -3, 4]), (0.75, [0, 2, -3, 4]), (1.0, [1, 2, -3, 4]), (0.25, [0, 0, 0, 4]), (0.2, [0, 0, 0, 0])],
)
def test_the_share_of_largest_values_stays(density: float, kept: list[float]) -> None:
    assert arithmetic._largest(np.array([[1.0, 2.0], [-3.0, 4.0]], np.float32), density).reshape(-1).tolist() == kept


def test_ties_takes_the_weighted_mean_of_what_agrees() -> None:
    one, two = part([[4.0, -4.0]], [[2.0]], scaling=4.0), part([[1.0, 2.0]], [[6.0]])
    a, b = arithmetic.combine([one, two], [1.0, 3.0], "ties", 1.0)["layer"]
    # halves of the scaling: 8, -8 and 4; 8 + 3 agree, and -8 outweighs 6
    assert a.tolist() == [[(8 + 3) / 4, -8.0]] and b.tolist() == [[(4 + 18) / 4]]
    nothing, _ = arithmetic.combine([part([[0.0]], [[1.0]]), part([[0.0]], [[1.0]])], [0.0, 0.0], "ties", 1.0)["layer"]
    assert nothing.tolist() == [[0.0]]
    with pytest.raises(ModelError, match="no negative weights"):
        arithmetic.combine([one, two], [1.0, -0.1], "ties", 1.0)
    assert arithmetic.combine([one, two], [1.0, 0.0], "ties", 1.0)["layer"][1].tolist() == [[4.0]]


def test_sums_and_dare() -> None:
    one, two = part([[1.0, 2.0]], [[3.0]], scaling=2.0), part([[5.0, 6.0], [7.0, 8.0]], [[1.0, 10.0]])
    a, b = arithmetic.combine([one, two], [0.5, -1.0], "linear", 0.1)["layer"]
    assert a.tolist() == [[1, 2], [5, 6], [7, 8]] and b.tolist() == [[3, -1, -10]]
    wide = part(np.ones((10, 100)), np.ones((5, 10)))
    a, _ = arithmetic.combine([wide], [1.0], "dare", 0.25)["layer"]
    generator = np.random.default_rng(0)
    wanted = np.ones((10, 100), np.float32) * (generator.random((10, 100)) < 0.25) / np.float32(0.25)
    assert a.tolist() == wanted.tolist()


def test_numbers_of_a_file_become_32_bits() -> None:
    numbers = np.array([1.5, -2.0], np.float32)
    halves = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    found = [
        arithmetic._float32(kind, data).tolist()
        for kind, data in (
            ("BF16", halves),
            ("F32", numbers.tobytes()),
            ("F16", numbers.astype(np.float16).tobytes()),
            ("F64", numbers.astype(np.float64).tobytes()),
        )
    ]
    assert found == [[1.5, -2.0]] * 4
    with pytest.raises(ModelError, match="of type I8"):
        arithmetic._float32("I8", b"")
