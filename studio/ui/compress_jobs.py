"""The part of the Compress tab that works on many prompts: the curve of quality against rate, and a dataset made shorter. Both are jobs."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import ENDED
from studio.services import Studio
from studio.ui import choices, compress_shown, pieces
from studio.ui.handlers import QUIET, busy, steady, tells
from studio.ui.page import Frame, go, stamp, stamp_box

LIVE_S, IDLE_S = 1.5, 10.0
TEXTS = [
    ("the longest of user and system", "longest"),
    ("user: prompts", "user"),
    ("system", "system"),
    ("assistant: answers", "assistant"),
    ("tool answers", "tool"),
    ("plain text", "text"),
]
METRICS = [(title, name) for name, title in compress_shown.METRICS.items()]


class CompressJobs:
    """Call inside the tab's left column."""

    def __init__(self, studio: Studio, page: Frame) -> None:
        self._studio = studio
        self._page = page
        self._shown = stamp_box("compress")
        self._timer = gr.Timer(IDLE_S)
        with gr.Accordion("Many prompts: quality against rate, or a shorter dataset", open=False, elem_id="compress-many"):
            self.dataset = gr.Dropdown(
                label="Dataset", info="Its questions are compressed; its answers are the references.", elem_id="compress-dataset"
            )
            with gr.Row(elem_classes="fields"):
                self.metric = gr.Dropdown(METRICS, value="exact_match", label="Measure", info="Of the answers.", elem_id="compress-metric")
                self.judge = gr.Dropdown(
                    label="Judge", info="Sets answers against the whole prompts' in both orders.", elem_id="compress-curve-judge"
                )
                self.limit = gr.Number(
                    20, label="Prompts", info="The first of the dataset.", precision=0, minimum=1, elem_id="compress-limit"
                )
                self.tolerance = gr.Number(
                    5, label="Tolerance in %", info="What may be lost.", minimum=0, maximum=100, elem_id="compress-tolerance"
                )
            self.texts = gr.Dropdown(
                TEXTS,
                value="longest",
                label="Texts of a shorter version",
                info="Of each row; below 200 characters they stay as they are.",
                elem_id="compress-texts",
            )
            with gr.Row(elem_classes="buttons"):
                self.sweep = gr.Button("Draw the curve", elem_id="compress-sweep", min_width=130)
                self.shorten = gr.Button("Make a shorter version", elem_id="compress-shorten", min_width=170)
            self.notice = pieces.panel(elem_id="compress-jobs-notice", elem_classes="notice-place")

    def wire(self, tab: gr.Tab, curve: gr.HTML, method: gr.Dropdown, compressor: gr.Dropdown, reader: gr.Dropdown, rate: gr.Slider) -> None:
        """`curve` is where the latest sweep is drawn; the others are what the tab has chosen."""
        place, told = self._page.place, tells(self.notice)
        looks = [curve, self._shown, self._timer]
        look = steady(self._looking(curve))
        tab.select(steady(self.enter), inputs=[self.dataset, self.judge], outputs=[self.dataset, self.judge], **QUIET)
        with tab:  # between two tabs they would count as a tab, and the page would draw the next one twice
            entering, ticking = gr.State(True), gr.State(False)
        tab.select(look, inputs=[place.tab, self._shown, entering], outputs=looks, **QUIET)
        self._timer.tick(look, inputs=[place.tab, self._shown, ticking], outputs=looks, **QUIET)
        given = [self.dataset, self.metric, self.judge, self.limit, self.tolerance, method, compressor, reader]
        self.sweep.click(told(self.start_sweep), inputs=given, outputs=[self.notice, self._timer], **busy(self.notice))
        self.shorten.click(
            told(self.start_shortening),
            inputs=[self.dataset, method, compressor, rate, self.texts],
            outputs=[self.notice, self._page.tabs, place.job],
            **busy(self.notice),
        )

    def enter(self, chosen: str | None, judge: str | None) -> dict[Any, Any]:
        judges = [("nobody", ""), *choices.judges(self._studio)]
        return {self.dataset: choices.update(choices.datasets(self._studio), chosen), self.judge: choices.update(judges, judge)}

    def _looking(self, curve: gr.HTML) -> Any:
        def look(tab: str, shown: str, has_entered: bool) -> Any:
            if tab != "compress" and not has_entered:
                return gr.skip()
            job = self._studio.compression.latest_sweep()
            now = stamp(job and (job.id, job.status, job.step))
            if now == shown:
                return gr.skip()
            if job is None:
                return {curve: "", self._shown: now, self._timer: gr.Timer(IDLE_S)}
            drawing = pieces.piece("compression_curve", **compress_shown.curve(job))
            return {curve: drawing, self._shown: now, self._timer: gr.Timer(IDLE_S if job.status in ENDED else LIVE_S)}

        return look

    def start_sweep(
        self,
        dataset: str | None,
        metric: str,
        judge: str | None,
        limit: float,
        tolerance: float,
        method: str,
        compressor: str | None,
        reader: str | None,
    ) -> dict[Any, Any]:
        if not dataset:
            raise StudioError("No dataset is chosen.", "Add rows with answers on the Data tab.")
        if method == "longllmlingua":
            raise StudioError("LongLLMLingua needs a question of its own for every row.", "Choose another method.")
        job = self._studio.compression.sweep(
            contestant=reader or choices.STARTER,
            data=dataset,
            method=method,
            compressor=compressor,
            metric=metric,
            judge=judge or None,
            tolerance=(tolerance or 0) / 100,
            limit=max(1, int(limit or 20)),
        )
        said = pieces.said(f"{job.name} is queued. You may leave; the curve appears here.", "info")
        return {self.notice: said, self._timer: gr.Timer(LIVE_S)}

    def start_shortening(self, dataset: str | None, method: str, compressor: str | None, rate: float, texts: str) -> dict[Any, Any]:
        if not dataset:
            raise StudioError("No dataset is chosen.", "Choose the one whose prompts shall be shorter.")
        job = self._studio.compression.compress_data(dataset, rate / 100, method=method, compressor=compressor, texts=texts)
        return {self._page.tabs: go("jobs"), self._page.place.job: job.id}
