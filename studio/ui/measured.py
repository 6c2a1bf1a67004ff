"""Figures of answers for reading: a table of metrics with a column per contestant, and the report that follows a training.

Knows nothing of gradio: what a service has in, data of templates/measures.html and templates/report.html out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from studio.evaluation.metrics import Display, Metric, notes, shown_on
from studio.evaluation.scores import NO_MODEL
from studio.records import AnswerFigures, JobStatus, Report
from studio.ui import words

WAITING_FOR = {
    JobStatus.QUEUED: "waits for the engine and for trainings that run: it takes the device from none",
    JobStatus.RUNNING: "base and adapter answer rows that the training never saw",
    JobStatus.PAUSED: "set aside",
}


def measures(found: Mapping[str, AnswerFigures], names: Sequence[str] = ()) -> dict[str, Any]:
    """Data of templates/measures.html; a measure that nobody has is left out. `names`: what the columns are called."""
    columns = list(found)
    rows = [
        (label(metric), [_value(metric, figures) for figures in found.values()])
        for metric in shown_on(Display.PAGE)
        if not metric.hides_zero or any(figures.metric(metric.name) for figures in found.values())
    ]
    listed = {metric.name for metric in shown_on(Display.PAGE) if not metric.hides_zero}
    counts = {
        "empty answers": [figures.empty for figures in found.values()],
        "without an answer": [figures.errors for figures in found.values()],
    }
    rows += [(title, [str(number) for number in numbers]) for title, numbers in counts.items() if any(numbers)]
    rows.append(("tokens of an answer", [_figure(figures.tokens) for figures in found.values()]))
    rows.append(("time of an answer", [words.duration(figures.seconds) or "–" for figures in found.values()]))
    said = {name: _notes(figures, listed) for name, figures in zip(names or columns, found.values(), strict=True)}
    return {"columns": list(names) or columns, "measures": [row for row in rows if set(row[1]) != {"–"}], "notes": _shared(said)}


def _notes(figures: AnswerFigures, listed: Set[str]) -> list[str]:
    reasons = {name: reason for name, reason in figures.reasons.items() if name in listed}
    counted = {name: count for name, count in figures.counted.items() if name in listed}
    return notes(reasons, counted, figures.tokenizers, figures.n)


def _shared(said: Mapping[str, Sequence[str]]) -> list[str]:
    """What holds for every contestant once, and the rest with the name in front."""
    lines = dict.fromkeys(line for own in said.values() for line in own)
    shown = []
    for line in lines:
        having = [name for name, own in said.items() if line in own]
        if len(having) == len(said):
            shown.append(line)
        else:
            shown += [f"{name}: {line}" for name in having]
    return shown


def label(metric: Metric) -> str:
    """The title with what its numbers mean, where that is not a share of which more is better."""
    title = metric.title
    if metric.scale == 100:
        title += ", 0-100"
    if not metric.higher_is_better:
        title += ", lower is better"
    return title


def _value(metric: Metric, figures: AnswerFigures) -> str:
    value = figures.metric(metric.name)
    if value is None and figures.reasons.get(metric.name, NO_MODEL) != NO_MODEL:
        return "can't say"
    if value is None or metric.scale != 1:
        return _figure(value)
    return words.share_with_interval(value, figures.ci95.get(metric.name))


def _figure(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def report(found: Report | None) -> dict[str, Any] | None:
    """Data of templates/report.html; None where a training has no report."""
    if found is None:
        return None
    shown = {
        "state": found.status,
        "waiting": WAITING_FOR.get(found.status, ""),
        "part": words.part(found.progress) or 0.0,
        "reason": found.reason,
        "fix": found.fix,
    }
    if found.metrics is None:
        return {**shown, "columns": []}
    ends = [("It wins", found.wins), ("It loses", found.losses)]
    figures = {name: AnswerFigures.model_validate(row) for name, row in found.metrics.items()}
    names = {found.base: "the base"}
    return {
        **shown,
        "sentence": _sentence(found),
        "wins": _wins(found),
        "warnings": found.judge and found.judge.warnings,
        "ends": [(title, rows) for title, rows in ends if rows],
        **measures(figures, [names.get(name, name) for name in figures]),
    }


def _wins(found: Report) -> list[dict[str, Any]]:
    judged = found.judge
    if judged is None or judged.win_rate is None or judged.ci95 is None:
        return []
    low, high = judged.ci95
    text = f"wins {words.share(judged.win_rate)} ({words.share(low)} to {words.share(high)})"
    return [{"name": found.adapter, "share": judged.win_rate, "low": low, "high": high, "text": text}]


def _sentence(found: Report) -> str:
    asked = f"{words.count(found.rows, 'row')} that the training never saw, answered by the base and by this run."
    counts = found.counts
    if found.judge is None or counts is None:
        return f"{asked} They have no reference, so no judge was asked: open it in Compare and choose one."
    return f"{asked} By the {found.judge.judge} judge it won {counts.wins}, lost {counts.losses}, {counts.ties} were equal."
