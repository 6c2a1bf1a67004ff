"""Exports that are folders of safetensors: the adapter as peft reads it, the merged model as transformers reads it.

Names no path of this machine in what is written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import nn

from studio.datasets.rendering import Renderer

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "studio.json")
TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip


def write_adapter(folder: Path, adapter: Path, renderer: Renderer, base_model: str) -> None:
    for name in ADAPTER_FILES:
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, folder / name)
    config = json.loads((folder / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
    config = {key: value for key, value in config.items() if key != "auto_mapping"} | {"base_model_name_or_path": base_model}
    (folder / ADAPTER_FILES[0]).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / TEMPLATE).write_text(renderer.template, encoding="utf-8")


def write_merged(folder: Path, model: nn.Module, base: Path, renderer: Renderer, dtype: torch.dtype, name: str) -> None:
    """The model cast to `dtype`, with the base's tokenizer and the adapter's template."""
    halved = model.to(dtype)
    halved.config.name_or_path = name
    halved.save_pretrained(str(folder))
    for file in TOKENIZER_FILES:
        if (base / file).is_file():
            shutil.copyfile(base / file, folder / file)
    settings = folder / "tokenizer_config.json"
    if settings.is_file():  # a template in there would speak against the file beside it
        values = {key: value for key, value in json.loads(settings.read_text(encoding="utf-8")).items() if key != "chat_template"}
        settings.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / TEMPLATE).write_text(renderer.template, encoding="utf-8")
