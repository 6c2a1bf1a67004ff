"""The search of the hub for base models: the real client against a small hub on this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from studio.errors import ModelError
from studio.services import Studio
from studio.settings import Settings
from tests.hub_server import Hub

MODELS = {"org/Tiny-Chat": 5, "org/tiny-code": 900, "org/large": 10**6}


def test_the_hub_is_searched_by_name_the_most_fetched_first(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub({}, gated=("org/Tiny-Chat",), models=MODELS) as hub:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}.items():
            monkeypatch.setenv(name, value)
        known = Studio.open(replace(settings, hub_offline=False)).known
        assert [model.model_dump() for model in known.search(" tiny ")] == [
            {"repository": "org/tiny-code", "downloads": 900, "gated": False},
            {"repository": "org/Tiny-Chat", "downloads": 5, "gated": True},
        ]
        assert known.search("  ") == []
    known.settings = replace(settings, hub_offline=True)
    with pytest.raises(ModelError, match="stay offline"):
        known.search("tiny")
