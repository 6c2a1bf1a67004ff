"""Where a contestant did worst: its lost prompts with an answer that can be edited, and added to training data."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.services import Studio
from studio.ui import pieces, words
from studio.ui.handlers import QUIET, steady, tells
from studio.ui.page import Frame

HEADERS = ["prompt", "question", "its answer", "better answer"]


class WorstPart:
    """A contestant, its lost prompts as a table, a button."""

    def __init__(self, studio: Studio, page: Frame) -> None:
        self._studio = studio
        self._page = page
        with gr.Accordion("Worst prompts, into training data", open=False, elem_id="compare-worst"):
            self.who = gr.Dropdown(
                label="Who lost",
                info="Prompts on which this contestant did worst come first, then those that everybody got wrong.",
                elem_id="worst-who",
            )
            self.show = gr.Button("Show the worst prompts", elem_id="worst-show")
            self.table = gr.Dataframe(
                headers=HEADERS,
                interactive=True,
                wrap=True,
                visible=False,
                label="Edit the better answers; delete what should not be learned.",
                elem_id="worst-table",
                type="array",
                static_columns=[0, 1, 2],
            )
            self.name = gr.Textbox("", label="Name of the dataset", info="Empty makes one.", max_lines=1)
            self.add = gr.Button("Add to training data", elem_id="worst-add")
            self.notice = pieces.panel(elem_id="worst-notice", elem_classes="notice-place")

    def wire(self, tab: gr.Tab) -> None:
        comparison = self._page.place.comparison
        self._page.redraw("contestants", [tab.select, comparison.change], steady(self.offer), [comparison, self.who], [self.who])
        told = tells(self.notice)
        self.show.click(told(self.find), inputs=[comparison, self.who], outputs=[self.notice, self.table], **QUIET)
        self.add.click(told(self.keep), inputs=[comparison, self.table, self.name], outputs=[self.notice, self.name], **QUIET)

    def offer(self, comparison: str, chosen: str | None) -> Any:
        names: list[str] = []
        if comparison:
            names = self._studio.comparisons.show(comparison).contestants
        return gr.Dropdown(choices=names, value=next((name for name in (chosen, *reversed(names)) if name in names), None))

    def find(self, comparison: str, who: str | None) -> dict[Any, Any]:
        if not comparison or not who:
            raise StudioError("There is no comparison yet.", "Compare and judge first.")
        found = self._studio.preferences.worst(comparison, who)
        if not found:
            raise StudioError(f"{who} lost nowhere, as far as judged or voted, and no reference was missed by all.", "Judge or vote more.")
        rows = [[row.prompt_id, row.question, row.answer, row.better] for row in found]
        return {self.table: gr.Dataframe(value=rows, visible=True)}

    def keep(self, comparison: str, rows: list[list[Any]], name: str) -> dict[Any, Any]:
        answers = {str(row[0]): str(row[3] or "") for row in rows or [] if str(row[0]).strip()}
        made = self._studio.preferences.correct(comparison, answers, name=name.strip() or None)
        return {self.notice: pieces.said(f"{made.name}: {words.count(made.rows, 'row')} to learn from, under Data."), self.name: ""}
