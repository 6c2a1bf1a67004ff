"""Processes of the studio that hold a model for answers or compression, each in a file of its own: whoever plans memory reads whom it can count on.

Knows no torch. A file counts as long as the process that wrote it lives.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from studio import processes


class HolderKind(StrEnum):
    """What a model is held for."""

    ENGINE = "engine"  # answers; it is asked to give way
    COMPRESSOR = "compressor"  # it gives way by itself


@dataclass(frozen=True)
class ModelHolder:
    """`name` for people; `device` is cuda or cpu; `owner` as studio.processes writes it."""

    kind: HolderKind
    name: str
    bytes: int
    device: str
    owner: str

    @property
    def pid(self) -> int:
        return int(self.owner.split(":")[2])


def note(folder: Path, kind: HolderKind, name: str, size: int, device: str) -> None:
    """This process holds `size` bytes on `device` from now on; of earlier notes the last counts."""
    with contextlib.suppress(OSError):  # a full disk must not cost an answer
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(ModelHolder(kind, name, size, device, processes.owner_id())))
        (folder / f"{os.getpid()}.json").write_text(text, encoding="utf-8")


def alive(folder: Path) -> list[ModelHolder]:
    """Who holds memory now; the files of processes that have ended are deleted."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            holder = ModelHolder(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue  # being written, or no file of ours
        if processes.is_gone(holder.owner) or not holder.bytes:
            file.unlink(missing_ok=True)
        else:
            found.append(holder)
    return found
