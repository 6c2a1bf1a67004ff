"""Disk: what takes room, and the button that deletes what nothing refers to, asked twice. A piece for any tab.

Knows nothing of the tabs; `StoragePiece(studio)` inside one, `wire(blocks)` behind it.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.services import Studio
from studio.ui import pieces, words
from studio.ui.handlers import QUIET, busy, tells

SHOWN = 12  # of what would be deleted; the rest is counted


class StoragePiece:
    """A card and its notice."""

    def __init__(self, studio: Studio, elem_id: str) -> None:
        self._storage = studio.storage
        self.panel = pieces.panel(elem_id=elem_id)
        self.notice = pieces.panel(elem_classes="notice-place")

    def wire(self, opened: Any) -> None:
        """`opened`: the event at which it is drawn."""
        opened(self.draw, outputs=[self.panel], **QUIET)
        self.panel.select(tells(self.notice)(self.act), outputs=[self.notice, self.panel], **busy(self.panel))

    def draw(self, asks: bool = False) -> str:
        found = self._storage.show()
        return pieces.piece(
            "storage",
            nouns=[one for one in found.nouns if one.bytes],
            free=found.free_bytes,
            unused=[{**one.model_dump(), "place": "/".join(one.path.split("/")[-2:])} for one in found.unused[:SHOWN]],
            more=max(len(found.unused) - SHOWN, 0),
            unused_bytes=found.unused_bytes,
            asks=asks,
        )

    def act(self, event: gr.EventData) -> dict[Any, Any]:
        match event._data["act"]:
            case "list":
                return {self.panel: self.draw(asks=True)}
            case "delete":
                done = self._storage.clean()
                said = f"{words.count(len(done.deleted), 'thing')} deleted, {words.size(done.freed_bytes)} freed."
                return {self.notice: pieces.said(said), self.panel: self.draw()}
        return {self.panel: self.draw()}
