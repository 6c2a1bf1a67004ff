"""/api/models and /api/adapters: base models and adapters are added, shown, deleted. Same names and JSON as the command line.

Models are named here, never given as a path: what is on this machine's disk is its owner's business.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, UploadFile
from pydantic import Field

from studio.api.rest import Body, Here, file_name
from studio.errors import StudioError
from studio.records import Adapter, BaseModel, Deleted, RemovedModel
from studio.services.models import HUB

router = APIRouter(prefix="/api")


class NewModel(Body):
    source: str = Field(description="hub:OWNER/NAME; folders are added at the terminal.")
    name: str | None = None


@router.get("/models")
def list_models(studio: Here) -> list[BaseModel]:
    return studio.models.list()


@router.post("/models", status_code=201)
def add_model(studio: Here, body: NewModel) -> BaseModel:
    """Fetch a base model of the hub; answers when it is there."""
    if not body.source.startswith(HUB):
        raise StudioError(
            "Over HTTP a model comes from the hub.", "Send hub:OWNER/NAME, or run `studio models add PATH` on the studio's machine."
        )
    return studio.models.add(body.source, body.name)


@router.get("/models/{model}")
def show_model(studio: Here, model: str) -> BaseModel:
    return studio.models.show(model)


@router.delete("/models/{model}")
def remove_model(studio: Here, model: str) -> RemovedModel:
    return studio.models.remove(model)


@router.get("/adapters")
def list_adapters(studio: Here, base_model: str | None = None) -> list[Adapter]:
    return studio.adapters.list(base_model)


@router.post("/adapters", status_code=201)
def add_adapter(
    studio: Here,
    files: Annotated[list[UploadFile], File(description="adapter_config.json and adapter_model.safetensors")],
    name: Annotated[str | None, Form()] = None,
    base_model: Annotated[str | None, Form()] = None,
) -> Adapter:
    """Keep an adapter that was trained elsewhere."""
    with tempfile.TemporaryDirectory(dir=studio.settings.cache) as place:
        folder = Path(place) / "adapter"
        folder.mkdir()
        for upload in files:
            with (folder / file_name(upload)).open("wb") as target:
                shutil.copyfileobj(upload.file, target)
        return studio.adapters.add(folder, name, base_model=base_model)


@router.get("/adapters/{adapter}")
def show_adapter(studio: Here, adapter: str) -> Adapter:
    return studio.adapters.show(adapter)


@router.delete("/adapters/{adapter}")
def delete_adapter(studio: Here, adapter: str) -> Deleted:
    return studio.adapters.delete(adapter)
