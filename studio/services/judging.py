"""Judging comparisons: who judges, what it will take, what came of it. Knows nothing of how a judge is asked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import queue
from studio.catalogue import models as folders
from studio.db import lifecycle
from studio.db.models import AnswerRow, ComparisonRow, JobRow, JudgementRow, VerdictRow
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError
from studio.evaluation import judging
from studio.services.adapters import AdapterService
from studio.services.comparisons import ComparisonService
from studio.settings import Settings

REFERENCE, LIKELIHOOD = "reference", "likelihood:"
SHORT_CONTEXT = 1024  # tokens: below it, a judge is asked in few words
CHARACTERS_PER_TOKEN = 4.0
CONCURRENT = 4  # questions that a judge answers in the time of one, about
Rows = list[dict[str, Any]]


class JudgingService:
    """What a person can do with judges. Every method returns plain values in the shapes of the HTTP interface."""

    def __init__(self, settings: Settings, db: Database, comparisons: ComparisonService, adapters: AdapterService) -> None:
        self.settings = settings
        self.db = db
        self.comparisons = comparisons
        self.adapters = adapters

    def templates(self) -> Rows:
        """What a model can be asked: `name`, `title`, `kind`."""
        return [{"name": judge.name, "title": judge.title, "kind": judge.kind} for judge in judging.judges().values()]

    def judge(
        self,
        comparison: str,
        judge: str | None = None,
        *,
        criteria: str = "",
        template: str | None = None,
        budget_tokens: int | None = None,
        probes: bool = True,
        concurrency: int | None = None,
    ) -> dict[str, Any]:
        """Queue a judgement. `judge`: "reference" (default where there are references), "likelihood:MODEL", a model, or URL#MODEL.

        Raises StudioError before anything is queued: no second contestant, no references, an unknown judge or template.
        """
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
        wanted = judge or self._default(row)
        kind, config = self._resolved(wanted, row.base_model, criteria)
        self._check(row, kind)
        chosen = self._template(template, config.get("model")) if kind == "model" else ""
        with self.db.write() as session:
            judgement = JudgementRow(comparison_id=row.id, judge=wanted, kind=kind, template=chosen, criteria=criteria.strip())
            session.add(judgement)
            session.flush()
            config |= {"comparison": row.id, "judgement": judgement.id, "probes": probes, "judge": wanted}
            config |= {"budget_tokens": budget_tokens, "concurrency": concurrency}
            answered = session.get(JobRow, row.job_id) if row.job_id else None
            after = answered.id if answered and answered.status != "SUCCEEDED" else None
            job = JobRow(
                kind="judge", queue="light", name=f"judge-{judgement.id}", config=config, base_model=row.base_model, after_id=after
            )
            judgement.job_id = lifecycle.submit(session, job).id
        queue.ring(self.settings.queue_path, "light", job.id)
        return self.show(judgement.id)

    def estimate(self, comparison: str, judge: str | None = None, *, template: str | None = None) -> dict[str, Any]:
        """What a judgement will take: `questions`, `prompt_tokens`, `completion_tokens` at most, and `seconds`.

        Seconds are those of this judge where it has judged before, else of any judge's reading per token; None where nobody has judged.
        """
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            wanted = judge or self._default(row)
            characters = session.scalar(select(func.sum(func.length(AnswerRow.text))).where(AnswerRow.comparison_id == row.id)) or 0
            paces = [_pace(session, mine) for mine in (VerdictRow.rater == wanted, VerdictRow.prompt_tokens > 0)]
        contestants, prompts = len(row.contestants), len(row.prompts)
        questions = contestants * (contestants - 1) * prompts
        if wanted == REFERENCE:
            return {"judge": wanted, "questions": questions, "prompt_tokens": 0, "completion_tokens": 0, "seconds": 0.0}
        is_asked = not wanted.startswith(LIKELIHOOD)
        chosen = judging.get(self._template(template, self._resolved(wanted, row.base_model, "")[1].get("model"))) if is_asked else None
        frame = sum(map(len, chosen.templates["plain"].values())) if chosen else 0
        # each answer is read once against every other contestant, in both orders
        read = 2 * (contestants - 1) * characters + questions * (frame + _asked_length(row))
        tokens = math.ceil(read / CHARACTERS_PER_TOKEN)
        pace = next((one for one in paces if one is not None), None)
        return {
            "judge": wanted,
            "questions": questions,
            "prompt_tokens": tokens,
            "completion_tokens": questions * chosen.max_new_tokens if chosen else 0,
            "seconds": None if pace is None else round(pace * tokens / CONCURRENT, 1),
        }

    def list(self, comparison: str) -> Rows:
        """The judgements of a comparison, newest first."""
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            query = select(JudgementRow).where(JudgementRow.comparison_id == row.id).order_by(JudgementRow.created_at.desc())
            return [_record(judgement, _job(session, judgement)) for judgement in session.scalars(query)]

    def show(self, judgement: str) -> dict[str, Any]:
        """One judgement: the readings' keys beside `id`, `job`, `status`, `judge`, ..."""
        with self.db.read() as session:
            found = self._find(session, judgement)
            return _record(found, _job(session, found))

    def verdicts(self, judgement: str, *, prompt: str | None = None, offset: int = 0, limit: int = 100) -> Rows:
        """Verdict lines with everything that was asked and replied."""
        with self.db.read() as session:
            found = self._find(session, judgement)
            query = select(VerdictRow).where(VerdictRow.judgement_id == found.id).order_by(VerdictRow.id).offset(offset).limit(limit)
            if prompt is not None:
                query = query.where(VerdictRow.prompt_id == prompt)
            return [verdict_json(row) for row in session.scalars(query)]

    def _find(self, session: Session, judgement: str) -> JudgementRow:
        found = session.get(JudgementRow, judgement)
        if found is None:
            raise NotFoundError(f"There is no judgement {judgement!r}.", "`studio judge COMPARISON` makes one.")
        return found

    def _default(self, comparison: ComparisonRow) -> str:
        if any(prompt.get("reference") for prompt in comparison.prompts):
            return REFERENCE
        raise StudioError(
            f"{comparison.name} has no references, so somebody must judge.",
            "Name a judge: a model, URL#MODEL, or likelihood:MODEL.",
        )

    def seat(self, judge: str) -> dict[str, Any]:
        """A judge by name for whoever asks it without a comparison: `judge`, `kind`, `template`, `model`. Raises StudioError."""
        kind, config = self._resolved(judge, None, "")
        return {"judge": judge, "kind": kind, "template": self._template(None, config.get("model")) if kind == "model" else "", **config}

    def _resolved(self, judge: str, base_model: str | None, criteria: str) -> tuple[str, dict[str, Any]]:
        if judge == REFERENCE:
            if criteria.strip():
                raise StudioError("The reference judge is a rule: it follows no criteria.", "Name a model, or leave out the criteria.")
            return "reference", {}
        if judge.startswith(LIKELIHOOD):
            model = self.adapters.resolve(judge.removeprefix(LIKELIHOOD), base_model)
            if model.url:
                raise StudioError("A likelihood judge needs a model of this machine.", "Name a base model, or BASE:ADAPTER.")
            return "likelihood", {"model": model.as_json()}
        return "model", {"model": self.adapters.resolve(judge, base_model).as_json()}

    def _check(self, comparison: ComparisonRow, kind: str) -> None:
        if len(comparison.contestants) < 2:
            raise StudioError(f"{comparison.name} has one contestant only: there is nobody to judge it against.", "Compare two or more.")
        if kind == "reference" and not any(prompt.get("reference") for prompt in comparison.prompts):
            raise StudioError(
                f"{comparison.name} has no references for the reference judge.", "Name another judge, or compare prompts with references."
            )

    def _template(self, wanted: str | None, model: dict[str, Any] | None) -> str:
        if wanted is not None:
            return judging.get(wanted).name
        studio = (model or {}).get("studio")
        context = folders.inspect_folder(Path(studio["base"]["path"])).context if studio else None
        return "brief" if context and context <= SHORT_CONTEXT else "pair"


def verdict_json(row: VerdictRow) -> dict[str, Any]:
    """One verdict line, and what was asked and said."""
    return {
        "prompt_id": row.prompt_id,
        "a": row.a,
        "b": row.b,
        "winner": row.winner,
        "rater": row.rater,
        "probe": row.is_probe,
        "asked": row.asked,
        "reply": row.reply,
        "cached": row.is_cached,
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "seconds": row.seconds,
    }


def _pace(session: Session, mine: Any) -> float | None:
    """Seconds per token read, of verdicts that were asked for."""
    seconds, tokens = session.execute(
        select(func.sum(VerdictRow.seconds), func.sum(VerdictRow.prompt_tokens)).where(mine, VerdictRow.is_cached.is_(False))
    ).one()
    return seconds / tokens if tokens else None


def _asked_length(comparison: ComparisonRow) -> float:
    lengths = [sum(len(str(message["content"])) for turn in prompt["turns"] for message in turn) for prompt in comparison.prompts]
    return sum(lengths) / max(1, len(lengths))


def _job(session: Session, judgement: JudgementRow) -> JobRow | None:
    return session.get(JobRow, judgement.job_id) if judgement.job_id else None


def _record(judgement: JudgementRow, job: JobRow | None) -> dict[str, Any]:
    return {
        "id": judgement.id,
        "comparison": judgement.comparison_id,
        "judge": judgement.judge,
        "kind": judgement.kind,
        "template": judgement.template,
        "criteria": judgement.criteria,
        "job": judgement.job_id,
        "status": job.status if job else "SUCCEEDED",
        "reason": job.reason if job else "",
        "fix": job.fix if job else "",
        "progress": {"step": job.step if job else None, "max_steps": job.max_steps if job else None, "eta_s": job.eta_s if job else None},
        "created_at": judgement.created_at,
        **judgement.readings,
    }
