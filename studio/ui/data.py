"""Data: can I trust my rows? Drop a file or paste, see what was understood and what is wrong, keep it, look through it.

Knows nothing of file formats: reading, detection and mapping are the dataset service's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.services import Studio
from studio.ui import choices, pieces, words
from studio.ui.handlers import QUIET, busy, steady, tells
from studio.ui.page import Page, opening

FILE_TYPES = [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md", ".gz"]
PAGE_ROWS = 8
MAX_ROLES = 8  # fields of the mapping; no format has more
UNUSED = ""


class DataTab:
    """Left: a new file, and the datasets that are kept. Right: what it means, row by row."""

    def __init__(self, studio: Studio, page: Page) -> None:
        self._studio = studio
        self._page = page
        with opening("data") as self.tab:
            self._roles = gr.State([])  # what each visible mapping field stands for
            self._first = gr.State(0)
            with gr.Row(elem_classes="halves"):
                with gr.Column(scale=2, min_width=300):
                    self._layout_adding()
                    self.list = pieces.panel(elem_id="data-list")
                with gr.Column(scale=3, min_width=320):
                    self._layout_rows()
        self._wire()

    def _layout_adding(self) -> None:
        self.file = gr.File(
            label="Your rows: .jsonl .json .csv .tsv .parquet .txt .md, also as .gz", file_types=FILE_TYPES, height=140, elem_id="data-file"
        )
        with gr.Accordion("Or paste them", open=False, elem_id="data-paste"):
            self.text = gr.Textbox(
                "",
                label="Rows as text",
                info="CSV with a head line, JSON, JSON lines or plain text.",
                lines=6,
                max_lines=14,
                elem_id="data-text",
            )
            self.read_text = gr.Button("Read this text", elem_id="data-read-text")
        with gr.Column(visible=False, elem_classes="card") as self.choices:
            self.format = gr.Dropdown(
                label="Format", info="As detected. Change it when the rows at the side look wrong.", elem_id="data-format"
            )
            with gr.Row(elem_classes="fields"):
                self.mapping = [
                    gr.Dropdown(label=f"Column {n + 1}", visible=False, min_width=150, elem_id=f"data-role-{n}") for n in range(MAX_ROLES)
                ]
            self.name = gr.Textbox("", label="Name", info="Empty takes the file's name.", max_lines=1, elem_id="data-name")
            self.skip_bad = gr.Checkbox(
                label="Keep the good rows", info="Leave out the rows that can't be used.", visible=False, elem_id="data-skip"
            )
            with gr.Row(elem_classes="buttons"):
                self.add = gr.Button("Add dataset", variant="primary", elem_id="data-add", min_width=130)
                self.discard = gr.Button("Discard", elem_id="data-discard", min_width=110)
        self.notice = pieces.panel(elem_id="data-notice", elem_classes="notice-place")

    def _layout_rows(self) -> None:
        self.rows = pieces.panel(elem_id="data-rows")
        with gr.Row(visible=False, elem_classes="buttons") as self.pager:
            self.earlier = gr.Button("Earlier rows", min_width=110)
            self.later = gr.Button("Later rows", min_width=110)
            self.delete = gr.Button("Delete", variant="stop", elem_id="data-delete", min_width=90)
        with gr.Row(visible=False, elem_classes="buttons") as self.confirm:
            self.really = gr.Button("Delete it for good", variant="stop", elem_id="data-really", min_width=150)
            self.spare = gr.Button("Keep it", min_width=90)
        with gr.Row(visible=False, elem_classes="next") as self.next:
            self.train = gr.Button("Next: train on this", variant="primary", elem_id="data-train")

    def _wire(self) -> None:
        place = self._page.place
        reading = [
            self.choices,
            self.format,
            *self.mapping,
            self._roles,
            self.skip_bad,
            self.rows,
            self.pager,
            self.confirm,
            self.next,
            self.notice,
        ]
        shown = [place.dataset, self.list, self.rows, self.pager, self.confirm, self.next, self._first]
        source = [self.file, self.text]
        told = tells(self.notice)
        self.tab.select(steady(self.enter), inputs=[place.dataset, *source], outputs=shown, **QUIET)
        gr.on([self.file.upload, self.read_text.click], told(self.read), inputs=source, outputs=reading, **busy(self.rows))
        gr.on(
            [self.file.clear, self.discard.click],
            steady(self.put_away),
            inputs=[place.dataset],
            outputs=[*source, self.choices, self.notice, *shown],
            **QUIET,
        )
        self.format.input(told(self.read_as), inputs=[*source, self.format], outputs=reading, **QUIET)
        mapped = [*source, self.format, self._roles, *self.mapping]
        gr.on([field.input for field in self.mapping], told(self.read_mapped), inputs=mapped, outputs=reading, **QUIET)
        asked = [*source, self.format, self.name, self.skip_bad, self._roles, *self.mapping]
        self.add.click(told(self.keep), inputs=asked, outputs=[*source, self.name, self.choices, self.notice, *shown], **busy(self.rows))
        self.list.select(self.open, outputs=[place.dataset], **QUIET)
        place.dataset.change(steady(self.look), inputs=[place.dataset], outputs=shown, **QUIET)
        for button, step in ((self.earlier, -PAGE_ROWS), (self.later, PAGE_ROWS)):
            button.click(steady(self._turning(step)), inputs=[place.dataset, self._first], outputs=shown, **QUIET)
        self.delete.click(lambda: gr.Row(visible=True), outputs=[self.confirm], **QUIET)
        self.spare.click(lambda: gr.Row(visible=False), outputs=[self.confirm], **QUIET)
        self.really.click(told(self.forget), inputs=[place.dataset], outputs=[self.notice, *shown], **QUIET)

    # a new file

    def read(self, file: str | None, text: str) -> dict[Any, Any]:
        return self._inspect(file, text, None, None)

    def read_as(self, file: str | None, text: str, chosen: str) -> dict[Any, Any]:
        return self._inspect(file, text, chosen, None)

    def read_mapped(self, file: str | None, text: str, chosen: str, roles: list[str], *columns: str | None) -> dict[Any, Any]:
        return self._inspect(file, text, chosen, _mapping(roles, columns))

    def _inspect(self, file: str | None, text: str, chosen: str | None, mapping: dict[str, str] | None) -> dict[Any, Any]:
        """What was understood, at the left to change and at the right to see. Keeps nothing."""
        found = self._look_into(file, text, chosen, mapping)
        roles = found["roles"]
        return {
            self.choices: gr.Column(visible=True),
            self.format: gr.Dropdown(choices=found["formats"], value=found["format"]),
            **self._show_mapping(roles, found),
            self._roles: roles[:MAX_ROLES],
            self.skip_bad: gr.Checkbox(visible=found["problem_count"] > 0),
            self.rows: _reading(found),
            **{part: gr.Row(visible=False) for part in (self.pager, self.confirm, self.next)},
        }

    def _look_into(self, file: str | None, text: str, chosen: str | None, mapping: dict[str, str] | None) -> dict[str, Any]:
        if file:
            return self._studio.datasets.inspect(Path(file), filename=Path(file).name, format=chosen, mapping=mapping)
        if text.strip():
            return self._studio.datasets.inspect_text(text, format=chosen, mapping=mapping)
        raise StudioError("There is nothing to read.", "Drop a file above, or paste text.")

    def _show_mapping(self, roles: list[str], found: dict[str, Any]) -> dict[Any, Any]:
        offered = [("not used", UNUSED), *((column, column) for column in found["columns"])]
        fields: dict[Any, Any] = {field: gr.Dropdown(visible=False) for field in self.mapping}
        for field, role in zip(self.mapping, roles, strict=False):
            value = found["mapping"].get(role, UNUSED)
            fields[field] = gr.Dropdown(
                label=role.capitalize(), info=f"Column with the {role}.", choices=offered, value=value, visible=bool(found["columns"])
            )
        return fields

    def keep(
        self, file: str | None, text: str, chosen: str | None, name: str, skip_bad: bool, roles: list[str], *columns: str | None
    ) -> dict[Any, Any]:
        how: dict[str, Any] = {"name": name.strip() or None, "format": chosen or None, "mapping": _mapping(roles, columns) or None}
        if file:
            dataset = self._studio.datasets.add(Path(file), filename=Path(file).name, skip_bad=skip_bad, **how)
        else:
            dataset = self._studio.datasets.add_text(text, skip_bad=skip_bad, **how)
        left_out = f" {words.count(dataset['skipped'], 'row')} left out." if dataset["skipped"] else ""
        said = pieces.said(f"{dataset['name']} is kept: {words.count(dataset['rows'], 'row')}.{left_out}")
        return {**self._cleared(), self.name: "", self.notice: said, **self.look(dataset["id"])}

    def put_away(self, dataset_id: str) -> dict[Any, Any]:
        return {**self._cleared(), self.notice: "", **self.look(dataset_id)}

    def _cleared(self) -> dict[Any, Any]:
        return {self.file: None, self.text: "", self.choices: gr.Column(visible=False)}

    # what is kept

    def enter(self, dataset_id: str, file: str | None, text: str) -> Any:
        """Coming back to a file that is not kept yet leaves it in place."""
        return gr.skip() if file or text.strip() else self.look(dataset_id)

    def open(self, event: gr.EventData) -> str:
        return str(event._data["id"])

    def look(self, dataset_id: str, first: int = 0) -> dict[Any, Any]:
        datasets = self._studio.datasets.list()
        chosen = next((row for row in datasets if dataset_id in (row["id"], row["name"])), datasets[0] if datasets else None)
        there = chosen is not None
        return {
            self._page.place.dataset: chosen["id"] if chosen else "",
            self.list: pieces.piece("datasets", datasets=datasets, kinds=choices.KINDS, selected=chosen and chosen["id"])
            if datasets
            else "",
            self.rows: self._page_of(chosen, first)
            if chosen
            else pieces.empty("No rows yet: drop a file here, or try the studio with demo rows.", "Add the demo rows", "demo"),
            self.pager: gr.Row(visible=there),
            self.confirm: gr.Row(visible=False),
            self.next: gr.Row(visible=there),
            self._first: first,
        }

    def _page_of(self, dataset: dict[str, Any], first: int) -> str:
        rows = self._studio.datasets.rows(dataset["id"], offset=first, limit=PAGE_ROWS)
        return pieces.piece("dataset", dataset=dataset, kind=choices.KINDS[dataset["kind"]], rows=rows, first=first + 1)

    def _turning(self, step: int) -> Any:
        def turn(dataset_id: str, first: int) -> dict[Any, Any]:
            total = self._studio.datasets.show(dataset_id)["rows"]
            return self.look(dataset_id, min(max(0, first + step), max(0, (total - 1) // PAGE_ROWS * PAGE_ROWS)))

        return turn

    def forget(self, dataset_id: str) -> dict[Any, Any]:
        self._studio.datasets.delete(dataset_id)
        return self.look("")


def _mapping(roles: list[str], columns: tuple[str | None, ...]) -> dict[str, str]:
    return {role: column for role, column in zip(roles, columns, strict=False) if column}


def _reading(found: dict[str, Any]) -> str:
    return pieces.piece(
        "reading",
        format=found["format"],
        kind=choices.KINDS[found["kind"]],
        notes=found["notes"],
        total=found["rows"],
        problems=found["problems"],
        problem_count=found["problem_count"],
        rows=found["preview"],
    )
