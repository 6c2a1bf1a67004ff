"""Prompt compression: which compressors there are, one prompt made shorter, what that saves. Compresses in a child; imports no torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs import panel, queue
from jobs.light import LightContext
from studio import processes
from studio.compress import methods
from studio.compress import models as kinds
from studio.compress.process import CompressorProcess
from studio.compress.request import check_kind, check_wish
from studio.db import lifecycle
from studio.db.models import JobRow, new_id
from studio.db.session import Database
from studio.engine.client import EngineClient
from studio.errors import ModelError, NotFoundError, StudioError
from studio.evaluation import metrics, prompts
from studio.evaluation.verdicts import SWAPPED
from studio.services import naming, savings
from studio.services.adapters import AdapterService
from studio.services.datasets import DatasetService
from studio.services.judging import LIKELIHOOD, REFERENCE, JudgingService
from studio.services.models import HUB, STARTER, ModelService
from studio.settings import Settings

WORDS = "starter-words"  # the classifier that ships
MOST_CHARACTERS = 2_000_000  # of a prompt that somebody waits for on the page or over HTTP
METRICS = (*(metric.name for metric in metrics.shown_on(metrics.Display.CURVE)), "judge")
KNOWN = (
    ("microsoft/llmlingua-2-xlm-roberta-large-meetingbank", "LLMLingua-2, many languages, 560 M parameters"),
    ("microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank", "LLMLingua-2, many languages, small: 178 M parameters"),
    ("openai-community/gpt2", "LLMLingua and LongLLMLingua on a laptop, English, 124 M parameters"),
    ("microsoft/phi-2", "LLMLingua and LongLLMLingua, English, 2.7 B parameters"),
    ("NousResearch/Llama-2-7b-hf", "LLMLingua and LongLLMLingua as published, 7 B parameters"),
)
CAUSAL_METHODS = ("llmlingua", "longllmlingua", "selective_context", "structured", "self_information")


class CompressionService:
    """What a person can do about long prompts. Every method returns plain values in the shapes of the interface."""

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
        self.process = CompressorProcess()
        self._reading: dict[str, float] = {}  # contestant -> seconds per token, as measured last

    def compressors(self) -> list[dict[str, Any]]:
        """What can compress here: the shipped classifier first, the starter, added base models, fetched classifiers."""
        found = [self._described(name, path) for name, path in self._candidates()]
        return [entry for entry in found if entry is not None]

    def known(self) -> list[dict[str, str]]:
        """Good compressors of the hub, for machines that reach it."""
        return [{"name": HUB + name, "title": title} for name, title in KNOWN]

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
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The Compression of interface.md, models by their names. `limit`: characters that are refused above.

        `options` are those of llmlingua and of studio.compress.Compressor.compress. Raises StudioError.
        """
        if limit is not None and (size := sum(map(len, contexts))) > limit:
            raise StudioError(f"The prompt has {size:,} characters; at most {limit:,} are taken here.", "Use `studio compress`.")
        if dtype not in ("float32", "bfloat16"):
            raise StudioError(f"dtype {dtype!r} is not float32 or bfloat16.", "bfloat16 is faster on new processors; results may differ.")
        check_wish(contexts, rate, target_token)
        who = compressor or default_compressor(method)
        chosen, counting = self.resolve(who), self.resolve(counter or STARTER, counts=True)
        if method is not None:
            check_kind(methods.method(method), kinds.inspect(chosen), who)
        _check_lists(options or {})
        arguments: dict[str, Any] = {
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
            made["warnings"].append(f"Computed in {dtype}: another machine, or float32, may keep other words.")
        return {**made, "counter": counter or STARTER, "compressor": who}

    def foresee(self, made: Mapping[str, Any], contestant: str) -> dict[str, Any] | None:
        """What a compression saves when `contestant` reads it, from the speed measured when it was last asked; None where it never was."""
        speed = self._reading.get(contestant)
        if speed is None:
            return None
        before, after = ((made[key], made[key] * speed) for key in ("tokens_before", "tokens_after"))
        return savings.predict(before, after, made["seconds"])

    # evidence

    def ask_both(
        self, before: str, after: str, contestant: str, *, compress_seconds: float = 0.0, params: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What a model answers to the prompt and to its compression, and what that saves on this machine.

        `before` and `after` are {"text", "prompt_tokens", "seconds", …} or {"error"}; `saving` see `predict`.
        """
        who = self.adapters.resolve(contestant, None)
        engine = EngineClient.from_settings(self.settings)
        sampling = savings.GREEDY.model_copy(update=dict(params or {}))
        reading = {name: savings.reading(engine, who, text) for name, text in (("before", before), ("after", after))}
        answers = {name: savings.answered(engine, who, text, sampling) for name, text in (("before", before), ("after", after))}
        saving = savings.predict(reading["before"], reading["after"], compress_seconds)
        if saving["read_s_per_token"]:
            self._reading[contestant] = saving["read_s_per_token"]
        return {**answers, "saving": saving}

    def judge_both(self, prompt: str, before: str, after: str, judge: str) -> dict[str, Any]:
        """Which of two answers to `prompt` a judge prefers, asked in both orders: `before` to the whole prompt, `after` to its compression.

        `winner`: original, compressed or tie, None where no order had a verdict; `consistent`: whether both orders agree.
        Raises StudioError.
        """
        if judge == REFERENCE:
            raise StudioError("The reference judge needs references.", "Name a model, or likelihood:MODEL.")
        context = LightContext(self.settings, self.db, "", 1, {}, stop_requested=lambda: False, progress=lambda _step, _total: None)
        asked = {"id": "1", "turns": [[{"role": "user", "content": prompt}]]}
        said = panel.duels(panel.seated(self.judging.seat(judge), context), [(asked, before, after)])[0]
        value = panel.score(said)
        winner = None if value is None else "tie" if value == 0.5 else "original" if value > 0.5 else "compressed"
        winners = [one.winner for one in said]
        return {
            "judge": judge,
            "winner": winner,
            "consistent": None if "invalid" in winners else not winners or winners[0] == SWAPPED[winners[1]],
            "replies": [one.reply for one in said],
        }

    def vote(self, prompt: str, contestant: str, first: str, second: str, winner: str) -> dict[str, Any]:
        """Keep a blind vote: `first` was shown first, `winner` is a, b or tie. Lines that `studio leaderboard --verdicts` reads."""
        if winner not in ("a", "b", "tie"):
            raise StudioError(f"A vote is a, b or tie, not {winner!r}.")
        verdict = {
            "prompt_id": hashlib.sha256(prompt.encode("utf-8", "replace")).hexdigest()[:12],
            "a": first,
            "b": second,
            "winner": winner,
            "rater": "human",
            "answered_by": contestant,
        }
        with self.votes_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(verdict) + "\n")
        return verdict

    @property
    def votes_path(self) -> Path:
        return self.settings.home / "compression_votes.jsonl"

    def votes(self) -> dict[str, int]:
        """How often the whole prompt, its compression or neither was the better one."""
        if not self.votes_path.is_file():
            return {"original": 0, "compressed": 0, "tie": 0}
        lines = [json.loads(line) for line in self.votes_path.read_text("utf-8").splitlines() if line.strip()]
        winners = [line[line["winner"]] if line["winner"] in ("a", "b") else "tie" for line in lines]
        return {name: sum(winner.startswith(name) for winner in winners) for name in ("original", "compressed", "tie")}

    # jobs

    def sweep(
        self,
        *,
        contestant: str,
        data: str | None = None,
        rows: Sequence[Mapping[str, Any]] | None = None,
        rates: Sequence[float] = (1.0, 0.8, 0.6, 0.4, 0.25),
        method: str = "llmlingua2",
        compressor: str | None = None,
        metric: str = "exact_match",
        judge: str | None = None,
        tolerance: float = 0.05,
        limit: int = 50,
        params: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Queue a job that measures answers against references at several rates; its result has `points` and `recommended`.

        `rows`: {"text", "reference", "question"?} each, or the first `limit` rows of dataset `data`. `judge`: who says, in both orders,
        how the answers do against those to the whole prompts; where the metric is "judge" and nobody is named, what the contestant
        itself would say. Raises StudioError.
        """
        chosen = [dict(row) for row in rows or []] or self._prompts(data, limit)
        problem = next((rate for rate in rates if not 0 < rate <= 1), None)
        if problem is not None or not rates:
            raise StudioError(f"The rate {problem} is not above 0 and at most 1.", "Name rates such as 1, 0.6 and 0.4.")
        if metric not in METRICS:
            raise StudioError(f"There is no metric {metric!r} here.", f"Choose of {', '.join(METRICS)}.")
        if any(not row.get("reference") for row in chosen):
            raise StudioError("A prompt has no reference.", "Every prompt needs the answer that is right.")
        who = self.adapters.resolve(contestant, None)
        config = {
            **self._frozen(method, compressor, contestant, options),
            "prompts": chosen,
            "rates": sorted({1.0, *map(float, rates)}, reverse=True),
            "contestant": who.as_json(),
            "params": savings.GREEDY.model_copy(update=dict(params or {})).model_dump(),
            "metric": metric,
            "judge": self.judging.seat(judge or f"{LIKELIHOOD}{contestant}") if judge or metric == "judge" else None,
            "tolerance": tolerance,
        }
        return self._queue("compress-sweep", config, "compress-sweep")

    def compress_data(
        self, data: str, rate: float, *, method: str = "llmlingua2", compressor: str | None = None, name: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Queue a job that writes a new version of a dataset with its long prompts compressed."""
        if not 0 < rate < 1:
            raise StudioError(f"The rate {rate:g} is not above 0 and below 1.", "0.5 keeps half of the tokens.")
        if method == "longllmlingua":
            raise StudioError("longllmlingua needs a question of its own for every row.", "Choose another method.")
        origin = self.datasets.show(data)
        known = {dataset.name for dataset in self.datasets.list()}
        title = naming.claim(name, known.__contains__) if name else naming.unique(f"{origin.name}-compressed"[:60], known.__contains__)
        made = new_id()
        config = {
            **self._frozen(method, compressor, STARTER, options),
            "rate": rate,
            "parent": origin.id,
            "rows": origin.rows,
            "rows_path": str(self.datasets.path(origin.id)),
            "dataset": made,
            "folder": str(self.settings.datasets / made),
            "name": title,
        }
        return self._queue("compress-data", config, f"compress-{title}")

    def result(self, job_id: str) -> dict[str, Any]:
        """What a sweep or a compressed dataset came to; {} before its end."""
        with self.db.read() as session:
            job = session.get(JobRow, job_id)
            return dict(job.result) if job else {}

    def latest_sweep(self) -> dict[str, Any] | None:
        """ID, status and result of the sweep that was queued last."""
        with self.db.read() as session:
            job = session.scalar(select(JobRow).where(JobRow.kind == "compress-sweep").order_by(JobRow.created_at.desc()).limit(1))
            if job is None:
                return None
            shown = ("id", "name", "status", "reason", "fix", "step", "max_steps", "result")
            return {name: getattr(job, name) for name in shown} | {"method": job.config["method"]}

    def _prompts(self, data: str | None, limit: int) -> list[dict[str, Any]]:
        if data is None:
            raise StudioError("No prompts are given.", "Choose a dataset with answers.")
        found = []
        for prompt in prompts.from_examples(itertools.islice(self.datasets.examples(data), limit)):
            messages = prompt["turns"][0]
            found.append({"text": "\n\n".join(str(turn["content"]) for turn in messages), "reference": prompt.get("reference")})
        return found

    def _frozen(self, method: str, compressor: str | None, counter: str, options: Mapping[str, Any] | None) -> dict[str, Any]:
        chosen = self.resolve(compressor or default_compressor(method))
        base, _, _ = counter.partition(":")
        counting = self.resolve(base, counts=True) if "#" not in counter else self.resolve(STARTER, counts=True)
        return {"method": method, "compressor": str(chosen), "counter": str(counting), "options": dict(options or {})}

    def _queue(self, kind: str, config: Mapping[str, Any], name: str) -> dict[str, Any]:
        with self.db.write() as session:
            title = naming.unique(name, lambda wanted: session.scalar(select(JobRow.id).where(JobRow.name == wanted)) is not None)
            job = JobRow(kind=kind, queue="light", name=title, config=dict(config))
            job_id = lifecycle.submit(session, job).id
        queue.ring(self.settings.queue_path, "light", job_id)
        return {"id": job_id, "name": title, "status": "QUEUED", "kind": kind}

    def resolve(self, name: str, *, counts: bool = False) -> Path:
        """The folder behind a name (or, at the terminal, a folder or hub:NAME). Raises NotFoundError or ModelError."""
        if name.startswith(HUB) and self.models.at_terminal:
            return self._fetched(name.removeprefix(HUB))
        known = dict(self._candidates())
        if name in known:
            folder = known[name]
        elif self.models.at_terminal and Path(name).expanduser().is_dir():
            folder = Path(name).expanduser().absolute()
        else:
            raise NotFoundError(f"There is no compressor or model {name!r}.", naming.suggest(name, list(known)))
        if not counts:
            kinds.inspect(folder)
        return folder

    def _candidates(self) -> list[tuple[str, Path]]:
        listed = [(str(model["name"]), Path(model["path"])) for model in self.models.list()]
        fetched = sorted(path for path in self.settings.models.iterdir() if path.is_dir()) if self.settings.models.is_dir() else []
        names = {name for name, _ in listed}
        return [(WORDS, kinds.WORDS_FOLDER), *listed, *((path.name, path) for path in fetched if path.name not in names)]

    def _described(self, name: str, path: Path) -> dict[str, Any] | None:
        try:
            facts = kinds.inspect(path)
        except ModelError:
            return None
        is_classifier = facts.kind == kinds.CLASSIFIER
        title = "word importance, a distilled heuristic" if name == WORDS else f"{facts.model_type}, {facts.kind}"
        methods = ("llmlingua2", "structured") if is_classifier else CAUSAL_METHODS
        return {"name": name, "title": title, "kind": facts.kind, "methods": list(methods), "cuts_words": facts.cuts_words}

    def _fetched(self, repository: str) -> Path:
        """A compressor of the hub, downloaded once into STUDIO_HOME/models."""
        folder = self.settings.models / naming.from_stem(Path(repository).name)
        if folder.is_dir():
            return folder
        command = processes.module_command("studio.catalogue.hub", repository, str(folder))
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            answer = child.stdout.read()  # stdin stays open until here: its end tells the child that we are gone
        try:
            error = json.loads(answer)["error"]
        except (ValueError, KeyError):
            error = {"message": f"The download of {repository} ended without an answer.", "fix": "Try again."}
        if error:
            raise ModelError(error["message"], error["fix"])
        return folder


def _check_lists(options: Mapping[str, Any]) -> None:
    if "self" in options:
        raise StudioError("There is no option 'self'.", "See /api/docs.")
    for name in ("must_keep", "keep_patterns"):
        value = options.get(name, [])
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise StudioError(f"{name} is no list of texts.", 'Write ["numbers"], for instance.')


def default_compressor(method: str | None) -> str:
    return WORDS if method in (None, "llmlingua2") else STARTER
