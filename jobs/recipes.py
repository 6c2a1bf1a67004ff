"""Named starting points: a name -> defaults for a goal, a method or a paper. What a recipe leaves out keeps JobConfig's default.

Also the options of a job as YAML, out and in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.config import JobConfig
from studio.errors import ConfigError, NotFoundError

FOUR_BITS = {"quantization.load_in_4bit": True}
LEARN = {"warmup_steps": 5, "lora.lora_dropout": 0.05}
PREFER = {"dpo.loss_type": ["sigmoid", "sft"], "dpo.loss_weights": [1.0, 1.0]}  # alone, sigmoid may win by empty answers


@dataclass(frozen=True)
class Recipe:
    """`goal` is what a person reads in simple mode; `options` are JobConfig's dotted keys."""

    name: str
    goal: str
    description: str
    options: Mapping[str, Any] = field(default_factory=dict)


GOALS = (
    Recipe(
        "qlora-sft",
        "Learn from examples, small memory (QLoRA)",
        "Imitates the answers in your rows on a frozen 4-bit base: the usual choice on one GPU.",
        FOUR_BITS,
    ),
    Recipe(
        "lora-sft",
        "Learn from examples, 16-bit base (LoRA)",
        "Imitates the answers in your rows on a frozen 16-bit base: faster steps where memory is no concern.",
    ),
    Recipe(
        "answer-in-my-voice",
        "Answer in my voice",
        "For some hundred rows in one style: a small adapter that learns how to say things, held back from learning rows by heart.",
        {**FOUR_BITS, **LEARN, "lora.r": 16, "learning_rate": 2e-4, "num_train_epochs": 3},
    ),
    Recipe(
        "classify",
        "Classify or route",
        "For short answers from a fixed list, such as the team a ticket goes to: small rank, several passes, stops by itself.",
        {**FOUR_BITS, **LEARN, "lora.r": 8, "lora.lora_alpha": 16, "learning_rate": 3e-4, "num_train_epochs": 5},
    ),
    Recipe(
        "extract-json",
        "Extract JSON from text",
        "For answers in one exact form: more rank and passes, since every brace counts.",
        {**FOUR_BITS, **LEARN, "lora.r": 32, "lora.lora_alpha": 64, "learning_rate": 2e-4, "num_train_epochs": 5},
    ),
    Recipe(
        "chat-assistant",
        "Chat assistant",
        "For thousands of conversations: every layer learns, with a little noise (NEFTune), which makes freer answers better.",
        {**FOUR_BITS, **LEARN, "lora.r": 64, "lora.lora_alpha": 64, "neftune_noise_alpha": 5.0, "num_train_epochs": 2},
    ),
    Recipe(
        "dpo",
        "Prefer these answers (DPO)",
        "For rows with a better and a worse answer: makes the better kind likelier (DPO, Rafailov et al. 2023) and goes on imitating it, "
        "so that it stays correct.",
        {**FOUR_BITS, **PREFER, "objective": "dpo", "learning_rate": 5e-5, "num_train_epochs": 2, "warmup_steps": 5},
    ),
    Recipe(
        "continue-on-my-texts",
        "Continue on my texts",
        "For plain texts: reads on in them, every word counts, short texts share a sequence. Teaches a language or a field, not answers.",
        {
            **FOUR_BITS,
            "objective": "continued-pretraining",
            "packing": True,
            "lora.r": 64,
            "lora.lora_alpha": 64,
            "lora.use_rslora": True,
            "learning_rate": 1e-4,
            "num_train_epochs": 1,
        },
    ),
)

METHODS = (
    Recipe(
        "dora-sft",
        "Learn from examples with DoRA",
        "LoRA with the length of each weight learned apart: often a little better, slower.",
        {**FOUR_BITS, "lora.use_dora": True},
    ),
    Recipe(
        "ia3-sft",
        "Learn from examples with IA3",
        "Learned scales only, a hundredth of a LoRA: for few rows and many adapters.",
        {"method": "ia3", "learning_rate": 3e-3, "num_train_epochs": 10},
    ),
    Recipe(
        "prompt-tuning",
        "Learn a prompt (prompt tuning)",
        "Learns virtual tokens before the text and nothing else (Lester et al. 2021): kilobytes, for large bases and one narrow task.",
        {"method": "prompt-tuning", "learning_rate": 0.03, "num_train_epochs": 10, "lr_scheduler_type": "linear"},
    ),
    Recipe(
        "p-tuning",
        "Learn a prompt by a network (P-tuning)",
        "As prompt tuning, with a small network that makes the tokens while training (Liu et al. 2021): steadier.",
        {"method": "p-tuning", "learning_rate": 3e-3, "num_train_epochs": 10},
    ),
    Recipe(
        "prefix-tuning",
        "Learn a prefix in every layer (prefix tuning)",
        "Learns keys and values before the text in every layer (Li and Liang 2021; P-tuning v2's deep prompt): holds more than a prompt.",
        {"method": "prefix-tuning", "learning_rate": 0.01, "num_train_epochs": 10},
    ),
    Recipe(
        "bottleneck-sft",
        "Learn from examples with bottleneck adapters",
        "Small layers between the frozen ones (Houlsby et al. 2019, Pfeiffer et al. 2020): the first adapters; can't be merged.",
        {"method": "bottleneck", "learning_rate": 1e-3},
    ),
    Recipe(
        "full-sft",
        "Train everything (small models)",
        "Every weight learns: takes several times the memory of the model, and a low learning rate.",
        {"method": "full", "learning_rate": 2e-5, "lr_scheduler_type": "cosine", "optim": "adamw_8bit"},
    ),
    Recipe(
        "kto",
        "Learn from thumbs up and down (KTO)",
        "Answers marked good or bad, without pairs (Ethayarajh et al. 2024).",
        {**FOUR_BITS, "objective": "kto", "learning_rate": 5e-5, "num_train_epochs": 1, "per_device_train_batch_size": 8},
    ),
    Recipe(
        "orpo",
        "Imitate and prefer at once (ORPO)",
        "One run instead of two, and no base to compare with (Hong et al. 2024).",
        {**FOUR_BITS, "objective": "orpo", "learning_rate": 5e-5, "num_train_epochs": 1},
    ),
)

PAPERS = (
    Recipe(
        "guanaco",
        "Guanaco, as in the QLoRA paper",
        "Dettmers et al. 2023: r=64 on all linear layers, 4 bits twice quantised, paged AdamW in 32 bits, constant rate, batch of 16.",
        {
            **FOUR_BITS,
            "lora.r": 64,
            "lora.lora_alpha": 16,
            "lora.lora_dropout": 0.1,
            "optim": "paged_adamw_32bit",
            "lr_scheduler_type": "constant",
            "learning_rate": 2e-4,
            "max_grad_norm": 0.3,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 16,
            "gradient_checkpointing": True,
            "max_length": 512,
            "max_steps": 1875,
        },
    ),
    Recipe(
        "alpaca-lora",
        "Alpaca-LoRA",
        "Instruction rows as the Alpaca-LoRA project did: r=8 on queries and values, batch of 128, learning the whole text.",
        {
            "lora.r": 8,
            "lora.lora_alpha": 16,
            "lora.lora_dropout": 0.05,
            "lora.target_modules": ["q_proj", "v_proj"],
            "learning_rate": 3e-4,
            "warmup_steps": 100,
            "num_train_epochs": 3,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 32,
            "max_length": 256,
            "chat_template": "alpaca",
            "assistant_only_loss": False,
        },
    ),
    Recipe(
        "zephyr-sft",
        "Zephyr, first half: imitate",
        "Tunstall et al. 2023, as the alignment handbook does it with QLoRA: one pass over packed conversations. Then zephyr-dpo.",
        {
            **FOUR_BITS,
            "lora.r": 16,
            "lora.lora_alpha": 16,
            "lora.lora_dropout": 0.05,
            "learning_rate": 2e-4,
            "num_train_epochs": 1,
            "packing": True,
            "max_length": 2048,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": True,
            "assistant_only_loss": False,
        },
    ),
    Recipe(
        "zephyr-dpo",
        "Zephyr, second half: prefer",
        "Plain DPO as the alignment handbook does it with QLoRA: one slow pass over pairs of answers.",
        {
            **FOUR_BITS,
            "objective": "dpo",
            "dpo.beta": 0.01,
            "lora.r": 128,
            "lora.lora_alpha": 128,
            "lora.lora_dropout": 0.05,
            "learning_rate": 5e-6,
            "num_train_epochs": 1,
            "gradient_accumulation_steps": 4,
            "gradient_checkpointing": True,
        },
    ),
)

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (*GOALS, *METHODS, *PAPERS)}

DEFAULT_RECIPE = "qlora-sft"


def get(name: str) -> Recipe:
    """Raises NotFoundError naming the recipes there are."""
    if name not in RECIPES:
        raise NotFoundError(f"There is no recipe {name!r}.", f"Choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def of_objective(objective: str) -> Recipe:
    """The first recipe that trains with this objective."""
    return next(recipe for recipe in RECIPES.values() if recipe.options.get("objective", "sft") == objective)


def as_yaml(config: JobConfig) -> str:
    """Every option, so that the text means the same when a recipe changes; no path of this machine."""
    import yaml

    values = config.model_dump(mode="json", exclude={"model_name_or_path", "base_model"})
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def from_yaml(text: str) -> dict[str, Any]:
    """Options for `jobs.config.build`, which names those that don't exist. Raises ConfigError where the text is no YAML of options."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"This is no YAML{where}: {getattr(exc, 'problem', None) or 'too deep'}.", "Write key: value lines.") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError("The YAML holds no options.", "Write key: value lines, such as learning_rate: 0.0002.")
    return values
