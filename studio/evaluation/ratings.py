"""Ratings from verdicts: win rate, Bradley-Terry and Elo, each as the studio's interface defines it.

Game in, numbers out. Knows nothing of where verdicts come from. scipy on first use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from studio.evaluation import intervals, verdicts
from studio.evaluation.verdicts import Game, VerdictLine

ELO_START, ELO_K, ELO_ORDERINGS, ELO_SEED = 1000.0, 8.0, 300, 7
POINTS = 400 / math.log(10)  # of one unit of log-odds
FARTHEST = 6.0  # log-odds; where somebody never lost, the likelihood has no maximum and this is where it ends
BRADLEY_TERRY_RESAMPLES = 400
STEPS_AT_ONCE = 2048
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """Games as arrays: who played whom (numbers into `names`), the score of the first, the prompt's number."""

    names: list[str]
    first: Ints
    second: Ints
    score: Floats
    prompt: Ints

    @classmethod
    def of(cls, games: Sequence[Game]) -> Table:
        # in an order of its own: seeded draws must not depend on which verdict landed first
        games = sorted(game.seen_by(min(game.a, game.b)) for game in games)
        names = sorted({name for game in games for name in (game.a, game.b)})
        number = {name: index for index, name in enumerate(names)}
        prompts: dict[str, int] = {}
        return cls(
            names,
            np.array([number[game.a] for game in games], dtype=np.int64),
            np.array([number[game.b] for game in games], dtype=np.int64),
            np.array([game.score for game in games]),
            np.array([prompts.setdefault(game.prompt_id, len(prompts)) for game in games], dtype=np.int64),
        )

    @property
    def prompts(self) -> int:
        return int(self.prompt.max()) + 1

    def wins(self, draws: Iterable[Floats] | None = None) -> Floats:
        """[names, names]: what the row scored against the column; for each of `draws` (how often each prompt counts) one such table."""
        from scipy.sparse import csr_array

        size = len(self.names)
        cells = np.concatenate([self.first * size + self.second, self.second * size + self.first])
        scores = np.concatenate([self.score, 1 - self.score])
        by_prompt = csr_array((scores, (np.tile(self.prompt, 2), cells)), shape=(self.prompts, size * size))
        if draws is None:
            return np.asarray(by_prompt.sum(axis=0), dtype=np.float64).reshape(size, size)
        return np.array([by_prompt.T @ weights for weights in draws]).reshape(-1, size, size)


def leaderboard(given: Iterable[VerdictLine]) -> dict[str, Any]:
    """`contestants` best first, `position`, `pairs` with corrected p-values, and `warnings` about what the figures can't say."""
    lines = list(given)
    table = Table.of(verdicts.games(lines))
    place = verdicts.position(lines)
    position = {"first_win_rate": place.first_win_rate, "swap_consistency": place.swap_consistency}
    if not table.names:
        return {"contestants": [], "position": position, "pairs": [], "missing_orders": place.missing_orders, "invalid": place.invalid,
                "warnings": ["No verdict is valid."]}  # fmt: skip
    strength, interval = bradley_terry(table)
    ranks = elo(table)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(table.names):
        scores, prompts = of_contestant(table, index)
        rows.append({
            "name": name,
            "bradley_terry": float(strength[index]),
            "bradley_terry_ci95": interval[index],
            "elo": float(ranks[index]),
            "win_rate": float(scores.mean()),
            "ci95": intervals.of_mean(scores, prompts),
            "games": len(scores),
        })  # fmt: skip
    rows.sort(key=lambda row: (-row["bradley_terry"], row["name"]))
    return {
        "contestants": rows,
        "position": position,
        "pairs": pairs(table),
        "missing_orders": place.missing_orders,
        "invalid": place.invalid,
        "warnings": _warnings(table, place.missing_orders),
    }


def of_contestant(table: Table, index: int) -> tuple[Floats, Ints]:
    """Its scores, and the prompt's number of each."""
    is_first, is_second = table.first == index, table.second == index
    scores = np.concatenate([table.score[is_first], 1 - table.score[is_second]])
    return scores, np.concatenate([table.prompt[is_first], table.prompt[is_second]])


def bradley_terry(table: Table) -> tuple[Floats, list[list[float] | None]]:
    """Maximum-likelihood strengths as 400 log10, mean 1000, and their 95 % bootstrap intervals (None with fewer than two prompts)."""
    point = _strengths(table.wins()[None])[0]
    strength = 1000 + POINTS * (point - point.mean())
    if table.prompts < 2:
        return strength, [None] * len(table.names)
    drawn = _strengths(table.wins(intervals.resampled(table.prompts, BRADLEY_TERRY_RESAMPLES)))
    drawn = 1000 + POINTS * (drawn - drawn.mean(axis=1, keepdims=True))
    low, high = np.percentile(drawn, intervals.percentiles(table.prompts), axis=0)
    low, high = np.minimum(low, strength), np.maximum(high, strength)  # where strengths are cut off, draws may end short of the point
    return strength, [[float(a), float(b)] for a, b in zip(low, high, strict=True)]


def _strengths(wins: Floats) -> Floats:
    """Log-odds strengths [tables, names] of win tables [tables, names, names], all in one convex problem.

    Bounded, since the strength of somebody who never lost has no maximum.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    played, won = wins + wins.transpose(0, 2, 1), wins.sum(axis=2)
    scale = max(1.0, float(played.sum()))

    def loss(flat: Floats) -> tuple[float, Floats]:
        strength = flat.reshape(won.shape)
        gap = strength[:, :, None] - strength[:, None, :]
        slope = (played * expit(gap)).sum(axis=2) - won
        return float((wins * np.logaddexp(0, -gap)).sum()) / scale, slope.ravel() / scale

    bounds = [(-FARTHEST, FARTHEST)] * won.size
    options = {"ftol": 1e-15, "gtol": 1e-7 / len(wins), "maxiter": 2000, "maxfun": 4000}
    found: Floats = minimize(loss, np.zeros(won.size), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return found.reshape(won.shape)


def elo(table: Table) -> Floats:
    """Elo from 1000 with K=8: the mean over 300 seeded random orderings, which are played side by side."""
    from scipy.special import expit

    size, count = len(table.names), len(table.score)
    random = np.random.default_rng(ELO_SEED)
    orders = np.array([random.permutation(count) for _ in range(ELO_ORDERINGS)], dtype=np.int32)
    odds = np.zeros(ELO_ORDERINGS * size)  # ratings in units of log-odds, 0 at the start
    row = np.arange(ELO_ORDERINGS, dtype=np.int64)[:, None] * size
    step = ELO_K / POINTS
    for begin in range(0, count, STEPS_AT_ONCE):
        chunk = orders[:, begin : begin + STEPS_AT_ONCE]
        first, second = (row + table.first[chunk]).T.copy(), (row + table.second[chunk]).T.copy()
        for one, other, score in zip(first, second, table.score[chunk].T.copy(), strict=True):
            mine, theirs = odds.take(one), odds.take(other)
            change = (score - expit(mine - theirs)) * step
            odds[one] = mine + change
            odds[other] = theirs - change
    return np.asarray(ELO_START + POINTS * odds.reshape(ELO_ORDERINGS, size).mean(axis=0))


def pairs(table: Table) -> list[dict[str, Any]]:
    """Each two that met: `score` of a, a sign test over games that were not ties, its p corrected for all pairs (Benjamini-Hochberg)."""
    from scipy.stats import binomtest, false_discovery_control

    found = []
    for one, other in combinations(range(len(table.names)), 2):
        scores = table.score[(table.first == one) & (table.second == other)]  # games are told from who sorts first
        if scores.size:
            won, lost = int((scores > 0.5).sum()), int((scores < 0.5).sum())
            p = 1.0
            if won + lost:
                p = float(binomtest(won, won + lost).pvalue)
            names = {"a": table.names[one], "b": table.names[other]}
            found.append({**names, "score": float(scores.mean()), "games": int(scores.size), "p": p})
    corrected = false_discovery_control([row["p"] for row in found]) if found else []
    return [{**row, "p_corrected": float(p), "differs": bool(p < 0.05)} for row, p in zip(found, corrected, strict=True)]


def _warnings(table: Table, missing_orders: int) -> list[str]:
    from scipy.sparse.csgraph import connected_components

    wins, said = table.wins(), []
    groups, _ = connected_components(wins + wins.T, directed=False)
    strong, _ = connected_components(wins, directed=True, connection="strong")
    if groups > 1:
        said.append(f"The contestants fall into {groups} groups that never met: ratings of different groups can't be compared.")
    elif strong > 1 and len(table.names) > 1:
        said.append("Somebody never lost, or never won, against all the others: Bradley-Terry has no finite value there and is cut off.")
    if missing_orders:
        said.append(f"{missing_orders} pairs were shown in one order only: what the order does to them can't be seen.")
    return said
