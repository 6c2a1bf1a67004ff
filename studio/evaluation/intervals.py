"""How sure a share is: bootstrap over prompts, Wilson where a bootstrap has nothing to say, and how many prompts would do.

Knows arrays of scores; nothing of contestants. numpy at once, scipy on first use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
SEED = 20_240_117
AT_ONCE = 2000  # prompts whose resamples fit into memory together
HALF_WIDTH = 0.10  # what "enough" means: the interval reaches at most ten points to either side
Floats = NDArray[np.float64]


def resampled(prompts: int, times: int = RESAMPLES, seed: int = SEED) -> Iterator[Floats]:
    """How often each of `prompts` is drawn, `times` times: float64 [prompts]."""
    random = np.random.default_rng(seed)
    for _ in range(times):
        yield np.bincount(random.integers(prompts, size=prompts), minlength=prompts).astype(np.float64)


def percentiles(prompts: int) -> tuple[float, float]:
    """The percentiles, 0-100, of a 95 % interval: a little outside 2.5 and 97.5 where prompts are few.

    Hesterberg's expanded percentile interval (The American Statistician 69, 2015, section 3.4): the plain one is too narrow.
    """
    from scipy.stats import norm, t

    tail = float(norm.cdf(t.ppf(0.025, prompts - 1) * math.sqrt(prompts / (prompts - 1)))) * 100
    return tail, 100 - tail


def of_mean(scores: Sequence[float] | Floats, clusters: Sequence[int] | NDArray[np.int64] | None = None) -> list[float]:
    """The 95 % interval [low, high] of the mean of `scores` (0-1 each), resampling whole prompts.

    `clusters` gives the prompt's number of each score; without it every score is a prompt of its own.
    """
    values = np.asarray(scores, dtype=np.float64)
    numbers = np.arange(values.size)
    if clusters is not None:
        numbers = np.unique(np.asarray(clusters), return_inverse=True)[1]
    sums: Floats = np.bincount(numbers, weights=values).astype(np.float64)
    counts: Floats = np.bincount(numbers).astype(np.float64)
    if sums.size < 2 or np.ptp(sums / counts) == 0:
        return wilson(float(values.mean()), sums.size)
    drawn = _drawn_means(sums, counts)
    low, high = np.percentile(drawn, percentiles(sums.size))
    return [float(low), float(high)]


def _drawn_means(sums: Floats, counts: Floats) -> Floats:
    if sums.size > AT_ONCE:
        return np.array([(weights @ sums) / (weights @ counts) for weights in resampled(sums.size)])
    picked = np.random.default_rng(SEED).integers(sums.size, size=(RESAMPLES, sums.size))
    return np.asarray(sums[picked].sum(axis=1) / counts[picked].sum(axis=1))


def kappa_of(cells: Floats) -> Floats:
    """Cohen's kappa of tables of counts [..., labels, labels]; nan where chance explains all."""
    n = cells.sum(axis=(-2, -1))
    observed = np.trace(cells, axis1=-2, axis2=-1) / n
    by_chance = (cells.sum(axis=-1) * cells.sum(axis=-2)).sum(axis=-1) / n**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(by_chance < 1, (observed - by_chance) / (1 - by_chance), np.nan))


def of_kappa(first: Sequence[int], second: Sequence[int], clusters: Sequence[int], labels: int) -> list[float] | None:
    """The 95 % interval of Cohen's kappa of two raters' labels (numbers below `labels`), resampling whole prompts.

    Where all resamples agree, the interval of the observed agreement (Wilson) is carried over to kappa: raters who never differed on a
    few pairs may yet differ. None where kappa itself is undefined.
    """
    numbers = np.unique(np.asarray(clusters), return_inverse=True)[1]
    prompts = int(numbers.max()) + 1
    cells = np.zeros((prompts, labels, labels))
    np.add.at(cells, (numbers, np.asarray(first), np.asarray(second)), 1.0)
    whole = cells.sum(axis=0)
    if np.isnan(kappa_of(whole)):
        return None
    flat = cells.reshape(prompts, -1)
    drawn = kappa_of(np.array([weights @ flat for weights in resampled(prompts)]).reshape(-1, labels, labels))
    drawn = drawn[~np.isnan(drawn)]
    if prompts < 2 or drawn.size < RESAMPLES / 2 or np.ptp(drawn) == 0:
        by_chance = float((whole.sum(axis=1) * whole.sum(axis=0)).sum() / whole.sum() ** 2)
        ends = wilson(float(np.trace(whole) / whole.sum()), prompts)
        return [max(-1.0, (end - by_chance) / (1 - by_chance)) for end in ends]
    low, high = np.percentile(drawn, percentiles(prompts))
    return [max(-1.0, float(low)), min(1.0, float(high))]


def wilson(share: float, n: int) -> list[float]:
    """Wilson's 95 % interval of `share` of `n`: equal scores say nothing about their spread, but their number does."""
    square = 1.959963984540054**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = math.sqrt(square * (share * (1 - share) / n + square / (4 * n * n))) / (1 + square / n)
    # exactly 0 or 1 at the ends, where rounding would leave the share itself outside
    return [max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))]


def more_needed(interval: Sequence[float], prompts: int, half_width: float = HALF_WIDTH) -> int:
    """About how many prompts more would make the interval +- `half_width`; 0 when it is that narrow."""
    half = (interval[1] - interval[0]) / 2
    if half <= half_width:
        return 0
    return max(1, math.ceil(prompts * (half / half_width) ** 2) - prompts)
