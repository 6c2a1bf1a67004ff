"""/api: the use cases of the command line, same names and JSON. Parse, call a service, return what it returns.

Models are named here, never given as a path: what is on this machine's disk is its owner's business.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from studio.errors import StudioError
from studio.records import ApiKey, DeletedApiKey, DoctorReport, NewApiKey
from studio.services import Studio
from studio.services.models import HUB
from studio.types import GenerationParams

router = APIRouter(prefix="/api")


def _studio(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


Here = Annotated[Studio, Depends(_studio)]
Json = dict[str, Any]


class Body(BaseModel):
    """A request body; refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid")


class NewModel(Body):
    source: str = Field(description="hub:OWNER/NAME; folders are added at the terminal.")
    name: str | None = None


class Question(Body):
    message: str | None = None
    messages: list[Json] | None = None
    system: str | None = None
    base_model: str = "starter"
    adapters: list[str] = Field(
        default_factory=list, description="Who answers; base stands for the base model, which answers when none is named."
    )
    grammar: str | None = None
    json_schema: Json | None = None
    params: GenerationParams = Field(default_factory=GenerationParams)


class NewKey(Body):
    name: str


@router.get("/doctor")
def doctor(studio: Here) -> DoctorReport:
    """What works on this machine, and what would make the rest work."""
    return studio.system.doctor()


@router.get("/status")
def status(studio: Here) -> Json:
    """Device, memory, what runs, what waits, what the engine holds."""
    return studio.system.strip()


@router.get("/models")
def list_models(studio: Here) -> list[Json]:
    return studio.models.list()


@router.post("/models", status_code=201)
def add_model(studio: Here, body: NewModel) -> Json:
    """Fetch a base model of the hub; answers when it is there."""
    if not body.source.startswith(HUB):
        raise StudioError(
            "Over HTTP a model comes from the hub.", "Send hub:OWNER/NAME, or run `studio models add PATH` on the studio's machine."
        )
    return studio.models.add(body.source, body.name)


@router.get("/models/{model}")
def show_model(studio: Here, model: str) -> Json:
    return studio.models.show(model)


@router.delete("/models/{model}")
def remove_model(studio: Here, model: str) -> Json:
    return studio.models.remove(model)


@router.get("/adapters")
def list_adapters(studio: Here, base_model: str | None = None) -> list[Json]:
    return studio.adapters.list(base_model)


@router.post("/adapters", status_code=201)
def add_adapter(
    studio: Here,
    files: Annotated[list[UploadFile], File(description="adapter_config.json and adapter_model.safetensors")],
    name: Annotated[str | None, Form()] = None,
    base_model: Annotated[str | None, Form()] = None,
) -> Json:
    """Keep an adapter that was trained elsewhere."""
    with tempfile.TemporaryDirectory(dir=studio.settings.cache) as place:
        folder = Path(place) / "adapter"
        folder.mkdir()
        for upload in files:
            with (folder / file_name(upload)).open("wb") as target:
                shutil.copyfileobj(upload.file, target)
        return studio.adapters.add(folder, name, base_model=base_model)


@router.get("/adapters/{adapter}")
def show_adapter(studio: Here, adapter: str) -> Json:
    return studio.adapters.show(adapter)


@router.delete("/adapters/{adapter}")
def delete_adapter(studio: Here, adapter: str) -> Json:
    return studio.adapters.delete(adapter)


@router.post("/chat")
def chat(studio: Here, body: Question) -> Json:
    """One answer per contestant. Streams are at /v1/chat/completions."""
    messages = list(body.messages or [])
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    if body.message is not None:
        messages.append({"role": "user", "content": body.message})
    answers = studio.chat.answer(
        body.adapters or ["base"], messages, body.params, base_model=body.base_model, grammar=body.grammar, json_schema=body.json_schema
    )
    return {"answers": answers}


@router.get("/keys")
def list_keys(studio: Here) -> list[ApiKey]:
    """Keys for programs, without the keys themselves."""
    return studio.keys.list()


@router.post("/keys", status_code=201)
def create_key(studio: Here, body: NewKey) -> NewApiKey:
    """Make a key for a program; `key` is shown this once."""
    return studio.keys.create(body.name)


@router.delete("/keys/{key}")
def delete_key(studio: Here, key: str) -> DeletedApiKey:
    return studio.keys.delete(key)


@contextmanager
def kept_upload(studio: Studio, upload: UploadFile) -> Iterator[Path]:
    """The upload as a file of a name that we choose, while it is read."""
    path = studio.settings.cache / f"upload-{secrets.token_hex(8)}"
    try:
        with path.open("wb") as target:
            shutil.copyfileobj(upload.file, target)
        yield path
    finally:
        path.unlink(missing_ok=True)


def file_name(upload: UploadFile) -> str:
    """The last part of what the client calls its file, for people; never a path."""
    return (upload.filename or "").replace("\\", "/").rpartition("/")[2].replace("\0", "").lstrip(".")[:200] or "upload"


def no_file(chat_template: Any) -> Any:
    if isinstance(chat_template, str) and chat_template.endswith(".jinja"):
        raise StudioError("Over HTTP a template is a name or its own text.", "Send the file's content as chat_template.")
    return chat_template
