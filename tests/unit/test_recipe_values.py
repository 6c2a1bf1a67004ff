"""Recipes of papers start as they were published, and the studio's own as their descriptions say."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import recipes
from jobs.config import JobConfig, build

PUBLISHED: dict[str, dict[str, Any]] = {
    # Dettmers et al. 2023 (arXiv:2305.14314): scripts/finetune_guanaco_7b.sh of https://github.com/artidoro/qlora
    "guanaco": {
        "lora.r": 64, "lora.lora_alpha": 16, "lora.lora_dropout": 0.1, "quantization.load_in_4bit": True,
        "quantization.bnb_4bit_quant_type": "nf4", "quantization.bnb_4bit_use_double_quant": True, "optim": "paged_adamw_32bit",
        "lr_scheduler_type": "constant", "learning_rate": 2e-4, "max_grad_norm": 0.3, "max_length": 512, "max_steps": 1875,
        "gradient_checkpointing": True, "lora.target_modules": "all-linear",
    },
    # https://github.com/tloen/alpaca-lora: the defaults of finetune.py
    "alpaca-lora": {
        "lora.r": 8, "lora.lora_alpha": 16, "lora.lora_dropout": 0.05, "lora.target_modules": ["q_proj", "v_proj"],
        "learning_rate": 3e-4, "warmup_steps": 100, "num_train_epochs": 3, "max_length": 256, "chat_template": "alpaca",
        "per_device_train_batch_size": 4, "assistant_only_loss": False,
    },
    # https://github.com/huggingface/alignment-handbook: recipes/zephyr-7b-beta/sft/config_qlora.yaml
    "zephyr-sft": {
        "lora.r": 16, "lora.lora_alpha": 16, "lora.lora_dropout": 0.05, "quantization.load_in_4bit": True, "learning_rate": 2e-4,
        "num_train_epochs": 1, "max_length": 2048, "packing": True, "gradient_accumulation_steps": 2, "gradient_checkpointing": True,
    },
    # recipes/zephyr-7b-beta/dpo/config_qlora.yaml there
    "zephyr-dpo": {
        "objective": "dpo", "dpo.beta": 0.01, "lora.r": 128, "lora.lora_alpha": 128, "lora.lora_dropout": 0.05,
        "quantization.load_in_4bit": True, "learning_rate": 5e-6, "num_train_epochs": 1, "gradient_accumulation_steps": 4,
        "gradient_checkpointing": True,
    },
    "chat-assistant": {"neftune_noise_alpha": 5.0},  # the least of those that Jain et al. 2023 try (arXiv:2310.05914)
    "ia3-sft": {"learning_rate": 3e-3},  # Liu et al. 2022 (arXiv:2205.05638), T-Few
    "prompt-tuning": {"learning_rate": 0.03, "lr_scheduler_type": "linear"},  # peft's guide "Prompt-based methods", of prompt tuning
    "full-sft": {"learning_rate": 2e-5, "lr_scheduler_type": "cosine"},  # Taori et al. 2023, Stanford Alpaca, 7B
    "dpo": {"dpo.loss_type": ["sigmoid", "sft"], "dpo.loss_weights": [1.0, 1.0]},  # RPO with alpha 1: Pang et al. 2024 (arXiv:2404.19733)
}  # fmt: skip
BATCHES = {"guanaco": 16, "alpaca-lora": 128}  # rows of a step, as published


def built(name: str) -> JobConfig:
    return build(recipes.get(name).options)


def value(config: JobConfig, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_of_a_paper_starts_as_it_was_published(name: str) -> None:
    config = built(name)
    assert {key: value(config, key) for key in PUBLISHED[name]} == PUBLISHED[name]
    if name in BATCHES:
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == BATCHES[name]


def test_goals_start_as_their_descriptions_say() -> None:
    voice, classify, extract, chat = (built(name) for name in ("answer-in-my-voice", "classify", "extract-json", "chat-assistant"))
    assert classify.lora.r < voice.lora.r < extract.lora.r  # "small rank", "a small adapter", "more rank"
    assert classify.num_train_epochs > voice.num_train_epochs and extract.num_train_epochs > voice.num_train_epochs  # "several passes"
    assert chat.num_train_epochs < voice.num_train_epochs  # thousands of rows against hundreds
    for goal in (voice, classify, extract, chat):
        assert goal.lora.lora_dropout > 0 and 0 < goal.warmup_steps < 10 and goal.quantization.load_in_4bit
        assert 1e-4 <= goal.learning_rate <= 5e-4, "what LoRA takes: ten times full training's, Schulman et al. 2025"
        assert goal.lora.target_modules == "all-linear"
    texts = built("continue-on-my-texts")
    assert (texts.packing, texts.lora.use_rslora, texts.num_train_epochs, texts.objective) == (True, True, 1, "continued-pretraining")
    assert texts.learning_rate < voice.learning_rate and texts.lora.r >= chat.lora.r, "a language takes more than a style"


def test_the_first_recipes_change_nothing_but_the_bits_of_the_base() -> None:
    plain = JobConfig()
    assert built("lora-sft") == plain and not plain.quantization.load_in_4bit
    small = plain.quantization.model_copy(update={"load_in_4bit": True})
    assert built("qlora-sft") == plain.model_copy(update={"quantization": small})
    dora = built("dora-sft")
    assert dora.lora == plain.lora.model_copy(update={"use_dora": True}) and dora.quantization.load_in_4bit


def test_methods_without_the_bases_weights_take_higher_rates_and_more_passes() -> None:
    lora, full = built("lora-sft"), built("full-sft")
    for name in ("ia3-sft", "prompt-tuning", "p-tuning", "prefix-tuning"):
        config = built(name)
        assert config.method == name.removesuffix("-sft") and not config.quantization.load_in_4bit
        assert 10 * lora.learning_rate <= config.learning_rate <= 0.05 and config.num_train_epochs > lora.num_train_epochs
    assert lora.learning_rate < built("bottleneck-sft").learning_rate < built("ia3-sft").learning_rate
    assert 5 * full.learning_rate <= lora.learning_rate and full.optim == "adamw_8bit"


def test_preferences_are_learned_more_slowly_than_answers() -> None:
    for name in ("dpo", "kto", "orpo"):
        config = built(name)
        assert config.objective == name and config.quantization.load_in_4bit
        assert config.learning_rate <= built("answer-in-my-voice").learning_rate / 3 and config.num_train_epochs <= 2
    assert built("zephyr-dpo").learning_rate < built("dpo").learning_rate
    assert built("kto").per_device_train_batch_size >= 8  # its zero point is estimated over a batch: trl asks for more than 1
