"""What commands share: settings, the studio, and how results and progress are printed. Knows no noun."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from studio import settings as studio_settings
from studio.errors import StudioError
from studio.settings import Settings
from studio.terminals import escaped

if TYPE_CHECKING:
    from studio.records import Job, JobDetail, Record
    from studio.services import Studio
    from studio.types import GenerationParams

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
LOOK_S, TELL_S = 0.3, 5.0


def group(text: str) -> typer.Typer:
    """A group of commands, or the whole program; plain help texts, which need no further library."""
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


def load_settings() -> Settings:
    """Settings of the environment. Raises StudioError naming the variable that can't be used."""
    try:
        return studio_settings.load()
    except ValueError as exc:
        raise StudioError(str(exc), "Correct or unset that variable of the environment.") from None


def open_studio(settings: Settings | None = None) -> Studio:
    """The services, for the person whose machine this is."""
    from studio.services import Studio

    return Studio.open(settings or load_settings(), at_terminal=True)


def say(line: str) -> None:
    """One line to the person, beside the result."""
    print(line, file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """Plain JSON values of a record, of a list or mapping of records, or of what is plain already."""
    from pydantic_core import to_jsonable_python  # here: help texts need no pydantic, and come at once

    return to_jsonable_python(value, by_alias=True)


def show(value: Any, as_json: bool, text: str = "") -> None:
    """The result, a record, records or plain values: as JSON, else as `text`, else one `key: value` per line."""
    if as_json:
        print(escaped(json.dumps(plain(value), ensure_ascii=False)))
        return
    if not text and isinstance(values := plain(value), dict):
        text = "\n".join(f"{key}: {_cell(item)}" for key, item in values.items())
    print(text)


def table(rows: Iterable[Record | Mapping[str, object]], columns: Sequence[str], empty: str) -> str:
    """Rows, records or mappings, under their columns' names; `empty` says what to do when there are none."""
    cells = [[_cell(row.get(column)) for column in columns] for row in map(plain, rows)]
    if not cells:
        return empty
    lines = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    return " ".join(str(value).split())


def sampling(**given: Any) -> GenerationParams:
    """GenerationParams of the options that were given. Raises StudioError naming the option that can't be used."""
    from pydantic import ValidationError

    from studio.types import GenerationParams

    try:
        return GenerationParams(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as exc:
        problem = exc.errors()[0]
        option = f"--{str(problem['loc'][0]).replace('_', '-')}"
        raise StudioError(
            f"{option} {problem['input']}: {problem['msg'][0].lower()}{problem['msg'][1:]}.", "`--help` says what it takes."
        ) from None


def read_text(path: Path) -> str:
    """A small text file that the person names. Raises StudioError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is no UTF-8 text"
        raise StudioError(f"{path} can't be read ({why}).", "Name a text file.") from None


def follow(studio: Studio, job_id: str) -> JobDetail:
    """Tell how a job goes until it has ended; returns it."""
    from studio.records import ENDED

    told, told_at = "", 0.0
    while True:
        job = studio.jobs.show(job_id)
        line = _progress(job)
        if line != told and (job.status in ENDED or time.monotonic() - told_at > TELL_S):
            say(line)
            told, told_at = line, time.monotonic()
        if job.status in ENDED:
            return job
        time.sleep(LOOK_S)


def _progress(job: Job) -> str:
    from studio.records import JobStatus

    progress = job.progress
    text = f"{job.name}: {job.status.lower()}"
    if job.status == JobStatus.RUNNING and progress.max_steps:
        text += f", step {progress.step or 0} of {progress.max_steps}"
        if progress.eta_s:
            text += f", about {progress.eta_s:.0f} s left"
    if job.reason:
        text += f". {job.reason} {job.fix}".rstrip()
    return text


def leave_unless_succeeded(job: Job) -> None:
    """Exit 3 when the job ended FAILED or CANCELLED."""
    from studio.records import UNSUCCESSFUL

    if job.status in UNSUCCESSFUL:
        raise typer.Exit(3)
