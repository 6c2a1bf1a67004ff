"""The machine is described without torch, and its threads are shared so that nobody starves."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio.catalogue import hardware


@pytest.mark.parametrize(("cores", "trainer", "engine"), [(1, 1, 1), (2, 1, 1), (4, 3, 2), (16, 15, 8)])
def test_trainer_and_engine_leave_each_other_room(monkeypatch: pytest.MonkeyPatch, cores: int, trainer: int, engine: int) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    assert (hardware.thread_budget("trainer"), hardware.thread_budget("engine")) == (trainer, engine)


def test_a_container_limits_memory_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "memory.current").write_text("805306368\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 268435456\n")
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.memory() == hardware.Memory(1024**3, 512 * 1024**2)
    assert hardware.cores() == 1


def test_there_is_always_a_device_with_a_name_and_memory() -> None:
    device = hardware.devices()[0]
    assert device.name and device.memory_bytes > device.used_bytes >= 0
