"""The Data tab's "New version": split, pick and merge. Each writes new datasets; what they come from stays as it is.

Knows nothing of how rows are chosen.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import Dataset
from studio.services import Studio
from studio.ui import words

TEST_SIZE, SEED, PICKED_ROWS = 0.1, 42, 1000


class VersionsPart:
    """Build it inside the Data tab. Each method gives the dataset to show next, and a sentence."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Row(elem_classes="fields"):
            self.name = gr.Textbox(
                "", label="Name of the new one", info="Empty makes one of this dataset's.", max_lines=1, elem_id="data-new-name"
            )
            self.seed = gr.Number(
                value=SEED, label="Seed", info="The same seed chooses the same rows.", precision=0, elem_id="data-seed", min_width=90
            )
        with gr.Row(elem_classes="fields making"):
            self.test_size = gr.Number(
                value=TEST_SIZE,
                label="Keep some rows for measuring",
                info="Share held out, such as 0.1. Duplicates stay on one side.",
                elem_id="data-test-size",
            )
            self.split = gr.Button("Split in two", elem_id="data-split")
        with gr.Row(elem_classes="fields making"):
            self.count = gr.Number(
                value=PICKED_ROWS,
                label="Pick the best rows",
                info="How many; chosen by length, variety and quality (after LIMA).",
                precision=0,
                elem_id="data-pick-count",
            )
            self.pick = gr.Button("Pick them", elem_id="data-pick")
        with gr.Row(elem_classes="fields making"):
            self.others = gr.Dropdown(
                [], multiselect=True, label="Put datasets together", info="Their rows follow those of this one.", elem_id="data-others"
            )
            self.merge = gr.Button("Merge them", elem_id="data-merge")

    def offer(self, datasets: list[Dataset], chosen: Dataset) -> dict[Any, Any]:
        """Other datasets of the same kind."""
        others = [row for row in datasets if row.id != chosen.id and row.kind == chosen.kind]
        return {self.others: gr.Dropdown(choices=[(f"{row.name} · {words.count(row.rows, 'row')}", row.id) for row in others])}

    def halves(self, dataset_id: str, test_size: Any, seed: Any, name: str) -> tuple[str, str]:
        if not isinstance(test_size, (int, float)) or not 0 < test_size < 1:
            raise StudioError(f"The share held out can't be {test_size}.", "Write a number between 0 and 1, such as 0.1.")
        made = self._studio.curation.split(dataset_id, test_size=float(test_size), seed=_whole(seed), name=name.strip() or None)
        train, held_out = made.train, made.eval
        said = f"{train.name} has {words.count(train.rows, 'row')}, {held_out.name} has {words.count(held_out.rows, 'row')}."
        return train.id, said

    def picked(self, dataset_id: str, count: Any, seed: Any, name: str) -> tuple[str, str]:
        if not isinstance(count, (int, float)) or count < 1:
            raise StudioError(f"{count} rows can't be picked.", "Write a number from 1 on.")
        made = self._studio.curation.pick(dataset_id, int(count), seed=_whole(seed), name=name.strip() or None)
        return made.id, f"{made.name} has {words.count(made.rows, 'row')}."

    def merged(self, dataset_id: str, others: list[str] | None, name: str) -> tuple[str, str]:
        if not others:
            raise StudioError("No other dataset is chosen.", "Choose at least one to put behind this one.")
        made = self._studio.curation.merge([dataset_id, *others], name=name.strip() or None)
        return made.id, f"{made.name} has {words.count(made.rows, 'row')}."


def _whole(seed: Any) -> int:
    if isinstance(seed, (int, float)):
        return int(seed)
    return SEED
