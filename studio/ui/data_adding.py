"""The Data tab's way in: a file, pasted text or a hub dataset; what was understood of it, the mapping to correct, and keeping it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from studio.datasets.file_types import PACKED, SUFFIXES
from studio.errors import DatasetError, StudioError
from studio.records import Dataset, Inspection
from studio.services import Studio
from studio.ui import choices, pieces, words
from studio.ui.handlers import QUIET, busy, steady, tells

MAX_ROLES = 8  # fields of the mapping; no format has more
UNUSED = ""
DEFAULT_FORMAT = "prompt-completion"  # offered where nothing is detected
Look = Callable[..., dict[Any, Any]]
Given = tuple[str | None, str, str]  # a file, a text, a hub dataset: the last one that is there counts


class Adding:
    """Build it where the fields stand. `mode` is "new" while something is looked at that is not kept yet."""

    def __init__(self, studio: Studio, mode: gr.Textbox) -> None:
        self._studio = studio
        self._mode = mode
        self._roles = gr.State([])  # what each visible mapping field stands for
        self._fetched = gr.State("")  # the hub dataset that is looked at: hub:NAME:CONFIG:SPLIT
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
        with gr.Column(visible=False, elem_classes="card", elem_id="data-choices") as self.choices:
            self._layout_choices()
        self.notice = pieces.panel(elem_id="data-notice", elem_classes="notice-place")

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

    def wire(self, preview: gr.HTML, view: gr.Column, dataset: gr.Textbox, look: Look, looking: list[Any], shown: list[Any]) -> None:
        """`look` shows what is kept again, from the inputs `looking` (the dataset's first) to the outputs `shown`."""
        self._preview, self._view, self._dataset, self._look = preview, view, dataset, look
        told = tells(self.notice)
        source = [self.file, self.text, self._fetched]
        reading = [self.choices, self.format, *self.mapping, self._roles, self.skip_bad, preview, view, self._mode, self.notice]
        gr.on([self.file.upload, self.read_text.click], told(self.read), inputs=source, outputs=[*reading, self._fetched], **busy(preview))
        self.format.input(told(self.read_as), inputs=[*source, self.format], outputs=reading, **busy(preview))
        mapped = [*source, self.format, self._roles, *self.mapping]
        gr.on([field.input for field in self.mapping], told(self.read_mapped), inputs=mapped, outputs=reading, **busy(preview))
        away = [*source, self.choices, preview, view, self._mode, self.notice, dataset, self._fetched, *shown]
        gr.on([self.file.clear, self.discard.click], steady(self.put_away), inputs=looking, outputs=away, **QUIET)
        asked = [*source, self.format, self.name, self.skip_bad, self._roles, *self.mapping]
        self.add.click(told(self.keep), inputs=asked, outputs=[*away, self.name], **busy(preview))
        fetched = [self.hub, self.config, self.split]
        self.fetch.click(told(self.take), inputs=fetched, outputs=[*source, *reading], **busy(self.notice))

    def read(self, file: str | None, text: str, fetched: str) -> dict[Any, Any]:
        return {**self._inspect((file, text, ""), None, None), self._fetched: ""}

    def read_as(self, file: str | None, text: str, fetched: str, chosen: str) -> dict[Any, Any]:
        return self._inspect((file, text, fetched), chosen, None)

    def read_mapped(self, file: str | None, text: str, fetched: str, chosen: str, roles: list[str], *columns: str | None) -> dict[Any, Any]:
        return self._inspect((file, text, fetched), chosen, _mapping(roles, columns))

    def _inspect(self, given: Given, chosen: str | None, mapping: dict[str, str] | None) -> dict[Any, Any]:
        """What was understood, at the left to change and at the right to see. Keeps nothing."""
        try:
            found = self._look_into(given, chosen, mapping)
        except DatasetError as exc:
            if not exc.details.get("columns"):
                raise
            asked = pieces.said(exc.message, "info", "Choose below which column is which; the rows follow.")
            return {**self._ask_for_mapping(exc, chosen, mapping or {}), self.notice: asked}
        return {
            **self._show_choices(found.formats, found.format, found.roles, found.columns, found.mapping),
            self.skip_bad: gr.Checkbox(visible=found.problem_count > 0),
            self._preview: _reading(found),
        }

    def _look_into(self, given: Given, chosen: str | None, mapping: dict[str, str] | None) -> Inspection:
        file, text, fetched = given
        if not file and not text.strip() and not fetched:
            raise StudioError("There is nothing to read.", "Drop a file above, or paste text.")
        if chosen is None and mapping is None:
            return self._first_look(given)
        return self._inspected(given, chosen, mapping)

    def _first_look(self, given: Given) -> Inspection:
        """As these columns were mapped the last time, else as detected."""
        try:
            found = self._inspected(given, None, None)
        except DatasetError as exc:
            known = self._studio.datasets.remembered(exc.details.get("columns") or [])
            if known is None:
                raise
        else:
            known = self._studio.datasets.remembered(found.columns)
            if known is None or (found.format, found.mapping) == (known.format, known.mapping):
                return found
        again = self._inspected(given, known.format, known.mapping)
        return again.model_copy(update={"notes": [*again.notes, f"Mapped as the last time for these columns ({known.name})."]})

    def _inspected(self, given: Given, chosen: str | None, mapping: dict[str, str] | None) -> Inspection:
        file, text, fetched = given
        if fetched:
            return self._studio.datasets.inspect(fetched, format=chosen, mapping=mapping)
        if file:
            return self._studio.datasets.inspect(Path(file), filename=Path(file).name, format=chosen, mapping=mapping)
        return self._studio.datasets.inspect_text(text, format=chosen, mapping=mapping)

    def _ask_for_mapping(self, refused: DatasetError, chosen: str | None, mapping: dict[str, str]) -> dict[Any, Any]:
        """Nothing fits: the columns are there to choose from, and the rows follow once they are mapped."""
        formats = self._studio.datasets.formats()
        wanted = next((each for each in formats if each.name == (chosen or DEFAULT_FORMAT)), formats[0])
        names = [each.name for each in formats]
        shown = self._show_choices(names, wanted.name, wanted.roles, refused.details["columns"], mapping)
        return {**shown, self.skip_bad: gr.Checkbox(visible=False), self._preview: ""}

    def _show_choices(
        self, formats: list[str], format: str, roles: list[str], columns: list[str], mapping: dict[str, str]
    ) -> dict[Any, Any]:
        roles = roles[:MAX_ROLES]
        offered = [("not used", UNUSED), *((column, column) for column in columns)]
        fields: dict[Any, Any] = {field: gr.Dropdown(visible=False) for field in self.mapping}
        for field, role in zip(self.mapping, roles, strict=False):
            fields[field] = gr.Dropdown(
                label=role.capitalize(),
                info=f"Column with the {role}.",
                choices=offered,
                value=mapping.get(role, UNUSED),
                visible=bool(columns),
            )
        return {
            self.choices: gr.Column(visible=True),
            self.format: gr.Dropdown(choices=formats, value=format),
            **fields,
            self._roles: roles,
            self._view: gr.Column(visible=False),
            self._mode: "new",
        }

    def keep(
        self,
        file: str | None,
        text: str,
        fetched: str,
        chosen: str | None,
        name: str,
        skip_bad: bool,
        roles: list[str],
        *columns: str | None,
    ) -> dict[Any, Any]:
        how: dict[str, Any] = {"name": name.strip() or None, "format": chosen or None, "mapping": _mapping(roles, columns) or None}
        if fetched:
            dataset = self._studio.datasets.add(fetched, skip_bad=skip_bad, **how)
        elif file:
            dataset = self._studio.datasets.add(Path(file), filename=Path(file).name, skip_bad=skip_bad, **how)
        else:
            dataset = self._studio.datasets.add_text(text, skip_bad=skip_bad, **how)
        return {**self._kept(dataset), self.name: ""}

    def take(self, name: str, config: str, split: str) -> dict[Any, Any]:
        """Fetch a hub dataset, to be looked at like a file."""
        if not name.strip():
            raise StudioError("No dataset is named.", "Write its name, such as openai/gsm8k.")
        parts = [part.strip() for part in (name, config, split)]
        while len(parts) > 1 and not parts[-1]:
            parts.pop()
        fetched = "hub:" + ":".join(parts)
        return {**self._inspect((None, "", fetched), None, None), self.file: None, self.text: "", self._fetched: fetched}

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
            self._preview: "",
            self._view: gr.Column(visible=True),
            self._mode: "",
        }


def _mapping(roles: list[str], columns: tuple[str | None, ...]) -> dict[str, str]:
    return {role: column for role, column in zip(roles, columns, strict=False) if column}


def _reading(found: Inspection) -> str:
    return pieces.piece(
        "reading",
        format=found.format,
        kind=choices.KINDS[found.kind],
        notes=found.notes,
        total=found.rows,
        problems=found.problems,
        problem_count=found.problem_count,
        rows=found.preview,
    )
