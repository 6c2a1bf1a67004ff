"""What a light job may ask for: a job that runs inside the light worker and only talks to the engine.

Knows nothing of how the worker claims it, or of any one kind of light job.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from studio.db.session import Database
from studio.settings import Settings


class LightJobStopped(Exception):
    """The job was asked to end; what it has written so far stays."""


@dataclass(frozen=True)
class LightContext:
    """One attempt of a light job. `stop_requested` becomes true on cancel and when the worker ends."""

    settings: Settings
    db: Database
    job_id: str
    attempt: int
    config: dict[str, Any]
    stop_requested: Callable[[], bool]
    progress: Callable[[int, int], None]  # (step, max_steps)

    def stop_if_asked(self) -> None:
        """Raises LightJobStopped once the job shall end."""
        if self.stop_requested():
            raise LightJobStopped
