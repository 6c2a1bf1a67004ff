"""Rows of hub datasets: fetched by a child process into JSON-lines files, and kept for a while between a look and `add`.

Knows neither formats nor the database.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from studio import processes
from studio.errors import DatasetError

PREFIX = "hub:"
NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")  # never a path
SILENCE_S = 120.0  # a hub that sends nothing for so long is given up
KEPT_S = 3600.0
ROWS = "rows.jsonl"


def is_hub(source: object) -> bool:
    return isinstance(source, str) and source.startswith(PREFIX)


def file_name(source: str) -> str:
    """What a file with these rows would be called."""
    return f"{source.removeprefix(PREFIX).partition(':')[0].rpartition('/')[2]}.jsonl"


class HubRows:
    """Fetches "hub:NAME[:config[:split]]"; raises DatasetError with the reason."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache

    @contextmanager
    def to_look_at(self, source: str) -> Iterator[Path]:
        """The rows, which stay for the next look and for `to_keep`."""
        self._forget_old()
        folder = self._folder(source)
        if not folder.is_dir():
            with self._fetched(source) as path:
                path.parent.replace(folder)
        yield folder / ROWS

    @contextmanager
    def to_keep(self, source: str) -> Iterator[Path]:
        """The rows as they were looked at, or fetched now; gone afterwards, unless they could not be kept as they are."""
        self._forget_old()
        folder = self._folder(source)
        if folder.is_dir():
            yield folder / ROWS
            shutil.rmtree(folder, ignore_errors=True)
        else:
            with self._fetched(source) as path:
                yield path

    def _folder(self, source: str) -> Path:
        return self._cache / f"hub-{hashlib.sha256(source.encode('utf-8', 'replace')).hexdigest()[:24]}"

    def _forget_old(self) -> None:
        for folder in self._cache.glob("hub-*"):
            if time.time() - folder.stat().st_mtime > KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _fetched(self, source: str) -> Iterator[Path]:
        name, config, split_name = [*source.removeprefix(PREFIX).split(":"), "", ""][:3]
        if not NAME.fullmatch(name):
            raise DatasetError(f"{source!r} names no hub dataset.", "Write hub:NAME, hub:NAME:CONFIG or hub:NAME:CONFIG:SPLIT.")
        with tempfile.TemporaryDirectory(dir=self._cache) as place:
            folder = Path(place) / "fetched"
            folder.mkdir()
            path = folder / ROWS
            with (Path(place) / "complaint").open("w+b") as complaint:
                command = processes.module_command("studio.datasets.hub", name, config, split_name, str(path))
                # in an empty folder: `datasets` would take a local folder of that name for the dataset
                child = subprocess.Popen(
                    command,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaint,
                    env=processes.child_environment(for_hub=True),
                )
                code = _watch(child, path)
                complaint.seek(0)
                lines = complaint.read().decode("utf-8", "replace").strip().splitlines()
            if code != 0:
                reason = "it sent nothing for two minutes" if code is None else (lines or ["no reason given"])[-1][:300]
                raise DatasetError(
                    f"{source} could not be read: {reason}.", "Check the name, the network and HF_TOKEN, or download the file and add that."
                )
            yield path


def _watch(child: subprocess.Popen[bytes], path: Path) -> int | None:
    """The child's exit code; None when it was ended because its file stopped growing."""
    size, changed = -1, time.monotonic()
    try:
        while True:
            try:
                return child.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                now = path.stat().st_size if path.exists() else 0
                if now != size:
                    size, changed = now, time.monotonic()
                elif time.monotonic() - changed > SILENCE_S:
                    return None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
