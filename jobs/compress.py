"""Light jobs of compression: `compress-sweep` asks a model the same prompts at several rates; `compress-data` shortens texts
of a dataset into a new version.

Both have a child compress and the engine answer; neither imports torch. What is answered already is kept in the job's row.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs.light import LightContext, LightJobStopped
from jobs.panel import PairJudge, judge_both_orders, open_judge, score_of_first
from jobs.rundir import fsync_folder
from studio.compress.process import CompressorProcess
from studio.db.models import DatasetRow
from studio.engine.client import EngineClient
from studio.engine.protocol import Contestant
from studio.errors import EngineError, StudioError
from studio.evaluation import metrics
from studio.evaluation.scores import CantSay
from studio.records import ComparisonPrompt, CompressedDataset, CompressedTexts, Compression, SweepPrompt, SweepResult
from studio.types import Example, GenerationParams, Message, Role

Compress = Callable[..., Compression]
SHORTEST = 200  # characters of a prompt of a row: a shorter one stays as it is


@contextmanager
def _compressing(context: LightContext) -> Iterator[Compress]:
    """A child of this job's own; a job that is stopped takes it along."""
    process = CompressorProcess()
    chosen, counter = Path(context.config["compressor"]), Path(context.config["counter"])
    options = dict(context.config["options"])

    def compress(text: str, rate: float, question: str = "") -> Compression:
        if context.stop_requested():
            raise LightJobStopped
        asked = {"contexts": [text], "method": context.config["method"], "rate": rate, "question": question}
        return process.compress(chosen, counter, {**options, **asked})

    try:
        yield compress
    finally:
        process.close()


# quality against rate


@dataclass(frozen=True)
class SweepAnswer:
    """What was answered to one prompt at one rate."""

    made: Compression
    reference: str
    text: str
    seconds: float
    error: str = ""


def sweep(context: LightContext) -> dict[str, Any]:
    """Points of the curve and the lowest rate within the tolerance. Raises StudioError, LightJobStopped."""
    config = context.config
    prompts = [SweepPrompt(**row) for row in config["prompts"]]
    rates = sorted(config["rates"], reverse=True)
    chosen = config.get("judge") or {}
    total = len(rates) * len(prompts) * (1 + bool(chosen))
    answered: dict[float, list[SweepAnswer]] = {}
    client = EngineClient.from_settings(context.settings, lane="batch")
    with closing(client), _compressing(context) as compress:
        for rate in rates:
            answered[rate] = []
            for prompt in prompts:
                context.progress(sum(map(len, answered.values())), total)
                answered[rate].append(_answer(client, config, prompt, compress(prompt.text, rate, prompt.question)))
    points = [_point(rate, rows) for rate, rows in answered.items()]
    if chosen:
        done = len(rates) * len(prompts)

        def on_pair(judged: int) -> None:
            context.stop_if_asked()
            context.progress(done + judged, total)

        with closing(open_judge(chosen, context.settings, context.stop_requested)) as judge:
            _judge(judge, prompts, answered, points, on_pair)
    context.progress(total, total)
    result = {
        "points": points,
        "tolerance": config["tolerance"],
        "metric": config["metric"],
        "judge": chosen.get("judge", ""),
        **recommend(points, config["metric"], config["tolerance"]),
    }
    return SweepResult(**result).model_dump(mode="json", exclude_unset=True)


def _asked(text: str, question: str) -> str:
    return "\n\n".join(part for part in (text, question) if part)


def _answer(client: EngineClient, config: Mapping[str, Any], prompt: SweepPrompt, made: Compression) -> SweepAnswer:
    contestant, params = Contestant.from_json(config["contestant"]), GenerationParams.model_validate(config["params"])
    text, reference = made.text, prompt.reference or ""
    if not text.endswith(prompt.question):
        text = _asked(text, prompt.question)
    try:
        answer = client.chat(contestant, [Message(role=Role.USER, content=text)], params)
    except EngineError as exc:
        if exc.status >= 500 or exc.status in (401, 404, 429):
            raise
        return SweepAnswer(made, reference, "", 0.0, str(exc))  # this prompt's own trouble, such as one longer than the context
    return SweepAnswer(made, reference, answer.text, answer.seconds)


def _point(rate: float, rows: Sequence[SweepAnswer]) -> dict[str, Any]:
    pairs = [(row.text, [row.reference]) for row in rows]
    n = len(rows)
    scores: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for metric in metrics.shown_on(metrics.Display.CURVE):
        score = metrics.mean(metric, pairs)
        if isinstance(score, CantSay):
            scores[metric.name], reasons[metric.name] = None, score.reason
        else:
            scores[metric.name] = round(score.value, 4)
    before, after = sum(row.made.tokens_before for row in rows), sum(row.made.tokens_after for row in rows)
    return {
        "rate": rate,
        "achieved": round(after / before, 4) if before else 1.0,
        "tokens_before": before,
        "tokens_after": after,
        **scores,
        "reasons": reasons,
        "seconds": round(sum(row.seconds for row in rows) / n, 3),
        "compress_seconds": round(sum(row.made.seconds for row in rows) / n, 3),
        "failed": sum(bool(row.error) for row in rows),
        "n": n,
    }


def _judge(
    judge: PairJudge,
    prompts: Sequence[SweepPrompt],
    answered: Mapping[float, Sequence[SweepAnswer]],
    points: Sequence[dict[str, Any]],
    on_pair: Callable[[int], None],
) -> None:
    """Write into each point how its answers do against those to the whole prompts: 0.5 is as good, 0 always worse.

    Every pair is judged in both orders. All are asked for at once, so that a judge that needs a process needs one.
    """
    whole = answered[max(answered)]
    asked = [_as_prompt(n, prompt) for n, prompt in enumerate(prompts)]
    pairs = [
        (prompt, row.text, first.text) for point in points for prompt, row, first in zip(asked, answered[point["rate"]], whole, strict=True)
    ]
    scores = [score_of_first(verdicts) for verdicts in judge_both_orders(judge, pairs, on_pair)]
    for n, point in enumerate(points):
        mine = [value for value in scores[n * len(prompts) : (n + 1) * len(prompts)] if value is not None]
        point["judge"] = round(sum(mine) / max(1, len(mine)), 4)
        point["judged"] = len(mine)


def _as_prompt(number: int, prompt: SweepPrompt) -> ComparisonPrompt:
    text = _asked(prompt.text, prompt.question)
    return {"id": str(number), "turns": [[{"role": "user", "content": text}]], "reference": prompt.reference or ""}


def recommend(points: Sequence[Mapping[str, Any]], metric: str, tolerance: float) -> dict[str, Any]:
    """The lowest rate whose score is within `tolerance` of the whole prompt's, all higher rates too; None where none is.

    `whole` is None where the metric can't say anything about these prompts.
    """
    ordered = sorted(points, key=lambda point: -point["rate"])
    best = ordered[0][metric]
    if best is None or best <= 0:
        return {"recommended": None, "whole": best}
    good = itertools.takewhile(lambda point: best - point[metric] <= tolerance, ordered)
    return {"recommended": min(point["rate"] for point in good), "whole": best}


# a dataset, shortened


def data(context: LightContext) -> dict[str, Any]:
    """Write the version that the service has prepared: its ID, name and origin are in the job's config."""
    config = context.config
    origin, target = Path(config["rows_path"]), Path(config["folder"])
    texts = CompressedTexts(config.get("texts", CompressedTexts.LONGEST))
    total, before, after, shortened = int(config["rows"]), 0, 0, 0
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was lost
    target.mkdir(parents=True)
    digest, size, rows, told = hashlib.sha256(), 0, 0, 0.0
    try:
        with _compressing(context) as compress, origin.open("rb") as source, (target / "rows.jsonl.part").open("wb") as out:
            for line in source:
                example, figures = shorten(Example.model_validate_json(line), compress, config["rate"], texts)
                before, after, shortened = before + figures[0], after + figures[1], shortened + bool(figures[0])
                written = example.model_dump_json(exclude_none=True).encode() + b"\n"
                digest.update(written)
                size, rows = size + out.write(written), rows + 1
                if time.monotonic() - told > 0.5:
                    told = time.monotonic()
                    context.progress(rows, total)
            out.flush()
            os.fsync(out.fileno())
        if rows and not shortened:
            raise _nothing_shorter(texts, rows)
        _keep(context, target, rows, size, digest.hexdigest())
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    made = CompressedDataset(
        dataset=config["dataset"],
        name=config["name"],
        rows=rows,
        shortened=shortened,
        unchanged=rows - shortened,
        texts=texts,
        tokens_before=before,
        tokens_after=after,
    )
    return made.model_dump(mode="json")


def _nothing_shorter(texts: CompressedTexts, rows: int) -> StudioError:
    what = {CompressedTexts.LONGEST: "user or system", CompressedTexts.TEXT: "plain"}.get(texts, texts.value)
    others = ", ".join(other.value for other in CompressedTexts if other != texts)
    return StudioError(
        f"Nothing became shorter, so no dataset was made: none of the {rows:,} rows has a {what} text of at least {SHORTEST} characters "
        "that could be compressed.",
        f"Compress other texts of the rows ({others}), or take a lower rate.",
    )


def shorten(example: Example, compress: Compress, rate: float, texts: CompressedTexts) -> tuple[Example, tuple[int, int]]:
    """The row with its long texts of that kind compressed, and the tokens before and after of those that became shorter."""
    made = RowTexts(compress, rate, texts)
    if texts == CompressedTexts.LONGEST and not isinstance(example.prompt, str):
        name = "messages" if example.messages else "prompt"
        turns: list[Message] = list(getattr(example, name) or [])
        asked = [n for n, turn in enumerate(turns) if turn.role in ("user", "system")]
        if not asked:
            return example, (0, 0)
        longest = max(asked, key=lambda n: len(turns[n].content))
        turns[longest] = made.turn(turns[longest])
        return example.model_copy(update={name: turns}), made.figures
    changed = {name: made.part(name, getattr(example, name)) for name in PARTS if getattr(example, name) is not None}
    return example.model_copy(update=changed), made.figures


# fields of a row -> what a plain text in them is
PARTS = {
    "messages": CompressedTexts.USER,
    "prompt": CompressedTexts.USER,
    "completion": CompressedTexts.ASSISTANT,
    "text": CompressedTexts.TEXT,
    "chosen": CompressedTexts.ASSISTANT,
    "rejected": CompressedTexts.ASSISTANT,
}


class RowTexts:
    """The texts of one row, those that were asked for made shorter."""

    def __init__(self, compress: Compress, rate: float, texts: CompressedTexts) -> None:
        self.compress = compress
        self.rate = rate
        self.texts = texts
        self.figures = (0, 0)  # tokens before and after

    def part(self, name: str, value: str | list[Message]) -> str | list[Message]:
        if isinstance(value, str):
            return self.text(value, PARTS[name])
        return [self.turn(message) for message in value]

    def turn(self, message: Message) -> Message:
        kind = str(message.role)
        return message.model_copy(update={"content": self.text(message.content, kind)})

    def text(self, text: str, kind: str) -> str:
        is_asked = kind == self.texts or (self.texts == CompressedTexts.LONGEST and kind in ("user", "system"))
        if not is_asked or len(text) < SHORTEST:
            return text
        made = self.compress(text, self.rate)
        if made.tokens_after >= made.tokens_before or made.text == text:
            return text
        self.figures = (self.figures[0] + made.tokens_before, self.figures[1] + made.tokens_after)
        return made.text


def _keep(context: LightContext, folder: Path, rows: int, size: int, sha256: str) -> None:
    """The dataset's row and its file, together."""
    config = context.config
    if not rows:
        raise StudioError("The dataset has no rows.", "Choose another one.")
    with context.db.write() as session:
        parent = session.get(DatasetRow, config["parent"])
        if parent is None:
            raise StudioError("The dataset was deleted meanwhile.", "Choose another one.")
        taken = session.scalar(select(DatasetRow.id).where(DatasetRow.name == config["name"]))
        session.add(
            DatasetRow(
                id=config["dataset"],
                name=f"{config['name']}-{config['dataset']}" if taken else config["name"],
                kind=parent.kind,
                format=parent.format,
                mapping=parent.mapping,
                source=parent.source,
                rows=rows,
                skipped=0,
                sha256=sha256,
                bytes=size,
                parent_id=parent.id,
                provenance={
                    "made": "compress",
                    "method": config["method"],
                    "rate": config["rate"],
                    "texts": config.get("texts"),
                    "job": context.job_id,
                },
            )
        )
        session.flush()
        (folder / "rows.jsonl.part").replace(folder / "rows.jsonl")
        fsync_folder(folder)
