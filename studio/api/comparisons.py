"""/api/comparisons: the same prompts to several contestants, and what their answers measure."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field, JsonValue

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.api.rest import Body, Here
from studio.records import Comparison, ComparisonMetrics, ComparisonSummary, Deleted
from studio.types import GenerationParams

router = APIRouter(route_class=JsonRoute, prefix="/api")


class NewComparison(Body):
    base_model: str = "starter"
    contestants: list[str] = Field(default_factory=lambda: ["base"])
    prompts: list[dict[str, JsonValue]] | None = Field(default=None, description="Rows as in a file of prompts.")
    data: str | None = Field(default=None, description="Ask the rows of this dataset.")
    questions: str | None = Field(default=None, description="Ask published questions: mt-bench or vicuna.")
    held_out: str | None = Field(default=None, description="Ask the rows that this training held out.")
    name: str | None = None
    params: GenerationParams | None = Field(default=None, description="Greedy when left out.")


@router.get("/comparisons")
def list_comparisons(studio: Here, part: AskedPart) -> list[ComparisonSummary]:
    return part.told(studio.comparisons.list(part.page))


@router.post("/comparisons", status_code=201)
def compare(studio: Here, body: NewComparison) -> Comparison:
    """Queue a comparison; its answers appear as they land."""
    params = body.params.model_dump(exclude_unset=True) if body.params else None
    return studio.comparisons.create(
        prompts=body.prompts,
        data=body.data,
        questions=body.questions,
        held_out=body.held_out,
        base_model=body.base_model,
        contestants=body.contestants,
        name=body.name,
        params=params,
    )


@router.get("/comparisons/{comparison}")
def show_comparison(studio: Here, comparison: str) -> Comparison:
    return studio.comparisons.show(comparison)


@router.delete("/comparisons/{comparison}")
def delete_comparison(studio: Here, comparison: str) -> Deleted:
    return studio.comparisons.delete(comparison)


@router.get("/comparisons/{comparison}/metrics")
def metrics(
    studio: Here, comparison: str, perplexity: bool = False, pattern: str | None = None, mauve_model: str | None = None
) -> ComparisonMetrics:
    """Every metric of the answers per contestant; what can't say anything is null, with its reason in `reasons`.

    `perplexity` and `mauve_model`, the base whose features MAUVE compares, load models on the CPU and take their time.
    """
    return studio.comparisons.metrics(comparison, perplexity=perplexity, pattern=pattern, mauve_model=mauve_model)
