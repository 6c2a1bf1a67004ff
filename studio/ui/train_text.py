"""The choices of the Train tab in writing: all options as YAML, which can be taken over again, and the command that does the same.

Knows nothing of jobs.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

import gradio as gr

from jobs import recipes
from jobs.config import build
from studio.errors import StudioError
from studio.ui import pieces
from studio.ui.handlers import QUIET, message, tells
from studio.ui.options import OptionsForm
from studio.ui.train_start import Starting


class WrittenChoices:
    """An accordion below the form; `wire` it with the fields above."""

    def __init__(self, form: OptionsForm) -> None:
        self._form = form
        with gr.Accordion("In writing: YAML and the command", open=False, elem_id="train-text") as self.box:
            self.command = gr.Textbox(
                "",
                label="The same as a command",
                info="For a terminal of this machine.",
                lines=2,
                buttons=["copy"],
                elem_id="train-command",
            )
            self.yaml = gr.Textbox(
                "",
                label="All options as YAML",
                info="Keep it beside your data. Paste one here and take it over to fill in the form.",
                lines=10,
                max_lines=20,
                buttons=["copy"],
                elem_id="train-yaml",
            )
            self.take = gr.Button("Take over this YAML", elem_id="train-yaml-take")
            self.notice = pieces.panel(elem_id="train-text-notice", elem_classes="notice-place")

    def wire(self, data: Any, base_model: Any, recipe: Any, starting: Starting) -> None:
        self.box.expand(
            self.write,
            inputs=[data, base_model, recipe, *starting.fields, *self._form.fields],
            outputs=[self.command, self.yaml, self.notice],
            **QUIET,
        )
        self.take.click(
            tells(self.notice)(self.read), inputs=[self.yaml], outputs=[*self._form.fields, self.notice], api_visibility="private"
        )

    def write(self, data: str | None, base_model: str | None, recipe: str, after: str, grid: str, *fields: Any) -> tuple[str, Any, str]:
        """What is chosen now; a choice that is no option yet is said instead."""
        options = self._form.changed(recipe, fields)
        try:
            awaited, values = Starting.chosen(after, grid)
            text = recipes.as_yaml(build(recipes.get(recipe).options, options))
        except StudioError as exc:
            return "", gr.skip(), message(exc)
        return command(data or "DATA", base_model or "starter", recipe, options, awaited, values), text, ""

    def read(self, text: str) -> dict[Any, Any]:
        """Fill in the form."""
        config = build(recipes.from_yaml(text))
        return {**self._form.filled(config.model_dump(mode="json")), self.notice: pieces.said("The form says now what the YAML says.")}


def command(
    data: str, base_model: str, recipe: str, options: Mapping[str, Any], after: str | None = None, grid: Mapping[str, Any] | None = None
) -> str:
    """`studio train …`, or `studio sweep …` over `grid`, with the options that differ from the recipe."""
    assigned = [("--grid", key, values) for key, values in (grid or {}).items()]
    assigned += [("--set", key, value) for key, value in options.items() if key not in (grid or {})]
    sets = [f"{flag} {shlex.quote(f'{key}={value if isinstance(value, str) else json.dumps(value)}')}" for flag, key, value in assigned]
    awaited = [f"--after {shlex.quote(after)}"] if after else []
    named = [f"--data {shlex.quote(data)}", f"--base-model {shlex.quote(base_model)}", f"--recipe {recipe}"]
    return " ".join([f"studio {'sweep' if grid else 'train'}", *named, *awaited, *sets])
