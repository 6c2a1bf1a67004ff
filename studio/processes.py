"""Who a process is and whether it still lives, across reboots, reused PIDs, zombies and clock jumps.

A PID alone lies: it is reused. So a process is (PID, birth), birth counted in clock ticks since boot where the kernel
says it (Linux), because a birth in wall-clock time moves when the clock is set. Knows nothing of jobs.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import psutil

PROC = Path("/proc")


# also where the token lies, and whether it is sent unasked
HUB_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN")
LOGGERS = ("AIM_", "CLEARML_", "COMET_", "DATABRICKS_", "DVC", "MLFLOW_", "NEPTUNE_", "SWANLAB_", "TRACKIO_", "WANDB_")  # of report_to
SECRET_NAME = re.compile(r"(?:TOKEN|KEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL)S?(?:_|$)|_(?:PASS|PAT|PWD)(?:_|$)", re.I)
NAMED_OTHERWISE = ("STUDIO_DB_URL", "STUDIO_USERS")
PASSWORD_IN_URL = re.compile(r"://[^/\s@]*:[^/\s@]+@")


def is_secret(name: str, value: str) -> bool:
    """Whether a variable of the environment holds a secret, as its name says (MY_API_KEY) or its value (a URL with a password).

    Judged by form and not by a list: a person may keep other programs' secrets there too. A proxy is the way out, which all need.
    """
    if name in NAMED_OTHERWISE or SECRET_NAME.search(name):
        return True
    return not name.upper().endswith("PROXY") and PASSWORD_IN_URL.search(value) is not None


def child_environment(*, for_hub: bool = False, for_loggers: bool = False) -> dict[str, str]:
    """Our environment variables without secrets: a child works on local files and needs none, and what it prints ends in a log.

    `for_hub`: for a child that talks to the hub and needs the hub's token. `for_loggers`: for a training, which may have been told to
    report to a service that asks for a key.
    """
    needed = HUB_TOKENS if for_hub else ()
    return environment_with(needed, for_loggers=for_loggers)


def environment_with(needed: Collection[str], *, for_loggers: bool = False) -> dict[str, str]:
    """Our environment variables without secrets except those that are `needed`."""
    prefixes = LOGGERS if for_loggers else ()
    return {name: value for name, value in os.environ.items() if name in needed or name.startswith(prefixes) or not is_secret(name, value)}


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs one of our modules with this Python.

    `-P` keeps the current folder off the import path: a `gradio.py` that lies there must never run.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def output_of(command: Sequence[str], environment: Mapping[str, str], patience_s: float, most: int = 64 * 1024**2) -> str:
    """What a child prints until it ends; nothing where it prints more than `most` characters. What it writes to stderr is dropped.

    It is killed after `patience_s`, or when it has printed too much.
    Its stdin stays open until then: the end of it tells the child that we are gone.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=environment,
    ) as child:
        timer = threading.Timer(patience_s, child.kill)
        timer.start()
        try:
            assert child.stdout is not None
            printed = child.stdout.read(most + 1)
        finally:
            timer.cancel()
            child.kill()  # it has said everything, or too much
    if len(printed) > most:
        return ""
    return printed


def born(pid: int) -> float | None:
    """Birth of a living process; None when there is none, or only its zombie. Comparable on this boot only."""
    if (PROC / "self" / "stat").exists():
        try:
            # the name in parentheses may hold anything, so count from its end: state is field 3, starttime field 22
            line = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = line.rpartition(")")[2].split()
        if fields[0] in "ZX":
            return None
        return float(fields[19])
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.Error:
        return None


def is_alive(pid: int, birth: float) -> bool:
    """Whether this very process runs; a zombie and a later process with the same PID do not count."""
    return born(pid) == birth


def is_stopped(pid: int) -> bool:
    """Whether somebody has stopped this process (SIGSTOP, Ctrl-Z); one that a debugger holds does not count."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.Error:
        return False


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Changes with every boot of the machine."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(int(psutil.boot_time()))


def ancestors() -> set[int]:
    """The PIDs of the processes that started this one, directly or through others."""
    try:
        return {process.pid for process in psutil.Process().parents()}
    except psutil.Error:
        return set()


def owner_id(pid: int | None = None) -> str:
    """`host:boot:pid:birth` of a process of this machine, by default this one."""
    if pid is None:
        pid = os.getpid()
    return f"{socket.gethostname().replace(':', '_')}:{boot_id()}:{pid}:{born(pid)}"


def is_local(owner: str) -> bool:
    """Whether this is a process of this machine since its last boot, so that its PIDs mean something here."""
    return owner.split(":")[:2] == owner_id().split(":")[:2]


def is_gone(owner: str) -> bool:
    """True only when it is certain that the owner no longer runs: same machine and another boot, or no such process."""
    try:
        host, boot, pid, birth = owner.split(":")
        if host != socket.gethostname().replace(":", "_"):
            return False
        return boot != boot_id() or not is_alive(int(pid), float(birth))
    except ValueError:
        return True  # not an identity that any worker of ours writes


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the process group that `pid` leads, and to `pid` where there are no groups."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # it ended meanwhile


def kill_group(pid: int, birth: float) -> None:
    """SIGKILL the group of this very process, if it still runs."""
    if is_alive(pid, birth):
        signal_group(pid, getattr(signal, "SIGKILL", signal.SIGTERM))


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory: in this control group where it says so, else anywhere."""
    for path, key in _oom_counters():
        try:
            for line in path.read_text(encoding="ascii").splitlines():
                if line.split()[0] == key:
                    return int(line.split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return 0


def _oom_counters() -> list[tuple[Path, str]]:
    counters = []
    try:
        for line in (PROC / "self/cgroup").read_text(encoding="ascii").splitlines():
            _, controllers, group = line.split(":", 2)
            if not controllers:
                counters.append((Path("/sys/fs/cgroup") / group.lstrip("/") / "memory.events", "oom_kill"))
            elif "memory" in controllers.split(","):
                counters.append((Path("/sys/fs/cgroup/memory") / group.lstrip("/") / "memory.oom_control", "oom_kill"))
    except (OSError, ValueError):
        pass
    return [*counters, (PROC / "vmstat", "oom_kill")]
