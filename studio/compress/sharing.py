"""How a compressor shares the device with a training: it loads only what the training leaves, and ends where it has to give way.

Knows no torch.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from studio.catalogue.models import count_parameters
from studio.engine import holders
from studio.engine.holders import HolderKind
from studio.engine.leases import LeaseBook
from studio.errors import StudioError

LOOK_S = 0.5
NUMBER_BYTES = {"float32": 4}  # any other format takes 2
GIB = 1024**3


class SharedMemory:
    """What this process may take, and what it says that it holds. `in_use` is held while a text is compressed."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._leases = LeaseBook(cache)
        self._loaded_at: float | None = None
        self.in_use = threading.Lock()

    def check(self, folder: Path, dtype: str, held: int) -> None:
        """Raises StudioError where this compressor does not fit beside the training that runs. `held`: bytes of those that are loaded."""
        lease, room = self._leases.now(), self._leases.room_bytes()
        needed = count_parameters(folder) * NUMBER_BYTES.get(dtype, 2)
        if lease is not None and room is not None and held + needed > room:
            raise StudioError(
                f"The compressor {folder.name} needs {needed / GIB:.1f} GiB, and {lease.job} has left {max(0, room - held) / GIB:.1f} GiB.",
                "Compress when that job has ended, choose a smaller compressor, or pause the job.",
                job=lease.job,
            )

    def note(self, name: str, size: int, device: str) -> None:
        """Say what this process holds now."""
        self._loaded_at = time.time()
        holders.note(self._cache / "holders", HolderKind.COMPRESSOR, f"the compressor {name}", size, device)

    def watch(self) -> None:
        """From now on, end this process where a training needs the memory; a text that is being compressed is finished before."""
        threading.Thread(target=self._watch, name="sharing", daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_S)
            lease = self._leases.now()
            if lease is not None and lease.gave_way and self._loaded_at is not None and self._loaded_at < lease.begun:
                with self.in_use:
                    os._exit(0)  # whoever asks next starts another
