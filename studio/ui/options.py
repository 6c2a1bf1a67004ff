"""The form of all options, generated from `jobs.config.options()`: one field each, with its help text, grouped by section.

Knows nothing of services. Only what differs from the recipe's defaults is handed on, so a job's options stay short.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import gradio as gr

from jobs import recipes
from jobs.config import Option, options, parse_assignments

# chosen in simple mode, above the form
ELSEWHERE = ("base_model",)


class OptionsForm:
    """The fields, in the order of `fields`; build it inside the Blocks."""

    def __init__(self) -> None:
        self.options = [option for option in options() if option.key not in ELSEWHERE]
        self.fields: list[Any] = []
        for section, members in groupby(self.options, key=lambda option: option.section):
            gr.HTML(f"<h3>{section or 'Training run'}</h3>", elem_classes="section-title", apply_default_css=False)
            with gr.Row(elem_classes="fields"):
                self.fields += [_field(option) for option in members]

    def field(self, key: str) -> Any:
        return next(field for option, field in zip(self.options, self.fields, strict=True) if option.key == key)

    def values(self, recipe: str) -> list[Any]:
        """What the fields show for `recipe`: its own options over the defaults."""
        chosen = recipes.get(recipe).options
        return [_shown(option, chosen.get(option.key, option.default)) for option in self.options]

    def changed(self, recipe: str, shown: Sequence[Any]) -> dict[str, Any]:
        """Options whose field no longer says what the recipe says."""
        return {
            option.key: _read(option, value)
            for option, value, default in zip(self.options, shown, self.values(recipe), strict=True)
            if _read(option, value) != _read(option, default)
        }


def _field(option: Option) -> Any:
    common: dict[str, Any] = {
        "label": label(option),
        "info": option.description,
        "elem_id": "option-" + option.key.replace(".", "-"),
        "min_width": 260,
    }
    value = _shown(option, option.default)
    if option.choices:
        return gr.Dropdown(choices=list(option.choices), value=value, **common)
    if option.type is bool:
        return gr.Checkbox(value=value, **common)
    if option.type in (int, float):
        # bounds are checked by jobs.config, which names every problem at once; a browser's own check would hide the others
        return gr.Number(value=value, precision=0 if option.type is int else None, **common)
    return gr.Textbox(value=value, max_lines=1, **common)


def label(option: Option) -> str:
    """`Learning rate · learning_rate`: the words, then the name that scripts and libraries use."""
    words = option.key.rpartition(".")[2].replace("_", " ")
    return f"{words[0].upper()}{words[1:]} · {option.key}"


def _shown(option: Option, value: Any) -> Any:
    if isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value)
    return "" if value is None and option.type is str else value


def _read(option: Option, value: Any) -> Any:
    if isinstance(value, str):
        value = value.strip()
        if option.takes_list and value.startswith("["):
            return parse_assignments([f"{option.key}={value}"])[option.key]
    if option.nullable and value == "":
        return None
    if option.type is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value
