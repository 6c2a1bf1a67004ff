"""Data: can I trust my rows? Bring rows, see what is wrong and mend it, see what a model would learn, make versions.

Everything kept is read from rows and files at each look, so a reload or a second window shows the same. Knows nothing of file
formats, checks or tokens: those are the services'.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import Dataset, DatasetReport
from studio.services import Studio
from studio.ui import choices, data_learned, findings, lineage, pieces
from studio.ui.checks import Checks, Options, PendingReport
from studio.ui.data_adding import Adding
from studio.ui.data_learned import LearnedPart
from studio.ui.data_rows import RowsPart
from studio.ui.data_versions import VersionsPart
from studio.ui.handlers import LATEST, QUIET, busy, steady, tells
from studio.ui.page import Frame, hidden, stamp, stamp_box

LIVE_S, IDLE_S = 1.0, 6.0
CHECKED_AT_ONCE = 20_000  # rows; the check of more waits for a click
WITHOUT_ANSWERS = ("prompts",)  # kinds that nothing can be learned from


class DataTab:
    """Left: a new file, and the datasets that are kept. Right: the chosen one."""

    def __init__(self, studio: Studio, page: Frame, tab: gr.Tab) -> None:
        self._studio = studio
        self._page = page
        self._checks = Checks(studio)
        with tab as self.tab:
            self._mode = hidden("data-mode")
            self._part = hidden("data-part")
            self._stamps = [stamp_box(f"data-{name}") for name in ("rows", "check", "learned")]
            self._timer = gr.Timer(IDLE_S)
            table = pieces.panel(elem_id="data-table")
            with gr.Row(elem_classes="halves"):
                with gr.Column(scale=2, min_width=300):
                    self.adding = Adding(studio, self._mode, table)
                    self.list = pieces.panel(elem_id="data-list")
                with gr.Column(scale=3, min_width=320, elem_id="data-rows"):
                    self.rows = pieces.panel(elem_id="data-preview")
                    with gr.Column() as self.view:
                        self._layout_chosen()
        self.notice = self.adding.notice
        self._wire()

    def _layout_chosen(self) -> None:
        self.blank = pieces.panel(elem_id="data-blank")
        self.head = pieces.panel(elem_id="data-head")
        with gr.Tabs(visible=False, elem_id="data-parts", overflow_behavior="wrap") as self.parts:
            with gr.Tab("Rows", id="rows", elem_id="data-part-rows") as self.rows_tab:
                self.findings = pieces.panel(elem_id="data-findings")
                with gr.Accordion("Report against the rows you measure with", open=False, elem_id="data-apart"):
                    self.against = gr.Dropdown(
                        [],
                        multiselect=True,
                        label="Datasets that must stay apart",
                        info="The check looks for their rows here too. The other half of a split is known without this.",
                        elem_id="data-against",
                    )
                self.kept = RowsPart(self._studio)
            with gr.Tab("What is learned", id="learned", elem_id="data-part-learned") as self.learned_tab:
                self.learned = LearnedPart(self._studio)
            with gr.Tab("Statistics", id="figures", elem_id="data-part-figures") as self.figures_tab:
                self.figures = pieces.panel(elem_id="data-figures")
            with gr.Tab("New version", id="versions", elem_id="data-part-versions") as self.versions_tab:
                self.versions = VersionsPart(self._studio)
        with gr.Row(visible=False, elem_classes="next") as self.next:
            self.train = gr.Button("Next: train on this", variant="primary", elem_id="data-train", min_width=180)
            self.delete = gr.Button("Delete", variant="stop", elem_id="data-delete", min_width=90)
        with gr.Row(visible=False, elem_classes="buttons") as self.confirm:
            self.really = gr.Button("Delete it for good", variant="stop", elem_id="data-really", min_width=150)
            self.spare = gr.Button("Keep it", min_width=90)

    # wiring

    def _wire(self) -> None:
        place = self._page.place
        kept, learned = self.kept, self.learned
        self.reading = [*learned.choices, self.against]
        self._looking = [place.dataset, place.tab, self._part, kept.first, kept.marked, learned.first, *self.reading, *self._stamps]
        self._shown = [
            self.list,
            self.blank,
            self.head,
            self.parts,
            self.next,
            self.confirm,
            kept.rows,
            kept.pager,
            self.findings,
            self.figures,
            *learned.outputs,
            learned.base_model,
            self.against,
            self.versions.others,
            *self._stamps,
            self._timer,
        ]
        self.looked = look = {"inputs": self._looking, "outputs": [place.dataset, *self._shown], **QUIET}
        self.adding.wire(self.rows, self.view, place.dataset, self.see, self._looking, self._shown)
        self.tab.select(steady(self.look), **look)
        self._timer.tick(steady(self.tick), inputs=[self._mode, *self._looking], outputs=look["outputs"], **QUIET)
        gr.on([self.list.select, self.head.select], self.open, outputs=[place.dataset], **QUIET)
        settled = place.dataset.change(self.start_over, outputs=[kept.first, kept.marked, learned.first, *kept.editing], **QUIET)
        settled.then(steady(self.look), **look)
        for name, tab in (("rows", self.rows_tab), ("learned", self.learned_tab), ("figures", self.figures_tab)):
            tab.select(steady(self._entering(name)), inputs=self._looking, outputs=[self._part, *look["outputs"]], **QUIET)
        changed = [learned.base_model.input, learned.template.input, learned.max_length.submit, learned.max_length.blur, self.against.input]
        gr.on(changed, steady(self.look), **{**look, **LATEST})
        self._wire_rows(look)
        self._wire_versions(look)
        self.delete.click(lambda: gr.Row(visible=True), outputs=[self.confirm], **QUIET)
        self.spare.click(lambda: gr.Row(visible=False), outputs=[self.confirm], **QUIET)
        self.really.click(
            tells(self.notice)(self.forget), inputs=[place.dataset], outputs=[self.notice, place.dataset, self.confirm], **QUIET
        )

    def _wire_rows(self, look: dict[str, Any]) -> None:
        dataset, kept, learned, told = self._page.place.dataset, self.kept, self.learned, tells(self.notice)
        for button, step in ((kept.earlier, -1), (kept.later, 1)):
            turned = button.click(steady(self._turning(step)), inputs=[dataset, kept.first], outputs=[kept.first, kept.marked], **QUIET)
            turned.then(steady(self.look), **look)
        for button, step in ((learned.earlier, -1), (learned.later, 1)):
            turned = button.click(steady(self._turning_learned(step)), inputs=[dataset, learned.first], outputs=[learned.first], **QUIET)
            turned.then(steady(self.look), **look)
        gone = kept.number.submit(steady(self.go_to), inputs=[dataset, kept.number], outputs=[kept.first, kept.marked], **QUIET)
        gone.then(steady(self.look), **look)
        acted = self.findings.select(
            told(self.act),
            inputs=[dataset, *self.reading],
            outputs=[self.notice, dataset, kept.first, kept.marked, self._stamps[1]],
            **busy(self.findings),
        )
        acted.then(steady(self.look), **look).then(None, js="() => { studio.showMarked(); return []; }", **QUIET)
        kept.rows.select(told(self.change_row), inputs=[dataset], outputs=[self.notice, dataset, *kept.editing], **busy(kept.rows))
        kept.leave.click(kept.close, outputs=[kept.editor, kept.edited], **QUIET)
        kept.save.click(
            told(self.save_row),
            inputs=[dataset, kept.edited, kept.source, *kept.parts],
            outputs=[self.notice, dataset, kept.editor, kept.edited],
            **busy(kept.rows),
        )

    def _wire_versions(self, look: dict[str, Any]) -> None:
        dataset, made, told = self._page.place.dataset, self.versions, tells(self.notice)
        for button, make, given in (
            (made.split, made.halves, [made.test_size, made.seed, made.name]),
            (made.pick, made.picked, [made.count, made.seed, made.name]),
            (made.merge, made.merged, [made.others, made.name]),
        ):
            outputs = [self.notice, dataset, made.name, made.others]
            button.click(told(self._making(make)), inputs=[dataset, *given], outputs=outputs, **busy(self.head))

    # what is kept

    def tick(self, mode: str, dataset_id: str, tab: str, *rest: Any) -> Any:
        if tab != "data" or mode == "new":
            return gr.skip()
        return self.look(dataset_id, tab, *rest)

    def open(self, event: gr.EventData) -> str:
        return str(event._data["id"])

    def start_over(self) -> dict[Any, Any]:
        """Another dataset: its first rows, nothing under way."""
        return {self.kept.first: 0, self.kept.marked: 0, self.learned.first: 0, **self.kept.close()}

    def look(self, *looking: Any) -> Any:
        """Show what is kept as it is now; only what differs from what the page shows is sent."""
        return self.see(*looking) or gr.skip()

    def see(
        self,
        dataset_id: str,
        tab: str,
        part: str,
        first: int,
        marked: int,
        learned_first: int,
        base_model: str | None,
        max_length: Any,
        template: str,
        against: list[str] | None,
        *stamps: str,
    ) -> dict[Any, Any]:
        """What the page must change; stamps tell what it shows already."""
        datasets = self._studio.datasets.list()
        chosen = next((row for row in datasets if dataset_id in (row.id, row.name)), next(iter(datasets), None))
        if chosen is None:
            return self._show_nothing()
        options = _options(chosen, base_model, max_length, template, against)
        models = choices.base_models(self._studio)
        report, check = self._report(chosen, options, tab)
        told = [
            stamp(chosen.id, [(row.id, row.name) for row in datasets], first, marked, models),
            stamp(chosen.id, options, report is not None, check and check.told()),
            stamp(chosen.id, options, learned_first) if part == "learned" else stamps[2],
        ]
        # never sent back where it is right: an answer that was overtaken would take the reader back
        changed: dict[Any, Any] = {}
        if chosen.id != dataset_id:
            changed[self._page.place.dataset] = chosen.id
        if told[0] != stamps[0]:
            changed |= self._show_rows(datasets, chosen, first, marked, models, base_model)
        if told[1] != stamps[1]:
            changed[self.findings] = findings.card(chosen, report, check, options)
            changed[self.figures] = findings.statistics(report, options)
        if told[2] != stamps[2]:
            changed |= self.learned.show(chosen, learned_first, options)
        if not changed:
            return {}
        running = check is not None and check.error is None
        return {**changed, **dict(zip(self._stamps, told, strict=True)), self._timer: gr.Timer(LIVE_S if running else IDLE_S)}

    def _report(self, chosen: Dataset, options: Options, tab: str) -> tuple[DatasetReport | None, PendingReport | None]:
        """The report there is, and the one under way or failed; small datasets are checked unasked."""
        report = self._studio.curation.cached_report(chosen.id, **options)
        if report is not None:
            return report, None
        check = self._checks.state(chosen.id, options)
        if check is None and tab == "data" and chosen.rows <= CHECKED_AT_ONCE:
            self._checks.start(chosen.id, options, unasked=True)
            check = self._checks.state(chosen.id, options)
        return None, check

    def _show_rows(
        self, datasets: list[Dataset], chosen: Dataset, first: int, marked: int, models: list[choices.Choice], base_model: str | None
    ) -> dict[Any, Any]:
        source = lineage.origin(chosen)
        versions = [(version, lineage.made(version) or source) for version in self._studio.curation.versions(chosen.id)]
        head = pieces.piece("dataset", dataset=chosen, kind=choices.KINDS[chosen.kind], source=lineage.source(chosen), versions=versions)
        others = self.versions.offer(datasets, chosen)
        names = [(row.name, row.id) for row in datasets if row.id != chosen.id]
        return {
            self.list: pieces.piece("datasets", datasets=lineage.ordered(datasets), kinds=choices.KINDS, selected=chosen.id),
            self.blank: "",
            self.head: head,
            self.parts: gr.Tabs(visible=True),
            self.next: gr.Row(visible=True),
            self.learned.base_model: choices.update(models, base_model),
            self.against: gr.Dropdown(choices=names),
            **others,
            **self.kept.show(chosen, first, marked),
        }

    def _show_nothing(self) -> dict[Any, Any]:
        blank = pieces.empty("No rows yet: drop a file here, or try the studio with demo rows.", "Add the demo rows", "demo")
        away = gr.Row(visible=False)
        return {
            self._page.place.dataset: "",
            self.list: "",
            self.blank: blank,
            self.head: "",
            self.parts: gr.Tabs(visible=False),
            self.next: away,
            self.confirm: away,
            **dict.fromkeys(self._stamps, ""),
        }

    def _entering(self, name: str) -> Any:
        def enter(dataset_id: str, tab: str, _: str, *rest: Any) -> Any:
            return {self._part: name, **self.see(dataset_id, tab, name, *rest)}

        return enter

    # what is done with it

    def act(
        self, dataset_id: str, base_model: str | None, max_length: Any, template: str, against: list[str] | None, event: gr.EventData
    ) -> dict[Any, Any]:
        """A button of the findings: check, show a row, mend one kind of problem or all."""
        chosen = self._studio.datasets.show(dataset_id)
        options = _options(chosen, base_model, max_length, template, against)
        match event._data["act"]:
            case "check":
                self._checks.start(chosen.id, options)
                return {}
            case "row":
                return self.go_to(dataset_id, int(event._data["row"]))
            case "fix":
                return self._mend(chosen, [event._data["check"]], options)
            case "fill":
                return self._mend(chosen, [event._data["check"]], options, _given(event._data.get("values")))
        report = self._studio.curation.cached_report(chosen.id, **options)
        return self._mend(chosen, (report and findings.fixable(report)) or [], options)

    def _mend(self, chosen: Dataset, checks: list[str], options: Options, values: dict[str, str] | None = None) -> dict[Any, Any]:
        made = self._studio.curation.fix(chosen.id, checks, values=values, **options)
        said = f"{made.name} is a new version of {chosen.name}: {lineage.made(made)}."
        return {self.notice: pieces.said(said), self._page.place.dataset: made.id}

    def go_to(self, dataset_id: str, number: Any) -> dict[Any, Any]:
        row = 1
        if isinstance(number, (int, float)) and number >= 1:
            row = int(number)
        return {self.kept.first: self.kept.page_of(dataset_id, row), self.kept.marked: row}

    def change_row(self, dataset_id: str, event: gr.EventData) -> dict[Any, Any]:
        number = int(event._data["row"])
        if event._data["act"] == "edit":
            return self.kept.open(dataset_id, number)
        made = self.kept.removed(dataset_id, number)
        return {self.notice: pieces.said(f"{made.name} is a new version without row {number}."), self._page.place.dataset: made.id}

    def save_row(self, dataset_id: str, number: int, source: str, *texts: str) -> dict[Any, Any]:
        made = self.kept.saved(dataset_id, number, source, *texts)
        said = pieces.said(f"{made.name} is a new version with row {number} changed.")
        return {self.notice: said, self._page.place.dataset: made.id, **self.kept.close()}

    def _making(self, make: Any) -> Any:
        def done(dataset_id: str, *given: Any) -> dict[Any, Any]:
            if not dataset_id:
                raise StudioError("No dataset is chosen.", "Choose one at the left.")
            made, said = make(dataset_id, *given)
            return {self.notice: pieces.said(said), self._page.place.dataset: made, self.versions.name: "", self.versions.others: []}

        return done

    def _turning(self, step: int) -> Any:
        def turn(dataset_id: str, first: int) -> dict[Any, Any]:
            return {self.kept.first: self.kept.turn(step, dataset_id, first), self.kept.marked: 0}

        return turn

    def _turning_learned(self, step: int) -> Any:
        def turn(dataset_id: str, first: int) -> int:
            return self.learned.turn(step, self._studio.datasets.show(dataset_id).rows, first)

        return turn

    def forget(self, dataset_id: str) -> dict[Any, Any]:
        deleted = self._studio.datasets.delete(dataset_id)
        said = pieces.said(f"{deleted.name} is deleted.")
        return {self.notice: said, self._page.place.dataset: deleted.parent or "", self.confirm: gr.Row(visible=False)}


def _given(values: Any) -> dict[str, str]:
    """What was written into the fields of placeholders. Raises StudioError where nothing was."""
    given = {str(name): str(value) for name, value in dict(values or {}).items()}
    if not any(value.strip() for value in given.values()):
        raise StudioError("Nothing is written into the fields.", "Write what belongs in each place, or drop these rows.")
    return given


def _options(chosen: Dataset, base_model: str | None, max_length: Any, template: str, against: list[str] | None) -> Options:
    """What a report and a rendering depend on."""
    learns = chosen.kind not in WITHOUT_ANSWERS
    return {
        "base_model": base_model if learns else None,
        "max_length": data_learned.length(max_length),
        "chat_template": template or None,
        "against": sorted(set(against or []) - {chosen.id}),
    }
