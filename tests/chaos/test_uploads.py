"""Adapters of plain peft on a mixture, a multimodal wrapper and gpt-oss, brought in each way a person has: all answer as peft does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import families
from tests.foreign_adapters import MADE, TOKENS, adapter, said, zipped
from tests.servers import studio

PROMPTS = ("Who saw the bird?", "The cat and the dog went to the sea. ")
MORE: dict[str, tuple[str, dict[str, Any]]] = {  # other targets on the same bases
    "mixtral-dense": ("mixtral", {"target_modules": "all-linear"}),
    "gemma3-text": ("gemma3", {"target_modules": r".*language_model.*\.(q_proj|v_proj|down_proj)"}),
    "gpt_oss-attention": ("gpt_oss", {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}),
}


@pytest.mark.skipif(os.environ.get("STUDIO_ALL_FAMILIES") != "1", reason="some minutes: `make chaos` runs it")
def test_foreign_adapters_answer_as_peft_does_however_they_come(tmp_path: Path) -> None:
    with studio(tmp_path / "home") as server, httpx.Client(base_url=server.url, timeout=300, trust_env=False) as client:
        bases = {name: families.build(name, tmp_path / name) for name in MADE}
        for base in bases.values():
            client.post("/api/models", json={"source": str(base)}).raise_for_status()
        cases = {f"{name}-all": (name, options) for name, options in MADE.items()} | MORE
        for number, (name, (base, options)) in enumerate(cases.items()):
            theirs = adapter(bases[base], tmp_path / "made" / name, **options)
            bring(number, client, server.home, tmp_path / "made" / name, base)
            plain = {prompt: ask(client, base, prompt) for prompt in PROMPTS}
            for prompt in PROMPTS:
                assert ask(client, f"{base}:{name}", prompt) == said(theirs, bases[base], prompt), name
                with theirs.disable_adapter():
                    assert plain[prompt] == said(theirs, bases[base], prompt), base
            assert any(ask(client, f"{base}:{name}", prompt) != plain[prompt] for prompt in PROMPTS), name


def bring(number: int, client: httpx.Client, home: Path, folder: Path, base: str) -> None:
    """As a zip file over HTTP, as two files over HTTP, or by the command line."""
    if number % 3 == 2:
        command = [sys.executable, "-m", "studio", "adapters", "add", str(folder), "--base-model", base]
        subprocess.run(command, env={**os.environ, "STUDIO_HOME": str(home)}, check=True, timeout=300)
        return
    files = [zipped(folder)] if number % 3 == 0 else [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    sent = [("files", (file.name, file.read_bytes())) for file in files]
    client.post("/api/adapters", files=sent, data={"name": folder.name, "base_model": base}).raise_for_status()


def ask(client: httpx.Client, model: str, prompt: str) -> str:
    answer = client.post("/v1/completions", json={"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0})
    return str(answer.raise_for_status().json()["choices"][0]["text"])
