"""Tiny models of the families that GGUF is written for: random weights, two to four layers, with an adapter of random factors.

`python -m tests.tiny_families FOLDER < CASES` exports them in one process and prints what came of it as JSON: a case is
`{"family", "exports"}`, an export as in tests.exportings. They are 256 wide, since K-quants need rows of a multiple of 256.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from studio.catalogue import text_models
from tests.exportings import export_one

WIDTH, TOKENS = 256, 512
SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SIZES = {
    "vocab_size": TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
SCALED = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LAYERS = ["sliding_attention", "full_attention"]
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}
# name: (config class, what it has beside SIZES)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"head_dim": 64, "rope_parameters": SCALED | {"original_max_position_embeddings": 128}}),
    "mistral": ("MistralConfig", {"head_dim": 64, "sliding_window": 256}),
    "mixtral": ("MixtralConfig", {"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2_moe": ("Qwen2MoeConfig", {"num_experts": 4, "shared_expert_intermediate_size": WIDTH, **EXPERTS}),
    "qwen3": ("Qwen3Config", {"head_dim": 96, "tie_word_embeddings": True}),
    "qwen3_moe": ("Qwen3MoeConfig", {"head_dim": 96, "num_experts": 4, "norm_topk_prob": True, **EXPERTS}),
    "gemma": ("GemmaConfig", {"head_dim": 96, "hidden_act": "gelu_pytorch_tanh"}),
    "gemma2": ("Gemma2Config", {"head_dim": 96, "query_pre_attn_scalar": 96, "sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 96, "query_pre_attn_scalar": 96, "sliding_window": 16, "layer_types": LAYERS}),
    "gemma3_wrapper": (  # as the models of 4B and more are published
        "Gemma3Config",
        {
            "text_config": {"head_dim": 96, "query_pre_attn_scalar": 96, "sliding_window": 16, "layer_types": LAYERS},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 5,
        },
    ),
    "phi3": ("Phi3Config", {"partial_rotary_factor": 0.75, "pad_token_id": 2}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4, "pad_token_id": 2}),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 16, "layer_types": LAYERS}),
    "olmoe": ("OlmoeConfig", {"num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2}),
    "granite": (
        "GraniteConfig",
        {"embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22, "logits_scaling": 8.0},
    ),
    "granitemoe": (
        "GraniteMoeConfig",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.1,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    ),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 256, "tie_word_embeddings": True}),
    "seed_oss": ("SeedOssConfig", {"head_dim": 64}),
}


def build(folder: Path, family: str) -> Path:
    """The model's folder, as a published one: config, weights, tokenizer and template."""
    import torch
    import transformers

    name, own = FAMILIES[family]
    torch.manual_seed(7)
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    text = {**SIZES, **own.get("text_config", own), **ends}
    config = getattr(transformers, name)(**({**own, "text_config": text, **ends} if "text_config" in own else text))
    model = text_models.auto_class(config).from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(2.0)
            elif key.endswith("bias") or "norm" in key:  # as they are after training: a mistake in them must show
                parameter.add_(torch.randn_like(parameter) * 0.1)
    target = folder / family
    model.to(torch.bfloat16).save_pretrained(target)
    _tokenizer(target)
    return target


def adapt(base: Path, target: Path) -> Path:
    """A LoRA with random factors on every linear layer of the text."""
    import torch
    from peft import LoraConfig, get_peft_model

    from jobs.exporters import models

    torch.manual_seed(8)
    model = models.load_base(base)
    layers = "all-linear"
    if any("language_model" in key for key, _ in model.named_modules()):
        layers = r".*language_model.*_proj"
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=layers))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.3)
    model.save_pretrained(str(target))
    return target


def _tokenizer(target: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=TOKENS - 8, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["Who saw the dog? The bird saw it by the sea, and the cat saw the bird. " * 20], trainer)
    made.save(str(target / "tokenizer.json"))
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    (target / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    (target / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers, sys.stdout = sys.stdout, sys.stderr
    folder, found = Path(sys.argv[1]), {}
    (folder / "out").mkdir(parents=True, exist_ok=True)
    for case in json.load(sys.stdin):
        family = case["family"]
        try:
            base = build(folder, family)
            adapter = adapt(base, folder / f"{family}-adapter")
        except Exception as exc:  # noqa: BLE001 - the test names the family
            traceback.print_exc()
            found[family] = [{"failure": f"{type(exc).__name__}: {str(exc)[:300]}"}]
            continue
        one = {"name": family, "model": str(base)}
        found[family] = [export_one(folder, one, adapter, wanted) for wanted in case["exports"]]
    json.dump(found, answers)


if __name__ == "__main__":
    main()
