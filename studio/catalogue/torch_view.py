"""What PyTorch sees of this machine's GPUs. Asked of a child: `python -m studio.catalogue.torch_view` prints it as JSON.

The answer is kept by all that it depends on. A trainer, which has torch anyway, looks by itself (`look`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import filelock

from studio import lifeline, processes
from studio.errors import one_line
from studio.records.base import Record

PATIENCE_S = 120.0  # a first import of torch from a slow disk
RETRY_S = 300.0  # a refusal may have a cause that goes away: a driver that is loaded late
MOST_ANSWER = 1024**2
VERSION = 1  # of what is asked
VARIABLES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "PYTHONPATH")


class TorchDevice(Record):
    """A GPU as torch sees it."""

    name: str
    uuid: str = ""  # without GPU- or MIG-; empty where torch knows none
    capability: tuple[int, int] = (0, 0)
    total_bytes: int
    free_bytes: int | None = None  # only where it was asked for: asking takes memory of the device
    is_integrated: bool = False  # it shares its memory with the processor


class TorchView(Record):
    """`cuda` or `hip`: what this build computes with, both empty for a build without GPUs. `said`: its warnings and its error."""

    version: str
    cuda: str = ""
    hip: str = ""
    is_available: bool = False
    said: str = ""
    architectures: list[str] = []  # sm_86, compute_90 …
    devices: list[TorchDevice] = []
    digest: str = ""


def look(*, with_memory: bool = False) -> TorchView:
    """Of this process, which imports torch for it. `with_memory`: also how much is free on each device."""
    import torch

    devices: list[TorchDevice] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        is_available, error = torch.cuda.is_available(), ""
        try:
            torch.cuda.init()
            devices = [_device(torch.cuda, index, with_memory) for index in range(torch.cuda.device_count())]
        except Exception as exc:  # noqa: BLE001  the reason why this torch uses no GPU, whatever it is
            is_available, error = False, one_line(exc)
    said = [*dict.fromkeys(" ".join(str(one.message).split())[:600] for one in caught)]
    if not any(error.partition(": ")[2] in one for one in said):  # torch warns of what it then fails with
        said.append(error)
    return TorchView(
        version=torch.__version__,
        cuda=torch.version.cuda or "",
        hip=torch.version.hip or "",
        is_available=is_available and bool(devices),
        said=" ".join(filter(None, said)),
        architectures=list(torch.cuda.get_arch_list()),
        devices=devices,
    )


def _device(cuda: Any, index: int, with_memory: bool) -> TorchDevice:
    found = cuda.get_device_properties(index)
    free = None
    if with_memory:
        with contextlib.suppress(RuntimeError):  # a device that is full gives not even the room to ask
            free = int(cuda.mem_get_info(index)[0])
    return TorchDevice(
        name=found.name,
        uuid=plain_uuid(str(getattr(found, "uuid", ""))),
        capability=(found.major, found.minor),
        total_bytes=found.total_memory,
        free_bytes=free,
        is_integrated=bool(getattr(found, "is_integrated", False)),
    )


def plain_uuid(uuid: str) -> str:
    """As the driver and torch have in common: without its prefix, in small letters; empty for one of zeros."""
    found = uuid.lower().removeprefix("gpu-").removeprefix("mig-")
    if not found.strip("0-"):
        return ""
    return found


_views: dict[str, tuple[float, TorchView | None]] = {}
_places: list[Path] = []  # the studio's cache, once it is known
_lock = threading.Lock()


def keep_in(cache: Path) -> None:
    """Keep what this process finds in the studio's cache, and look there first."""
    _places[:] = [cache]


def ask(driver: str, torch: str, *, with_memory: bool = False) -> TorchView | None:
    """The view of a child, by the versions of `driver` and `torch` and the variables that choose devices. None where it was killed.

    A view whose reason may go away without another version is asked for again after RETRY_S.
    """
    chosen = [os.environ.get(name) for name in VARIABLES]
    digest = hashlib.sha256(json.dumps([VERSION, driver, torch, sys.prefix, with_memory, chosen]).encode()).hexdigest()
    with _lock:
        asked, view = _views.get(digest, (float("-inf"), None))
        if _is_fresh(view, time.monotonic() - asked):
            return view
        view = _kept_or_asked(digest, with_memory)
        _views[digest] = (time.monotonic(), view)
    return view


def _is_fresh(view: TorchView | None, age_s: float) -> bool:
    if view is None:
        return age_s < RETRY_S
    is_for_processors = not (view.cuda or view.hip)
    return age_s < RETRY_S or view.is_available or is_for_processors or "too old" in view.said


def _kept_or_asked(digest: str, with_memory: bool) -> TorchView | None:
    """From the file, else of a child: of one at a time, as every process of a studio wants to know at its start."""
    if not _places:
        return _ask_child(digest, with_memory)
    file = _places[0] / f"torch-{digest[:16]}.json"
    lock = filelock.FileLock(_places[0] / "torch.lock", mode=0o600)
    with contextlib.suppress(OSError, filelock.Timeout), lock.acquire(timeout=PATIENCE_S):
        if (view := _read(file, digest)) is not None:
            return view
        view = _ask_child(digest, with_memory)
        _write(file, view)
        return view
    return _ask_child(digest, with_memory)


def _ask_child(digest: str, with_memory: bool) -> TorchView | None:
    arguments = ["--memory"] * with_memory
    printed = processes.output_of(
        processes.module_command("studio.catalogue.torch_view", *arguments),
        {**processes.child_environment(), "OMP_NUM_THREADS": "1"},
        PATIENCE_S,
        MOST_ANSWER,
    )
    try:
        return TorchView.model_validate_json(printed.splitlines()[-1]).model_copy(update={"digest": digest})
    except (ValueError, IndexError):
        return None


def _read(file: Path, digest: str) -> TorchView | None:
    try:
        view = TorchView.model_validate_json(file.read_bytes())
        age_s = time.time() - file.stat().st_mtime
    except (OSError, ValueError):
        return None  # it is made again
    if view.digest != digest or not _is_fresh(view, max(0.0, age_s)):
        return None
    if age_s > RETRY_S and any(one.free_bytes is not None for one in view.devices):
        return None  # what was free then says nothing about now
    return view


def _write(file: Path, view: TorchView | None) -> None:
    """Whole or not at all; without it, the next process asks again."""
    if view is None:
        return
    with contextlib.suppress(OSError):
        number, part = tempfile.mkstemp(dir=file.parent, prefix=".torch-")
        try:
            with os.fdopen(number, "w", encoding="utf-8") as text:
                text.write(view.model_dump_json())
            os.replace(part, file)
        except OSError:
            os.unlink(part)


def main() -> None:
    lifeline.end_with_parent()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print; the pipe carries the answer only
    print(look(with_memory="--memory" in sys.argv[1:]).model_dump_json(), file=out, flush=True)


if __name__ == "__main__":
    main()
