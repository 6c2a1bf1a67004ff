"""Lengths and shares as numbers for a drawing: bars in a box, ticks, marked percentiles. Knows nothing of datasets or HTML."""

from __future__ import annotations

import json
from bisect import bisect_right
from typing import Any

from studio.records import LengthBin, LengthFigures
from studio.ui import words

WIDTH, HEIGHT = 1000, 300  # of the drawing's own coordinates; the page stretches them
TICKS = 5


def lengths(figures: LengthFigures, unit: str, title: str, limit: int | None = None) -> dict[str, Any] | None:
    """Data of templates/histogram.html ; None without a row.

    Bins are drawn equally wide, also the last, which may hold a long tail. `limit` is drawn as a line where it falls among the bars,
    such as the longest row that training sees.
    """
    bins = figures.histogram
    total = sum(part.count for part in bins)
    if not total:
        return None
    percentiles = (("P50", figures.p50), ("P95", figures.p95), ("P99", figures.p99))
    marks = [{"label": f"{label} {value:,}", "share": _share(value, bins), "kind": "mark"} for label, value in percentiles]
    if limit is not None and bins[0].start < limit < bins[-1].end:
        marks.append({"label": f"longest row {limit:,}", "share": _share(limit, bins), "kind": "limit"})
    top = max(part.count for part in bins)
    return {
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "bars": [_bar(n, part, len(bins), top, limit) for n, part in enumerate(bins) if part.count],
        "points": json.dumps([_reading(n, part, len(bins), unit) for n, part in enumerate(bins)]),
        "x_ticks": _ticks(bins),
        "marks": marks,
        "description": f"{title}: {total:,} rows, half of them up to {figures.p50:,} {unit}, 95 % up to {figures.p95:,}, "
        f"99 % up to {figures.p99:,}, the longest {figures.max:,}.",
    }


def shares(rows: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """Data of templates/shares.html: parts of a whole, the largest first."""
    return [{"name": name, "share": share} for name, share in sorted(rows, key=lambda row: -row[1])]


def _share(value: float, bins: list[LengthBin]) -> float:
    """Where `value` stands, in percent of the width."""
    n = max(0, bisect_right([part.start for part in bins], value) - 1)
    inside = (value - bins[n].start) / max(1, bins[n].end - bins[n].start)
    return round((n + min(max(inside, 0.0), 1.0)) / len(bins) * 100, 2)


def _bar(n: int, part: LengthBin, bins: int, top: int, limit: int | None) -> dict[str, Any]:
    room = WIDTH / bins
    gap = min(2.0, room / 4)
    height = max(part.count / top * HEIGHT, 2)
    is_cut = limit is not None and part.start >= limit
    return {
        "x": round(n * room, 1),
        "y": round(HEIGHT - height, 1),
        "width": round(room - gap, 1),
        "height": round(height, 1),
        "cut": is_cut,
    }


def _reading(n: int, part: LengthBin, bins: int, unit: str) -> list[Any]:
    """[share of the width, text] for the readout under the pointer."""
    count, last = part.count, part.end - 1
    between = f"{last:,}"
    if last > part.start:
        between = f"{part.start:,} to {last:,}"
    return [round((n + 0.5) / bins, 4), f"{between} {unit}: {words.count(count, 'row')}"]


def _ticks(bins: list[LengthBin]) -> list[dict[str, Any]]:
    """Where some of the bins begin, and where the last one ends."""
    step = max(1, -(-len(bins) // TICKS))
    begun: list[dict[str, Any]] = [
        {"share": round(n / len(bins) * 100, 2), "label": f"{bins[n].start:,}"} for n in range(0, len(bins), step)
    ]
    if 100 - begun[-1]["share"] < 60 / TICKS:
        begun.pop()
    return [*begun, {"share": 100, "label": f"{bins[-1].end - 1:,}"}]
