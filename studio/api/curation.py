"""/api/datasets/…: report, fix, split, merge, pick, edit, versions. The use cases of studio.services.curation, same JSON."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field, JsonValue

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.api.rest import Body, Here, MaxLength
from studio.records import Dataset, DatasetHalves, DatasetReport, DatasetVersion

router = APIRouter(route_class=JsonRoute, prefix="/api")


class Fix(Body):
    checks: list[str] = Field(description="Checks that the report names, or all.")
    name: str | None = None
    base_model: str | None = None
    max_length: int | None = Field(default=None, ge=8, le=1_048_576)
    chat_template: str | None = None
    against: list[str] = Field(default_factory=list)
    values: dict[str, str] = Field(
        default_factory=dict, description="What to put in the place of each placeholder; without, its rows are left out."
    )


class Split(Body):
    test_size: float = Field(default=0.1, gt=0, description="A share below 1, or a number of rows.")
    seed: int = 42
    name: str | None = None


class Merge(Body):
    datasets: list[str]
    name: str | None = None


class Pick(Body):
    rows: int = Field(ge=1)
    seed: int = 42
    name: str | None = None


class Edit(Body):
    example: dict[str, JsonValue] = Field(description="The row in the form that export writes.")
    name: str | None = None


class Drop(Body):
    rows: list[int]
    name: str | None = None


@router.get("/datasets/{dataset}/report")
def report(
    studio: Here,
    dataset: str,
    base_model: str | None = None,
    max_length: MaxLength = None,
    chat_template: str | None = None,
    against: Annotated[list[str] | None, Query()] = None,
) -> DatasetReport:
    """Name everything that is wrong with the rows; answers when all are read."""
    return studio.curation.report(dataset, base_model=base_model, max_length=max_length, chat_template=chat_template, against=against or [])


@router.post("/datasets/{dataset}/fix", status_code=201)
def fix(studio: Here, dataset: str, body: Fix) -> Dataset:
    """Write a version without what these checks find."""
    return studio.curation.fix(
        dataset,
        body.checks,
        name=body.name,
        values=body.values,
        base_model=body.base_model,
        max_length=body.max_length,
        chat_template=body.chat_template,
        against=body.against,
    )


@router.post("/datasets/{dataset}/split", status_code=201)
def split(studio: Here, dataset: str, body: Split) -> DatasetHalves:
    """Write two versions, to train on and to measure on; duplicates stay on one side."""
    return studio.curation.split(dataset, test_size=body.test_size, seed=body.seed, name=body.name)


@router.post("/datasets/merge", status_code=201)
def merge(studio: Here, body: Merge) -> Dataset:
    """Write a version with the rows of several datasets of one kind."""
    return studio.curation.merge(body.datasets, name=body.name)


@router.post("/datasets/{dataset}/pick", status_code=201)
def pick(studio: Here, dataset: str, body: Pick) -> Dataset:
    """Write a version with the best rows that differ most from each other."""
    return studio.curation.pick(dataset, body.rows, seed=body.seed, name=body.name)


@router.post("/datasets/{dataset}/rows/{row}", status_code=201)
def edit_row(studio: Here, dataset: str, row: int, body: Edit) -> Dataset:
    """Write a version with one row changed; rows count from 1."""
    return studio.curation.edit_row(dataset, row, body.example, name=body.name)


@router.post("/datasets/{dataset}/drop", status_code=201)
def drop(studio: Here, dataset: str, body: Drop) -> Dataset:
    """Write a version without some rows; rows count from 1."""
    return studio.curation.delete_rows(dataset, body.rows, name=body.name)


@router.get("/datasets/{dataset}/versions")
def versions(studio: Here, part: AskedPart, dataset: str) -> list[DatasetVersion]:
    """What a dataset came from, and what was made of it."""
    return part.of(studio.curation.versions(dataset))
