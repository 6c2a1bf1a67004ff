"""/api/storage: what takes room, and deleting what nothing refers to. No path comes from outside."""

from __future__ import annotations

from fastapi import APIRouter

from studio.api.json_bodies import JsonRoute
from studio.api.rest import Here
from studio.records import CleanedStorage, StorageUse

router = APIRouter(route_class=JsonRoute, prefix="/api/storage")


@router.get("")
def show_storage(studio: Here) -> StorageUse:
    """Disk per noun, and what no row and no process uses."""
    return studio.storage.show()


@router.post("/clean")
def clean_storage(studio: Here) -> CleanedStorage:
    """Delete what nothing refers to."""
    return studio.storage.clean()
