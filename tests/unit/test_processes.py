"""Who a process is: reused PIDs, zombies, reboots and other machines are told apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from jobs import executor
from studio import processes


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)


def test_a_living_process_is_alive_and_a_dead_one_is_not() -> None:
    child = sleeper()
    born = processes.born(child.pid)
    assert born is not None and processes.is_alive(child.pid, born)
    processes.kill_group(child.pid, born)
    child.wait()
    assert not processes.is_alive(child.pid, born)


def test_a_zombie_is_not_alive() -> None:
    child = sleeper()
    born = processes.born(child.pid)
    assert born is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    assert not processes.is_alive(child.pid, born)
    child.wait()


def test_a_later_process_with_the_same_pid_is_another_one() -> None:
    born = processes.born(os.getpid())
    assert born is not None
    assert not processes.is_alive(os.getpid(), born + 1)
    processes.kill_group(os.getpid(), born + 1)  # would end this test run


@pytest.mark.parametrize("change", ["pid", "boot", "birth", "nonsense"])
def test_an_owner_that_cannot_run_any_more_is_gone(change: str) -> None:
    host, boot, pid, birth = processes.owner_id().split(":")
    owner = {
        "pid": f"{host}:{boot}:{2**22 + 1}:{birth}",
        "boot": f"{host}:another-boot:{pid}:{birth}",
        "birth": f"{host}:{boot}:{pid}:1.0",
        "nonsense": "nobody",
    }[change]
    assert processes.is_gone(owner)


def test_an_owner_elsewhere_is_never_certainly_gone() -> None:
    assert not processes.is_gone(processes.owner_id())
    assert not processes.is_gone("another-machine:boot:1:1.0")
    assert processes.is_local(processes.owner_id()) and not processes.is_local("another-machine:boot:1:1.0")


def test_birth_does_not_move_with_time() -> None:
    child = sleeper()
    first = processes.born(child.pid)
    time.sleep(0.05)
    assert processes.born(child.pid) == first
    processes.signal_group(child.pid, signal.SIGKILL)
    child.wait()


def test_the_count_of_processes_killed_for_want_of_memory_is_a_number() -> None:
    assert processes.oom_kills() >= 0


def test_trainers_get_no_secret_of_the_studio(monkeypatch: pytest.MonkeyPatch) -> None:
    # red when a variable by which settings or a host hand over a secret is passed on to a process whose log people share
    secrets = [
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OAUTH_CLIENT_SECRET", "OPENAI_API_KEY", "STUDIO_API_KEYS", "STUDIO_DB_URL",
        "STUDIO_ENGINE_KEY", "STUDIO_TOKEN", "STUDIO_USERS",
    ]  # fmt: skip
    for name in secrets:
        monkeypatch.setenv(name, "treasure")
    monkeypatch.setenv("WANDB_API_KEY", "wanted by report_to=wandb")
    given = executor.trainer_environment(1)
    assert "treasure" not in given.values() and "WANDB_API_KEY" in given
    assert {name for name, value in processes.child_environment(for_hub=True).items() if value == "treasure"} == set(secrets[:2])
