"""Read a GGUF export back through llama.cpp itself, where llama-cpp-python is installed (the extra `llama-cpp`).

transformers' reader and llama.cpp are two readers of one format: a file that only one of them understands is no export. Knows no proof.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from jobs.exporters import gguf_file, models
from jobs.exporters.config import ExportConfig, ProofPrompt
from jobs.exporters.proof import MAX_SHARE, NEW_TOKENS, Behaviour, Ids
from studio.catalogue import rope
from studio.catalogue.gguf import has_quantizer
from studio.datasets.rendering import Renderer

FORMATS = ("gguf", "gguf-lora")
NAME = "llama.cpp"


def is_here() -> bool:
    return has_quantizer()


def max_share(config: ExportConfig) -> float:
    """What its logits may be off; any share of an 8-bit file, beside which it rounds what it computes to 8 bits too."""
    return math.inf if config.format == "gguf" and config.outtype == "q8_0" else MAX_SHARE


def observe(
    config: ExportConfig, folder: Path, renderer: Renderer, prompts: Sequence[Ids], answers: Sequence[Ids], questions: Sequence[ProofPrompt]
) -> tuple[Behaviour, bool]:
    """Its greedy answers, its logits along `answers`, and whether it cuts the rendered conversations into the ids of training."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".base-") as place:
        model = _open(config, folder, Path(place), max(len(p) + NEW_TOKENS for p in prompts))
        try:
            own = [_answer(model, prompt, renderer.stop_token_ids) for prompt in prompts]
            along = [_forced(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
            same = config.format == "gguf-lora" or all(_cuts_alike(model, renderer, question) for question in questions)
        finally:
            model.close()
    return Behaviour(own, along), same


def _open(config: ExportConfig, folder: Path, place: Path, length: int) -> Any:
    """The file; a LoRA on a 16-bit GGUF of its base, which is written for as long as this takes."""
    import llama_cpp

    whole, lora = folder / config.file_name, None
    if config.format == "gguf-lora":
        base = Path(config.base_path)
        whole, lora = place / "base.gguf", str(whole)
        model = models.load_base(base, rope.of_adapter(Path(config.adapter_path)))
        gguf_file.write(whole, model, base, Renderer.load(base), "f16", "base")
    return llama_cpp.Llama(
        model_path=str(whole), lora_path=lora, n_ctx=max(length, 64), n_batch=max(length, 64), logits_all=True, verbose=False
    )


def _answer(model: Any, prompt: Ids, stops: Sequence[int]) -> Ids:
    model.reset()
    model.eval(prompt)
    answer: Ids = []
    for _ in range(NEW_TOKENS):
        answer.append(int(model.scores[model.n_tokens - 1].argmax()))
        if answer[-1] in stops:
            break
        model.eval(answer[-1:])
    return answer


def _forced(model: Any, prompt: Ids, answer: Ids) -> torch.Tensor:
    model.reset()
    model.eval([*prompt, *answer[:-1]])
    end = len(prompt) + len(answer) - 1
    return torch.from_numpy(model.scores[end - len(answer) : end].copy()).float()


def _cuts_alike(model: Any, renderer: Renderer, question: ProofPrompt) -> bool:
    if question.text is not None:
        return True  # how a text begins is the program's choice
    prompt = renderer.prompt(question.messages or [])
    return bool(model.tokenize(prompt.text.encode("utf-8"), add_bos=False, special=True) == list(prompt.ids))
