"""The real worker with stand-in trainers and a shorter patience: `python -m tests.chaos.fast_worker --queue gpu`."""

from __future__ import annotations

import sys

from jobs import executor, reconcile, warm, worker
from studio.db import lifecycle
from tests.chaos.stand_in import MODULE

LEASE_S = 3.0


def hurry() -> None:
    lifecycle.LEASE_S = LEASE_S
    lifecycle.BACKOFF_FIRST_S, lifecycle.BACKOFF_MAX_S = 0.05, 0.2
    reconcile.ORPHAN_GRACE_S = 2.0
    worker.LOOK_EVERY_S = 0.2
    warm.QUIET_S = 0.5
    executor.command = lambda *arguments, **_: [sys.executable, "-P", "-m", MODULE, *arguments]


if __name__ == "__main__":
    hurry()
    sys.exit(worker.main())
