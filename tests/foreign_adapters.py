"""Adapters that plain peft made, on models that are loaded under other names than they are stored, and what peft says with them."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

# wrapped experts in two orders, a text part beside a vision tower, experts with biases
MADE: dict[str, dict[str, Any]] = {
    "mixtral": {"target_modules": "all-linear", "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
    "gemma3": {"target_modules": "all-linear"},
    "gpt_oss": {"target_modules": ["q_proj", "o_proj"], "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]},
}
TOKENS = 16


def adapter(base: Path, target: Path, strength: float = 0.1, **options: Any) -> Any:
    """A LoRA as peft saves it, random, and peft's own model of it."""
    import peft
    import torch

    from studio.catalogue import text_models

    model = text_models.load(base, dtype=torch.float32)[0].eval()
    with warnings.catch_warnings(action="ignore"):  # peft asks transformers by old names, and its own patterns match nothing
        made = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, **options))
    random = torch.Generator().manual_seed(1)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        for weight in (weight for weight in made.parameters() if weight.requires_grad):
            weight.add_(torch.randn(weight.shape, generator=random) * strength)
        made.save_pretrained(target)
    return made.eval()


def zipped(folder: Path) -> Path:
    """A zip file of the folder, as people send it: the folder itself is its only entry."""
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


def said(model: Any, base: Path, prompt: str) -> str:
    """What transformers' own generate says with a model behind a prompt: the likeliest tokens, without special ones."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    given = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**given, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0, repetition_penalty=1.0)
    return str(tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
