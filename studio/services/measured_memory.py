"""What past runs of this machine took of memory beside what was predicted for them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import select

from jobs.config import JobConfig
from studio.catalogue import memory
from studio.catalogue.models import read_json
from studio.db.models import JobRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.records import JobKind, JobStatus, MeasuredMemory

LEAST_RUNS, MOST_RUNS = 2, 20  # past runs that a correction is learned from
LIKE = 4.0  # runs whose prediction differs by no more than this factor are like this one
BOUNDS = (0.7, 1.4)  # a correction beyond these tells of something else


def correction(db: Database, config: Mapping[str, Any], job: JobConfig, device: str) -> tuple[float, int]:
    """Measured / predicted of past runs like this one on this machine (their median), and how many they were."""
    wanted = memory.predict(dict(config), job, device=device).total
    succeeded = (JobRow.kind == JobKind.TRAIN, JobRow.status == JobStatus.SUCCEEDED)
    query = select(JobRow).where(*succeeded).order_by(JobRow.ended_at.desc()).limit(200)
    ratios = []
    with db.read() as session:
        for past in session.scalars(query):
            found = measure(past)
            if found and found.device == device and 1 / LIKE <= found.predicted_bytes / wanted <= LIKE:
                ratios.append(found.measured_bytes / found.predicted_bytes)
            if len(ratios) == MOST_RUNS:
                break
    if len(ratios) < LEAST_RUNS:
        return 1.0, 0
    return min(max(statistics.median(ratios), BOUNDS[0]), BOUNDS[1]), len(ratios)


def measure(job: JobRow) -> MeasuredMemory | None:
    """Of one run; the prediction is for the longest row that it really had."""
    result = job.result or {}
    peak = result.get("peak_memory_bytes")
    if not isinstance(peak, int) or peak <= 0:
        return None
    try:
        config = JobConfig.model_validate(job.config)
        longest = result.get("longest_row")
        if isinstance(longest, int) and 8 <= longest < config.max_length and not config.packing:
            config = config.model_copy(update={"max_length": longest})
        device = str(result.get("device") or "cpu")
        folder = Path(config.model_name_or_path)
        gives_back = bool(result.get("gives_memory_back", True))
        predicted = memory.predict(read_json(folder / "config.json"), config, device=device, gives_back=gives_back).total
        if device == "cuda":
            predicted -= memory.CUDA_CONTEXT  # torch counts what it allocates itself
        return MeasuredMemory(measured_bytes=peak, predicted_bytes=predicted, device=device)
    except (StudioError, ValueError, OSError):
        return None  # its model is gone, or its options were another version's
