"""Read an export back as a stranger would: its weights, tokenizer and template, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
from tokenizers import normalizers, pre_tokenizers
from torch import nn

from jobs.exporters import gguf_lora, gguf_reader, models
from jobs.exporters.config import ExportConfig, ProofPrompt
from jobs.exporters.folders import TEMPLATE
from studio.catalogue import rope
from studio.datasets.rendering import Renderer


def ids(renderer: Renderer, prompt: ProofPrompt) -> list[int]:
    """What the studio sends to the model for a prompt of the proof."""
    if prompt.text is not None:
        return renderer.completion_prompt(prompt.text)
    return renderer.prompt(prompt.messages or []).ids


def model(config: ExportConfig, folder: Path) -> nn.Module:
    """The exported weights, on a base of its own where the export is an adapter."""
    base = Path(config.base_path)
    if config.format == "merged":
        return models.load_base(folder)
    if config.format == "gguf":
        return gguf_reader.model(folder, config.file_name, base, rope.of_adapter(Path(config.adapter_path)))
    if config.format == "adapter":
        return models.attach(models.load_base(base, rope.of_adapter(folder)), folder)
    fresh = models.load_base(base, rope.of_adapter(Path(config.adapter_path)))
    gguf_lora.apply(folder / config.file_name, fresh, base)
    return fresh


def same_ids(config: ExportConfig, folder: Path, renderer: Renderer, prompts: Sequence[ProofPrompt]) -> bool:
    """Whether the exported tokenizer and template turn every prompt into the ids that the adapter was trained with."""
    if config.format == "gguf-lora":
        return True  # it brings neither: both are its base's
    tokenizer = _tokenizer(config, folder)
    return all(_exported_ids(tokenizer, renderer, prompt) == ids(renderer, prompt) for prompt in prompts)


def _tokenizer(config: ExportConfig, folder: Path) -> Any:
    from transformers import AutoTokenizer

    if config.format != "gguf":
        place = folder if config.format == "merged" else Path(config.base_path)
        tokenizer = AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
        tokenizer.chat_template = (folder / TEMPLATE).read_text(encoding="utf-8")
        return tokenizer
    tokenizer = gguf_reader.tokenizer(folder, config.file_name)
    _cut_as_llama_cpp(tokenizer.backend_tokenizer, folder / config.file_name)
    return tokenizer


def _cut_as_llama_cpp(tokenizer: Any, path: Path) -> None:
    """Where transformers' reader would cut text otherwise than llama.cpp does for the same words in the file."""
    fields = gguf.GGUFReader(path).fields
    if fields[gguf.Keys.Tokenizer.PRE].contents() == "smollm":
        digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    if fields[gguf.Keys.Tokenizer.MODEL].contents() == "llama":  # its space comes before every piece behind a special token
        adds_space = fields[gguf.Keys.Tokenizer.ADD_PREFIX].contents()
        marks = [normalizers.Prepend("▁")] if adds_space else []
        tokenizer.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None


def _exported_ids(tokenizer: Any, renderer: Renderer, prompt: ProofPrompt) -> list[int]:
    if prompt.text is not None:
        found = tokenizer(prompt.text)["input_ids"]
    else:
        turns, tools = renderer.dialogue.adapted(prompt.messages or [], None)
        found = tokenizer.apply_chat_template(turns, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False)
    return list(found)
