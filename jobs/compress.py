"""Light jobs of compression: `compress-sweep` asks a model the same prompts at several rates; `compress-data` shortens a dataset's
prompts into a new version.

Both have a child compress and the engine answer; neither imports torch. What is answered already is kept in the job's row.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs.light import LightContext, Stopped
from jobs.panel import Panelist, duels, score, seated
from jobs.rundir import fsync_folder
from studio.compress.process import CompressorProcess
from studio.db.models import DatasetRow
from studio.engine.client import EngineClient
from studio.engine.protocol import Contestant
from studio.errors import EngineError, StudioError
from studio.evaluation import metrics
from studio.types import Example, GenerationParams, Message, Role

Compress = Callable[..., dict[str, Any]]
SHORTEST = 200  # characters of a prompt of a row: a shorter one stays as it is


@contextmanager
def _compressing(context: LightContext) -> Iterator[Compress]:
    """A child of this job's own; a job that is stopped takes it along."""
    process = CompressorProcess()
    chosen, counter = Path(context.config["compressor"]), Path(context.config["counter"])
    options = dict(context.config["options"])

    def compress(text: str, rate: float, question: str = "") -> dict[str, Any]:
        if context.stop_requested():
            raise Stopped
        asked = {"contexts": [text], "method": context.config["method"], "rate": rate, "question": question}
        return process.compress(chosen, counter, {**options, **asked})

    try:
        yield compress
    finally:
        process.close()


# quality against rate


def sweep(context: LightContext) -> dict[str, Any]:
    """Points of the curve and the lowest rate within the tolerance. Raises StudioError, Stopped."""
    config = context.config
    prompts, rates = config["prompts"], sorted(config["rates"], reverse=True)
    client, contestant = EngineClient.from_settings(context.settings, lane="batch"), Contestant.from_json(config["contestant"])
    params = GenerationParams.model_validate(config["params"])
    judge = seated(config["judge"], context) if config.get("judge") else None
    total, done, points = len(rates) * len(prompts) * (2 if judge else 1), 0, []
    answered: dict[float, list[dict[str, Any]]] = {}
    with _compressing(context) as compress:
        for rate in rates:
            rows = answered[rate] = []
            for prompt in prompts:
                context.progress(done, total)
                question = prompt.get("question", "")
                made = compress(prompt["text"], rate, question)
                text = made["text"] if made["text"].endswith(question) else _asked(made["text"], question)
                kept = {name: made[name] for name in ("tokens_before", "tokens_after", "seconds")}
                rows.append({**_answer(client, contestant, text, params), "made": kept, "reference": prompt["reference"]})
                done += 1
            points.append(_point(rate, rows))
    if judge is not None:

        def told(judged: int) -> None:
            if context.stop_requested():
                raise Stopped
            context.progress(done + judged, total)

        _judge(judge, prompts, answered, points, told)
    context.progress(total, total)
    return {
        "points": points,
        "tolerance": config["tolerance"],
        "metric": config["metric"],
        "judge": (config.get("judge") or {}).get("judge", ""),
        **recommend(points, config["metric"], config["tolerance"]),
    }


def _asked(text: str, question: str) -> str:
    return "\n\n".join(part for part in (text, question) if part)


def _answer(client: EngineClient, contestant: Contestant, text: str, params: GenerationParams) -> dict[str, Any]:
    try:
        answer = client.chat(contestant, [Message(role=Role.USER, content=text)], params)
    except EngineError as exc:
        if exc.status >= 500 or exc.status in (401, 404, 429):
            raise
        return {"text": "", "seconds": 0.0, "error": str(exc)}  # this prompt's own trouble, such as one longer than the context
    return {"text": answer.text, "seconds": answer.seconds, "error": ""}


def _point(rate: float, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pairs = [(row["text"], [row["reference"]]) for row in rows]
    n = len(rows)
    scores = {metric.name: metrics.mean(metric, pairs) for metric in metrics.shown_on(metrics.Display.CURVE)}
    before, after = (sum(row["made"][key] for row in rows) for key in ("tokens_before", "tokens_after"))
    return {
        "rate": rate,
        "achieved": round(after / before, 4) if before else 1.0,
        "tokens_before": before,
        "tokens_after": after,
        **{name: round(score, 4) for name, score in scores.items()},
        "seconds": round(sum(row["seconds"] for row in rows) / n, 3),
        "compress_seconds": round(sum(row["made"]["seconds"] for row in rows) / n, 3),
        "failed": sum(bool(row["error"]) for row in rows),
        "n": n,
    }


def _judge(
    judge: Panelist,
    prompts: Sequence[Mapping[str, Any]],
    answered: Mapping[float, Sequence[Mapping[str, Any]]],
    points: Sequence[dict[str, Any]],
    told: Callable[[int], None],
) -> None:
    """Write into each point how its answers do against those to the whole prompts: 0.5 is as good, 0 always worse.

    Every pair is judged in both orders. All are asked for at once, so that a judge that needs a process needs one.
    """
    whole = max(answered)
    asked = [
        {
            "id": str(n),
            "turns": [[{"role": "user", "content": _asked(row["text"], row.get("question", ""))}]],
            "reference": row["reference"],
        }
        for n, row in enumerate(prompts)
    ]
    pairs = [
        (prompt, row["text"], first["text"])
        for point in points
        for prompt, row, first in zip(asked, answered[point["rate"]], answered[whole], strict=True)
    ]
    scores = [score(said) for said in duels(judge, pairs, told)]
    for n, point in enumerate(points):
        mine = [value for value in scores[n * len(prompts) : (n + 1) * len(prompts)] if value is not None]
        point["judge"] = round(sum(mine) / len(mine), 4) if mine else 0.0
        point["judged"] = len(mine)


def recommend(points: Sequence[Mapping[str, Any]], metric: str, tolerance: float) -> dict[str, Any]:
    """The lowest rate whose score is within `tolerance` of the whole prompt's, all higher rates too; None where none is."""
    ordered = sorted(points, key=lambda point: -point["rate"])
    best = ordered[0][metric]
    good = None
    for point in ordered:
        if best - point[metric] > tolerance:
            break
        good = point["rate"]
    return {"recommended": good if best > 0 else None, "whole": best}


# a dataset, shortened


def data(context: LightContext) -> dict[str, Any]:
    """Write the version that the service has prepared: its ID, name and origin are in the job's config."""
    config = context.config
    origin, target = Path(config["rows_path"]), Path(config["folder"])
    total, before, after, shortened = int(config["rows"]), 0, 0, 0
    shutil.rmtree(target, ignore_errors=True)  # of an attempt that was lost
    target.mkdir(parents=True)
    digest, size, rows, told = hashlib.sha256(), 0, 0, 0.0
    try:
        with _compressing(context) as compress, origin.open("rb") as source, (target / "rows.jsonl.part").open("wb") as out:
            for line in source:
                example, figures = shorten(Example.model_validate_json(line), compress, config["rate"])
                before, after, shortened = before + figures[0], after + figures[1], shortened + bool(figures[0])
                written = example.model_dump_json(exclude_none=True).encode() + b"\n"
                digest.update(written)
                size, rows = size + out.write(written), rows + 1
                if time.monotonic() - told > 0.5:
                    told = time.monotonic()
                    context.progress(rows, total)
            out.flush()
            os.fsync(out.fileno())
        _keep(context, target, rows, size, digest.hexdigest())
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise
    return {
        "dataset": config["dataset"],
        "name": config["name"],
        "rows": rows,
        "shortened": shortened,
        "tokens_before": before,
        "tokens_after": after,
    }


def shorten(example: Example, compress: Compress, rate: float) -> tuple[Example, tuple[int, int]]:
    """The row with its longest prompt compressed, and that prompt's tokens before and after; (0, 0) where nothing was long enough."""
    if isinstance(example.prompt, str):
        text, figures = _shortened(example.prompt, compress, rate)
        return example.model_copy(update={"prompt": text}), figures
    name = "messages" if example.messages else "prompt"
    turns: list[Message] = list(getattr(example, name) or [])
    asked = [n for n, turn in enumerate(turns) if turn.role in ("user", "system")]
    if not asked:
        return example, (0, 0)
    longest = max(asked, key=lambda n: len(turns[n].content))
    text, figures = _shortened(turns[longest].content, compress, rate)
    turns[longest] = turns[longest].model_copy(update={"content": text})
    return example.model_copy(update={name: turns}), figures


def _shortened(text: str, compress: Compress, rate: float) -> tuple[str, tuple[int, int]]:
    if len(text) < SHORTEST:
        return text, (0, 0)
    made = compress(text, rate)
    return made["text"], (made["tokens_before"], made["tokens_after"])


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
                provenance={"made": "compress", "method": config["method"], "rate": config["rate"], "job": context.job_id},
            )
        )
        session.flush()
        (folder / "rows.jsonl.part").replace(folder / "rows.jsonl")
        fsync_folder(folder)
