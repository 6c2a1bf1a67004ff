"""Prompt compression: one prompt made shorter, what that saves, and jobs on many prompts. Compresses in a child; imports no torch."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue
from sqlalchemy import select

from jobs import panel, queue
from jobs.kinds import queue_of
from studio.compress import methods
from studio.compress import models as kinds
from studio.compress.process import CompressorProcess
from studio.compress.request import check_kind, check_wish
from studio.db import lifecycle
from studio.db.models import JobRow, new_id
from studio.db.session import Database
from studio.engine.client import EngineClient
from studio.errors import StudioError
from studio.evaluation import metrics, prompts
from studio.evaluation.verdicts import SCORES, SWAPPED
from studio.records import (
    ComparisonPrompt,
    CompressedDataset,
    CompressedTexts,
    Compression,
    CompressionAnswers,
    CompressionJob,
    CompressionSaving,
    CompressionSweep,
    CompressionVerdict,
    CompressionVote,
    CompressionVotes,
    CompressionWinner,
    JobKind,
    JobStatus,
    NoResult,
    QueueName,
    SweepPrompt,
    SweepResult,
    Winner,
)
from studio.services import compressors, naming, savings
from studio.services.adapters import AdapterService
from studio.services.compressors import CompressorCatalogue
from studio.services.datasets import DatasetService
from studio.services.judging import LIKELIHOOD, REFERENCE, JudgingService
from studio.services.models import STARTER, ModelService
from studio.settings import Settings

MOST_CHARACTERS = 2_000_000  # of a prompt that somebody waits for on the page or over HTTP
METRICS = (*(metric.name for metric in metrics.shown_on(metrics.Display.CURVE)), "judge")
RESULTS: dict[str, type[SweepResult] | type[CompressedDataset]] = {
    JobKind.COMPRESS_SWEEP: SweepResult,
    JobKind.COMPRESS_DATA: CompressedDataset,
}


class CompressionService:
    """What a person can do about long prompts."""

    def __init__(
        self,
        settings: Settings,
        db: Database,
        models: ModelService,
        datasets: DatasetService,
        adapters: AdapterService,
        judging: JudgingService,
    ) -> None:
        self.settings = settings
        self.db = db
        self.models = models
        self.datasets = datasets
        self.adapters = adapters
        self.judging = judging
        self.compressors = CompressorCatalogue(settings, models)
        self.process = CompressorProcess()
        self._reading: dict[str, float] = {}  # contestant -> seconds per token, as measured last

    def compress(
        self,
        contexts: Sequence[str],
        *,
        method: str | None = None,
        compressor: str | None = None,
        counter: str | None = None,
        rate: float | None = None,
        target_token: float | None = None,
        instruction: str = "",
        question: str = "",
        force_tokens: Sequence[str] = (),
        force_digits: bool = False,
        dtype: str = "float32",
        limit: int | None = None,
        options: Mapping[str, JsonValue] | None = None,
    ) -> Compression:
        """The shorter prompt, models by their names. `limit`: characters that are refused above.

        `options` are those of llmlingua and of studio.compress.Compressor.compress. Raises StudioError.
        """
        if limit is not None and (size := sum(map(len, contexts))) > limit:
            raise StudioError(f"The prompt has {size:,} characters; at most {limit:,} are taken here.", "Use `studio compress`.")
        if dtype not in ("float32", "bfloat16"):
            raise StudioError(f"dtype {dtype!r} is not float32 or bfloat16.", "bfloat16 is faster on new processors; results may differ.")
        check_wish(contexts, rate, target_token)
        who = compressor or compressors.default_for(method)
        chosen, counting = self.compressors.resolve(who), self.compressors.resolve(counter or STARTER, counts=True)
        if method is not None:
            check_kind(methods.method(method), kinds.inspect(chosen), who)
        _check_lists(options or {})
        arguments = {
            **(options or {}),
            "contexts": list(contexts),
            "method": method,
            "rate": rate,
            "target_token": target_token,
            "instruction": instruction,
            "question": question,
            "force_tokens": list(force_tokens),
            "force_digits": force_digits,
        }
        made = self.process.compress(chosen, counting, arguments, dtype)
        if dtype != "float32":
            made.warnings.append(f"Computed in {dtype}: another machine, or float32, may keep other words.")
        return made.model_copy(update={"counter": counter or STARTER, "compressor": who})

    def foresee(self, made: Compression, contestant: str) -> CompressionSaving | None:
        """What a compression saves when `contestant` reads it, from the speed measured when it was last asked; None where it never was."""
        speed = self._reading.get(contestant)
        if speed is None:
            return None
        before, after = ((tokens, tokens * speed) for tokens in (made.tokens_before, made.tokens_after))
        return savings.predict(before, after, made.seconds)

    # evidence

    def ask_both(
        self,
        before: str,
        after: str,
        contestant: str,
        *,
        compress_seconds: float = 0.0,
        params: Mapping[str, object] | None = None,
    ) -> CompressionAnswers:
        """What a model answers to the prompt and to its compression, and what that saves on this machine."""
        who = self.adapters.resolve(contestant, None)
        engine = EngineClient.from_settings(self.settings)
        sampling = savings.GREEDY.model_copy(update=dict(params or {}))
        read_before, read_after = (savings.reading(engine, who, text) for text in (before, after))
        answers = [savings.answered(engine, who, text, sampling) for text in (before, after)]
        saving = savings.predict(read_before, read_after, compress_seconds)
        if saving.read_s_per_token:
            self._reading[contestant] = saving.read_s_per_token
        return CompressionAnswers(before=answers[0], after=answers[1], saving=saving)

    def judge_both(self, prompt: str, before: str, after: str, judge: str) -> CompressionVerdict:
        """Which of two answers to `prompt` a judge prefers, asked in both orders: `before` to the whole prompt, `after` to its compression.

        Raises StudioError.
        """
        if REFERENCE in judge.split(","):
            raise StudioError("The reference judge needs references.", "Name a model, or likelihood:MODEL.")
        opened = panel.open_judge(self.judging.judge_config(judge), self.settings)
        asked: ComparisonPrompt = {"id": "1", "turns": [[{"role": "user", "content": prompt}]]}
        try:
            (verdicts,) = panel.judge_both_orders(opened, [(asked, before, after)])
        finally:
            opened.close()
        return CompressionVerdict(
            judge=judge,
            winner=_preferred(panel.score_of_first(verdicts)),
            consistent=_agree([verdict.winner for verdict in verdicts]),
            replies=[verdict.reply for verdict in verdicts],
        )

    def vote(self, prompt: str, contestant: str, first: str, second: str, winner: str) -> CompressionVote:
        """Keep a blind vote: `first` was shown first, `winner` is a, b or tie. Lines that `studio leaderboard --verdicts` reads."""
        if winner not in SCORES:
            raise StudioError(f"A vote is a, b or tie, not {winner!r}.", "Send one of the three as winner.")
        vote = CompressionVote(
            prompt_id=hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()[:12],
            a=first,
            b=second,
            winner=Winner(winner),
            rater="human",
            answered_by=contestant,
        )
        with self.votes_path.open("a", encoding="utf-8") as file:
            file.write(vote.model_dump_json() + "\n")
        return vote

    @property
    def votes_path(self) -> Path:
        return self.settings.home / "compression_votes.jsonl"

    def votes(self) -> CompressionVotes:
        """How often the whole prompt, its compression or neither was the better one."""
        winners: Counter[str] = Counter()
        if self.votes_path.is_file():
            for line in self.votes_path.read_text("utf-8").splitlines():
                if line.strip():
                    vote = CompressionVote.model_validate_json(line)
                    names = {Winner.A: vote.a, Winner.B: vote.b}
                    winners[names.get(vote.winner, "tie").split()[0]] += 1
        return CompressionVotes(original=winners["original"], compressed=winners["compressed"], tie=winners["tie"])

    # jobs

    def sweep(
        self,
        *,
        contestant: str,
        data: str | None = None,
        rows: Sequence[SweepPrompt] | None = None,
        rates: Sequence[float] = (1.0, 0.8, 0.6, 0.4, 0.25),
        method: str = "llmlingua2",
        compressor: str | None = None,
        metric: str = "exact_match",
        judge: str | None = None,
        tolerance: float = 0.05,
        limit: int = 50,
        params: Mapping[str, object] | None = None,
        options: Mapping[str, JsonValue] | None = None,
    ) -> CompressionJob:
        """Queue a job that measures answers against references at several rates; its result has `points` and `recommended`.

        What is asked: `rows`, or the first `limit` rows of dataset `data`. `judge`: who says, in both orders,
        how the answers do against those to the whole prompts; where the metric is "judge" and nobody is named, what the contestant
        itself would say. Raises StudioError.
        """
        chosen = list(rows or self._prompts(data, limit))
        problem = next((rate for rate in rates if not 0 < rate <= 1), None)
        if problem is not None or not rates:
            raise StudioError(f"The rate {problem} is not above 0 and at most 1.", "Name rates such as 1, 0.6 and 0.4.")
        if metric not in METRICS:
            raise StudioError(f"There is no metric {metric!r} here.", f"Choose of {', '.join(METRICS)}.")
        if any(not row.reference for row in chosen):
            raise StudioError("A prompt has no reference.", "Every prompt needs the answer that is right.")
        reason = "" if metric == "judge" else metrics.why_unsaid(metric, [row.reference or "" for row in chosen])
        if reason:
            raise StudioError(f"{metric} can't be measured on these prompts: {reason}.", "Choose another metric, such as rougeL or judge.")
        who = self.adapters.resolve(contestant, None)
        asked_judge = None
        if judge or metric == "judge":
            asked_judge = self.judging.judge_config(judge or f"{LIKELIHOOD}{contestant}")
        config = {
            **self._frozen(method, compressor, contestant, options),
            "prompts": [row.model_dump() for row in chosen],
            "rates": sorted({1.0, *map(float, rates)}, reverse=True),
            "contestant": who.as_json(),
            "params": savings.GREEDY.model_copy(update=dict(params or {})).model_dump(),
            "metric": metric,
            "judge": asked_judge,
            "tolerance": tolerance,
        }
        return self._queue(JobKind.COMPRESS_SWEEP, config, "compress-sweep")

    def compress_data(
        self,
        data: str,
        rate: float,
        *,
        method: str = "llmlingua2",
        compressor: str | None = None,
        name: str | None = None,
        texts: str = CompressedTexts.LONGEST,
        **options: JsonValue,
    ) -> CompressionJob:
        """Queue a job that writes a new version of a dataset with its long texts compressed: those that `texts` names."""
        if texts not in tuple(CompressedTexts):
            raise StudioError(f"There are no texts {texts[:40]!r} to compress.", f"Choose of {', '.join(CompressedTexts)}.")
        if not 0 < rate < 1:
            raise StudioError(f"The rate {rate:g} is not above 0 and below 1.", "0.5 keeps half of the tokens.")
        if method == "longllmlingua":
            raise StudioError("longllmlingua needs a question of its own for every row.", "Choose another method.")
        origin = self.datasets.show(data)
        known = {dataset.name for dataset in self.datasets.list()}
        if name:
            title = naming.claim(name, known.__contains__)
        else:
            title = naming.unique(f"{origin.name}-compressed"[:60], known.__contains__)
        made = new_id()
        config = {
            **self._frozen(method, compressor, STARTER, options),
            "rate": rate,
            "texts": texts,
            "parent": origin.id,
            "rows": origin.rows,
            "rows_path": str(self.datasets.path(origin.id)),
            "dataset": made,
            "folder": str(self.settings.datasets / made),
            "name": title,
        }
        return self._queue(JobKind.COMPRESS_DATA, config, f"compress-{title}")

    def result(self, job_id: str) -> SweepResult | CompressedDataset | NoResult:
        """What a sweep or a compressed dataset came to; nothing before its end."""
        with self.db.read() as session:
            job = session.get(JobRow, job_id)
            if job is None or not job.result or job.kind not in RESULTS:
                return NoResult()
            return RESULTS[job.kind](**job.result)

    def latest_sweep(self) -> CompressionSweep | None:
        """The sweep that was queued last."""
        newest = select(JobRow).where(JobRow.kind == JobKind.COMPRESS_SWEEP).order_by(JobRow.created_at.desc()).limit(1)
        with self.db.read() as session:
            job = session.scalar(newest)
            if job is None:
                return None
            same = CompressionSweep.model_fields.keys() - {"method", "result"}
            result = SweepResult(**job.result) if job.result else None
            return CompressionSweep(**{name: getattr(job, name) for name in same}, method=job.config["method"], result=result)

    def _prompts(self, data: str | None, limit: int) -> list[SweepPrompt]:
        if data is None:
            raise StudioError("No prompts are given.", "Choose a dataset with answers.")
        found = []
        for prompt in prompts.from_examples(itertools.islice(self.datasets.examples(data), limit)):
            text = "\n\n".join(message["content"] for message in prompt["turns"][0])
            found.append(SweepPrompt(text=text, reference=prompt.get("reference")))
        return found

    def _frozen(self, method: str, compressor: str | None, counter: str, options: Mapping[str, JsonValue] | None) -> dict[str, JsonValue]:
        chosen = self.compressors.resolve(compressor or compressors.default_for(method))
        base, _, _ = counter.partition(":")
        if "#" in counter:  # another server's model, whose tokenizer is not here
            base = STARTER
        counting = self.compressors.resolve(base, counts=True)
        return {"method": method, "compressor": str(chosen), "counter": str(counting), "options": dict(options or {})}

    def _queue(self, kind: JobKind, config: Mapping[str, object], name: str) -> CompressionJob:
        with self.db.write() as session:
            title = naming.unique(name, lambda wanted: session.scalar(select(JobRow.id).where(JobRow.name == wanted)) is not None)
            job = JobRow(kind=kind, queue=queue_of(kind), name=title, config=dict(config))
            job_id = lifecycle.submit(session, job).id
        queue.notify(self.settings.queue_path, QueueName.LIGHT)
        return CompressionJob(id=job_id, name=title, status=JobStatus.QUEUED, kind=kind)


def _check_lists(options: Mapping[str, JsonValue]) -> None:
    if "self" in options:
        raise StudioError("There is no option 'self'.", "See /api/docs.")
    for name in ("must_keep", "keep_patterns"):
        value = options.get(name, [])
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise StudioError(f"{name} is no list of texts.", 'Write ["numbers"], for instance.')


def _preferred(score: float | None) -> CompressionWinner | None:
    """By the score of the answer to the whole prompt."""
    if score is None:
        return None
    if score == 0.5:
        return CompressionWinner.TIE
    return CompressionWinner.ORIGINAL if score > 0.5 else CompressionWinner.COMPRESSED


def _agree(winners: Sequence[Winner]) -> bool | None:
    """Whether a judge says the same in both orders; equal answers, about which it is not asked, are no contradiction."""
    if Winner.INVALID in winners:
        return None
    return not winners or winners[0] == SWAPPED[winners[1]]
