"""Figures of answers for reading: a table of metrics with a column per contestant, and the report that follows a training.

Knows nothing of gradio: what a service has in, data of templates/measures.html and templates/report.html out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.evaluation.metrics import Display, Metric, shown_on
from studio.records import AnswerFigures
from studio.ui import words

WAITING = {
    "QUEUED": "waits for the engine and for trainings that run: it takes the device from none",
    "RUNNING": "base and adapter answer rows that the training never saw",
    "PAUSED": "set aside",
}


def measures(found: Mapping[str, AnswerFigures], names: Sequence[str] = ()) -> dict[str, Any]:
    """Data of templates/measures.html; a measure that nobody has is left out. `names`: what the columns are called."""
    columns = list(found)
    rows = [
        (label(metric), [_value(metric, figures) for figures in found.values()])
        for metric in shown_on(Display.PAGE)
        if not metric.hides_zero or any(figures.metric(metric.name) for figures in found.values())
    ]
    counts = {
        "empty answers": [figures.empty for figures in found.values()],
        "without an answer": [figures.errors for figures in found.values()],
    }
    rows += [(title, [str(number) for number in numbers]) for title, numbers in counts.items() if any(numbers)]
    rows.append(("tokens of an answer", [_figure(figures.tokens) for figures in found.values()]))
    rows.append(("time of an answer", [words.duration(figures.seconds) or "–" for figures in found.values()]))
    return {"columns": list(names) or columns, "measures": [row for row in rows if set(row[1]) != {"–"}]}


def label(metric: Metric) -> str:
    """The title with what its numbers mean, where that is not a share of which more is better."""
    scale = ", 0-100" if metric.scale == 100 else ""
    return metric.title + scale + ("" if metric.higher_is_better else ", lower is better")


def _value(metric: Metric, figures: AnswerFigures) -> str:
    value = figures.metric(metric.name)
    if value is None or metric.scale != 1:
        return _figure(value)
    return words.share_with_interval(value, figures.ci95.get(metric.name))


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
    figures = {name: AnswerFigures(**row) for name, row in found["metrics"].items()}
    names = {found["base"]: "the base"}
    return {
        **shown,
        "sentence": _sentence(found, judged, counts),
        "wins": wins,
        "warnings": judged["warnings"] if judged else [],
        "ends": [(title, rows) for title, rows in ends if rows],
        **measures(figures, [names.get(name, name) for name in figures]),
    }


def _sentence(found: Mapping[str, Any], judged: Mapping[str, Any] | None, counts: Mapping[str, int]) -> str:
    asked = f"{words.count(found['rows'], 'row')} that the training never saw, answered by the base and by this run."
    if not judged:
        return f"{asked} They have no reference, so nobody is judged: open it in Compare and choose a judge."
    return f"{asked} By the {judged['judge']} judge it won {counts['wins']}, lost {counts['losses']}, {counts['ties']} were equal."
