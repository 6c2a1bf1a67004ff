"""Vote blind: two answers without names in random order; who was who is told after the vote. Knows nothing of ratings."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import ComparisonPrompt
from studio.services import Studio
from studio.ui import pieces
from studio.ui.handlers import QUIET, tells
from studio.ui.page import Frame

CHOICES = {"left": "Left is better", "right": "Right is better", "tie": "Equally good", "both-bad": "Both are bad"}


class VotePart:
    """A name, a ballot, four buttons."""

    def __init__(self, studio: Studio, page: Frame) -> None:
        self._studio = studio
        self._page = page
        with gr.Accordion("Vote blind", open=False, elem_id="compare-voting"):
            self.voter = gr.Textbox(
                "me", label="Your name", info="So that several people's votes stay apart.", max_lines=1, elem_id="vote-name"
            )
            self.ask = gr.Button("Show me two answers", elem_id="vote-ask")
            self.notice = pieces.panel(elem_id="vote-notice", elem_classes="notice-place")
            self.ballot = pieces.panel(elem_id="vote-ballot")
            with gr.Row(visible=False, elem_classes="buttons") as self.buttons:
                self.choices = {key: gr.Button(text, min_width=120, elem_id=f"vote-{key}") for key, text in CHOICES.items()}
            self.told = pieces.panel(elem_id="vote-told")
        self._sealed = gr.State("")

    def wire(self) -> None:
        place = self._page.place
        shown = [self.notice, self.ballot, self.buttons, self._sealed, self.told]
        told = tells(self.notice)
        self.ask.click(told(self.show), inputs=[place.comparison, self.voter], outputs=shown, **QUIET)
        for key, button in self.choices.items():
            button.click(told(self._voting(key)), inputs=[place.comparison, self.voter, self._sealed], outputs=shown, **QUIET)
        self._page.redraw("ballot", [place.comparison.change], self.clear, [], shown)

    def clear(self) -> dict[Any, Any]:
        return {self.notice: "", self.ballot: "", self.buttons: gr.Row(visible=False), self._sealed: "", self.told: ""}

    def show(self, comparison: str, voter: str) -> dict[Any, Any]:
        if not comparison:
            raise StudioError("There is no comparison to vote on.", "Compare first.")
        return {**self._next(comparison, voter), self.told: ""}

    def _next(self, comparison: str, voter: str) -> dict[Any, Any]:
        ballot = self._studio.ratings.ballot(comparison, voter)
        return {
            self.ballot: pieces.piece("ballot", **{**ballot.model_dump(), "prompt": _asked(ballot.prompt)}),
            self.buttons: gr.Row(visible=ballot.left is not None),
            self._sealed: ballot.ballot,
        }

    def _voting(self, choice: str) -> Any:
        def vote(comparison: str, voter: str, sealed: str) -> dict[Any, Any]:
            kept = self._studio.ratings.vote(comparison, voter, sealed, choice)
            said = pieces.said(f"{CHOICES[choice]}. Left was {kept.left}, right was {kept.right}.")
            return {**self._next(comparison, voter), self.told: said}

        return vote


def _asked(prompt: ComparisonPrompt | None) -> str:
    if prompt is None:
        return ""
    return "\n".join(message["content"] for turn in prompt["turns"] for message in turn)
