"""Every recipe starts with the options that were written down: published ones as their papers have them. A change stands in a diff."""

from __future__ import annotations

import json
from pathlib import Path

from jobs import recipes

FILE = Path(__file__).parent.parent / "fixtures" / "recipes.json"


def test_recipes_start_with_the_options_written_down() -> None:
    known = json.loads(FILE.read_text(encoding="utf-8"))
    assert {name: dict(recipe.options) for name, recipe in recipes.RECIPES.items()} == known
