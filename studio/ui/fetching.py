"""A model that is fetched while the page shows how far it is."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from studio.records import BaseModel, Fetched
from studio.services.models import HUB, ModelService
from studio.ui import pieces


def fetched(models: ModelService, repository: str) -> Iterator[Fetched | BaseModel]:
    """How far the download is, again and again, and the model in the end. Raises what adding it raises.

    It goes on where nobody looks any more: who comes back finds the model in the list.
    """
    steps: queue.Queue[Fetched | BaseModel | Exception] = queue.Queue()

    def add() -> None:
        try:
            steps.put(models.add(f"{HUB}{repository}", progress=steps.put))
        except Exception as exc:  # noqa: BLE001 - raised again where the page waits
            steps.put(exc)

    threading.Thread(target=add, name=f"fetch {repository}", daemon=True).start()
    while True:
        step = steps.get()
        while isinstance(step, Fetched) and not steps.empty():
            step = steps.get()
        if isinstance(step, Exception):
            raise step
        yield step
        if isinstance(step, BaseModel):
            return


def progress(repository: str, now: Fetched) -> str:
    """The notice meanwhile."""
    return pieces.piece("fetching", repository=repository, done=now.done, total=now.total)
