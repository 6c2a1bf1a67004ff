"""The Data tab's way in: a file, pasted text or a hub dataset; its first rows, what was understood of them, and keeping it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from studio.datasets.file_types import PACKED, SUFFIXES
from studio.errors import StudioError
from studio.records import Dataset, FirstRows, Inspection
from studio.services import Studio
from studio.ui import choices, data_mapping, pieces, words
from studio.ui.data_mapping import TableReading
from studio.ui.handlers import QUIET, busy, message, steady, tells

Look = Callable[..., dict[Any, Any]]
Given = tuple[str | None, str, str]  # a file, a text, a hub dataset: the last one that is there counts


class Adding:
    """Build it where the fields stand. `mode` is "new" while something is looked at that is not kept yet; `table` shows it."""

    def __init__(self, studio: Studio, mode: gr.Textbox, table: gr.HTML) -> None:
        self._studio = studio
        self._mode = mode
        self._table = table
        self._reading = gr.State(None)  # the TableReading that the page shows
        self._fetched = gr.State("")  # the hub dataset that is looked at: hub:NAME:CONFIG:SPLIT
        with gr.Column(elem_id="data-sources"):
            self._layout_sources()
        self.notice = pieces.panel(elem_id="data-notice", elem_classes="notice-place")
        with gr.Column(visible=False, elem_classes="card", elem_id="data-choices") as self.choices:
            self._layout_choices()

    def _layout_sources(self) -> None:
        self.file = gr.File(
            label=f"Your rows: {' '.join(SUFFIXES)}, also as {' or '.join(PACKED)}",
            file_types=[*SUFFIXES, *PACKED],
            height=140,
            elem_id="data-file",
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
        with gr.Accordion("Or take a dataset of the Hugging Face Hub", open=False, elem_id="data-hub"):
            self._layout_hub()

    def _layout_hub(self) -> None:
        self.hub = gr.Textbox(
            "", label="Name", info="As in its address, such as openai/gsm8k. This talks to the Hub.", max_lines=1, elem_id="data-hub-name"
        )
        with gr.Row(elem_classes="fields"):
            self.config = gr.Textbox(
                "", label="Configuration", info="Where the dataset has several.", max_lines=1, elem_id="data-hub-config", min_width=120
            )
            self.split = gr.Textbox("", label="Split", info="Empty takes train.", max_lines=1, elem_id="data-hub-split", min_width=120)
        self.fetch = gr.Button("Fetch and look at it", elem_id="data-hub-fetch")

    def _layout_choices(self) -> None:
        self.name = gr.Textbox("", label="Name", info="Empty takes the file's name.", max_lines=1, elem_id="data-name")
        self.skip_bad = gr.Checkbox(
            label="Keep the good rows", info="Leave out the rows that can't be used.", visible=False, elem_id="data-skip"
        )
        with gr.Row(elem_classes="buttons"):
            self.add = gr.Button("Add dataset", variant="primary", elem_id="data-add", min_width=130)
            self.discard = gr.Button("Discard", elem_id="data-discard", min_width=110)
        self.format = gr.Dropdown(
            label="Format", info="As the columns are read. It follows when you choose what they are.", elem_id="data-format"
        )

    def wire(self, preview: gr.HTML, view: gr.Column, dataset: gr.Textbox, look: Look, looking: list[Any], shown: list[Any]) -> None:
        """`look` shows what is kept again, from the inputs `looking` (the dataset's first) to the outputs `shown`."""
        self._preview, self._view, self._dataset, self._look = preview, view, dataset, look
        told = tells(self.notice)
        source = [self.file, self.text, self._fetched]
        reading = [self.choices, self.format, self._reading, self._table, self.skip_bad, preview, view, self._mode, self.notice]
        gr.on([self.file.upload, self.read_text.click], told(self.read), inputs=source, outputs=[*reading, self._fetched], **busy(preview))
        read_as = [*source, self._reading]
        self.format.input(told(self.read_as), inputs=[*read_as, self.format], outputs=reading, **busy(preview))
        # a menu may change several times in a row: each choice counts, in its order
        in_order = {**busy(preview), "concurrency_limit": 1, "trigger_mode": "multiple"}
        assigned = self._table.select(told(self.assign), inputs=read_as, outputs=reading, **in_order)
        assigned.then(None, js="() => { studio.backToMenu(); return []; }", **QUIET)
        away = [*source, self.choices, self._reading, self._table, preview, view, self._mode, self.notice, dataset, self._fetched, *shown]
        gr.on([self.file.clear, self.discard.click], steady(self.put_away), inputs=looking, outputs=away, **QUIET)
        asked = [*read_as, self.name, self.skip_bad]
        self.add.click(told(self.keep), inputs=asked, outputs=[*away, self.name], **busy(preview))
        fetched = [self.hub, self.config, self.split]
        self.fetch.click(told(self.take), inputs=fetched, outputs=[*source, *reading], **busy(self.notice))

    # what is looked at

    def read(self, file: str | None, text: str, fetched: str) -> dict[Any, Any]:
        return {**self._look_into((file, text, "")), self._fetched: ""}

    def read_as(self, file: str | None, text: str, fetched: str, reading: TableReading | None, chosen: str) -> dict[Any, Any]:
        reading = data_mapping.checked(reading)
        choice = self._studio.datasets.choose_format(chosen, reading.choice.mapping)
        return self._show((file, text, fetched), replace(reading, choice=choice))

    def assign(self, file: str | None, text: str, fetched: str, reading: TableReading | None, event: gr.EventData) -> dict[Any, Any]:
        """Another role for a column; the rows follow."""
        reading = data_mapping.checked(reading)
        column, role = str(event._data["column"]), str(event._data["value"])
        now = reading.choice
        choice = self._studio.datasets.choose_column(now.format, now.mapping, column, role)
        return self._show((file, text, fetched), reading.assigned(column, choice))

    def _look_into(self, given: Given) -> dict[Any, Any]:
        """The first rows, read as these columns were the last time, or as they are guessed to be. Keeps nothing."""
        reading = data_mapping.first_reading(self._studio, self._table_of(given))
        return self._show(given, reading, data_mapping.doubt(reading))

    def _show(self, given: Given, reading: TableReading, said: str = "") -> dict[Any, Any]:
        """The columns as they are read now and the rows that come of them, or why there are none."""
        found = None
        if not reading.choice.missing:
            try:
                found = self._inspected(given, reading)
            except StudioError as exc:
                said = message(exc)
        return {
            self._table: data_mapping.card(self._studio, _name(given), reading, found),
            self._reading: reading,
            self.choices: gr.Column(visible=True),
            self.format: gr.Dropdown(choices=[each.name for each in self._studio.datasets.formats()], value=reading.choice.format),
            self.skip_bad: gr.Checkbox(visible=found is not None and found.problem_count > 0),
            self._preview: _understood(found, reading),
            self._view: gr.Column(visible=False),
            self._mode: "new",
            self.notice: said,
        }

    def _table_of(self, given: Given) -> FirstRows:
        file, text, fetched = given
        if fetched:
            return self._studio.datasets.table(fetched)
        if file:
            return self._studio.datasets.table(Path(file), filename=Path(file).name)
        if not text.strip():
            raise StudioError("There is nothing to read.", "Drop a file above, or paste text.")
        return self._studio.datasets.table_of_text(text)

    def _inspected(self, given: Given, reading: TableReading) -> Inspection:
        file, text, fetched = given
        how: dict[str, Any] = {"format": reading.choice.format, "mapping": data_mapping.exact(self._studio, reading.choice)}
        if fetched:
            return self._studio.datasets.inspect(fetched, **how)
        if file:
            return self._studio.datasets.inspect(Path(file), filename=Path(file).name, **how)
        return self._studio.datasets.inspect_text(text, **how)

    # what is kept

    def keep(self, file: str | None, text: str, fetched: str, reading: TableReading | None, name: str, skip_bad: bool) -> dict[Any, Any]:
        choice = data_mapping.complete(self._studio, reading).choice
        mapping = data_mapping.exact(self._studio, choice)
        how: dict[str, Any] = {"name": name.strip() or None, "format": choice.format, "mapping": mapping, "skip_bad": skip_bad}
        if fetched:
            dataset = self._studio.datasets.add(fetched, **how)
        elif file:
            dataset = self._studio.datasets.add(Path(file), filename=Path(file).name, **how)
        else:
            dataset = self._studio.datasets.add_text(text, **how)
        return {**self._kept(dataset), self.name: ""}

    def take(self, name: str, config: str, split: str) -> dict[Any, Any]:
        """Fetch a hub dataset, to be looked at like a file."""
        if not name.strip():
            raise StudioError("No dataset is named.", "Write its name, such as openai/gsm8k.")
        parts = [part.strip() for part in (name, config, split)]
        while len(parts) > 1 and not parts[-1]:
            parts.pop()
        fetched = "hub:" + ":".join(parts)
        return {**self._look_into((None, "", fetched)), self.file: None, self.text: "", self._fetched: fetched}

    def _kept(self, dataset: Dataset) -> dict[Any, Any]:
        said = f"{dataset.name} is kept: {words.count(dataset.rows, 'row')}."
        if dataset.skipped:
            said += f" {words.count(dataset.skipped, 'row')} left out."
        return {**self._cleared(), self.notice: pieces.said(said), self._dataset: dataset.id}

    def put_away(self, *looking: Any) -> dict[Any, Any]:
        return {**self._cleared(), self.notice: "", **self._look(*looking)}

    def _cleared(self) -> dict[Any, Any]:
        return {
            self.file: None,
            self.text: "",
            self._fetched: "",
            self.choices: gr.Column(visible=False),
            self._reading: None,
            self._table: "",
            self._preview: "",
            self._view: gr.Column(visible=True),
            self._mode: "",
        }


def _name(given: Given) -> str:
    file, _, fetched = given
    return fetched or (file and Path(file).name) or "Pasted rows"


def _understood(found: Inspection | None, reading: TableReading) -> str:
    if found is None:
        return ""
    notes = [*found.notes]
    if reading.known:
        notes.append(f"Mapped as the last time for these columns ({reading.known}).")
    return pieces.piece(
        "reading",
        format=found.format,
        kind=choices.KINDS[found.kind],
        notes=notes,
        used=found.used,
        used_keys=found.used_message_keys,
        unused=found.unused,
        total=found.rows,
        problems=found.problems,
        problem_count=found.problem_count,
        rows=found.preview,
    )
