"""Lengths of rows as figures: percentiles and a histogram of round bins. Knows nothing of what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from studio.records import LengthBin, LengthFigures

MAX_BINS = 40
ROUND = (1, 2, 5)


def percentiles(lengths: Sequence[int]) -> dict[str, int]:
    """Nearest-rank p50, p95 and p99; 0 where there are no rows."""
    ordered = sorted(lengths) or [0]
    return {f"p{p}": ordered[-(-len(ordered) * p // 100) - 1] for p in (50, 95, 99)}


def summary(lengths: Sequence[int]) -> LengthFigures:
    mean = sum(lengths) / max(1, len(lengths))
    bins = [LengthBin.model_validate(each) for each in histogram(lengths)]
    return LengthFigures(**percentiles(lengths), max=max(lengths, default=0), mean=mean, histogram=bins)


def histogram(lengths: Sequence[int], most: int = MAX_BINS) -> list[dict[str, int]]:
    """At most `most` bins that together hold every length: `from` <= length < `to`. [] where there are none.

    Bins have one round width up to the 99th percentile, or four times the 95th where that is less; the last one holds what is longer.
    """
    if not lengths:
        return []
    known = percentiles(lengths)
    low, high = min(lengths), max(lengths)
    typical = min(known["p99"], max(4 * known["p95"], low + 1))
    width = _width(low, typical, most - 1)
    first, last = low // width, typical // width
    counts = Counter(min(length // width, last + 1) for length in lengths)
    bins = [{"from": n * width, "to": (n + 1) * width, "count": counts[n]} for n in range(first, last + 1)]
    return bins + [{"from": (last + 1) * width, "to": high + 1, "count": counts[last + 1]}] * bool(counts[last + 1])


def _width(low: int, high: int, most: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, … that needs no more than `most` bins."""
    power = 1
    while True:
        for factor in ROUND:
            width = factor * power
            if high // width - low // width < most:
                return width
        power *= 10
