"""Chat for programs: the address that speaks the OpenAI protocol, an example, and keys made and taken back.

A key is shown once.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import KeyScope
from studio.services import Studio
from studio.ui import pieces
from studio.ui.callers import caller_of
from studio.ui.handlers import QUIET, tells

SCOPES = {
    KeyScope.EVERYTHING: "for everything",
    KeyScope.CHAT: "to chat only",
    KeyScope.READ: "to read only",
}
NEVER = "never"
EXPIRES = {NEVER: None, "in 7 days": 7, "in 30 days": 30, "in 90 days": 90, "in a year": 365}


class ProgramsPiece:
    """An accordion of its own."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Accordion("Ask from a program", open=False, elem_id="chat-programs") as self.fold:
            self.notice = pieces.panel(elem_id="chat-programs-notice", elem_classes="notice-place")
            self.panel = pieces.panel(elem_id="chat-keys")
            with gr.Row(elem_classes="fields making"):
                self.name = gr.Textbox("", label="Name of a new key", info="After the program that will use it.", max_lines=1)
                choices = [(text.capitalize(), scope.value) for scope, text in SCOPES.items()]
                self.scope = gr.Dropdown(
                    choices,
                    value=KeyScope.CHAT.value,
                    label="What it is good for",
                    info="A program gets no more than it needs.",
                    filterable=False,
                )
                self.days = gr.Dropdown(
                    list(EXPIRES), value=NEVER, label="It expires", info="From then on it opens nothing.", filterable=False
                )
                self.make = gr.Button("Make a key", elem_id="chat-key-make")

    def wire(self) -> None:
        told = tells(self.notice)
        self.fold.expand(self.look, outputs=[self.panel], **QUIET)
        self.make.click(told(self.create), inputs=[self.name, self.scope, self.days], outputs=[self.notice, self.panel, self.name], **QUIET)
        self.panel.select(told(self.take_back), outputs=[self.notice, self.panel], **QUIET)

    def look(self, key: str = "") -> str:
        model = (self._studio.chat.available() or ["starter"])[-1]
        return pieces.piece("keys", keys=self._studio.keys.list(), scopes=SCOPES, key=key, model=model)

    def create(self, name: str, scope: str, expires: str, request: gr.Request) -> dict[Any, Any]:
        if scope not in SCOPES or expires not in EXPIRES:
            raise StudioError("That is no choice of the form.", "Choose what the key is good for, and when it expires.")
        made = self._studio.keys.create(name, KeyScope(scope), EXPIRES[expires], caller_of(request).person)
        return {self.panel: self.look(made.key), self.name: ""}

    def take_back(self, event: gr.EventData) -> dict[Any, Any]:
        gone = self._studio.keys.delete(str(event._data["id"]))
        return {
            self.panel: self.look(),
            self.notice: pieces.said(f"The key {gone.name} is refused from now on."),
        }
