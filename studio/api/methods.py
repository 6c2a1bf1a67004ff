"""/api/methods: what goes together; /api/jobs/check: what stands against a launch, before it is made."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import Field, JsonValue

from studio.api.json_bodies import JsonRoute
from studio.api.rest import Body, Here
from studio.catalogue import compatibility
from studio.catalogue.compatibility import MethodTable
from studio.records import Refusal

router = APIRouter(route_class=JsonRoute, prefix="/api")


class Launch(Body):
    data: str | None = None
    base_model: str | None = None
    recipe: str | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict, description="Dotted options of a job.")


@router.get("/methods")
def list_methods(device: Literal["auto", "cuda", "cpu"] = "auto") -> MethodTable:
    """Every method with every precision of the base and every objective: ok, needs a change, or refused because."""
    return compatibility.methods(device)


@router.post("/jobs/check")
def check_launch(body: Launch, studio: Here) -> list[Refusal]:
    """Every reason why this launch would be refused, with the change that removes it; [] where there is none."""
    return studio.jobs.launcher.refusals(body.data, body.base_model, body.recipe, body.options)
