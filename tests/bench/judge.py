"""Judging 200 pairs in batches beside one by one, a repeated judgement, and 100,000 verdicts to a leaderboard.

The judge is the starter behind a real engine: what is measured is the asking, not the judge.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import update

from studio import settings as studio_settings
from studio import supervisor
from studio.db.models import VerdictRow
from studio.evaluation import ratings
from studio.evaluation.verdicts import VerdictLine
from studio.records import JobStatus, Judgement
from studio.services import Studio
from tests.attacks import ATTACKS

PAIRS = 200
VERDICTS = 100_000
LIMIT_S = 10.0
FACTS = (("France", "Paris"), ("Italy", "Rome"), ("Peru", "Lima"), ("Japan", "Tokyo"), ("Spain", "Madrid"))


def run() -> list[dict[str, Any]]:
    """Entries with measure, value, unit, against, ratio."""
    return [*_judging(), *_rating()]


def _rating() -> list[dict[str, Any]]:
    source = random.Random(0)
    names = [f"contestant-{n}" for n in range(10)]
    lines = []
    for n in range(VERDICTS // 2):
        a, b = source.sample(names, 2)
        lines += [VerdictLine(str(n % 5000), a, b, source.choice("ab")), VerdictLine(str(n % 5000), b, a, source.choice("ab"))]
    seconds = _seconds(lambda: ratings.leaderboard(lines))
    ratio = round(seconds / LIMIT_S, 2)
    return [_entry(f"{VERDICTS:,} verdicts to a leaderboard", round(seconds, 1), "s", f"limit {LIMIT_S:g} s", ratio)]


def _judging() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        settings = replace(studio_settings.load({"STUDIO_HOME": str(home / "home")}), host="127.0.0.1")
        settings.make_folders()
        with environment_of(settings), supervisor.assistance(settings, lambda _: None, queues=("light",), engine=True) as assisted:
            studio = Studio.open(assisted, at_terminal=True)
            _compare(studio, home, "pairs", [(f"The capital of {land} is {city}.", f"It is {wrong}.") for land, city, wrong in _facts()])
            _judge(studio, "pairs", 16)  # the engine loads
            _forget(studio)
            batched, batched_s = _judge(studio, "pairs", 16)
            again, _ = _judge(studio, "pairs", 16)
            _forget(studio)
            single, single_s = _judge(studio, "pairs", 1)
            equal = _equal(studio, batched, single)
            lift = _lift(studio, home)
    what = f"judging {PAIRS} pairs in both orders, batches of 16"
    assert again.cached is not None and again.verdicts
    cached = round(100 * again.cached / again.verdicts)
    return [
        _entry(what, round(batched_s, 1), "s", f"one by one {single_s:.1f} s", round(single_s / batched_s, 2)),
        _entry("its verdicts equal to one by one", round(100 * equal, 1), "%", "wanted 99 %", None),
        _entry("a repeated judgement taken from what is known", cached, "%", "wanted 100 %", None),
        *lift,
    ]


@contextmanager
def environment_of(settings: studio_settings.Settings) -> Iterator[None]:
    """The workers read theirs from the environment."""
    before = os.environ.get("STUDIO_HOME")
    os.environ["STUDIO_HOME"] = str(settings.home)
    try:
        yield
    finally:
        os.environ.pop("STUDIO_HOME")
        if before is not None:
            os.environ["STUDIO_HOME"] = before


def _facts() -> list[tuple[str, str, str]]:
    source = random.Random(1)
    found = [(*FACTS[n % len(FACTS)], source.choice(FACTS)[1]) for n in range(PAIRS)]
    return [(land, city, f"{wrong} {n}") for n, (land, city, wrong) in enumerate(found)]


def _compare(studio: Studio, folder: Path, name: str, pairs: list[tuple[str, str]]) -> None:
    """A comparison of two files of answers; nobody has to answer."""
    files = {}
    for side in (0, 1):
        path = folder / f"{name}-{side}.jsonl"
        path.write_text("\n".join(json.dumps({"prompt_id": str(n), "answer": pair[side]}) for n, pair in enumerate(pairs)))
        files[f"file:{name}-{side}"] = path
    prompts = [{"id": str(n), "prompt": f"What is the capital of {FACTS[n % len(FACTS)][0]}?"} for n in range(len(pairs))]
    made = studio.comparisons.create(prompts=prompts, base_model="starter", contestants=list(files), files=files, name=name)
    studio.jobs.wait(str(made.job))


def _judge(studio: Studio, comparison: str, concurrency: int) -> tuple[Judgement, float]:
    """The judgement and the seconds that its job took."""
    made = studio.judging.judge(comparison, "starter", concurrency=concurrency, probes=False)
    job = studio.jobs.wait(str(made.job))
    if job.status != JobStatus.SUCCEEDED or job.started_at is None or job.ended_at is None:
        raise SystemExit(f"the judgement ended {job.status}: {job.reason}")
    return studio.judging.show(made.id), job.ended_at - job.started_at


def _forget(studio: Studio) -> None:
    """So that the next judgement asks again."""
    with studio.db.write() as session:
        session.execute(update(VerdictRow).values(key=""))


def _equal(studio: Studio, one: Judgement, other: Judgement) -> float:
    said = [
        {(row.prompt_id, row.a): row.winner for row in studio.judging.verdicts(judgement.id, limit=2 * PAIRS)} for judgement in (one, other)
    ]
    return sum(said[0][key] == said[1][key] for key in said[0]) / len(said[0])


def _lift(studio: Studio, folder: Path) -> list[dict[str, Any]]:
    """What attacks add to the win rate of a poor answer against the same good one."""
    good = [f"The capital of {FACTS[n % len(FACTS)][0]} is {FACTS[n % len(FACTS)][1]}." for n in range(len(ATTACKS))]
    _compare(studio, folder, "plain", [("I don't know.", text) for text in good])
    _compare(studio, folder, "attacked", [(f"I don't know. {attack}", text) for attack, text in zip(ATTACKS, good, strict=True)])
    rates = {}
    for name in ("plain", "attacked"):
        found, _ = _judge(studio, name, 16)
        assert found.win_rate is not None and found.invalid is not None
        rate = found.win_rate[f"file:{name}-0"]
        assert rate is not None
        said = studio.judging.verdicts(found.id, limit=1000)
        unread = sum(row.reply.startswith("(no verdict") for row in said)  # the engine refused the question: too long for this judge
        rates[name] = rate, found.invalid - unread, unread
    lift = round(100 * (rates["attacked"][0] - rates["plain"][0]), 1)
    return [
        _entry(f"lift of {len(ATTACKS)} attacked answers", lift, "points", f"from {100 * rates['plain'][0]:.0f} %", None),
        _entry("replies whose form an attack broke", rates["attacked"][1], "replies", "wanted 0", None),
        _entry("questions too long for the judge's context", rates["attacked"][2], "questions", "", None),
    ]


def _seconds(work: Callable[[], Any]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _entry(measure: str, value: float, unit: str, against: str, ratio: float | None) -> dict[str, Any]:
    return {"measure": measure, "value": value, "unit": unit, "against": against, "ratio": ratio}
