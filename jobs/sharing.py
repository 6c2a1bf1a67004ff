"""How a training and the engine share a device: both stay where the prediction says they fit, else the engine gives way.

While the training runs the engine takes only what was left to it, answers on the CPU where that is a choice, and says whom it
waits for. Knows the engine as a client; an engine that is not there takes no memory.
"""

from __future__ import annotations

import logging

from studio.errors import StudioError
from studio.settings import Settings

MEMORY_SHARE = 0.7  # engine and training together may take this much of the device

logger = logging.getLogger(__name__)


def begin(settings: Settings, job: str, needed: int, total: int) -> None:
    """`needed`: bytes that the training is predicted to take of `total`."""
    from studio.engine.client import EngineClient

    client = EngineClient.from_settings(settings)
    try:
        loaded = client.status().loaded
        held = loaded.bytes if loaded else 0
        if needed + held <= MEMORY_SHARE * total:
            client.share(job, needed)
        else:
            client.yield_to(job, needed)
    except StudioError as exc:
        logger.info("The engine was not asked for its memory: %s", exc)
    finally:
        client.close()


def end(settings: Settings, job: str) -> None:
    """The training is over, however it ended."""
    from studio.engine.client import EngineClient

    client = EngineClient.from_settings(settings)
    try:
        client.resume(job)
    except StudioError as exc:
        logger.info("The engine was not told of the end of %s: %s", job, exc)
    finally:
        client.close()
