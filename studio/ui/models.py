"""Models: what do I have? Base models, adapters and merges with their story, exports with their proof, models to bring here, disk.

Knows nothing of files: names in, cards out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from studio.errors import NotFoundError, StudioError
from studio.records import Adapter, BaseModel, ComparisonSummary, Dataset, Fetched, JobDetail
from studio.services import Studio
from studio.services.probes import behaviour
from studio.ui import exports, fetching, pieces
from studio.ui.adapter_upload import AdapterUpload
from studio.ui.handlers import LATEST, QUIET, busy, steady, tells
from studio.ui.known import KnownPiece, fitting
from studio.ui.model_folders import OnThisMachine
from studio.ui.page import Frame, ending, go
from studio.ui.storage import StoragePiece

BASE, ADAPTER = "base", "adapter"


class ModelsTab:
    """Left: what is here, exports, what could be brought here. Right: the card of what is chosen, with its lineage; disk."""

    def __init__(self, studio: Studio, page: Frame, tab: gr.Tab) -> None:
        self._studio = studio
        self._page = page
        with tab as self.tab:
            with gr.Row(elem_classes="halves"):
                with gr.Column(scale=3, min_width=320):
                    self._layout_left()
                with gr.Column(scale=2, min_width=320):
                    self.card = pieces.panel(elem_id="models-card", elem_classes="card")
                    self.storage = StoragePiece(studio, "models-disk")
            self.chat = ending("Next: chat with it", "models-chat", visible=False)
        self._wire()

    def _layout_left(self) -> None:
        self.list = pieces.panel(elem_id="models-list", elem_classes="card")
        self.notice = pieces.panel(elem_id="models-notice", elem_classes="notice-place")
        with gr.Accordion("Bring a model here: models that people use, or any of the hub", open=False, elem_id="models-bring"):
            self.own = OnThisMachine(self._studio)
            with gr.Row(elem_classes="fields making"):
                self.source = gr.Textbox(
                    "",
                    label="Name on the hub",
                    info="OWNER/NAME. It is fetched into your Hugging Face cache. A folder: studio models add PATH",
                    max_lines=1,
                    elem_id="models-source",
                )
                self.add = gr.Button("Fetch it", elem_id="models-add")
                self.search = gr.Button("Search the hub", elem_id="models-search")
            self.known = KnownPiece(self._studio)
        with gr.Accordion("Bring an adapter here", open=False, elem_id="models-bring-adapter"):
            self.upload = AdapterUpload(self._studio)
        self.exports = exports.build(self._studio, self._page)

    def _wire(self) -> None:
        place = self._page.place
        shown = [self.list, self.card, self.chat]
        self.storage.wire(self.tab.select)
        self.tab.select(steady(self.look), inputs=[place.model], outputs=shown, **QUIET)
        place.model.change(steady(self.look), inputs=[place.model], outputs=shown, **QUIET)
        self.list.select(self.choose, outputs=[place.model], **QUIET)
        outputs = [self.notice, self._page.tabs, place.dataset, place.job, place.comparison, place.model, *shown]
        self.card.select(tells(self.notice)(self.act), inputs=[place.model], outputs=outputs, **busy(self.card))
        known = self.known.panel
        gr.on([self.tab.select, self.known.filter.change], self.known.draw, inputs=[self.known.filter], outputs=[known], **LATEST)
        self.search.click(tells(self.notice)(self.find), inputs=[self.source], outputs=[self.notice, known], **busy(known))
        self.own.wire(self.tab.select, self.notice, [place.model, *shown], self.added)
        self.upload.wire(self.tab.select, self.notice, [place.model, *shown], self.brought)
        fetched = {"inputs": [self.source, place.model], "outputs": [self.notice, self.source, place.model, *shown]}
        self.add.click(tells(self.notice)(self.fetch), **fetched, **busy(self.list))
        chosen = {"inputs": [place.model, self.known.filter], "outputs": [self.notice, self.source, place.model, known, *shown]}
        known.select(tells(self.notice)(self.add_known), **chosen, **busy(self.list))

    def look(self, chosen: str) -> dict[Any, Any]:
        models, adapters = self._studio.models.list(), self._studio.adapters.list()
        kind, _, name = chosen.partition("/")
        names = {BASE: {model.name for model in models}, ADAPTER: {adapter.name for adapter in adapters}}
        if name not in names.get(kind, ()):
            kind, name = BASE, models[0].name
        drawn = pieces.piece(
            "models",
            models=models,
            trained=[adapter for adapter in adapters if adapter.job],
            brought=[adapter for adapter in adapters if not adapter.job],
            chosen=f"{kind}/{name}",
        )
        loadable = kind == ADAPTER or next(model.loadable for model in models if model.name == name)
        return {self.list: drawn, self.card: self._card(kind, name), self.chat: gr.Button(f"Next: chat with {name}", visible=loadable)}

    def choose(self, event: gr.EventData) -> str:
        return f"{event._data['kind']}/{event._data['name']}"

    def act(self, chosen: str, event: gr.EventData) -> dict[Any, Any]:
        """A link of the lineage, or the removal of what is shown."""
        act, place = event._data["act"], self._page.place
        goals = {"dataset": ("data", place.dataset), "job": ("jobs", place.job), "comparison": ("compare", place.comparison)}
        if act in goals:
            tab, box = goals[act]
            return {self._page.tabs: go(tab), box: event._data["id"]}
        kind, _, name = chosen.partition("/")
        if act == "model":
            return {place.model: f"{BASE}/{event._data['name']}"}
        if act == "remove":
            said = f"{name} is removed."
            if kind == BASE:
                if kept := self._studio.models.remove(name).kept:
                    said += f" Its files stay in {kept}."
            else:
                self._studio.adapters.delete(name)
            return {self.notice: pieces.said(said), place.model: "", **self.look("")}
        return {}

    def fetch(self, source: str, chosen: str) -> Iterator[dict[Any, Any]]:
        """Fetch a model of the hub, and show how far it is meanwhile."""
        wanted = source.strip().removeprefix("hub:")
        if not wanted:
            raise StudioError("No model is named.", "Write OWNER/NAME, or take one of the list below.")
        yield {self.notice: pieces.said(f"The hub is asked for {wanted}.", "info")}
        for step in fetching.fetched(self._studio.models, wanted):
            if isinstance(step, Fetched):
                yield {self.notice: fetching.progress(wanted, step)}
            else:
                yield {**self.added(step), self.source: ""}

    def added(self, model: BaseModel) -> dict[Any, Any]:
        """What is shown once a model is here."""
        now = f"{BASE}/{model.name}"
        said = pieces.said(" ".join((f"{model.name} is here.", *model.notices, *model.warnings)))
        return {self.notice: said, self._page.place.model: now, **self.look(now)}

    def brought(self, adapter: Adapter) -> dict[Any, Any]:
        """What is shown once an adapter is here."""
        now = f"{ADAPTER}/{adapter.name}"
        said = pieces.said(f"{adapter.name} is here ({adapter.method} on {adapter.base_model}).")
        return {self.notice: said, self._page.place.model: now, **self.look(now)}

    def add_known(self, chosen: str, wanted: str, event: gr.EventData) -> Iterator[dict[Any, Any]]:
        """Fetch an entry of the list."""
        yield from self.fetch(str(event._data["repository"]), chosen)
        yield {self.known.panel: self.known.draw(wanted)}

    def find(self, query: str) -> dict[Any, Any]:
        return {self.known.panel: self.known.find(query)}

    def _card(self, kind: str, name: str) -> str:
        if kind == BASE:
            model = self._studio.models.show(name)
            adapters = [adapter.name for adapter in self._studio.adapters.list(name)]
            try:
                fit = fitting(self._studio.fit.recipes_that_fit(name))
            except StudioError:
                fit = ""
            facts = [*model.notices, *(behaviour(model.probe) if model.probe else ())]
            return pieces.piece("model_card", model=model, adapters=adapters, fit=fit, notices=[*facts, *model.warnings])
        adapter = self._studio.adapters.show(name)
        job = self._job(adapter.job)
        return pieces.piece(
            "adapter_card",
            adapter=adapter,
            job=job,
            memory=adapter.job and self._studio.fit.measured(adapter.job),
            data=self._dataset(job),
            comparisons=[row for row in self._studio.comparisons.list() if name in _contestants(row)],
        )

    def _job(self, job_id: str | None) -> JobDetail | None:
        try:
            return self._studio.jobs.show(job_id) if job_id else None
        except NotFoundError:
            return None

    def _dataset(self, job: JobDetail | None) -> Dataset | None:
        try:
            return self._studio.datasets.show(job.data) if job and job.data else None
        except NotFoundError:
            return None


def _contestants(comparison: ComparisonSummary) -> set[str]:
    return {contestant.rpartition(":")[2] for contestant in comparison.contestants}


def chat_choice(studio: Studio, chosen: str) -> str:
    """Who answers when the reader goes on to the Chat tab."""
    kind, _, name = chosen.partition("/")
    if kind == ADAPTER:
        return f"{studio.adapters.show(name).base_model}:{name}"
    return name or studio.models.list()[0].name
