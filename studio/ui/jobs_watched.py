"""What a training answers, for reading: the same questions at every look beside the base, and the held-out rows it knows best and least.

Knows nothing of gradio: what the service has of a job in, data of templates/watched.html out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studio.records import Curves, MetricPoint, Samples, WatchedTraining
from studio.ui import chart

SHOWN_ANSWERS = 4  # of one question, beside the base's
GIB = 1024**3
GPU_READINGS = (
    ("device_use", "GPU use (1 is all of it)"),
    ("device_temperature_c", "GPU temperature (°C)"),
    ("device_power_w", "GPU power (W)"),
)
MEASURES = (("learning_rate", "Learning rate"), ("grad_norm", "Size of the gradient before clipping (grad norm)"))


def watched(found: WatchedTraining | None) -> dict[str, Any] | None:
    """Data of the template; None while nothing was answered."""
    if found is None or not (found.samples or found.rows):
        return None
    ends = []
    if found.rows:
        ends = [("Held-out rows it knows best", found.rows.best), ("Held-out rows it knows least", found.rows.worst)]
    return {
        "questions": found.samples and _questions(found.samples),
        "ends": [(title, part) for title, part in ends if part],
        "judged": found.rows and found.rows.judged,
        "advice": found.drift and found.drift.advice,
    }


def _questions(samples: Samples) -> list[dict[str, Any]]:
    found = []
    for place, row in enumerate(samples.rows):
        answers = [("base", text) for text in samples.base[place : place + 1]]
        said = _merged([(look.step, look.answers[place]) for look in samples.looks if place < len(look.answers)])
        found.append({**dict(row), "answers": [*answers, *said[-SHOWN_ANSWERS:]]})
    return found


def _merged(said: Sequence[tuple[int, str]]) -> list[tuple[str, str]]:
    """An answer that stays the same over several looks is shown once."""
    runs: list[tuple[int, int, str]] = []
    for step, text in said:
        first = step
        if runs and runs[-1][2] == text:
            first = runs.pop()[0]
        runs.append((first, step, text))
    return [(_steps(first, last), text) for first, last, text in runs]


def _steps(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"


def small_charts(curves: Curves) -> list[dict[str, Any]]:
    """The curves beside the loss, those that have points."""
    train, machine = curves.train, curves.machine
    drawn = [_one(title, chart.values(train, key)) for key, title in MEASURES]
    drawn.append(_one("Speed: tokens per second", chart.speed(train)))
    drifted = "Drift from the base on general questions: above 0 it forgets (nats per token)"
    drawn.append(_one(drifted, chart.values(curves.drift, "drift")))
    drawn.append(_memory("GPU memory (GiB): training thin, whole GPU bold", machine, "torch_bytes", "device_bytes"))
    for key, title in GPU_READINGS:
        drawn.append(_one(title, chart.values(machine, key)))
    drawn.append(_memory("Memory (GiB): training thin, whole machine bold", machine, "process_bytes", "host_bytes"))
    drawn.append(_one("Processor cores that it keeps busy", chart.values(machine, "cores")))
    return [one for one in drawn if one]


def _one(title: str, points: list[chart.Point]) -> dict[str, Any] | None:
    return chart.lines([chart.Series("", "train", points)], title)


def _memory(title: str, rows: Sequence[MetricPoint], own: str, whole: str) -> dict[str, Any] | None:
    series = [(own, "training", "train"), (whole, "all", "eval")]
    return chart.lines([chart.Series(name, look, [(s, v / GIB) for s, v in chart.values(rows, key)]) for key, name, look in series], title)
