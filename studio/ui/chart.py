"""Curves as numbers for a drawing: points in the box, ticks, the best evaluation. Knows nothing of jobs or HTML."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studio.records import Curves, MetricPoint

WIDTH, HEIGHT = 1000, 400  # of the drawing's own coordinates; the page stretches them
SMOOTHING = 0.9  # weight of what came before, as in the running mean of other tools
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line: who it is, its class in the style sheet, its points in order of step."""

    name: str
    look: str
    points: list[Point]


def loss(curves: Curves, *, smooth: bool = False) -> dict[str, Any] | None:
    """Data of templates/chart.html; None without a point.

    With `smooth` the training line is its running mean, and the line as it was measured stays behind it, faint.
    """
    train, held_out = values(curves.train, "loss"), values(curves.eval, "loss")
    if not train and not held_out:
        return None
    steps = [step for step, _ in train + held_out]
    losses = [value for _, value in train + held_out]
    y_ticks = _ticks(min(losses), max(losses), 4)
    box = _boxed(steps, losses, y_ticks, spare=1)
    drawn, faint = train, ""
    if smooth:
        drawn, faint = smoothed(train), box.line(train)
    best = min(held_out, key=lambda point: point[1], default=None)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "train": box.line(drawn),
        "raw": faint,
        "eval": box.line(held_out),
        "has_eval": bool(held_out),
        "points": json.dumps(_readings(box, drawn, held_out)),
        "x_ticks": _x_labels(box, _ticks(min(steps), max(steps), 5, whole=True)),
        "y_ticks": _y_labels(box, y_ticks),
        "best": best and {"x": box.x(best[0]) * 100, "y": box.y(best[1]) * 100},
        "description": _description(drawn, held_out, best),
    }


def lines(series: Sequence[Series], what: str) -> dict[str, Any] | None:
    """Data of templates/lines.html: several lines in one box, `what` they measure in words; None without a point."""
    series = [one for one in series if one.points]
    if not series:
        return None
    steps = [step for one in series for step, _ in one.points]
    heights = [value for one in series for _, value in one.points]
    y_ticks = _ticks(min(heights), max(heights), 4)
    box = _boxed(steps, heights, y_ticks, spare=abs(min([*heights, y_ticks[0]])) or 1)
    texts: dict[float, list[str]] = {}
    for one in series:
        for step, value in one.points:
            texts.setdefault(step, []).append(f"{one.name} {value:.4g}".strip())
    ends = ", ".join(f"{one.name} {one.points[-1][1]:.4g} at step {one.points[-1][0]:.0f}".strip() for one in series)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "lines": [{"look": one.look, "points": box.line(one.points)} for one in series],
        "points": json.dumps([[round(box.x(step), 4), f"step {step:.0f}: " + ", ".join(told)] for step, told in sorted(texts.items())]),
        "x_ticks": _x_labels(box, _ticks(min(steps), max(steps), 3, whole=True)),
        "y_ticks": _y_labels(box, y_ticks),
        "what": what,
        "description": f"{what}: {ends}.",
    }


def smoothed(points: list[Point]) -> list[Point]:
    """The exponential running mean, without the bias that a start from nothing would give."""
    found, mean, weight = [], 0.0, 0.0
    for step, value in points:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + 1 - SMOOTHING
        found.append((step, mean / weight))
    return found


def values(rows: Sequence[MetricPoint], key: str) -> list[Point]:
    """The points of one measure; what is no finite number is left out."""
    pairs = ((_number(row, "step"), _number(row, key)) for row in rows)
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _number(row: MetricPoint, key: str) -> float | None:
    value = row.get(key)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def speed(rows: Sequence[MetricPoint]) -> list[Point]:
    """Tokens per second between one point and the next, from what a run has read and how long it took so far."""
    found = []
    for before, after in itertools.pairwise(rows):
        step = _number(after, "step")
        tokens = (_number(after, "tokens") or 0) - (_number(before, "tokens") or 0)
        seconds = (_number(after, "seconds") or 0) - (_number(before, "seconds") or 0)
        if step is not None and tokens > 0 and seconds > 0:
            found.append((step, tokens / seconds))
    return found


class _Box:
    """Steps and losses to shares of the drawing, y downwards."""

    def __init__(self, left: float, right: float, bottom: float, top: float) -> None:
        self._left, self._width, self._top, self._height = left, right - left, top, top - bottom

    def x(self, step: float) -> float:
        return (step - self._left) / self._width

    def y(self, value: float) -> float:
        return (self._top - value) / self._height

    def line(self, points: list[Point]) -> str:
        return " ".join(f"{self.x(step) * WIDTH:.1f},{self.y(value) * HEIGHT:.1f}" for step, value in points)


def _boxed(steps: Sequence[float], values: Sequence[float], y_ticks: Sequence[float], spare: float) -> _Box:
    """A box around all points and ticks; a flat curve gets `spare` above it."""
    bottom, top = min([*values, y_ticks[0]]), max([*values, y_ticks[-1]])
    if top <= bottom:
        top = bottom + spare
    return _Box(min(steps), max([*steps, min(steps) + 1]), bottom, top)


def _x_labels(box: _Box, ticks: Sequence[float]) -> list[dict[str, Any]]:
    return [{"share": box.x(tick) * 100, "label": f"{tick:.0f}"} for tick in ticks]


def _y_labels(box: _Box, ticks: Sequence[float]) -> list[dict[str, Any]]:
    return [{"share": box.y(tick) * 100, "at": round(box.y(tick) * HEIGHT, 1), "label": f"{tick:g}"} for tick in ticks]


def _ticks(low: float, high: float, wanted: int, *, whole: bool = False) -> list[float]:
    """Round numbers inside [low, high], at least one."""
    span = max(high - low, 1e-9)
    rough = span / wanted
    power = 10 ** math.floor(math.log10(rough))
    width = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if whole:
        width = max(width, 1.0)
    first = math.ceil(low / width) * width
    ticks = [round(first + n * width, 10) for n in range(wanted + 2) if first + n * width <= high + span * 1e-9]
    return ticks or [low]


def _readings(box: _Box, train: list[Point], held_out: list[Point]) -> list[list[Any]]:
    """[share of the width, text] of every step, for the readout under the pointer."""
    found = {step: [f"training {value:.3f}"] for step, value in train}
    for step, value in held_out:
        found.setdefault(step, []).append(f"held-out {value:.3f}")
    return [[round(box.x(step), 4), f"step {step:.0f}: " + ", ".join(texts)] for step, texts in sorted(found.items())]


def _description(train: list[Point], held_out: list[Point], best: Point | None) -> str:
    parts = []
    if train:
        parts.append(f"Training loss from {train[0][1]:.2f} at step {train[0][0]:.0f} to {train[-1][1]:.2f} at step {train[-1][0]:.0f}")
    if best:
        parts.append(f"held-out loss lowest at step {best[0]:.0f} with {best[1]:.2f}, now {held_out[-1][1]:.2f}")
    return "; ".join(parts) + "."
