"""Datasets of the hub, by name, config and split: the real `datasets` library against a small hub on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.db import migrations
from studio.db.session import database
from studio.errors import DatasetError
from studio.services.datasets import DatasetService
from studio.settings import Settings
from tests.hub_server import Hub

TOKEN = "hf_canaryCANARYcanaryCANARYcanary00"
CARD = b"""---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train.jsonl
  - split: test
    path: main/test.jsonl
- config_name: socratic
  data_files: socratic.jsonl
---
"""


def rows(count: int, word: str) -> bytes:
    return b"".join(f'{{"question": "{word} {n}", "answer": "ä{n}"}}\n'.encode() for n in range(count))


DATASETS = {
    "org/configs": {
        "README.md": CARD,
        "main/train.jsonl": rows(700, "train"),
        "main/test.jsonl": rows(9, "test"),
        "socratic.jsonl": rows(5, "why"),
    },
    "org/plain": {"test.jsonl": rows(3, "test"), "train.jsonl": rows(40, "train")},
    "org/gated": {"train.jsonl": rows(2, "secret")},
    "org/broken": {"train.jsonl": rows(3, "train") + b'{"question": "half'},
    "org/code": {"code.py": b"import os; os.abort()", "README.md": b"# a script"},
}


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub(DATASETS, gated=("org/gated",), token=TOKEN) as served:
        yield served


@pytest.fixture
def service(settings: Settings, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetService:
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    hub.requests.clear()
    opened = database(settings.db_url, settings.sqlite_journal)
    migrations.migrate(opened)
    return DatasetService(settings, opened, None)  # type: ignore[arg-type]


def test_a_config_and_a_split_are_chosen(service: DatasetService, settings: Settings, hub: Hub) -> None:
    added = service.add("hub:org/configs:main:test")
    assert (added.name, added.rows, added.kind, added.source) == ("configs", 9, "sft", "hub:org/configs:main:test")
    assert service.rows(added.id, limit=1)[0].messages[0].content == "test 0"
    assert any(path.endswith("/main/test.jsonl") for _, path, _ in hub.requests)
    # the token goes to the hub, and nowhere else
    assert any(authorization == f"Bearer {TOKEN}" for _, _, authorization in hub.requests)
    assert all(TOKEN.encode() not in path.read_bytes() for path in settings.home.rglob("*") if path.is_file())
    assert TOKEN not in str(added) and not list(settings.cache.iterdir())


def test_what_is_looked_at_is_what_is_kept(service: DatasetService, settings: Settings, hub: Hub) -> None:
    looked_at = service.inspect("hub:org/plain")
    asked = len(hub.requests)
    assert (looked_at.rows, looked_at.mapping) == (40, {"question": "question", "answer": "answer"})
    turned = {"question": "answer", "answer": "question"}
    assert service.inspect("hub:org/plain", mapping=turned).mapping == turned
    added = service.add("hub:org/plain", mapping=turned)
    assert (added.rows, added.mapping, added.source) == (40, turned, "hub:org/plain")
    assert len(hub.requests) == asked and not list(settings.cache.iterdir())


def test_without_a_split_it_is_train(service: DatasetService) -> None:
    assert service.add("hub:org/plain", name="mine").rows == 40


def test_a_split_without_a_config(service: DatasetService) -> None:
    assert service.add("hub:org/plain::test").rows == 3


def test_a_gated_dataset_goes_in_with_the_token(service: DatasetService, monkeypatch: pytest.MonkeyPatch) -> None:
    assert service.add("hub:org/gated").rows == 2
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DatasetError, match="could not be read") as caught:
        service.add("hub:org/gated")
    assert "\n" not in str(caught.value) and "HF_TOKEN" in caught.value.fix


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("hub:org/none", "doesn't exist"),
        ("hub:org/configs", "main"),  # a config must be chosen: the reason names them
        ("hub:org/configs:nope", "main"),
        ("hub:org/plain::nope", "train"),
        ("hub:org/broken", "could not be read"),
        ("hub:org/code", "could not be read"),
    ],
)
def test_what_can_not_be_read_is_one_line(service: DatasetService, settings: Settings, source: str, reason: str) -> None:
    with pytest.raises(DatasetError, match="could not be read") as caught:
        service.add(source)
    assert reason in caught.value.message and "\n" not in str(caught.value) and TOKEN not in str(caught.value)
    assert not list(settings.cache.iterdir()) and not list(settings.datasets.iterdir())
