"""The light job `report`: base and adapter answer held-out rows of a training, the reference rule judges, and figures are drawn.

It gives the device to trainings: once one begins, an automatic report goes back into the queue with what it has, and goes on after it.
Knows how comparisons and judgements run; the training itself is none of its business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs import compare, judge, measures
from jobs.light import LightContext, LightJobStopped
from studio.catalogue.models import count_parameters
from studio.db import queue_order
from studio.db.models import AnswerRow, ComparisonRow, JobRow, JudgementRow, VerdictRow
from studio.errors import StudioError
from studio.evaluation import verdicts

LOOK_S = 1.0  # between two looks whether a training has begun
EXAMPLES = 3  # of wins, and of losses
SHOWN = 600  # characters of a text that is kept to be shown
SMALL = 300_000_000  # parameters up to which perplexity is worth its time on one thread

log = logging.getLogger(__name__)


def run(context: LightContext) -> dict[str, Any]:
    """Raises LightJobStopped when the device is wanted, and StudioError when the engine can't answer."""
    yielding = Yielding(context)
    try:
        compare.run(yielding.part(0))
        if "judgement" in context.config:
            judge.run(yielding.part(1))
        return _figures(yielding.part(1))
    except StudioError:
        if yielding.is_wanted(at_once=True):  # a training took the engine's memory: that is no failure
            raise LightJobStopped from None
        raise


class Yielding:
    """A context whose job also stops when a training begins, unless a person asked for the report."""

    def __init__(self, context: LightContext) -> None:
        self._context = context
        with context.db.read() as session:
            self._gives_way = session.get_one(JobRow, context.job_id).priority < 0
        self._looked_at = 0.0
        self._is_wanted = False

    def part(self, number: int) -> LightContext:
        """The context of the first or the second half of the work."""

        def progress(step: int, steps: int) -> None:
            self._context.progress(number * steps + step, 2 * steps)

        return replace(self._context, stop_requested=self.is_stopping, progress=progress)

    def is_stopping(self) -> bool:
        return self._context.stop_requested() or self.is_wanted()

    def is_wanted(self, at_once: bool = False) -> bool:
        """Whether a training holds the device, as seen within LOOK_S or `at_once`."""
        if self._gives_way and (at_once or time.monotonic() - self._looked_at >= LOOK_S):
            self._looked_at = time.monotonic()
            with self._context.db.read() as session:
                self._is_wanted = not queue_order.device_is_free(session)
        return self._is_wanted


def _figures(context: LightContext) -> dict[str, Any]:
    with context.db.read() as session:
        comparison = session.get_one(ComparisonRow, context.config["comparison"])
        answers = session.scalars(select(AnswerRow).where(AnswerRow.comparison_id == comparison.id)).all()
        judgement = session.get(JudgementRow, context.config.get("judgement", ""))
        lines = session.scalars(select(VerdictRow).where(VerdictRow.judgement_id == judgement.id)).all() if judgement else []
    base, tuned = comparison.contestants
    measured = measures.measure(context.settings, comparison, answers, pulse=context.stop_if_asked)
    metrics = {name: measured[name] for name in comparison.contestants if name in measured}
    for contestant in context.config["contestants"]:
        if contestant["name"] in metrics:
            _add_perplexity(context, comparison, contestant, metrics[contestant["name"]])
    return {
        "training": context.config["training"],
        "comparison": comparison.id,
        "judgement": judgement.id if judgement else None,
        "base": base,
        "adapter": tuned,
        "rows": len(comparison.prompts),
        "held_out": context.config["held_out"],
        "metrics": metrics,
        "judge": _judged(judgement.readings, judgement.judge, tuned) if judgement else None,
        **_examples(comparison, answers, [judge.as_verdict(row) for row in lines]),
    }


def _add_perplexity(context: LightContext, comparison: ComparisonRow, contestant: Mapping[str, Any], figures: dict[str, Any]) -> None:
    measured, reason = None, measures.NO_LIKELIHOOD
    try:
        parameters = count_parameters(Path(contestant["studio"]["base"]["path"]))
        if parameters > SMALL:
            reason = f"the base has {parameters / 1e9:.1f} billion parameters, too many to read the references on the processor by itself"
        else:
            measured = measures.perplexity(context.settings, comparison, contestant, context.stop_if_asked)
    except StudioError as exc:
        log.info("No perplexity of %s: %s", contestant["name"], exc)
        reason = str(exc)
    measures.add_perplexity(figures, measured, reason)


def _judged(readings: Mapping[str, Any], name: str, tuned: str) -> dict[str, Any]:
    kept = ("pairs", "swap_consistency", "longer_win_rate", "enough", "more_needed", "warnings")
    return {"judge": name, "win_rate": readings["win_rate"][tuned], "ci95": readings["ci95"][tuned], **{key: readings[key] for key in kept}}


def _examples(comparison: ComparisonRow, answers: Sequence[AnswerRow], lines: Sequence[verdicts.VerdictLine]) -> dict[str, Any]:
    """`counts` of wins, losses and ties of the adapter, and some of its wins and losses in the order of the rows."""
    base, tuned = comparison.contestants
    scores = {game.prompt_id: game.score if game.a == tuned else 1 - game.score for game in verdicts.games(lines)}
    texts = {(answer.prompt_id, answer.contestant): answer.text for answer in answers}
    shown: dict[str, list[dict[str, Any]]] = {"wins": [], "losses": []}
    counts = {"wins": 0, "losses": 0, "ties": 0}
    for prompt in comparison.prompts:
        score = scores.get(prompt["id"])
        if score is None:
            continue
        kind = _kind(score)
        counts[kind] += 1
        if kind in shown and len(shown[kind]) < EXAMPLES:
            shown[kind].append({
                "prompt_id": prompt["id"],
                "prompt": str(prompt["turns"][-1][-1]["content"])[-SHOWN:],
                "reference": str(prompt.get("reference") or "")[:SHOWN],
                "base": texts.get((prompt["id"], base), "")[:SHOWN],
                "tuned": texts.get((prompt["id"], tuned), "")[:SHOWN],
            })  # fmt: skip
    return {"counts": counts, **shown}


def _kind(score: float) -> str:
    """Of the adapter's score against its base."""
    if score == 0.5:
        return "ties"
    return "wins" if score > 0.5 else "losses"
