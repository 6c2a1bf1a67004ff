"""Figures of answers for reading: a table of metrics with a column per contestant, and the report that follows a training.

Knows nothing of gradio: what a service has in, data of templates/measures.html and templates/report.html out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.evaluation.metrics import Display, Metric, shown_on
from studio.ui import words

WAITING = {
    "QUEUED": "waits for the engine and for trainings that run: it takes the device from none",
    "RUNNING": "base and adapter answer rows that the training never saw",
    "PAUSED": "set aside",
}
Figures = Mapping[str, Mapping[str, Any]]


def measures(found: Figures, names: Sequence[str] = ()) -> dict[str, Any]:
    """Data of templates/measures.html; a measure that nobody has is left out. `names`: what the columns are called."""
    columns = list(found)
    rows = [
        (label(metric), [_value(metric, found[name]) for name in columns])
        for metric in shown_on(Display.PAGE)
        if not metric.hides_zero or any(found[name].get(metric.name) for name in columns)
    ]
    for key, title in (("empty", "empty answers"), ("errors", "without an answer")):
        if any(found[name].get(key) for name in columns):
            rows.append((title, [str(found[name].get(key, "–")) for name in columns]))
    rows.append(("tokens of an answer", [_figure(found[name].get("tokens")) for name in columns]))
    rows.append(("time of an answer", [words.duration(found[name].get("seconds")) or "–" for name in columns]))
    return {"columns": list(names) or columns, "measures": [row for row in rows if set(row[1]) != {"–"}]}


def label(metric: Metric) -> str:
    """The title with what its numbers mean, where that is not a share of which more is better."""
    scale = ", 0-100" if metric.scale == 100 else ""
    return metric.title + scale + ("" if metric.higher_is_better else ", lower is better")


def _value(metric: Metric, figures: Mapping[str, Any]) -> str:
    value = figures.get(metric.name)
    if value is None or metric.scale != 1:
        return _figure(value)
    interval = figures.get("ci95", {}).get(metric.name)
    return words.share_with_interval(value, interval)


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def report(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Data of templates/report.html; None where a training has no report."""
    if found is None:
        return None
    step, steps = found["progress"]["step"] or 0, found["progress"]["max_steps"] or 0
    shown = {
        "state": found["status"],
        "waiting": WAITING.get(found["status"], ""),
        "part": step / steps if steps else 0.0,
        "reason": found["reason"],
        "fix": found["fix"],
    }
    if "metrics" not in found:
        return {**shown, "columns": []}
    judged, counts = found["judge"], found["counts"]
    wins = []
    if judged and judged["win_rate"] is not None:
        low, high = judged["ci95"]
        text = f"wins {words.share(judged['win_rate'])} ({words.share(low)} to {words.share(high)})"
        wins = [{"name": found["adapter"], "share": judged["win_rate"], "low": low, "high": high, "text": text}]
    ends = [("It wins", found["wins"]), ("It loses", found["losses"])]
    return {
        **shown,
        "sentence": _sentence(found, judged, counts),
        "wins": wins,
        "warnings": judged["warnings"] if judged else [],
        "ends": [(title, rows) for title, rows in ends if rows],
        **measures(found["metrics"], ["the base" if name == found["base"] else name for name in found["metrics"]]),
    }


def _sentence(found: Mapping[str, Any], judged: Mapping[str, Any] | None, counts: Mapping[str, int]) -> str:
    asked = f"{words.count(found['rows'], 'row')} that the training never saw, answered by the base and by this run."
    if not judged:
        return f"{asked} They have no reference, so nobody is judged: open it in Compare and choose a judge."
    return f"{asked} By the {judged['judge']} judge it won {counts['wins']}, lost {counts['losses']}, {counts['ties']} were equal."
