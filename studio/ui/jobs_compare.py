"""Runs beside each other on the Jobs tab: which were picked, and their curves, differing options and results as one drawing and table.

Knows nothing of gradio. What is picked is one line of text, kept in the URL: `pick,ID,,ID`; the place of an ID is its colour, so a
run keeps its colour while others come and go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

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
    return f"run-{place % COLOURS + 1}" + (" dashed" if place >= COLOURS else "")


def looks(picked: str, jobs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The colour of each compared run: its place, or for a run of a sweep the next place that is free."""
    places = slots(picked)
    own = {job_id: place for place, job_id in enumerate(places) if job_id}
    shown = {job["id"] for job in jobs}
    taken = {place for job_id, place in own.items() if job_id in shown or not jobs}
    for job in jobs:
        if job["id"] not in own:
            own[job["id"]] = next(place for place in range(len(own) + len(jobs) + len(places)) if place not in taken)
            taken.add(own[job["id"]])
    return {job_id: look(place) for job_id, place in own.items()}


def beside(compared: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, Any]:
    """Data of templates/runs.html from the service's answer."""
    jobs, curves = compared["jobs"], compared["curves"]
    series = []
    for job in jobs:
        held_out = chart.values(curves[job["id"]].get("eval", []), "loss")
        points = held_out if len(held_out) > 1 else chart.values(curves[job["id"]].get("train", []), "loss")
        series.append((job, len(held_out) > 1, points))
    all_held_out = all(is_held_out for _, is_held_out, _ in series)
    if not all_held_out:  # like is compared with like
        series = [(job, False, chart.values(curves[job["id"]].get("train", []), "loss")) for job in jobs]
    what = f"Loss on {'held-out' if all_held_out else 'training'} rows, lower is better"
    drawn = chart.lines([chart.Series(job["name"], colours[job["id"]], points) for job, _, points in series], what)
    return {
        "jobs": [{**job, "look": colours[job["id"]]} for job in jobs],
        "overlay": drawn,
        "parts": [
            ("What came out", [*_results(jobs, compared["results"]), *_judged(jobs, compared["judged"])]),
            ("What differs", _differences(compared["differences"])),
        ],
        "same": "" if compared["differences"] else "Every option is the same in these runs.",
        "sentence": "",
    }


def _results(jobs: Sequence[Mapping[str, Any]], results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    rows = [("state", [words.STATUS_WORDS[job["status"]] for job in jobs])]
    rows.append(("took", [words.elapsed(job["started_at"], job["ended_at"]) or "-" for job in jobs]))
    for key, label in RESULTS:
        found = [results[job["id"]].get(key) for job in jobs]
        if any(isinstance(value, (int, float)) for value in found):
            rows.append((label, [_number(value) for value in found]))
    return rows


def _judged(jobs: Sequence[Mapping[str, Any]], verdicts: Mapping[str, Mapping[str, Any] | None]) -> list[tuple[str, list[str]]]:
    """What a judge has said, where one has looked; which judge, where they differ."""
    seen = [verdicts.get(job["id"]) for job in jobs]
    if not any(seen):
        return []
    rates = ["-" if one is None else words.share(one["win_rate"]) + _interval(one["ci95"]) for one in seen]
    where = ["-" if one is None else f"{one['judge']}, {one['comparison']}" for one in seen]
    return [("win rate when judged", rates), ("judge, comparison", where)]


def _interval(ends: Sequence[float] | None) -> str:
    return f" ({words.share(ends[0])} to {words.share(ends[1])})" if ends else ""


def _differences(differences: Mapping[str, Sequence[Any]]) -> list[tuple[str, list[str]]]:
    return [(key, [_told(value) for value in values]) for key, values in differences.items()]


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}" if isinstance(value, float) else "-"


def _told(value: Any) -> str:
    return value or "-" if isinstance(value, str) else "-" if value is None else json.dumps(value)
