"""Below the choices of Chat: conversations that are kept, searched, exported, deleted, and made into rows to learn from.

Knows nothing of answering.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.records import Conversation, LessonKind
from studio.services import Studio
from studio.ui import pieces, words
from studio.ui.handlers import QUIET, steady, tells


class KeepingPiece:
    """The list and its buttons. `outputs` are what `look` fills."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Row(elem_classes="buttons"):
            self.new = gr.Button("New conversation", elem_id="chat-new", min_width=150)
            self.delete = gr.Button("Delete this one", elem_id="chat-delete", min_width=130, visible=False)
        self.search = gr.Textbox(
            "",
            label="Search in conversations",
            show_label=False,
            info="Words of any message.",
            placeholder="Search in conversations",
            max_lines=1,
            elem_id="chat-search",
        )
        self.list = pieces.panel(elem_id="chat-list")
        self.lessons = pieces.panel(elem_id="chat-lessons")

    @property
    def outputs(self) -> list[Any]:
        return [self.delete, self.list, self.lessons]

    def look(self, conversations: list[Conversation], chat_id: str) -> dict[Any, Any]:
        counts = self._studio.harvest.counts()
        return {
            self.delete: gr.Button(visible=bool(chat_id)),
            self.list: pieces.piece("conversations", conversations=conversations, selected=chat_id) if conversations else "",
            self.lessons: pieces.piece("lessons", lessons=counts) if counts.answers or counts.preferences else "",
        }

    def wire(self, notice: gr.HTML, chat: gr.Textbox) -> None:
        self.list.select(self.open, outputs=[chat], **QUIET)
        # change, not input: gradio tells of input at a key alone, so not when text is pasted, cut or cleared
        self.search.change(steady(self.find), inputs=[self.search, chat], outputs=[self.list], **QUIET)
        self.lessons.select(tells(notice)(self._making(notice)), outputs=[notice], **QUIET)

    def open(self, event: gr.EventData) -> str:
        return str(event._data["id"])

    def find(self, text: str, chat_id: str) -> dict[Any, Any]:
        found = self._studio.chat.conversations(text)
        return {self.list: pieces.piece("conversations", conversations=found, selected=chat_id)}

    def _making(self, notice: gr.HTML) -> Any:
        def make(event: gr.EventData) -> dict[Any, Any]:
            made = self._studio.harvest.make(LessonKind(event._data["kind"]))
            return {notice: pieces.said(f"{words.count(made.rows, 'row')} kept as dataset {made.name}; find it in the Data tab.")}

        return make
