"""Start: the browsers that are logged in, each of which can be logged out. Shown only where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.services import Studio
from studio.ui import pieces
from studio.ui.callers import caller_of
from studio.ui.handlers import QUIET, tells


class LoginsPiece:
    """An accordion of its own."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Accordion("Who is logged in", open=False, visible=False, elem_id="start-logins") as self.fold:
            self.notice = pieces.panel(elem_id="start-logins-notice", elem_classes="notice-place")
            self.panel = pieces.panel(elem_id="start-sessions")

    def wire(self, load: Callable[..., Any]) -> None:
        load(self.open, outputs=[self.fold, self.panel], **QUIET)
        self.fold.expand(self.look, outputs=[self.panel], **QUIET)
        self.panel.select(tells(self.notice)(self.end), outputs=[self.notice, self.panel], **QUIET)

    def open(self, request: gr.Request) -> dict[Any, Any]:
        caller = caller_of(request)
        has_any = bool(self._studio.sessions.list(caller.person))
        return {self.fold: gr.Accordion(visible=has_any), self.panel: self.look(request)}

    def look(self, request: gr.Request) -> str:
        caller = caller_of(request)
        sessions = self._studio.sessions.list(caller.person, caller.session)
        return pieces.piece("sessions", sessions=sessions, names=len({one.person for one in sessions}) > 1)

    def end(self, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        """One of them, or all but the one that asks."""
        caller = caller_of(request)
        if event._data["act"] == "end-others":
            ended = len(self._studio.sessions.end_all(caller.person, but=caller.session))
        else:
            self._studio.sessions.end(str(event._data["id"]), caller.person)
            ended = 1
        return {
            self.panel: self.look(request),
            self.notice: pieces.said(f"{ended} logged out."),
        }
