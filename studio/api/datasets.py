"""/api/datasets and the chat templates of a model: rows are added, shown, rendered, exported. Same names and JSON as `studio data`."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.api.rest import Body, Here, MaxLength, file_name, kept_upload
from studio.errors import StudioError
from studio.records import Dataset, Parity, Rendering, TemplateInfo
from studio.services.models import HUB
from studio.types import Example, LearnedTurns, Reasoning, RowOptions, SystemMessage

router = APIRouter(route_class=JsonRoute, prefix="/api")


class NewText(Body):
    """Rows as text, or `hub:NAME[:config[:split]]`."""

    text: str | None = None
    source: str | None = None
    name: str | None = None
    format: str | None = None
    mapping: dict[str, str] | None = None
    skip_bad: bool = False


@router.get("/datasets")
def list_datasets(studio: Here, part: AskedPart) -> list[Dataset]:
    return part.told(studio.datasets.list(part.page))


@router.post("/datasets", status_code=201)
def add_dataset(
    studio: Here,
    file: Annotated[UploadFile, File()],
    name: Annotated[str | None, Form()] = None,
    format: Annotated[str | None, Form()] = None,
    mapping: Annotated[str | None, Form(description='JSON object role -> column, such as {"prompt": "question"}.')] = None,
    skip_bad: Annotated[bool, Form()] = False,
) -> Dataset:
    """Check a file of rows and keep it."""
    columns = _mapping(mapping)
    with kept_upload(studio, file) as path:
        return studio.datasets.add(path, name=name, format=format, mapping=columns, skip_bad=skip_bad, filename=file_name(file))


@router.post("/datasets/text", status_code=201)
def add_text(studio: Here, body: NewText) -> Dataset:
    """Check pasted rows, or a dataset of the hub, and keep it."""
    datasets = studio.datasets
    if body.text is not None and body.source is None:
        return datasets.add_text(body.text, name=body.name, format=body.format, mapping=body.mapping, skip_bad=body.skip_bad)
    if body.text is None and body.source and body.source.startswith(HUB):
        return datasets.add(body.source, name=body.name, format=body.format, mapping=body.mapping, skip_bad=body.skip_bad)
    raise StudioError("Give either text or a source that starts with hub:.", "Files are sent to POST /api/datasets.")


@router.get("/datasets/{dataset}")
def show_dataset(studio: Here, dataset: str) -> Dataset:
    return studio.datasets.show(dataset)


@router.get("/datasets/{dataset}/rows", response_model_exclude_none=True)
def dataset_rows(
    studio: Here, dataset: str, offset: Annotated[int, Query(ge=0)] = 0, limit: Annotated[int, Query(ge=1, le=1000)] = 20
) -> list[Example]:
    return studio.datasets.rows(dataset, offset=offset, limit=limit)


@router.get("/datasets/{dataset}/render")
def render_dataset(
    studio: Here,
    dataset: str,
    base_model: str = "starter",
    rows: Annotated[int, Query(ge=1, le=100)] = 3,
    offset: Annotated[int, Query(ge=0)] = 0,
    max_length: MaxLength = None,
    chat_template: str | None = None,
    learned_turns: LearnedTurns = LearnedTurns.MARKED,
    reasoning: Reasoning = Reasoning.LEARN,
    system_message: SystemMessage = SystemMessage.KEEP,
) -> Rendering:
    """What the model will see and learn, as text and tokens."""
    options = RowOptions(learned_turns, reasoning, system_message)
    return studio.datasets.render(
        dataset, base_model=base_model, rows=rows, offset=offset, max_length=max_length, chat_template=chat_template, options=options
    )


@router.get("/datasets/{dataset}/parity")
def dataset_parity(
    studio: Here,
    dataset: str,
    base_model: str = "starter",
    rows: Annotated[int, Query(ge=1, le=1000)] = 20,
    max_length: MaxLength = None,
    chat_template: str | None = None,
    learned_turns: LearnedTurns = LearnedTurns.MARKED,
    reasoning: Reasoning = Reasoning.LEARN,
    system_message: SystemMessage = SystemMessage.KEEP,
) -> Parity:
    """Whether training sees the tokens that a chat would send, with the answer behind them; else the first difference."""
    options = RowOptions(learned_turns, reasoning, system_message)
    return studio.datasets.parity(
        dataset, base_model=base_model, rows=rows, max_length=max_length, chat_template=chat_template, options=options
    )


@router.get("/models/{model}/templates")
def model_templates(studio: Here, model: str) -> list[TemplateInfo]:
    """The chat templates that fit a model, its default first, each with how it writes a short conversation."""
    return studio.datasets.templates(model)


@router.get("/datasets/{dataset}/export", response_class=FileResponse)
def export_dataset(studio: Here, dataset: str) -> FileResponse:
    """The rows as a .jsonl file."""
    found = studio.datasets.show(dataset)
    folder = Path(tempfile.mkdtemp(dir=studio.settings.cache))
    target = folder / f"{found.name}.jsonl"
    studio.datasets.export(found.id, target)
    return FileResponse(target, filename=target.name, background=BackgroundTask(shutil.rmtree, folder, ignore_errors=True))


@router.delete("/datasets/{dataset}")
def delete_dataset(studio: Here, dataset: str) -> Dataset:
    return studio.datasets.delete(dataset)


def _mapping(text: str | None) -> dict[str, str] | None:
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or not all(isinstance(column, str) for column in value.values()):
        raise StudioError(
            f"mapping is no JSON object of texts: {text[:200]}", 'Send such as {"prompt": "question", "completion": "answer"}.'
        )
    return value
