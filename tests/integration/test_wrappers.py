"""Published multimodal folders, trained and asked as their text model; the weights beside the text are left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from studio.catalogue.models import tensors
from tests.engines import KEY, engine, studio_field
from tests.families import PUBLISHED

BITS = {"qwen3_5": 4, "mistral3": 16, "llama4": 16}  # as its text part; as a whole; a class that does not say where its layers are


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wrappers")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, dict[str, Any]]:
    cases = [
        {"family": f"{PUBLISHED}{name}", "bits": bits, "keep": True, "without": ["answers_alike_in_16_bits"]} for name, bits in BITS.items()
    ]
    command = [sys.executable, "-m", "tests.families", str(folder)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, check=True)
    return {found["family"].removeprefix(PUBLISHED): found for found in json.loads(done.stdout)}


def place(folder: Path, name: str) -> Path:
    return folder / f"{PUBLISHED}{name}-{BITS[name]}"


@pytest.mark.long
@pytest.mark.parametrize("name", BITS)
def test_a_wrapper_trains_as_its_text_model(folder: Path, trained: dict[str, dict[str, Any]], name: str) -> None:
    found = trained[name]
    assert (found["verdict"], found["faults"]) == ("whole", [])
    names = [tensor for tensor, _, _ in tensors(place(folder, name) / "adapter" / "adapter_model.safetensors")]
    assert names and not [tensor for tensor in names if "vision" in tensor or "visual" in tensor or "projector" in tensor]


@pytest.mark.long
def test_a_wrapper_answers_with_and_without_its_adapter(folder: Path, trained: dict[str, dict[str, Any]]) -> None:
    with engine(folder / "engine") as running, httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        for name in BITS:
            base, adapter = place(folder, name) / "base", place(folder, name) / "adapter"
            said = []
            for chosen in (None, adapter, None):
                asked = {"prompt": "Who saw the", "max_tokens": 8, "temperature": 0, "studio": studio_field(base, chosen)}
                answer = client.post("/v1/completions", json={"model": "m", **asked}, timeout=120)
                assert answer.status_code == 200, answer.text
                said.append(answer.json()["choices"][0]["text"])
            assert said[0] == said[2] != said[1], name
