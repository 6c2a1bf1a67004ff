"""/api/storage: what takes room, and deleting what nothing refers to. No path comes from outside."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from studio.api.rest import Here

router = APIRouter(prefix="/api/storage")
Json = dict[str, Any]


@router.get("")
def show_storage(studio: Here) -> Json:
    """Disk per noun, and what no row and no process uses."""
    return studio.storage.show()


@router.post("/clean")
def clean_storage(studio: Here) -> Json:
    """Delete what nothing refers to."""
    return studio.storage.clean()
