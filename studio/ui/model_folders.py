"""Models that are on this machine already: a folder by its path, for who may name one, and the whole models of the Hugging Face cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.auth import is_own_user
from studio.errors import ForbiddenError, StudioError
from studio.records import BaseModel
from studio.services import Studio
from studio.services.models import HUB
from studio.ui import pieces
from studio.ui.handlers import QUIET, busy, tells

Added = Callable[[BaseModel], dict[Any, Any]]  # what the tab shows once a model is here


class OnThisMachine:
    """A field for a folder and a list of the cache's models. The field is there only for who may name folders."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Row(elem_classes="fields making", visible=False, elem_id="models-folder-row") as self.row:
            self.folder = gr.Textbox(
                "",
                label="Folder of this machine",
                info="The path of a folder with config.json, a tokenizer and *.safetensors files. It is used where it lies.",
                max_lines=1,
                elem_id="models-folder",
            )
            self.add = gr.Button("Add this folder", elem_id="models-add-folder")
        self.cached = pieces.panel(elem_id="models-cached")

    def wire(self, opened: Callable[..., Any], notice: gr.HTML, outputs: list[Any], added: Added) -> None:
        """`opened`: the event of the tab; `outputs`: what `added` gives, besides the notice and this piece's own parts."""
        self._added = added
        opened(self.look, outputs=[self.row, self.cached], **QUIET)
        own = [self.folder, self.cached]
        # in the request itself and not in the queue: whose connection it is can be told only while it is open
        waiting = {**busy(), "queue": False}
        self.add.click(tells(notice)(self.add_folder), inputs=[self.folder], outputs=[notice, *own, *outputs], **waiting)
        self.cached.select(tells(notice)(self.take), outputs=[notice, *own, *outputs], **busy(self.cached))

    def look(self, request: gr.Request) -> dict[Any, Any]:
        return {self.row: gr.Row(visible=self._may_name(request)), self.cached: self._drawn()}

    def add_folder(self, path: str, request: gr.Request) -> dict[Any, Any]:
        """Refused here too: a field that is not shown can still be sent."""
        if not self._may_name(request):
            raise ForbiddenError(
                "A folder is added by its path only from the user who runs this studio, on its own machine and without a login.",
                "Run `studio models add PATH` on the studio's machine.",
            )
        wanted = path.strip()
        if not wanted or wanted.startswith(HUB):
            raise StudioError("No folder is named.", "Write the path of a folder that holds config.json and the *.safetensors files.")
        return {**self._added(self._studio.models.add(wanted)), self.folder: ""}

    def take(self, event: gr.EventData) -> dict[Any, Any]:
        """Add a model of the cache in place."""
        added = self._studio.models.add(f"{HUB}{event._data['repository']}")
        return {**self._added(added), self.cached: self._drawn()}

    def _may_name(self, request: gr.Request) -> bool:
        return request.request is not None and is_own_user(self._studio.settings, request.request.scope)

    def _drawn(self) -> str:
        found = [model for model in self._studio.models.cached() if not model.here]
        return pieces.piece("cached_models", models=found)
