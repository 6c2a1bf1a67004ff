"""Write the starter model as a folder that transformers loads. Knows nothing of training or of the figures."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHECKSUMS = "SHA256SUMS"


def publish(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, card: str, folder: Path) -> None:
    """Replace the files in `folder` one by one, each at once: a reader never sees half a file."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        _write(model, tokenizer, card, Path(temporary))
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(temporary).iterdir()):
            path.chmod(0o644)
            path.replace(folder / path.name)


def _write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, card: str, folder: Path) -> None:
    halved = copy.deepcopy(model).to(torch.bfloat16)
    halved.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False, max_new_tokens=64
    )
    halved.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(card, "utf-8")
    write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """SHA256SUMS, as sha256sum -c reads it."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / CHECKSUMS).write_text("".join(lines), "utf-8")
