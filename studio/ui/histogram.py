"""Lengths and shares as numbers for a drawing: bars in a box, ticks, marked percentiles. Knows nothing of datasets or HTML."""

from __future__ import annotations

import json
from bisect import bisect_right
from typing import Any

WIDTH, HEIGHT = 1000, 300  # of the drawing's own coordinates; the page stretches them
TICKS = 5
MARKS = (("P50", "p50"), ("P95", "p95"), ("P99", "p99"))


def lengths(figures: dict[str, Any], unit: str, title: str, limit: int | None = None) -> dict[str, Any] | None:
    """Data of templates/histogram.html from `{"histogram": [{"from", "to", "count"}], "p50", …}`; None without a row.

    Bins are drawn equally wide, also the last, which may hold a long tail. `limit` is drawn as a line where it falls among the bars,
    such as the longest row that training sees.
    """
    bins = figures["histogram"]
    total = sum(part["count"] for part in bins)
    if not total:
        return None
    marks = [{"label": f"{label} {figures[key]:,}", "share": _share(figures[key], bins), "kind": "mark"} for label, key in MARKS]
    if limit is not None and bins[0]["from"] < limit < bins[-1]["to"]:
        marks.append({"label": f"longest row {limit:,}", "share": _share(limit, bins), "kind": "limit"})
    top = max(part["count"] for part in bins)
    return {
        "title": title,
        "width": WIDTH,
        "height": HEIGHT,
        "bars": [_bar(n, part, len(bins), top, limit) for n, part in enumerate(bins) if part["count"]],
        "points": json.dumps([_reading(n, part, len(bins), unit) for n, part in enumerate(bins)]),
        "x_ticks": _ticks(bins),
        "marks": marks,
        "description": f"{title}: {total:,} rows, half of them up to {figures['p50']:,} {unit}, 95 % up to {figures['p95']:,}, "
        f"99 % up to {figures['p99']:,}, the longest {figures['max']:,}.",
    }


def shares(rows: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """Data of templates/shares.html: parts of a whole, the largest first."""
    return [{"name": name, "share": share} for name, share in sorted(rows, key=lambda row: -row[1])]


def _share(value: float, bins: list[dict[str, int]]) -> float:
    """Where `value` stands, in percent of the width."""
    n = max(0, bisect_right([part["from"] for part in bins], value) - 1)
    inside = (value - bins[n]["from"]) / max(1, bins[n]["to"] - bins[n]["from"])
    return round((n + min(max(inside, 0.0), 1.0)) / len(bins) * 100, 2)


def _bar(n: int, part: dict[str, int], bins: int, top: int, limit: int | None) -> dict[str, Any]:
    room = WIDTH / bins
    gap = min(2.0, room / 4)
    height = max(part["count"] / top * HEIGHT, 2)
    is_cut = limit is not None and part["from"] >= limit
    return {
        "x": round(n * room, 1),
        "y": round(HEIGHT - height, 1),
        "width": round(room - gap, 1),
        "height": round(height, 1),
        "cut": is_cut,
    }


def _reading(n: int, part: dict[str, int], bins: int, unit: str) -> list[Any]:
    """[share of the width, text] for the readout under the pointer."""
    count, last = part["count"], part["to"] - 1
    between = f"{part['from']:,} to {last:,}" if last > part["from"] else f"{last:,}"
    return [round((n + 0.5) / bins, 4), f"{between} {unit}: {count:,} {'row' if count == 1 else 'rows'}"]


def _ticks(bins: list[dict[str, int]]) -> list[dict[str, Any]]:
    """Where some of the bins begin, and where the last one ends."""
    step = max(1, -(-len(bins) // TICKS))
    begun: list[dict[str, Any]] = [
        {"share": round(n / len(bins) * 100, 2), "label": f"{bins[n]['from']:,}"} for n in range(0, len(bins), step)
    ]
    if 100 - begun[-1]["share"] < 60 / TICKS:
        begun.pop()
    return [*begun, {"share": 100, "label": f"{bins[-1]['to'] - 1:,}"}]
