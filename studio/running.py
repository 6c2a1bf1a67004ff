"""The studio that runs in a STUDIO_HOME: where it answers, and whether its page does."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from studio import processes
from studio.records import Health
from studio.settings import Settings

FILE = "studio.json"
ANSWER_S = 2.0
MAX_ANSWER_BYTES = 65536


@dataclass(frozen=True)
class Running:
    """What `studio up` writes beside its lock, as studio.json."""

    pid: int
    born: float
    url: str
    engine_url: str
    engine_key: str
    started: float

    @property
    def is_alive(self) -> bool:
        return processes.is_alive(self.pid, self.born)


def running(settings: Settings) -> Running | None:
    """The studio that runs in this STUDIO_HOME, perhaps still starting; None when there is none."""
    return running_in(settings.home)


def running_in(home: Path) -> Running | None:
    """As `running`, for whoever knows the folder only."""
    try:
        found = Running(**json.loads((home / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    if not found.is_alive:
        return None
    return found


def announce(settings: Settings, found: Running) -> None:
    _write_private(_path(settings), asdict(found))


def withdraw(settings: Settings) -> None:
    _path(settings).unlink(missing_ok=True)


def was_killed(settings: Settings) -> bool:
    """Whether a studio was here that did not end by itself."""
    return _path(settings).exists()


def health(url: str) -> Health | None:
    """What /health of `url` says; None when nothing answers there, or something else than a studio."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=ANSWER_S)
    try:
        connection.request("GET", "/health")
        return Health.model_validate_json(connection.getresponse().read(MAX_ANSWER_BYTES))
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _path(settings: Settings) -> Path:
    return settings.home / FILE


def _write_private(path: Path, value: Mapping[str, object]) -> None:
    """Whole or not at all, readable by its owner only: it holds the engine's key."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file)
    part.replace(path)
