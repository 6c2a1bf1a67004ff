"""What follows a training by itself: a report that lets its base and its adapter answer held-out rows, queued as a light job.

Rows only: nothing is asked here. Whatever is wrong with the report, the training has succeeded and stays so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from jobs.config import JobConfig
from jobs.kinds import queue_of
from jobs.rundir import RunDir
from studio.db import lifecycle
from studio.db.models import AdapterRow, ComparisonRow, JobRow, JudgementRow
from studio.engine.protocol import AdapterRef, Contestant, ModelFolder
from studio.errors import DatasetError, StudioError
from studio.evaluation import prompts
from studio.records import ComparisonPrompt, JobKind
from studio.types import Example, GenerationParams

BASE = "base"
AUTOMATIC = -1  # priority: behind what people ask for, and out of the way of trainings
READ_ROWS = 2000  # from the head of the held-out rows
BYTES_PER_TOKEN = 2  # no tokenizer makes more of a text for long
FEWEST_TOKENS, MOST_TOKENS = 32, 512  # of an answer

logger = logging.getLogger(__name__)


def after_training(session: Session, training: JobRow, adapter: AdapterRow) -> None:
    """Queue the report of a training that succeeds in this transaction, where it has rows for one. Never raises."""
    try:
        with session.begin_nested():
            rows = JobConfig.model_validate(training.config).report_rows
            if rows:
                queue_report(session, training, adapter, rows, priority=AUTOMATIC)
    except StudioError as exc:
        logger.info("Job %s has no report: %s", training.name, exc)
    except Exception:  # the training has succeeded, whatever this was
        logger.exception("Job %s: its report could not be queued.", training.name)


def queue_report(session: Session, training: JobRow, adapter: AdapterRow, rows: int, priority: int = 0) -> JobRow:
    """The report's job, with the comparison that it fills and, where rows have references, the judgement. Raises StudioError."""
    asked, held_out = held_out_prompts(RunDir(Path(training.run_dir)).eval, rows)
    params = GenerationParams(temperature=0.0, max_new_tokens=_room(asked))
    comparison = ComparisonRow(
        name=_free_name(session, f"{adapter.name[:50]}-report"),
        base_model=training.base_model,
        contestants=[BASE, adapter.name],
        prompts=asked,
        params=params.model_dump(),
        dataset_id=training.dataset_id,
    )
    session.add(comparison)
    session.flush()
    config: dict[str, Any] = {
        "comparison": comparison.id,
        "training": training.id,
        "held_out": held_out,
        "contestants": [one.as_json() for one in _contestants(training, adapter)],
        "params": params.model_dump(),
    }
    judgement = None
    if any(prompt.get("reference") for prompt in asked):
        judgement = JudgementRow(comparison_id=comparison.id, judge="reference", kind="reference")
        session.add(judgement)
        session.flush()
        config["judgement"] = judgement.id
    job = JobRow(
        kind=JobKind.REPORT,
        queue=queue_of(JobKind.REPORT),
        name=f"report-{comparison.id}",
        config=config,
        base_model=training.base_model,
        after_id=training.id,
        priority=priority,
    )
    comparison.job_id = lifecycle.submit(session, job).id
    if judgement is not None:
        judgement.job_id = job.id
    return job


def held_out_prompts(path: Path, most: int) -> tuple[list[ComparisonPrompt], int]:
    """At most `most` prompts, evenly spread over the head of the file, and the number of rows looked at. Raises DatasetError."""
    examples = list(_examples(path))
    if not examples:
        raise DatasetError("The training held out no rows.", "Train with test_size above 0.")
    asked = prompts.from_examples(examples)
    if len(asked) > most:
        asked = [asked[index * len(asked) // most] for index in range(most)]
    return prompts.unique(asked), len(examples)


def _examples(path: Path) -> Iterator[Example]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (Example.model_validate_json(line) for line in islice(file, READ_ROWS) if line.strip())


def _room(asked: list[ComparisonPrompt]) -> int:
    """Tokens of an answer: what the longest reference may take, within reason."""
    longest = max((len(str(prompt.get("reference") or "").encode()) for prompt in asked), default=0)
    return min(max(longest // BYTES_PER_TOKEN, FEWEST_TOKENS), MOST_TOKENS)


def _contestants(training: JobRow, adapter: AdapterRow) -> list[Contestant]:
    base = ModelFolder(training.base_model, Path(training.config["model_name_or_path"]))
    return [Contestant(BASE, base), Contestant(adapter.name, base, AdapterRef(adapter.name, Path(adapter.path), adapter.sha256))]


def _free_name(session: Session, wanted: str) -> str:
    name, number = wanted, 1
    while session.scalar(select(ComparisonRow.id).where(ComparisonRow.name == name)) is not None:
        number += 1
        name = f"{wanted}-{number}"
    return name
