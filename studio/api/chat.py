"""Conversations over HTTP: listed, searched, exported, deleted, and what they teach as datasets. Answers come from /v1."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from studio.records import Dataset
from studio.services import Studio

router = APIRouter(prefix="/api")


class Harvest(BaseModel):
    """Which answers become rows: those marked as good, or those that were corrected."""

    kind: Literal["answers", "preferences"]
    name: str | None = None


@router.get("/conversations")
def list_conversations(request: Request, search: str = "") -> list[dict[str, Any]]:
    """Latest first; with `search`, those that hold this text."""
    return _studio(request).chat.conversations(search)


@router.get("/conversations/{conversation}/export")
def export_conversation(request: Request, conversation: str) -> JSONResponse:
    """The whole conversation as a file."""
    found = _studio(request).chat.export(conversation)
    return JSONResponse(found, headers={"Content-Disposition": f'attachment; filename="conversation-{found["id"]}.json"'})


@router.delete("/conversations/{conversation}")
def delete_conversation(request: Request, conversation: str) -> dict[str, Any]:
    """The conversation, its messages and the answers kept for recall are gone for good."""
    return _studio(request).chat.delete(conversation)


@router.post("/conversations/lessons")
def make_lessons(request: Request, body: Harvest) -> Dataset:
    """A dataset of what was marked or corrected in chat."""
    return _studio(request).harvest.make(body.kind, body.name)


def _studio(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio
