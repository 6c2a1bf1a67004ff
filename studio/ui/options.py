"""The form of all options, generated from `jobs.config.options()`: one field each, with its help text, grouped by section.

Knows nothing of services. Only what differs from the recipe's defaults is handed on, so a job's options stay short.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import gradio as gr

from jobs import objectives, recipes
from jobs.config import Option, options, parse_assignments
from studio.datasets.rendering import TEMPLATE_NAMES
from studio.ui import pieces

ELSEWHERE = ("base_model",)  # chosen in simple mode, above the form
# section -> the method or objective that it belongs to; sections not named here are always shown
METHODS = {"lora": ("lora",), "ia3": ("ia3",), "prompt": ("prompt-tuning", "p-tuning", "prefix-tuning"), "bottleneck": ("bottleneck",)}
OBJECTIVES: dict[str, tuple[str, ...]] = {entry.name: (entry.name,) for entry in objectives.ENTRIES if entry.has_options}
# options -> the only values of method or objective with which they mean anything
ONLY_WITH = {
    "prompt.prompt_tuning_init_text": ("prompt-tuning",),
    "prompt.encoder_hidden_size": ("p-tuning", "prefix-tuning"),
    "prompt.prefix_projection": ("prefix-tuning",),
    **objectives.only_with(),
}
# a template may also be a file, but only for who sits at the machine: a page would let strangers read files
OFFERED = {"chat_template": [("the model's own, else alpaca", ""), *TEMPLATE_NAMES]}


class OptionsForm:
    """The fields, in the order of `fields`; build it inside the Blocks."""

    def __init__(self, recipe: str = recipes.DEFAULT_RECIPE) -> None:
        self.options = [option for option in options() if option.key not in ELSEWHERE]
        self.fields: list[Any] = []
        self.sections: dict[str, Any] = {}  # what is shown and hidden as a whole
        values = self.values(recipe)
        chosen = dict(zip([option.key for option in self.options], values, strict=True))
        shown = zip(self.options, values, strict=True)
        for section, members in groupby(shown, key=lambda pair: pair[0].section):
            own = list(members)
            key = own[0][0].key.rpartition(".")[0]
            with gr.Column(visible=_is_shown(key, chosen), elem_id=f"section-{key or 'run'}", elem_classes="option-section") as column:
                gr.HTML(pieces.piece("heading", text=section or "Training run"), elem_classes="section-title", apply_default_css=False)
                with gr.Row(elem_classes="fields"):
                    self.fields += [_field(option, value, _means_something(option.key, chosen)) for option, value in own]
            if key in (*METHODS, *OBJECTIVES):
                self.sections[key] = column

    def field(self, key: str) -> Any:
        return next(field for option, field in zip(self.options, self.fields, strict=True) if option.key == key)

    def keys_of(self, section: str) -> list[str]:
        """The options whose key begins with a section's name."""
        return [option.key for option in self.options if option.key.startswith(f"{section}.")]

    def shape(self, method: str, objective: str) -> dict[Any, Any]:
        """What is shown and hidden with this method and objective."""
        chosen = {"method": method, "objective": objective}
        found: dict[Any, Any] = {column: gr.Column(visible=_is_shown(key, chosen)) for key, column in self.sections.items()}
        return found | {self.field(key): gr.update(visible=_means_something(key, chosen)) for key in ONLY_WITH}

    def values(self, recipe: str) -> list[Any]:
        """What the fields show for `recipe`: its own options over the defaults."""
        chosen = recipes.get(recipe).options
        return [_shown(option, chosen.get(option.key, option.default)) for option in self.options]

    def filled(self, config: Mapping[str, Any]) -> dict[Any, Any]:
        """Each field with its value in the configuration of a job, which has sections."""
        found = {}
        for option, field in zip(self.options, self.fields, strict=True):
            *sections, key = option.key.split(".")
            section: Any = config
            for name in sections:
                section = section.get(name) or {}
            if key in section and not (option.key in OFFERED and section[key] not in (None, *TEMPLATE_NAMES)):
                found[field] = _shown(option, section[key])
        return found

    def with_changes(self, shown: Sequence[Any], change: Mapping[str, Any]) -> list[Any]:
        """The fields' values with some options set anew."""
        return [
            _shown(option, change[option.key]) if option.key in change else value for option, value in zip(self.options, shown, strict=True)
        ]

    def set(self, change: Mapping[str, Any]) -> dict[Any, Any]:
        """The fields of some options with their new values."""
        pairs = zip(self.options, self.fields, strict=True)
        return {field: _shown(option, change[option.key]) for option, field in pairs if option.key in change}

    def changed(self, recipe: str, shown: Sequence[Any]) -> dict[str, Any]:
        """Options whose field no longer says what the recipe says."""
        return {
            option.key: _read(option, value)
            for option, value, default in zip(self.options, shown, self.values(recipe), strict=True)
            if _read(option, value) != _read(option, default)
        }


def _is_shown(section: str, chosen: Mapping[str, Any]) -> bool:
    wanted = METHODS.get(section) or OBJECTIVES.get(section)
    return wanted is None or chosen["method" if section in METHODS else "objective"] in wanted


def _means_something(key: str, chosen: Mapping[str, Any]) -> bool:
    return key not in ONLY_WITH or chosen["method"] in ONLY_WITH[key] or chosen["objective"] in ONLY_WITH[key]


def _field(option: Option, value: Any, visible: bool) -> Any:
    common: dict[str, Any] = {
        "visible": visible,
        "label": option.title,
        "info": f"{option.description} ({option.key})",  # the name that scripts and libraries use ends the help
        "elem_id": "option-" + option.key.replace(".", "-"),
    }
    if option.choices and option.lists_only:
        return gr.Dropdown(choices=list(option.choices), value=value, multiselect=True, **common)
    if option.choices or option.key in OFFERED:
        return gr.Dropdown(choices=OFFERED.get(option.key) or list(option.choices), value=value, **common)
    if option.type is bool:
        return gr.Checkbox(value=value, **common)
    if option.type in (int, float) and not option.nullable:
        # bounds are checked by jobs.config, which names every problem at once; a browser's own check would hide the others
        return gr.Number(value=value, precision=0 if option.type is int else None, **common)
    return gr.Textbox(value=value, max_lines=1, **common)  # also a number that may be left empty, which gr.Number turns into 0


def _shown(option: Option, value: Any) -> Any:
    """An option's value as its field shows it."""
    if option.choices and option.lists_only:
        return list(value)
    if isinstance(value, (list, tuple, Mapping)):
        return json.dumps(value)
    if option.nullable or option.type is str:
        return "" if value is None else str(value)
    return value


def _read(option: Option, shown: Any) -> Any:
    """The reverse of `_shown`. What can't be read stays as typed: jobs.config says what is wrong with it."""
    if option.type is float and isinstance(shown, int) and not isinstance(shown, bool):
        return float(shown)
    if not isinstance(shown, str):
        return shown
    text = shown.strip()
    if option.nullable and not text:
        return None
    if option.type in (int, float) or (option.takes_list and text.startswith("[")):
        return parse_assignments([f"{option.key}={text}"])[option.key]
    return text
