"""/api: the use cases of the command line, same names and JSON. Parse, call a service, return what it returns.

Models are named here, never given as a path: what is on this machine's disk is its owner's business.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, UploadFile
from pydantic import BaseModel, ConfigDict

from studio.api.json_bodies import JsonRoute
from studio.records import DoctorReport, StatusStrip
from studio.services import Studio

router = APIRouter(route_class=JsonRoute, prefix="/api")


def _studio(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


Here = Annotated[Studio, Depends(_studio)]
MaxLength = Annotated[
    int | None, Query(ge=8, le=1_048_576, description="Longest row in tokens; left out: what a training takes that sets none.")
]


class Body(BaseModel):
    """A request body; refuses fields it does not know."""

    model_config = ConfigDict(extra="forbid")


@router.get("/doctor")
def doctor(studio: Here) -> DoctorReport:
    """What works on this machine, and what would make the rest work."""
    return studio.system.doctor()


@router.get("/status")
def status(studio: Here) -> StatusStrip:
    """Device, memory, what runs, what waits, what the engine holds."""
    return studio.system.strip()


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
