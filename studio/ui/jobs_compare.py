"""Runs beside each other on the Jobs tab: which were picked, and their curves, differing options and results as one drawing and table.

Knows nothing of gradio. What is picked is one line of text, kept in the URL: `pick,ID,,ID`; the place of an ID is its colour, so a
run keeps its colour while others come and go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from studio.records import Job, JobComparison, RunVerdict
from studio.ui import chart, words

MODE = "pick"
COLOURS = 8
RESULTS = (
    ("train_loss", "loss on training rows"),
    ("eval_loss", "loss on held-out rows"),
    ("steps", "steps"),
    ("tokens", "tokens read"),
)
HINT = "Choose two or more runs on the left: their curves, options and results will be shown here."


def slots(picked: str) -> list[str]:
    """The picked IDs, each in its place; a place may be empty."""
    return [part.strip() for part in picked.split(",")[1:]]


def is_on(picked: str) -> bool:
    return picked.split(",")[0] == MODE


def toggled(picked: str, job_id: str) -> str:
    """`picked` with this run added or taken out; the others keep their places."""
    places = slots(picked)
    if job_id in places:
        places[places.index(job_id)] = ""
    elif "" in places:
        places[places.index("")] = job_id
    else:
        places.append(job_id)
    while places and not places[-1]:
        places.pop()
    return ",".join([MODE, *places])


def look(place: int) -> str:
    """The class of the colour of a place; the ninth run has the first colour again, dashed."""
    colour = f"run-{place % COLOURS + 1}"
    if place >= COLOURS:
        colour += " dashed"
    return colour


def looks(picked: str, jobs: Sequence[Job]) -> dict[str, str]:
    """The colour of each compared run: its place, or for a run of a sweep the next place that is free."""
    places = slots(picked)
    own = {job_id: place for place, job_id in enumerate(places) if job_id}
    shown = {job.id for job in jobs}
    taken = {place for job_id, place in own.items() if job_id in shown or not jobs}
    for job in jobs:
        if job.id not in own:
            own[job.id] = next(place for place in range(len(own) + len(jobs) + len(places)) if place not in taken)
            taken.add(own[job.id])
    return {job_id: look(place) for job_id, place in own.items()}


def beside(compared: JobComparison, colours: Mapping[str, str]) -> dict[str, Any]:
    """Data of templates/runs.html from the service's answer."""
    jobs = compared.jobs
    curves = [compared.curves[job.id] for job in jobs]
    series, what = [chart.values(one.eval, "loss") for one in curves], "held-out"
    if any(len(points) < 2 for points in series):  # like is compared with like
        series, what = [chart.values(one.train, "loss") for one in curves], "training"
    drawn = [chart.Series(job.name, colours[job.id], points) for job, points in zip(jobs, series, strict=True)]
    return {
        "jobs": [{**dict(job), "look": colours[job.id]} for job in jobs],
        "overlay": chart.lines(drawn, f"Loss on {what} rows, lower is better"),
        "parts": [
            ("What came out", [*_results(jobs, compared.results), *_judged([compared.judged[job.id] for job in jobs])]),
            ("What differs", _differences(compared.differences)),
        ],
        "same": not compared.differences and "Every option is the same in these runs.",
        "sentence": "",
    }


def _results(jobs: Sequence[Job], results: Mapping[str, Mapping[str, JsonValue]]) -> list[tuple[str, list[str]]]:
    rows = [("state", [words.STATUS_WORDS[job.status] for job in jobs])]
    rows.append(("took", [words.duration(job.seconds_of_work) or "-" for job in jobs]))
    for key, label in RESULTS:
        found = [results[job.id].get(key) for job in jobs]
        if any(isinstance(value, (int, float)) for value in found):
            rows.append((label, [_number(value) for value in found]))
    return rows


def _judged(verdicts: Sequence[RunVerdict | None]) -> list[tuple[str, list[str]]]:
    """What a judge has said, where one has looked; which judge, where they differ."""
    if not any(verdicts):
        return []
    return [
        ("win rate when judged", [_rate(verdict) for verdict in verdicts]),
        ("judge, comparison", [_whose(verdict) for verdict in verdicts]),
    ]


def _rate(verdict: RunVerdict | None) -> str:
    if verdict is None:
        return "-"
    rate = words.share(verdict.win_rate)
    if verdict.ci95:
        rate += f" ({words.share(verdict.ci95[0])} to {words.share(verdict.ci95[1])})"
    return rate


def _whose(verdict: RunVerdict | None) -> str:
    if verdict is None:
        return "-"
    return f"{verdict.judge}, {verdict.comparison}"


def _differences(differences: Mapping[str, Sequence[JsonValue]]) -> list[tuple[str, list[str]]]:
    return [(key, [_option(value) for value in values]) for key, values in differences.items()]


def _number(value: JsonValue) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}"
    return "-"


def _option(value: JsonValue) -> str:
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
