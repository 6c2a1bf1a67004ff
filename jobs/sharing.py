"""How a training and the models of the studio share a device: all stay where the prediction says they fit, else the models give way.

While the training runs engine and compressors take only what was left to them, answers come from the CPU where that is a choice, and
say whom they wait for. What was promised lies in the studio's folder and is renewed as long as the job runs. Knows the engine as a
client; an engine that is not there takes no memory.
"""

from __future__ import annotations

import logging
import time

from studio.engine.holders import HolderKind
from studio.engine.leases import LeaseBook
from studio.errors import StudioError
from studio.settings import Settings

MEMORY_SHARE = 0.7  # models and training together may take this much of the device
COMPRESSORS_S = 20.0  # for a text that is being compressed to end
LOOK_S = 0.1

logger = logging.getLogger(__name__)


def begin(settings: Settings, job: str, needed: int, total: int, device: str = "") -> None:
    """`needed`: bytes that the training is predicted to take of `total` of `device`. Returns once what gives way has given way."""
    from studio.engine.client import EngineClient

    book = LeaseBook(settings.cache)
    held = sum(one.bytes for one in book.holders() if one.kind == HolderKind.COMPRESSOR)
    client = EngineClient.from_settings(settings)
    gives_way = needed + held > MEMORY_SHARE * total
    try:
        loaded = client.status().loaded
        held += loaded.bytes if loaded else 0
        gives_way = needed + held > MEMORY_SHARE * total
        book.begin(job, needed, gave_way=gives_way, device=device)  # before the engine is asked: one that starts now reads it
        if gives_way:
            client.yield_to(job, needed)
        else:
            client.share(job, needed)
    except StudioError as exc:
        book.begin(job, needed, gave_way=gives_way, device=device)
        logger.info("The engine was not asked for its memory: %s", exc)
    finally:
        client.close()
    if gives_way:
        _wait_for_compressors(book)


def renew(settings: Settings, job: str, needed: int) -> None:
    """The training still runs."""
    from studio.engine.client import EngineClient

    LeaseBook(settings.cache).renew(job, needed)
    client = EngineClient.from_settings(settings)  # an engine of another studio reads no promises of this one
    try:
        client.share(job, needed, renew=True)
    except StudioError as exc:
        logger.info("The engine was not told that %s goes on: %s", job, exc)
    finally:
        client.close()


def _wait_for_compressors(book: LeaseBook) -> None:
    deadline = time.monotonic() + COMPRESSORS_S
    while any(one.kind == HolderKind.COMPRESSOR for one in book.holders()) and time.monotonic() < deadline:
        time.sleep(LOOK_S)


def end(settings: Settings, job: str) -> None:
    """The training is over, however it ended."""
    from studio.engine.client import EngineClient

    LeaseBook(settings.cache).end(job)
    client = EngineClient.from_settings(settings)
    try:
        client.resume(job)
    except StudioError as exc:
        logger.info("The engine was not told of the end of %s: %s", job, exc)
    finally:
        client.close()
