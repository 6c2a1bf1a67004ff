"""An adapter that was trained elsewhere, brought here from the reader's own machine: its files, or a zip file of their folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import Adapter
from studio.services import Studio
from studio.ui import choices
from studio.ui.handlers import QUIET, busy, tells

AS_IT_SAYS = ("As its adapter_config.json says", "")


class AdapterUpload:
    """Files, the base model where they name none that is here, and a name."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.files = gr.File(
            label="An adapter trained elsewhere: adapter_config.json and adapter_model.safetensors, or a .zip of their folder",
            file_count="multiple",
            file_types=[".zip", ".json", ".safetensors", ".jinja"],
            height=120,
            elem_id="models-adapter-files",
        )
        with gr.Row(elem_classes="fields making"):
            self.base = gr.Dropdown(
                [AS_IT_SAYS], value="", label="Base model", info="What it was trained on.", elem_id="models-adapter-base"
            )
            self.name = gr.Textbox("", label="Name", info="Empty takes the zip file's.", max_lines=1, elem_id="models-adapter-name")
            self.add = gr.Button("Add this adapter", elem_id="models-adapter-add")

    def wire(self, opened: Callable[..., Any], notice: gr.HTML, outputs: list[Any], added: Callable[[Adapter], dict[Any, Any]]) -> None:
        """`opened`: the event of the tab; `outputs`: what `added` gives, besides the notice and this piece's own parts."""
        self._added = added
        opened(self.look, outputs=[self.base], **QUIET)
        own = [self.files, self.name]
        self.add.click(tells(notice)(self.keep), inputs=[self.files, self.base, self.name], outputs=[notice, *own, *outputs], **busy())

    def look(self) -> Any:
        return gr.Dropdown(choices=[AS_IT_SAYS, *choices.base_models(self._studio)])

    def keep(self, files: list[str] | None, base: str, name: str) -> dict[Any, Any]:
        if not files:
            raise StudioError("No file is chosen.", "Choose adapter_config.json and adapter_model.safetensors, or a zip file of both.")
        adapter = self._studio.adapters.add_files([Path(file) for file in files], name.strip() or None, base_model=base or None)
        return {**self._added(adapter), self.files: None, self.name: ""}
