"""The Data tab's rows: page through them, go to one, edit or remove one. A change makes a new version.

Knows nothing of where rows are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import Dataset
from studio.services import Studio
from studio.ui import pieces

PAGE_ROWS = 8
MAX_PARTS = 8  # fields of the editor; a row with more is edited as JSON
TEXTS = ("text", "prompt", "completion")
TALKS = ("messages", "prompt", "completion", "chosen", "rejected")
Place = tuple[str | int, ...]  # where a text stands in a row's JSON


class RowsPart:
    """Build it inside the Data tab."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.first = gr.State(0)
        self.marked = gr.State(0)  # the row that was asked for, from 1; 0 for none
        self.edited = gr.State(0)
        self.rows = pieces.panel(elem_id="data-kept")
        with gr.Row(elem_classes="buttons pager", visible=False) as self.pager:
            self.earlier = gr.Button("Earlier rows", min_width=110)
            self.later = gr.Button("Later rows", min_width=110)
            self.number = gr.Number(
                value=1, label="Row", info="Go to a row by its number.", precision=0, minimum=1, elem_id="data-row-number", min_width=90
            )
        with gr.Column(visible=False, elem_classes="card", elem_id="data-editor") as self.editor:
            self.title = pieces.panel()
            self.parts = [
                gr.Textbox(
                    label=f"Part {n + 1}", info="What the row says here.", lines=2, max_lines=14, visible=False, elem_id=f"data-part-{n}"
                )
                for n in range(MAX_PARTS)
            ]
            self.source = gr.Textbox(
                label="The row as JSON", info="This row has too many parts for fields.", lines=8, max_lines=24, visible=False
            )
            with gr.Row(elem_classes="buttons"):
                self.save = gr.Button("Save as a new version", variant="primary", elem_id="data-save-row", min_width=170)
                self.leave = gr.Button("Leave it as it is", elem_id="data-leave-row", min_width=130)
        self.editing = [self.editor, self.title, *self.parts, self.source, self.edited]

    def show(self, dataset: Dataset, first: int, marked: int) -> dict[Any, Any]:
        rows = self._studio.datasets.rows(dataset.id, offset=first, limit=PAGE_ROWS)
        drawn = pieces.piece("kept_rows", rows=rows, first=first + 1, total=dataset.rows, marked=marked)
        return {self.rows: drawn, self.pager: gr.Row(visible=dataset.rows > PAGE_ROWS)}

    def turn(self, step: int, dataset_id: str, first: int) -> int:
        """The first row of the page before or after."""
        return min(max(0, first + step * PAGE_ROWS), self._last_page(dataset_id))

    def page_of(self, dataset_id: str, number: int) -> int:
        """The first row of the page that holds row `number`."""
        return min(max(0, number - 1) // PAGE_ROWS * PAGE_ROWS, self._last_page(dataset_id))

    def _last_page(self, dataset_id: str) -> int:
        return max(0, (self._studio.datasets.show(dataset_id).rows - 1) // PAGE_ROWS * PAGE_ROWS)

    def open(self, dataset_id: str, number: int) -> dict[Any, Any]:
        """The editor with row `number`."""
        rows = self._studio.datasets.rows(dataset_id, offset=number - 1, limit=1)
        if not rows:
            raise StudioError(f"There is no row {number}.", "Choose another.")
        row = rows[0].as_json()
        places, text = list(_places(row)), ""
        simple = 0 < len(places) <= MAX_PARTS
        if not simple:
            places, text = [], json.dumps(row, ensure_ascii=False, indent=2)
        fields: dict[Any, Any] = {part: gr.Textbox(visible=False, value="") for part in self.parts}
        for part, (place, label) in zip(self.parts, places, strict=False):
            fields[part] = gr.Textbox(label=label, value=_at(row, place), visible=True)
        return {
            **fields,
            self.editor: gr.Column(visible=True),
            self.title: pieces.piece("sentence", text=f"Row {number}"),
            self.source: gr.Textbox(value=text, visible=not simple),
            self.edited: number,
        }

    def close(self) -> dict[Any, Any]:
        return {self.editor: gr.Column(visible=False), self.edited: 0}

    def saved(self, dataset_id: str, number: int, source: str, *texts: str) -> Dataset:
        """Write the edited row into a new version."""
        row = self._studio.datasets.rows(dataset_id, offset=number - 1, limit=1)[0].as_json()
        places = list(_places(row))
        if source.strip():
            row = _parsed(source)
        else:
            for (place, _), text in zip(places, texts, strict=False):
                _put(row, place, text)
        return self._studio.curation.edit_row(dataset_id, number, row)

    def removed(self, dataset_id: str, number: int) -> Dataset:
        """A new version without row `number`."""
        return self._studio.curation.delete_rows(dataset_id, [number])


def _places(row: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """Where the texts of a row stand, in reading order, and what they are called."""
    for name in dict.fromkeys((*TALKS, *TEXTS)):
        value = row.get(name)
        if isinstance(value, str):
            yield (name,), name.capitalize()
        elif isinstance(value, list):
            lead = f"{name.capitalize()}: " * (name != "messages")
            for n, turn in enumerate(value):
                yield (name, n, "content"), f"{lead}{turn['role']}".capitalize()


def _at(row: Any, place: Place) -> str:
    for step in place:
        row = row[step]
    return str(row)


def _put(row: Any, place: Place, text: str) -> None:
    for step in place[:-1]:
        row = row[step]
    row[place[-1]] = text


def _parsed(source: str) -> dict[str, Any]:
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as exc:
        raise StudioError(f"The row is no JSON ({exc}).", "Correct it, or leave it as it is.") from None
    if not isinstance(value, dict):
        raise StudioError("The row is no JSON object.", 'Write it as {"messages": […]}.')
    return value
