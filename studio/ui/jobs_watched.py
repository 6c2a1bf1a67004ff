"""What a training answers, for reading: the same questions at every look beside the base, and the held-out rows it knows best and least.

Knows nothing of gradio: what the service has of a job in, data of templates/watched.html out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.ui import chart

SHOWN_ANSWERS = 4  # of one question, beside the base's
GIB = 1024**3
MEASURES = (("learning_rate", "Learning rate"), ("grad_norm", "Size of the gradient before clipping (grad norm)"))
Rows = list[dict[str, Any]]


def watched(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Data of the piece; None while nothing was answered."""
    if not found or not (found["samples"] or found["rows"]):
        return None
    rows = found["rows"] or {}
    ends = [("Held-out rows it knows best", rows.get("best")), ("Held-out rows it knows least", rows.get("worst"))]
    return {
        "questions": _questions(found["samples"]) if found["samples"] else [],
        "ends": [(title, part) for title, part in ends if part],
        "judged": rows.get("judged"),
        "advice": (found["drift"] or {}).get("advice", ""),
    }


def _questions(samples: Mapping[str, Any]) -> Rows:
    found = []
    for place, row in enumerate(samples["rows"]):
        said = _merged([(look["step"], look["answers"][place]) for look in samples["looks"] if place < len(look["answers"])])
        answers = [("base", samples["base"][place])] if place < len(samples["base"]) else []
        found.append({**row, "answers": [*answers, *said[-SHOWN_ANSWERS:]]})
    return found


def _merged(said: Sequence[tuple[int, str]]) -> list[tuple[str, str]]:
    """An answer that stays the same over several looks is shown once."""
    runs: list[list[Any]] = []
    for step, text in said:
        if runs and runs[-1][2] == text:
            runs[-1][1] = step
        else:
            runs.append([step, step, text])
    return [(f"step {first}" if first == last else f"steps {first} to {last}", text) for first, last, text in runs]


def small_charts(curves: Mapping[str, Rows]) -> list[dict[str, Any]]:
    """The curves beside the loss, those that have points."""
    train, machine = curves["train"], curves.get("machine", [])
    drawn = [_one(title, chart.values(train, key)) for key, title in MEASURES]
    drawn.append(_one("Speed: tokens per second", chart.speed(train)))
    drifted = "Drift from the base on general questions: above 0 it forgets (nats per token)"
    drawn.append(_one(drifted, chart.values(curves.get("drift", []), "drift")))
    drawn.append(_memory("GPU memory (GiB): training thin, whole GPU bold", machine, "torch_bytes", "device_bytes"))
    drawn.append(_one("GPU use (1 is all of it)", chart.values(machine, "device_use")))
    drawn.append(_memory("Memory (GiB): training thin, whole machine bold", machine, "process_bytes", "host_bytes"))
    drawn.append(_one("Processor cores that it keeps busy", chart.values(machine, "cores")))
    return [one for one in drawn if one]


def _one(title: str, points: list[chart.Point]) -> dict[str, Any] | None:
    return chart.lines([chart.Series("", "train", points)], title)


def _memory(title: str, rows: Rows, own: str, whole: str) -> dict[str, Any] | None:
    series = [(own, "training", "train"), (whole, "all", "eval")]
    return chart.lines([chart.Series(name, look, [(s, v / GIB) for s, v in chart.values(rows, key)]) for key, name, look in series], title)
