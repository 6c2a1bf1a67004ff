"""/api/exports and /api/adapters/merge: the use cases of studio.services.exports and merging, same JSON.

An export is written to a folder of STUDIO_HOME/exports and fetched from here; nobody names a path.
"""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse
from pydantic import Field

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.api.rest import Body, Here
from studio.records import Adapter, Deleted, Export, PushedExport

router = APIRouter(route_class=JsonRoute, prefix="/api")


class NewExport(Body):
    adapter: str
    format: str = Field(description="adapter, merged, gguf or gguf-lora.")
    outtype: str = Field(default="f16", description="Numbers of a gguf: f16, bf16, q8_0, q6_k, q5_k_m or q4_k_m.")
    verify: int = Field(default=8, description="Prompts of the proof.")
    importance: bool = Field(default=True, description="Round q6_k … q4_k_m with an importance matrix from the training rows.")


class Push(Body):
    repository: str = Field(description="OWNER/NAME on the hub.")
    private: bool = True


class NewMerge(Body):
    weights: dict[str, float] = Field(description="Adapter -> weight; all of one base.")
    method: str = Field(default="linear", description="linear, ties or dare.")
    name: str | None = None
    density: float = Field(default=0.5, description="Share of values that ties and dare keep.")


@router.get("/exports")
def list_exports(studio: Here, part: AskedPart) -> list[Export]:
    return part.told(studio.exports.list(part.page))


@router.post("/exports", status_code=201)
def export(studio: Here, body: NewExport) -> Export:
    """Queue an export and its proof."""
    return studio.exports.create(body.adapter, body.format, outtype=body.outtype, verify=body.verify, importance=body.importance)


@router.get("/exports/{export}")
def show_export(studio: Here, export: str) -> Export:
    return studio.exports.show(export)


@router.delete("/exports/{export}")
def delete_export(studio: Here, export: str) -> Deleted:
    """Delete the files; the job keeps its proof."""
    return studio.exports.delete(export)


@router.get("/exports/{export}/files/{name}", response_class=FileResponse)
def export_file(studio: Here, export: str, name: str) -> FileResponse:
    """One of the files that the export lists."""
    path = studio.exports.file(export, name)
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")


@router.post("/exports/{export}/push")
def push_export(studio: Here, export: str, body: Push) -> PushedExport:
    """Upload a proved export to the hub, with the token of the studio's environment."""
    return studio.exports.push(export, body.repository, private=body.private)


@router.get("/adapters/{adapter}/formats")
def formats(studio: Here, adapter: str) -> dict[str, str]:
    """Every format, with the reason why this adapter can't take it; empty where it can."""
    return studio.exports.formats(adapter)


@router.post("/adapters/merge", status_code=201)
def merge(studio: Here, body: NewMerge) -> Adapter:
    """Make one adapter of several."""
    return studio.merging.merge(body.weights, body.method, body.name, density=body.density)
