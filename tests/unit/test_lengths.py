"""Percentiles and histograms of lengths, and their drawing."""

from __future__ import annotations

import pytest

from studio.datasets import lengths
from studio.ui import histogram


def test_percentiles_are_lengths_that_occur() -> None:
    assert lengths.percentiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
    assert lengths.percentiles([7]) == {"p50": 7, "p95": 7, "p99": 7}
    assert lengths.percentiles([]) == {"p50": 0, "p95": 0, "p99": 0}


@pytest.mark.parametrize("values", [[1], [0, 0], [1, 39], [3, 1_000_000], list(range(500)), [10**9, 10**9 + 3]])
def test_every_length_is_in_one_of_few_bins(values: list[int]) -> None:
    bins = lengths.histogram(values)
    assert len(bins) <= lengths.MAX_BINS
    for part in bins:
        assert part["count"] == sum(part["from"] <= value < part["to"] for value in values)
    assert sum(part["count"] for part in bins) == len(values)


def test_one_giant_does_not_hide_how_long_the_others_are() -> None:
    bins = lengths.histogram([*range(50, 90), 9_000])
    assert len(bins) > 10 and bins[-1] == {"from": bins[-2]["to"], "to": 9_001, "count": 1}


def test_a_drawing_keeps_bars_inside_and_tells_the_cut_ones() -> None:
    drawn = histogram.lengths(lengths.summary([10] * 90 + [95] * 10), "tokens", "Lengths", limit=50)
    assert drawn
    assert all(bar["x"] >= 0 and bar["x"] + bar["width"] <= histogram.WIDTH and 0 <= bar["y"] < histogram.HEIGHT for bar in drawn["bars"])
    assert [bar["cut"] for bar in drawn["bars"]] == [False, True]
    assert all(0 <= tick["share"] <= 100 for tick in drawn["x_ticks"])
    assert [mark["label"] for mark in drawn["marks"]] == ["P50 10", "P95 95", "P99 95", "longest row 50"]
    assert histogram.lengths(lengths.summary([]), "tokens", "Lengths") is None
