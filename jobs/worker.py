"""A worker: `python -m jobs.worker --queue gpu|light`. Waits for notifications, supervises jobs, and reconciles every second.

Its threads only supervise: the work is done by child processes (training) or by the engine (light jobs). On SIGTERM, and
when the process that holds the other end of its stdin is gone, it has trainers write a checkpoint, gives the jobs back and
ends. Needs the settings and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from types import FrameType

from huey.consumer import Consumer

from jobs import queue, slots, tasks
from jobs.reconcile import Reconciler
from jobs.runner import Runner
from jobs.warm import ReadyTrainer
from studio import lifeline, privacy
from studio import settings as studio_settings
from studio.catalogue import probes, torch_view
from studio.db import migrations
from studio.db.session import database
from studio.errors import StudioError
from studio.records import QueueName
from studio.settings import Settings

LIGHT_THREADS = 4  # jobs at once that compute nothing here
LOOK_EVERY_S = 1.0
SHUTDOWN_S = 7.0  # the supervisor kills after eight
HEALTH_EVERY_LOOKS = 10

logger = logging.getLogger("jobs.worker")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.worker", description="Run queued jobs.")
    parser.add_argument(
        "--queue",
        choices=[name.value for name in QueueName],
        required=True,
        help="gpu: trainings, one per device; light: what only asks the engine",
    )
    parser.add_argument("--keep-none-ready", action="store_true", help="start every trainer cold; for a worker that lives for one command")
    arguments = parser.parse_args(argv)
    privacy.keep_private()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.getLogger("huey").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    lifeline.end_with_parent(grace_s=SHUTDOWN_S + 1)
    try:
        settings = studio_settings.load()
        settings.make_folders()
        probes.keep_in(settings.cache)
        torch_view.keep_in(settings.cache)
        name = QueueName(arguments.queue)
        serve(settings, name, keeps_ready=name == QueueName.GPU and not arguments.keep_none_ready)
    except (StudioError, ValueError) as exc:
        print(exc, file=sys.stderr, flush=True)
        return lifeline.EXIT_MUST_CHANGE
    return 0


def serve(settings: Settings, name: QueueName, keeps_ready: bool = False) -> None:
    """Work until SIGTERM, SIGINT or SIGHUP. Call it in the main thread. Raises StudioError when the database can't be used.

    `keeps_ready`: a trainer with its imports done waits for the next job.
    """
    ended: SimpleQueue[int] = SimpleQueue()
    listen(ended)
    db = database(settings.db_url, settings.sqlite_journal, settings.home)
    migrations.migrate(db)
    runner = Runner(settings, db, name)
    threads = LIGHT_THREADS
    if name == QueueName.GPU:
        threads = len(slots.slots())
    ready = ReadyTrainer(slots.threads(slots.slots()[0]), lambda: runner.next_slot().visible)
    if keeps_ready:
        runner.warm = ready
    huey = queue.open_or_replace(settings.queue_path, name)
    tasks.register(huey, runner)
    consumer = Consumer(
        huey,
        workers=threads,
        periodic=False,
        initial_delay=0.05,
        max_delay=0.5,
        check_worker_health=True,
        shutdown_timeout=SHUTDOWN_S,
    )
    reconciler = Reconciler(
        runner,
        notify=lambda: queue.notify(settings.queue_path, name),
        free_threads=lambda: threads - len(runner.active) - huey.pending_count(),
    )
    consumer.start()
    listen(ended)  # huey has installed its own
    logger.info("Worker %s of %s is ready.", name, settings.home)
    looks = 0
    reconciler.look()
    while not _has_come(ended, LOOK_EVERY_S):
        reconciler.look()
        if keeps_ready:
            ready.tend(is_quiet=not runner.active)
        looks += 1
        if looks % HEALTH_EVERY_LOOKS == 0:
            consumer.check_worker_health()
    runner.stopping.set()
    ready.close()
    consumer.stop(graceful=True)
    logger.info("Worker %s has ended.", name)


def listen(ended: SimpleQueue[int]) -> None:
    """End in good order on what a terminal, a supervisor or a service manager sends.

    A handler may interrupt the very wait that it ends; of what can be waited for only SimpleQueue allows for that.
    """

    def on_signal(number: int, _frame: FrameType | None) -> None:
        ended.put(number)

    for signal_name in ("SIGTERM", "SIGINT", "SIGHUP"):
        if hasattr(signal, signal_name):
            signal.signal(getattr(signal, signal_name), on_signal)


def _has_come(ended: SimpleQueue[int], within_s: float) -> bool:
    with contextlib.suppress(Empty):
        ended.get(timeout=within_s)
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
