"""/api/models and /api/adapters: base models and adapters are added, shown, deleted. Same names and JSON as the command line.

Models are named here, not given as a path: what is on this machine's disk is its owner's business. A folder is added by its path where
the request comes from that owner: over loopback, from the same user of the system, on a studio without a login.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, Request, UploadFile
from pydantic import Field

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.api.rest import Body, Here, file_name
from studio.auth import is_own_user
from studio.errors import ForbiddenError
from studio.records import Adapter, BaseModel, CachedModel, Deleted, RemovedModel
from studio.services.models import HUB

router = APIRouter(route_class=JsonRoute, prefix="/api")


class NewModel(Body):
    source: str = Field(description="hub:OWNER/NAME, or a folder's path from the user who runs the studio.")
    name: str | None = None


@router.get("/models")
def list_models(studio: Here, part: AskedPart) -> list[BaseModel]:
    return part.told(studio.models.list(part.page))


@router.post("/models", status_code=201)
def add_model(studio: Here, body: NewModel, request: Request) -> BaseModel:
    """Fetch a base model of the hub, or add a folder; answers when it is there."""
    if not body.source.startswith(HUB) and not is_own_user(studio.settings, request.scope):
        raise ForbiddenError(
            "A folder is added by its path only from the user who runs this studio, on its own machine and without a login.",
            "Send hub:OWNER/NAME, or run `studio models add PATH` on the studio's machine.",
        )
    return studio.models.add(body.source, body.name)


@router.get("/cached-models")
def cached_models(studio: Here, part: AskedPart) -> list[CachedModel]:
    """Models of the hub that lie whole in the Hugging Face cache of this machine; `hub:OWNER/NAME` adds them without fetching anything."""
    return part.of(studio.models.cached())


@router.get("/models/{model}")
def show_model(studio: Here, model: str) -> BaseModel:
    return studio.models.show(model)


@router.delete("/models/{model}")
def remove_model(studio: Here, model: str) -> RemovedModel:
    return studio.models.remove(model)


@router.get("/adapters")
def list_adapters(studio: Here, part: AskedPart, base_model: str | None = None) -> list[Adapter]:
    return part.told(studio.adapters.list(base_model, part.page))


@router.post("/adapters", status_code=201)
def add_adapter(
    studio: Here,
    files: Annotated[
        list[UploadFile], File(description="adapter_config.json and adapter_model.safetensors, or a zip file of their folder")
    ],
    name: Annotated[str | None, Form()] = None,
    base_model: Annotated[str | None, Form()] = None,
) -> Adapter:
    """Keep an adapter that was trained elsewhere."""
    with tempfile.TemporaryDirectory(dir=studio.settings.cache) as place:
        paths = [Path(place) / file_name(upload) for upload in files]
        for path, upload in zip(paths, files, strict=True):
            with path.open("wb") as target:
                shutil.copyfileobj(upload.file, target)
        return studio.adapters.add_files(paths, name, base_model=base_model)


@router.get("/adapters/{adapter}")
def show_adapter(studio: Here, adapter: str) -> Adapter:
    return studio.adapters.show(adapter)


@router.delete("/adapters/{adapter}")
def delete_adapter(studio: Here, adapter: str) -> Deleted:
    return studio.adapters.delete(adapter)
