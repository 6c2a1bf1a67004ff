"""Named starting points: a name -> defaults for a goal. What a recipe leaves out keeps JobConfig's default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from studio.errors import NotFoundError


@dataclass(frozen=True)
class Recipe:
    """`goal` is what a person reads in simple mode; `options` are JobConfig's dotted keys."""

    name: str
    goal: str
    description: str
    options: Mapping[str, Any] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "qlora-sft",
            "Learn from examples, small memory (QLoRA)",
            "Imitates the answers in your rows on a frozen 4-bit base: the usual choice on one GPU.",
            {"quantization.load_in_4bit": True},
        ),
        Recipe(
            "lora-sft",
            "Learn from examples, 16-bit base (LoRA)",
            "Imitates the answers in your rows on a frozen 16-bit base: faster steps where memory is no concern.",
        ),
    )
}

DEFAULT_RECIPE = "qlora-sft"


def get(name: str) -> Recipe:
    """Raises NotFoundError naming the recipes there are."""
    if name not in RECIPES:
        raise NotFoundError(f"There is no recipe {name!r}.", f"Choose one of {', '.join(RECIPES)}.")
    return RECIPES[name]
