"""Lists in parts: every list of /api, and the services behind the long ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from studio import api
from studio.api.paging import TOTAL
from studio.db.models import AdapterRow, BaseModelRow, ComparisonRow, ConversationRow, DatasetRow, JobRow
from studio.services import Studio
from studio.services.paging import Page
from studio.settings import Settings

SHORT = {
    "/api/datasets/{dataset}/rows",
    "/api/comparisons/{comparison}/worst",
    "/api/judgements/{judgement}/verdicts",
}  # parts with a limit that is never left out
WHOLE = {"/api/models/{model}/templates", "/api/judges", "/api/catalogue/search"}  # a handful by nature
LISTS = ("/api/jobs", "/api/datasets", "/api/adapters", "/api/comparisons", "/api/conversations", "/api/exports", "/api/models")


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    made = FastAPI(openapi_url="/api/openapi.json")
    made.state.studio = Studio.open(settings)
    api.add_routes(made)
    return made


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as made:
        yield made


def fill(app: FastAPI, count: int) -> None:
    studio: Studio = app.state.studio
    rows: list[Any] = []
    for number in range(count):
        at = {"name": f"n{number:02}", "created_at": float(number)}
        rows += [
            JobRow(kind="train", status="SUCCEEDED", ended_at=float(number), **at),
            JobRow(
                kind="export", status="SUCCEEDED", config={"format": "adapter", "to": "/x", "adapter": "a"}, **{**at, "name": f"e{number}"}
            ),
            DatasetRow(kind="sft", format="x", rows=1, **at),
            AdapterRow(base_model="starter", method="lora", path="/x", bytes=1, sha256="", **at),
            ComparisonRow(contestants=["base"], prompts=[], base_model="starter", **at),
            ConversationRow(title=at["name"], updated_at=float(number)),
            BaseModelRow(path=f"/x{number}", architecture="x", parameters=1, context=8, loadable=True, reason="", **at),
        ]
    with studio.jobs.db.write() as session:
        session.add_all(rows)


def test_every_list_takes_a_part_and_says_how_many_there_are(client: TestClient, app: FastAPI) -> None:
    # red when a list is added without limit and offset
    lists, taking = set(), set()
    for path, methods in client.get("/api/openapi.json").json()["paths"].items():
        get = methods.get("get", {})
        schema = get.get("responses", {}).get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
        if schema.get("type") == "array":
            lists.add(path)
            if {"limit", "offset"} <= {parameter["name"] for parameter in get.get("parameters", [])}:
                taking.add(path)
    assert set(LISTS) <= taking and lists - taking == WHOLE | SHORT - taking


@pytest.mark.parametrize("path", LISTS)
def test_parts_are_pieces_of_the_whole(client: TestClient, app: FastAPI, path: str) -> None:
    fill(app, 7)
    whole = client.get(path)
    names = [row.get("name") or row.get("title") for row in whole.json()]
    assert whole.headers[TOTAL] == str(len(names)) and len(names) >= 7
    pieces = []
    for offset in range(0, len(names), 3):
        part = client.get(path, params={"limit": 3, "offset": offset})
        assert part.headers[TOTAL] == str(len(names)) and len(part.json()) <= 3
        pieces += [row.get("name") or row.get("title") for row in part.json()]
    assert pieces == names
    assert client.get(path, params={"offset": 99}).json() == []
    for wrong in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"limit": "x"}):
        assert client.get(path, params=wrong).status_code == 422


def test_a_part_reads_no_more_rows_than_it_has(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    # red when the whole table is read for ten rows
    from studio.services import adapters, datasets

    fill(app, 40)
    made: list[object] = []
    for module, name in ((adapters, "_record"), (datasets, "as_record")):
        usual = getattr(module, name)
        monkeypatch.setattr(module, name, lambda row, usual=usual: (made.append(row), usual(row))[1])
    studio: Studio = app.state.studio
    assert (len(studio.adapters.list(page=Page(5))), len(studio.datasets.list(page=Page(5, 38)))) == (5, 2)
    assert len(made) == 7
