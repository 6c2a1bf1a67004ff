"""Judging comparisons: who judges, what it will take, what came of it. Knows nothing of how a judge is asked."""

from __future__ import annotations

import builtins
import math
import time
from collections import Counter
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs import queue
from jobs.kinds import queue_of
from studio.catalogue import models as folders
from studio.catalogue import rope
from studio.db import lifecycle
from studio.db.models import AnswerRow, ComparisonRow, JobRow, JudgementRow, VerdictRow
from studio.db.session import Database
from studio.engine.protocol import Contestant
from studio.errors import NotFoundError, StudioError
from studio.evaluation import judging
from studio.records import JobKind, JobStatus, JudgeEstimate, JudgeKind, Judgement, JudgeTemplate, QueueName, Verdict
from studio.services.adapters import AdapterService
from studio.services.comparisons import ComparisonService, job_of, state_of
from studio.services.paging import ALL, Listed, Page
from studio.settings import Settings

REFERENCE, LIKELIHOOD = JudgeKind.REFERENCE.value, f"{JudgeKind.LIKELIHOOD}:"
SHORT_CONTEXT = 1024  # tokens: below it, a judge is asked in few words
CHARACTERS_PER_TOKEN = 4.0
MOST_JUDGES = 9  # of a panel
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

        Several, separated by commas, are a panel: one judgement each, and one of their majority, which is returned.

        Raises StudioError before anything is queued: no second contestant, no references, an unknown judge or template.
        """
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
        chosen = self._chosen(judge or self._default(row), row.base_model, criteria, template)
        self._check(row, chosen)
        config = {"comparison": row.id, "probes": probes, "budget_tokens": budget_tokens, "concurrency": concurrency, **chosen}
        with self.db.write() as session:
            made = _row(row, chosen, criteria, time.time())
            # the panel's own judgement is the newest, so that the majority counts
            members = [_row(row, one, criteria, made.created_at - 0.001 * (n + 1)) for n, one in enumerate(chosen.get("members", ()))]
            session.add_all([made, *members])
            session.flush()
            config["judgement"] = made.id
            if members:
                config["members"] = [{**one, "judgement": own.id} for one, own in zip(chosen["members"], members, strict=True)]
            answered = job_of(session, row)
            after = None
            if answered and answered.status != JobStatus.SUCCEEDED:
                after = answered.id
            job = JobRow(
                kind=JobKind.JUDGE,
                queue=queue_of(JobKind.JUDGE),
                name=f"judge-{made.id}",
                config=config,
                base_model=row.base_model,
                after_id=after,
            )
            submitted = lifecycle.submit(session, job).id
            for judgement in (made, *members):
                judgement.job_id = submitted
        queue.notify(self.settings.queue_path, QueueName.LIGHT)
        return self.show(made.id)

    def estimate(self, comparison: str, judge: str | None = None, *, template: str | None = None) -> JudgeEstimate:
        """What a judgement will take.

        Seconds are those of this judge where it has judged before, else of any judge's reading per token; None where nobody has judged.
        """
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            chosen = self._chosen(judge or self._default(row), row.base_model, "", template)
            characters = session.scalar(select(func.sum(func.length(AnswerRow.text))).where(AnswerRow.comparison_id == row.id)) or 0
            parts = [_estimate(session, row, one, characters) for one in chosen.get("members", [chosen])]
        seconds = [part.seconds for part in parts]
        return JudgeEstimate(
            judge=chosen["judge"],
            questions=sum(part.questions for part in parts),
            prompt_tokens=sum(part.prompt_tokens for part in parts),
            completion_tokens=sum(part.completion_tokens for part in parts),
            seconds=None if None in seconds else sum(one for one in seconds if one is not None),
        )

    def list(self, comparison: str, page: Page = ALL) -> Listed[Judgement]:
        """The judgements of a comparison, newest first."""
        with self.db.read() as session:
            row = self.comparisons.find(session, comparison)
            query = select(JudgementRow).where(JudgementRow.comparison_id == row.id)
            rows = page.read(session, query.order_by(JudgementRow.created_at.desc(), JudgementRow.id))
            return rows.as_are(_record(judgement, job_of(session, judgement)) for (judgement,) in rows)

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
        """A judge by name for whoever asks it without a comparison: `judge`, `kind`, `template`, `model`, `members`. Raises StudioError."""
        return self._chosen(judge, None, "", None)

    def _chosen(self, judge: str, base_model: str | None, criteria: str, template: str | None) -> JudgeConfig:
        """One judge, or with commas a panel of them. Raises StudioError for what a judge can't do as asked."""
        names = [name.strip() for name in judge.split(",")]
        if len(names) == 1:
            chosen = self._one(judge, base_model, criteria, template)
            if template is not None and chosen["kind"] != JudgeKind.MODEL:
                raise StudioError(f"The {chosen['kind']} judge is asked nothing, so no template fits it.", "Leave out the template.")
            return chosen
        twice = [name for name, count in Counter(names).items() if count > 1]
        if "" in names or twice or len(names) > MOST_JUDGES:
            what = f"{judge!r} is no panel of judges"
            raise StudioError(f"{what}.", f"Name 2 to {MOST_JUDGES} different judges, separated by commas.")
        members = [self._one(name, base_model, criteria, template) for name in names]
        if template is not None and all(one["kind"] != JudgeKind.MODEL for one in members):
            raise StudioError("None of these judges is asked anything, so no template fits them.", "Leave out the template.")
        return {"judge": ",".join(names), "kind": JudgeKind.PANEL, "template": "", "members": members}

    def _one(self, judge: str, base_model: str | None, criteria: str, template: str | None) -> JudgeConfig:
        if judge == REFERENCE:
            if criteria.strip():
                raise StudioError("The reference judge is a rule: it follows no criteria.", "Name a model, or leave out the criteria.")
            return {"judge": judge, "kind": JudgeKind.REFERENCE, "template": ""}
        if judge.startswith(LIKELIHOOD):
            model = self.adapters.resolve(judge.removeprefix(LIKELIHOOD), base_model)
            if model.url:
                raise StudioError("A likelihood judge needs a model of this machine.", "Name a base model, or BASE:ADAPTER.")
            if criteria.strip():
                raise StudioError(
                    "A likelihood judge is asked nothing: it follows no criteria.", "Name a model, or leave out the criteria."
                )
            return {"judge": judge, "kind": JudgeKind.LIKELIHOOD, "template": "", "model": model.as_json()}
        config: JudgeConfig = {"judge": judge, "kind": JudgeKind.MODEL, "model": self.adapters.resolve(judge, base_model).as_json()}
        return {**config, "template": self._template(template, config)}

    def _check(self, comparison: ComparisonRow, chosen: JudgeConfig) -> None:
        if len(comparison.contestants) < 2:
            raise StudioError(f"{comparison.name} has one contestant only: there is nobody to judge it against.", "Compare two or more.")
        kinds = [one["kind"] for one in chosen.get("members", [chosen])]
        if JudgeKind.REFERENCE in kinds and not any(prompt.get("reference") for prompt in comparison.prompts):
            raise StudioError(
                f"{comparison.name} has no references for the reference judge.", "Name another judge, or compare prompts with references."
            )

    def _template(self, wanted: str | None, config: JudgeConfig) -> str:
        """The template that was named, else the one that fits the context of the judge's model."""
        if wanted is not None:
            return judging.get(wanted).name
        model = Contestant.from_json(config["model"])
        if model.base is None:  # of another server, whose context is not known
            return "pair"
        context = folders.inspect_folder(model.base.path).context
        context = rope.context_beside(model.base.path, model.adapter and model.adapter.path, context)
        return "brief" if 0 < context <= SHORT_CONTEXT else "pair"


def _row(comparison: ComparisonRow, chosen: JudgeConfig, criteria: str, created_at: float) -> JudgementRow:
    return JudgementRow(
        comparison_id=comparison.id,
        judge=chosen["judge"],
        kind=chosen["kind"],
        template=chosen["template"],
        criteria=criteria.strip(),
        created_at=created_at,
    )


def _estimate(session: Session, row: ComparisonRow, chosen: JudgeConfig, characters: int) -> JudgeEstimate:
    """Of one judge."""
    wanted, kind = chosen["judge"], chosen["kind"]
    contestants, prompts = len(row.contestants), len(row.prompts)
    questions = contestants * (contestants - 1) * prompts
    if kind == JudgeKind.REFERENCE:
        return JudgeEstimate(judge=wanted, questions=questions, prompt_tokens=0, completion_tokens=0, seconds=0.0)
    frame = longest_reply = 0  # of a likelihood judge, which is asked nothing and writes nothing
    if kind == JudgeKind.MODEL:
        template = judging.get(chosen["template"])
        frame, longest_reply = sum(map(len, template.templates["plain"].values())), template.max_new_tokens
        if chosen["model"]["url"]:
            longest_reply = max(longest_reply, judging.ROOM_TO_REASON)
    # each answer is read once against every other contestant, in both orders
    read = 2 * (contestants - 1) * characters + questions * (frame + _asked_length(row))
    tokens = math.ceil(read / CHARACTERS_PER_TOKEN)
    paces = (_pace(session, mine) for mine in (VerdictRow.rater == wanted, VerdictRow.prompt_tokens > 0))
    pace = next((one for one in paces if one is not None), None)
    return JudgeEstimate(
        judge=wanted,
        questions=questions,
        prompt_tokens=tokens,
        completion_tokens=questions * longest_reply,
        seconds=None if pace is None else round(pace * tokens / CONCURRENT, 1),
    )


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
    asked = job and job.config.get("judgement")
    panel = None
    if asked and asked != judgement.id:
        panel = asked
    return Judgement(
        **judgement.readings,
        **dict(state_of(job)),
        id=judgement.id,
        comparison=judgement.comparison_id,
        judge=judgement.judge,
        kind=JudgeKind(judgement.kind),
        template=judgement.template,
        criteria=judgement.criteria,
        member_of=panel,
        job=judgement.job_id,
        created_at=judgement.created_at,
    )
