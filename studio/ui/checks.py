"""Reports that are being made: one at a time, in a thread of the web process that waits for the report's own child process.

A page that is closed meanwhile loses nothing: the finished report is kept beside the rows. Knows nothing of how the page shows it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from studio.errors import StudioError
from studio.services import Studio

log = logging.getLogger(__name__)
MAX_REMEMBERED = 200

Options = dict[str, Any]  # base_model, max_length, chat_template, against


@dataclass
class PendingReport:
    """A report under way, or why there is none."""

    step: str = "waiting for its turn"
    part: float = 0.0
    since: float = field(default_factory=time.monotonic)
    error: StudioError | None = None
    is_over: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    def told(self) -> tuple[Any, ...]:
        """What of it a page shows; equal for equal looks."""
        return self.step, round(self.part, 3), int(self.seconds) if self.error is None else 0, str(self.error or "")


class Checks:
    """Starts reports and says how far they are. Safe to share between threads."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # reports use all cores: one after the other
        self._known: OrderedDict[str, PendingReport] = OrderedDict()
        self._latest: PendingReport | None = None

    def start(self, dataset_id: str, options: Options, *, unasked: bool = False) -> None:
        """Begin unless it is under way. One that nobody asked for gives up its turn when another is wanted before it has begun."""
        key = _key(dataset_id, options)
        with self._lock:
            known = self._known.get(key)
            if known is not None and not known.is_over:
                return
            check = self._known[key] = PendingReport()
            self._known.move_to_end(key)
            self._latest = check
            for old in [k for k, c in self._known.items() if c.is_over][: max(0, len(self._known) - MAX_REMEMBERED)]:
                del self._known[old]
        threading.Thread(target=self._run, args=(dataset_id, options, check, unasked), daemon=True, name="report").start()

    def state(self, dataset_id: str, options: Options) -> PendingReport | None:
        """The one under way, or the one that failed; None when there is neither."""
        with self._lock:
            check = self._known.get(_key(dataset_id, options))
        return check if check is not None and (check.error or not check.is_over) else None

    def _run(self, dataset_id: str, options: Options, check: PendingReport, unasked: bool) -> None:
        def told(step: str, part: float) -> None:
            check.step, check.part = step, part

        try:
            with self._turn:
                if unasked and self._latest is not check:
                    return  # whoever still looks at these rows starts it again
                check.since = time.monotonic()
                self._studio.curation.report(dataset_id, **options, progress=told)
        except StudioError as exc:
            check.error = exc
        except Exception as exc:
            log.error("A report failed.", exc_info=exc)
            check.error = StudioError("The rows could not be checked because of a defect in the studio.", "The log says more.")
        finally:
            check.is_over = True


def _key(dataset_id: str, options: Options) -> str:
    return repr((dataset_id, sorted(options.items())))
