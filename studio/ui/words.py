"""Numbers as people read them: sizes, durations, ages, shares."""

from __future__ import annotations

import time
from collections.abc import Sequence

from studio.records import JobProgress, JobStatus

STATUS_WORDS = {
    JobStatus.QUEUED: "queued",
    JobStatus.RUNNING: "running",
    JobStatus.PAUSED: "paused",
    JobStatus.SUCCEEDED: "done",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
}


def size(num_bytes: float | None) -> str:
    """`7.9 GiB`; binary units."""
    if num_bytes is None:
        return "unknown"
    value, units = float(num_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    if units[0] == "bytes" or value >= 100:
        return f"{value:.0f} {units[0]}"
    return f"{value:.1f} {units[0]}"


def duration(seconds: float | None) -> str:
    """`40 s`, `2 min`, `1 h 20 min`, `3 days`."""
    if seconds is None:
        return ""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{round(hours / 24)} days"
    if not minutes:
        return f"{hours} h"
    return f"{hours} h {minutes} min"


def left(seconds: float | None) -> str:
    """Time left of something that runs."""
    if seconds is None:
        return ""
    if seconds < 8:
        return "a few seconds left"
    return f"{duration(seconds)} left"


def ago(then: object, now: float | None = None) -> str:
    """`3 min ago` from a time that is seconds since the epoch or an ISO text."""
    moment = _moment(then)
    if moment is None:
        return ""
    past = _present(now) - moment
    if past < 45:
        return "just now"
    if past < 90:
        return "1 min ago"
    return f"{duration(max(past, 100))} ago"


def until(then: object, now: float | None = None) -> str:
    """`good for 3 days more`, or `expired`, of what ends at a time."""
    moment = _moment(then)
    if moment is None:
        return ""
    left_s = moment - _present(now)
    if left_s <= 0:
        return "expired"
    return f"good for {duration(left_s)} more"


def elapsed(start: object, end: object, now: float | None = None) -> str:
    """How long something took, or has taken so far."""
    begun, ended = _moment(start), _moment(end)
    if begun is None:
        return ""
    if ended is None:
        ended = _present(now)
    return duration(ended - begun)


def clock(then: float | None, now: float | None = None) -> str:
    """`03:40`, on this machine's clock; with the day of the week where that is not plain."""
    if then is None:
        return ""
    form = "%H:%M"
    if then - _present(now) > 20 * 3600:
        form = "%A %H:%M"
    return time.strftime(form, time.localtime(then))


def share(part: float | None) -> str:
    """0.034 -> `3.4 %`; whole percents from 10 on, and 100 only when it is all."""
    if part is None:
        return ""
    percent = part * 100
    if 0 < percent < 10:
        return f"{percent:.1f} %"
    if part < 1:
        return f"{min(round(percent), 99)} %"
    return f"{round(percent)} %"


def share_with_interval(part: float | None, interval: Sequence[float] | None) -> str:
    """`75 % (66 % to 83 %)`, or the share alone where it has no interval."""
    if interval is None:
        return share(part)
    return f"{share(part)} ({share(interval[0])} to {share(interval[1])})"


def short(contestant: str) -> str:
    """A file or a URL by its last part."""
    if contestant.startswith(("file:", "http")):
        return contestant.rpartition("/")[2]
    return contestant


def part(progress: JobProgress) -> float | None:
    """The share of a job's steps that is done, 0 to 1; None while its steps are unknown."""
    if not progress.max_steps:
        return None
    return (progress.step or 0) / progress.max_steps


def count(number: int | None, one: str, many: str = "") -> str:
    """`1 row`, `1,204 rows`."""
    value = number or 0
    if value == 1:
        return f"1 {one}"
    return f"{value:,} {many or one + 's'}"


def parameters(number: int | None) -> str:
    """`3.1 M`, `7.2 B` parameters."""
    value = float(number or 0)
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f}"


def _present(now: float | None) -> float:
    """`now`, or what the clock says."""
    if now is None:
        return time.time()
    return now


def _moment(value: object) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, str) and value:
        from datetime import datetime

        return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    return None
