"""Judging comparisons: who judges, what it will take, what came of it. Knows nothing of how a judge is asked."""

from __future__ import annotations

import builtins
import math
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import queue
from jobs.kinds import queue_of
from studio.catalogue import models as folders
from studio.db import lifecycle
from studio.db.models import AnswerRow, ComparisonRow, JobRow, JudgementRow, VerdictRow
from studio.db.session import Database
from studio.engine.protocol import Contestant
from studio.errors import NotFoundError, StudioError
from studio.evaluation import judging
from studio.records import JobKind, JobStatus, JudgeEstimate, JudgeKind, Judgement, JudgeTemplate, QueueName, Verdict
from studio.services.adapters import AdapterService
from studio.services.comparisons import ComparisonService, job_of, state_of
from studio.settings import Settings

REFERENCE, LIKELIHOOD = JudgeKind.REFERENCE.value, f"{JudgeKind.LIKELIHOOD}:"
SHORT_CONTEXT = 1024  # tokens: below it, a judge is asked in few words
CHARACTERS_PER_TOKEN = 4.0
CONCURRENT = 4  # questions that a judge answers in the time of one, about
JudgeConfig = dict[str, Any]  # as jobs.panel.open_judge takes it: a contestant as JSON among it


class JudgingService:
    """What a person can do with judges."""

    def __init__(self, settings: Settings, db: Database, comparisons: ComparisonService, adapters: AdapterService) -> None:
        self.settings = settings
        self.db = db
        self.comparisons = comparisons
        self.adapters = adapters

    def templates(self) -> list[JudgeTemplate]:
        """What a model can be asked."""
        return [JudgeTemplate(name=judge.name, title=judge.title, kind=judge.kind) for judge in judging.judges().values()]

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
    ) -> Judgement:
        """Queue a judgement. `judge`: "reference" (default where there are references), "likelihood:MODEL", a model, or URL#MODEL.

        Raises StudioError before anything is queued: no second contestant, no references, an unknown judge or template.
        """
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
        wanted = judge or self._default(row)
        kind, config = self._resolved(wanted, row.base_model, criteria)
        self._check(row, kind)
        chosen = self._template(template, config, kind)
        with self.db.write() as session:
            judgement = JudgementRow(comparison_id=row.id, judge=wanted, kind=kind, template=chosen, criteria=criteria.strip())
            session.add(judgement)
            session.flush()
            config |= {"comparison": row.id, "judgement": judgement.id, "probes": probes, "judge": wanted}
            config |= {"budget_tokens": budget_tokens, "concurrency": concurrency}
            answered = job_of(session, row)
            after = None
            if answered and answered.status != JobStatus.SUCCEEDED:
                after = answered.id
            job = JobRow(
                kind=JobKind.JUDGE,
                queue=queue_of(JobKind.JUDGE),
                name=f"judge-{judgement.id}",
                config=config,
                base_model=row.base_model,
                after_id=after,
            )
            judgement.job_id = lifecycle.submit(session, job).id
        queue.notify(self.settings.queue_path, QueueName.LIGHT)
        return self.show(judgement.id)

    def estimate(self, comparison: str, judge: str | None = None, *, template: str | None = None) -> JudgeEstimate:
        """What a judgement will take.

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
            return JudgeEstimate(judge=wanted, questions=questions, prompt_tokens=0, completion_tokens=0, seconds=0.0)
        frame = longest_reply = 0  # of a likelihood judge, which is asked nothing and writes nothing
        kind, config = self._resolved(wanted, row.base_model, "")
        if kind == JudgeKind.MODEL:
            chosen = judging.get(self._template(template, config, kind))
            frame, longest_reply = sum(map(len, chosen.templates["plain"].values())), chosen.max_new_tokens
        # each answer is read once against every other contestant, in both orders
        read = 2 * (contestants - 1) * characters + questions * (frame + _asked_length(row))
        tokens = math.ceil(read / CHARACTERS_PER_TOKEN)
        pace = next((one for one in paces if one is not None), None)
        return JudgeEstimate(
            judge=wanted,
            questions=questions,
            prompt_tokens=tokens,
            completion_tokens=questions * longest_reply,
            seconds=None if pace is None else round(pace * tokens / CONCURRENT, 1),
        )

    def list(self, comparison: str) -> list[Judgement]:
        """The judgements of a comparison, newest first."""
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            query = select(JudgementRow).where(JudgementRow.comparison_id == row.id).order_by(JudgementRow.created_at.desc())
            return [_record(judgement, job_of(session, judgement)) for judgement in session.scalars(query)]

    def show(self, judgement: str) -> Judgement:
        """One judgement, with its readings once it has ended."""
        with self.db.read() as session:
            found = self._find(session, judgement)
            return _record(found, job_of(session, found))

    def verdicts(self, judgement: str, *, prompt: str | None = None, offset: int = 0, limit: int = 100) -> builtins.list[Verdict]:
        """Verdict lines with everything that was asked and replied."""
        with self.db.read() as session:
            found = self._find(session, judgement)
            query = select(VerdictRow).where(VerdictRow.judgement_id == found.id).order_by(VerdictRow.id).offset(offset).limit(limit)
            if prompt is not None:
                query = query.where(VerdictRow.prompt_id == prompt)
            return [_verdict(row) for row in session.scalars(query)]

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

    def judge_config(self, judge: str) -> JudgeConfig:
        """A judge by name for whoever asks it without a comparison: `judge`, `kind`, `template`, `model`. Raises StudioError."""
        kind, config = self._resolved(judge, None, "")
        return {"judge": judge, "kind": kind, "template": self._template(None, config, kind), **config}

    def _resolved(self, judge: str, base_model: str | None, criteria: str) -> tuple[JudgeKind, JudgeConfig]:
        if judge == REFERENCE:
            if criteria.strip():
                raise StudioError("The reference judge is a rule: it follows no criteria.", "Name a model, or leave out the criteria.")
            return JudgeKind.REFERENCE, {}
        if judge.startswith(LIKELIHOOD):
            model = self.adapters.resolve(judge.removeprefix(LIKELIHOOD), base_model)
            if model.url:
                raise StudioError("A likelihood judge needs a model of this machine.", "Name a base model, or BASE:ADAPTER.")
            return JudgeKind.LIKELIHOOD, {"model": model.as_json()}
        return JudgeKind.MODEL, {"model": self.adapters.resolve(judge, base_model).as_json()}

    def _check(self, comparison: ComparisonRow, kind: JudgeKind) -> None:
        if len(comparison.contestants) < 2:
            raise StudioError(f"{comparison.name} has one contestant only: there is nobody to judge it against.", "Compare two or more.")
        if kind == JudgeKind.REFERENCE and not any(prompt.get("reference") for prompt in comparison.prompts):
            raise StudioError(
                f"{comparison.name} has no references for the reference judge.", "Name another judge, or compare prompts with references."
            )

    def _template(self, wanted: str | None, config: JudgeConfig, kind: JudgeKind) -> str:
        """The template that was named, else the one that fits the context of the judge's model; "" for other kinds of judges."""
        if kind != JudgeKind.MODEL:
            return ""
        if wanted is not None:
            return judging.get(wanted).name
        model = Contestant.from_json(config["model"])
        if model.base is None:  # of another server, whose context is not known
            return "pair"
        context = folders.inspect_folder(model.base.path).context
        return "brief" if 0 < context <= SHORT_CONTEXT else "pair"


def _verdict(row: VerdictRow) -> Verdict:
    same = Verdict.model_fields.keys() - {"probe", "cached"}
    return Verdict(**{name: getattr(row, name) for name in same}, probe=row.is_probe, cached=row.is_cached)


def _pace(session: Session, mine: Any) -> float | None:
    """Seconds per token read, of verdicts that were asked for."""
    seconds, tokens = session.execute(
        select(func.sum(VerdictRow.seconds), func.sum(VerdictRow.prompt_tokens)).where(mine, VerdictRow.is_cached.is_(False))
    ).one()
    if not tokens:
        return None
    return float(seconds / tokens)


def _asked_length(comparison: ComparisonRow) -> float:
    lengths = [sum(len(str(message["content"])) for turn in prompt["turns"] for message in turn) for prompt in comparison.prompts]
    return sum(lengths) / max(1, len(lengths))


def _record(judgement: JudgementRow, job: JobRow | None) -> Judgement:
    return Judgement(
        **judgement.readings,
        **dict(state_of(job)),
        id=judgement.id,
        comparison=judgement.comparison_id,
        judge=judgement.judge,
        kind=JudgeKind(judgement.kind),
        template=judgement.template,
        criteria=judgement.criteria,
        job=judgement.job_id,
        created_at=judgement.created_at,
    )
