"""Comparisons: the same prompts to several contestants, answers kept as they land. Knows nothing of how they are judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from jobs import follow_up, measures, queue
from jobs.kinds import queue_of
from jobs.rundir import RunDir
from studio.db import lifecycle
from studio.db.models import AnswerRow, ComparisonRow, JobRow, JudgementRow, VerdictRow
from studio.db.session import Database
from studio.errors import NotFoundError, StudioError
from studio.evaluation import answers, metrics, prompts, scores
from studio.evaluation.scores import Pair
from studio.records import (
    PENDING,
    AnswerFigures,
    Comparison,
    ComparisonAnswer,
    ComparisonMetrics,
    ComparisonPrompt,
    ComparisonSummary,
    Deleted,
    JobKind,
    JobProgress,
    JobState,
    JobStatus,
    MatchScore,
    MauveFigure,
    QuestionSet,
    QueueName,
)
from studio.services import naming
from studio.services.adapters import AdapterService
from studio.services.datasets import DatasetService
from studio.services.paging import ALL, Listed, Page
from studio.settings import STATIC, Settings
from studio.types import GenerationParams

FILE = "file:"
QUESTIONS = {"mt-bench": "MT-bench: 80 questions of two turns", "vicuna": "Vicuna: 80 questions"}  # static/questions/NAME.jsonl
MOST_HELD_OUT = 1000
ESSAYS = "The references are notes to judge by, which no answer equals word for word."
GREEDY = GenerationParams(temperature=0.0, max_new_tokens=128)


class ComparisonService:
    """What a person can do with comparisons."""

    def __init__(self, settings: Settings, db: Database, datasets: DatasetService, adapters: AdapterService) -> None:
        self.settings = settings
        self.db = db
        self.datasets = datasets
        self.adapters = adapters

    def read_prompts(self, path: Path) -> list[ComparisonPrompt]:
        return prompts.read(path)

    def questions(self) -> list[QuestionSet]:
        """Published questions that ship with the studio."""
        return [QuestionSet(name=name, title=title) for name, title in QUESTIONS.items()]

    def create(
        self,
        *,
        base_model: str,
        contestants: Sequence[str],
        prompts: Sequence[ComparisonPrompt | Mapping[str, JsonValue]] | None = None,
        data: str | None = None,
        questions: str | None = None,
        held_out: str | None = None,
        name: str | None = None,
        params: Mapping[str, object] | None = None,
        files: Mapping[str, Path] | None = None,
    ) -> Comparison:
        """Queue a comparison of `contestants`; greedy unless `params` says otherwise.

        What is asked is one of: `prompts` (read before, or rows as in a file of prompts), the rows of dataset `data`, the published
        `questions` of that name, the rows that the training `held_out` never saw. A contestant `file:PATH` brings answers made
        elsewhere; `files` gives the path of one that was uploaded under that name.

        Raises StudioError for unknown contestants, names or data, before anything is queued.
        """
        if not contestants:
            raise StudioError("No contestant is named.", "Name at least one, such as base.")
        names = list(dict.fromkeys(contestants))
        asked = [name for name in names if not name.startswith(FILE)]
        resolved = [self.adapters.resolve(contestant, base_model).as_json() for contestant in asked]
        chosen, dataset_id = self._prompts(prompts, data, questions, held_out)
        made = {name: self._made_elsewhere(name, chosen, files or {}) for name in names if name not in asked}
        sampling = GREEDY.model_copy(update=dict(params or {}))
        with self.db.write() as session:
            title = self._name(session, name)
            comparison = ComparisonRow(
                name=title, base_model=base_model, contestants=names, prompts=chosen, params=sampling.model_dump(), dataset_id=dataset_id
            )
            session.add(comparison)
            session.flush()
            asked_turns = {prompt["id"]: len(prompt["turns"]) for prompt in chosen}
            for contestant, texts in made.items():
                session.add_all(_ready(comparison.id, contestant, key, turns, asked_turns[key]) for key, turns in texts.items())
            config = {"comparison": comparison.id, "contestants": resolved, "params": sampling.model_dump()}
            job = JobRow(
                kind=JobKind.COMPARE, queue=queue_of(JobKind.COMPARE), name=f"compare-{comparison.id}", config=config, base_model=base_model
            )
            comparison.job_id = lifecycle.submit(session, job).id
        queue.notify(self.settings.queue_path, QueueName.LIGHT)
        return self.show(comparison.id)

    def _made_elsewhere(self, name: str, prompts: Sequence[ComparisonPrompt], files: Mapping[str, Path]) -> dict[str, list[str]]:
        if name not in files and not self.adapters.models.at_terminal:
            raise StudioError("A file of this machine can't be named here.", "Upload the file, or use the command line.")
        return answers.read(files.get(name) or Path(name.removeprefix(FILE)).expanduser(), prompts)

    def _prompts(
        self,
        given: Sequence[ComparisonPrompt | Mapping[str, JsonValue]] | None,
        data: str | None,
        questions: str | None,
        held_out: str | None,
    ) -> tuple[list[ComparisonPrompt], str | None]:
        if sum(source is not None for source in (given or None, data, questions, held_out)) > 1:
            raise StudioError("Prompts come from several places at once.", "Name one: prompts, data, questions, or held-out rows.")
        if data is not None:
            return prompts.from_examples(self.datasets.examples(data)), self.datasets.show(data).id
        if questions is not None:
            if questions not in QUESTIONS:
                raise NotFoundError(f"There are no questions {questions!r}.", naming.suggest(questions, list(QUESTIONS)))
            return prompts.read(STATIC / "questions" / f"{questions}.jsonl"), None
        if held_out is not None:
            return self._held_out(held_out)
        if not given:
            raise StudioError("No prompt is given.", "Type one, upload a file of prompts, or choose a dataset.")
        return prompts.from_rows(given), None

    def _held_out(self, training: str) -> tuple[list[ComparisonPrompt], str | None]:
        with self.db.read() as session:
            job = session.get(JobRow, training) or session.scalar(select(JobRow).where(JobRow.name == training))
            known = session.scalars(select(JobRow.name).where(JobRow.kind == JobKind.TRAIN)).all()
        if job is None or job.kind != "train":
            raise NotFoundError(f"There is no training {training!r}.", naming.suggest(training, known))
        return follow_up.held_out_prompts(RunDir(Path(job.run_dir)).eval, MOST_HELD_OUT)[0], job.dataset_id

    def _name(self, session: Session, wanted: str | None) -> str:
        def taken(name: str) -> bool:
            return session.scalar(select(ComparisonRow.id).where(ComparisonRow.name == name)) is not None

        if wanted is None:
            return naming.unique("comparison", taken)
        return naming.claim(wanted, taken)

    def list(self, page: Page = ALL) -> Listed[ComparisonSummary]:
        """Newest first, without answers."""
        query = select(ComparisonRow, JobRow).outerjoin(JobRow, ComparisonRow.job_id == JobRow.id)
        with self.db.read() as session:
            rows = page.read(session, query.order_by(ComparisonRow.created_at.desc(), ComparisonRow.id))
            return rows.as_are(_summary(comparison, job) for comparison, job in rows)

    def show(self, comparison_id: str) -> Comparison:
        """The comparison with the answers so far and, where prompts have references, `scores` per contestant."""
        with self.db.read() as session:
            comparison = self.find(session, comparison_id)
            rows = session.scalars(select(AnswerRow).where(AnswerRow.comparison_id == comparison.id).order_by(AnswerRow.id)).all()
            return Comparison(
                **dict(_summary(comparison, job_of(session, comparison))),
                prompts=comparison.prompts,
                answers=[_answer(row) for row in rows],
                scores=_scores(comparison, rows),
            )

    def metrics(
        self,
        comparison_id: str,
        *,
        perplexity: bool = False,
        schema: Mapping[str, JsonValue] | None = None,
        pattern: str | None = None,
        mauve_model: str | None = None,
    ) -> ComparisonMetrics:
        """Of the answers so far: every metric with its interval, length, seconds, tokens.

        `perplexity` adds what each model of this machine makes of the references; `mauve_model`, MAUVE on features of that base. Both
        load models on the CPU. Raises StudioError.
        """
        with self.db.read() as session:
            row = self.find(session, comparison_id)
            job = job_of(session, row)
            answered = session.scalars(select(AnswerRow).where(AnswerRow.comparison_id == row.id)).all()
        found = measures.measure(self.settings, row, answered, schema=schema, pattern=pattern)
        if perplexity and job:
            for contestant in job.config.get("contestants", []):
                measured = measures.perplexity(self.settings, row, contestant)
                measures.add_perplexity(found.setdefault(contestant["name"], {}), measured, measures.NO_LIKELIHOOD)
        likeness: dict[str, MauveFigure] = {}
        if mauve_model is not None:
            likeness = self._mauve(mauve_model, measures.text_sets(row, answered))
        figures: dict[str, AnswerFigures] = {}
        for name in row.contestants:
            if name in found:
                reason = "no prompt with a reference was answered" if mauve_model else scores.NO_MODEL
                figures[name] = _with_mauve(AnswerFigures(**found[name]), likeness.get(name), reason)
        return ComparisonMetrics(id=row.id, name=row.name, contestants=figures)

    def mauve(self, pairs: Sequence[Pair], model: str) -> MauveFigure:
        """Of predictions against all their references, on features of the base `model`. Raises StudioError."""
        texts: measures.TextSets = {
            "texts": [text for text, _ in pairs],
            "references": [reference for _, references in pairs for reference in references],
        }
        return self._mauve(model, {"file": texts})["file"]

    def _mauve(self, model: str, groups: Mapping[str, measures.TextSets]) -> dict[str, MauveFigure]:
        base = self.adapters.models.resolve(model, loadable=True)
        found = measures.mauve(self.settings, base.path, groups)
        return {name: MauveFigure(**own, model=base.name) for name, own in found.items()}

    def delete(self, comparison_id: str) -> Deleted:
        """Delete the comparison and its answers. Refused while its job runs."""
        with self.db.write() as session:
            comparison = self.find(session, comparison_id)
            job = job_of(session, comparison)
            if job and job.status in PENDING:
                raise StudioError(f"Comparison {comparison.name} is still being answered.", "Cancel its job first.")
            for table in (VerdictRow, JudgementRow, AnswerRow):
                session.execute(delete(table).where(table.comparison_id == comparison.id))
            session.delete(comparison)
            return Deleted(id=comparison.id, name=comparison.name)

    def find(self, session: Session, comparison_id: str) -> ComparisonRow:
        """By ID or name. Raises NotFoundError with near names."""
        found = session.get(ComparisonRow, comparison_id) or session.scalar(
            select(ComparisonRow).where(ComparisonRow.name == comparison_id)
        )
        if found is None:
            known = session.scalars(select(ComparisonRow.name)).all()
            raise NotFoundError(f"There is no comparison {comparison_id!r}.", naming.suggest(comparison_id, known))
        return found


def job_of(session: Session, made: ComparisonRow | JudgementRow) -> JobRow | None:
    """The job that fills a comparison or a judgement."""
    return session.get(JobRow, made.job_id) if made.job_id else None


def state_of(job: JobRow | None) -> JobState:
    """Where the job stands; what has no job any more is done."""
    if job is None:
        nothing = JobProgress(step=None, max_steps=None, eta_s=None)
        return JobState(status=JobStatus.SUCCEEDED, reason="", fix="", progress=nothing)
    progress = JobProgress(step=job.step, max_steps=job.max_steps, eta_s=job.eta_s)
    return JobState(status=JobStatus(job.status), reason=job.reason, fix=job.fix, progress=progress)


def _summary(comparison: ComparisonRow, job: JobRow | None) -> ComparisonSummary:
    training = None
    if job and job.kind == JobKind.REPORT:
        training = job.config["training"]
    return ComparisonSummary(
        **dict(state_of(job)),
        id=comparison.id,
        name=comparison.name,
        base_model=comparison.base_model,
        contestants=comparison.contestants,
        params=GenerationParams(**comparison.params),
        data=comparison.dataset_id,
        prompt_count=len(comparison.prompts),
        job=comparison.job_id,
        training=training,
        created_at=comparison.created_at,
    )


def _ready(comparison_id: str, contestant: str, prompt_id: str, turns: Sequence[str], asked: int) -> AnswerRow:
    """An answer that was made elsewhere, whole or not: one that lacks a turn is no answer."""
    error = _fault(turns, asked)
    return AnswerRow(
        comparison_id=comparison_id,
        prompt_id=prompt_id,
        contestant=contestant,
        text="" if error else turns[-1],
        turns=turns,
        seconds=0.0,
        error=error,
    )


def _fault(turns: Sequence[str], asked: int) -> str:
    """Why answers made elsewhere do not answer a prompt of so many turns; "" where they do."""
    if not turns:
        return "The file has no answer to this prompt."
    failed = [number for number, text in enumerate(turns, 1) if text.strip() == answers.FAILED]
    if failed:
        return f"Turn {failed[0]} of {asked} failed: the file holds {answers.FAILED} in its place."
    if len(turns) != asked:
        return f"The file has {len(turns)} of {asked} answers, one for each turn."
    return ""


def _answer(answer: AnswerRow) -> ComparisonAnswer:
    fields = {name: getattr(answer, name) for name in ComparisonAnswer.model_fields}
    if answer.error:  # the text of an earlier turn is no answer
        fields["text"] = ""
    return ComparisonAnswer(**fields)


def _with_mauve(figures: AnswerFigures, figure: MauveFigure | None, reason: str) -> AnswerFigures:
    """`reason` counts where there is no figure."""
    if figure is not None:
        reason = figure.reason
    reasons = dict(figures.reasons)
    if reason:
        reasons["mauve"] = reason
    return figures.model_copy(update={"mauve": figure and figure.mauve, "mauve_details": figure, "reasons": reasons})


def _scores(comparison: ComparisonRow, answers: Sequence[AnswerRow]) -> dict[str, MatchScore]:
    """Exact match per contestant over the prompts that have a reference and an answer without error.

    Nobody's answer equals an essay word for word, so unless one does, references that are essays are left out.
    """
    references = {prompt["id"]: prompt["reference"] for prompt in comparison.prompts if prompt.get("reference")}
    essays = prompts.essays(comparison.prompts)
    matches: dict[str, dict[str, bool]] = defaultdict(dict)
    for answer in answers:
        if answer.prompt_id in references and not answer.error:
            matches[answer.contestant][answer.prompt_id] = metrics.exact_match(answer.text, [references[answer.prompt_id]])
    if any(hits[prompt_id] for hits in matches.values() for prompt_id in essays & hits.keys()):
        essays = set()
    return {name: _match_score(hits, essays) for name, hits in matches.items()}


def _match_score(hits: Mapping[str, bool], essays: Collection[str]) -> MatchScore:
    counted = [hit for prompt_id, hit in hits.items() if prompt_id not in essays]
    left_out = len(hits) - len(counted)
    if not counted:
        return MatchScore(exact_match=None, n=0, left_out=left_out, reason=ESSAYS)
    return MatchScore(exact_match=sum(counted) / len(counted), n=len(counted), left_out=left_out)
