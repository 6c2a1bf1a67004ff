"""/api/fit and /api/catalogue: what would fit here, and the models that people use. Models are named, never given as a path."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.records import Fit, HubModel, KnownBaseModel
from studio.services import Studio

router = APIRouter(route_class=JsonRoute, prefix="/api")


def _studio(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


Here = Annotated[Studio, Depends(_studio)]


class PlannedTraining(BaseModel):
    """A training that a person thinks of."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    base_model: str | None = None
    model_config_json: dict[str, JsonValue] | None = Field(
        default=None, description="The content of a config.json, instead of a model's name."
    )
    recipe: str | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict)
    device: Literal["cuda", "cpu"] | None = None
    gpu_gib: float | None = None
    free_gib: float | None = Field(default=None, description="Memory that is free now, in GiB, instead of looking; a reserve is kept.")


@router.post("/fit")
def fit(body: PlannedTraining, studio: Here) -> Fit:
    """Predicted peak memory of this exact configuration, and what each change would save."""
    return studio.fit.fit(
        base_model=body.base_model,
        model_config=body.model_config_json,
        recipe=body.recipe,
        options=body.options,
        device=body.device,
        gpu_gib=body.gpu_gib,
        free_gib=body.free_gib,
    )


@router.get("/catalogue")
def catalogue(studio: Here, part: AskedPart) -> list[KnownBaseModel]:
    """Base models that people use, each with what is known about it and whether it fits here."""
    return part.of(studio.known.list())


@router.get("/catalogue/search")
def search(studio: Here, query: str) -> list[HubModel]:
    """Text generation models of the hub; needs the network."""
    return studio.known.search(query)
