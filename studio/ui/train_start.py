"""How a training starts: after another job, or once per combination of values, which is a sweep. A piece of the Train tab.

Knows nothing of the queue: it offers jobs to wait for and reads the grid.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from jobs.config import parse_assignments
from studio.records import ENDED, Job, JobKind
from studio.services import Studio

AT_ITS_TURN = ""


class Starting:
    """An accordion below the options; `enter` brings its offers up to date, `chosen` reads it."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        with gr.Accordion("When it starts, and a sweep over several values", open=False, elem_id="train-starting"):
            self.after = gr.Dropdown(
                _offers([]),
                value=AT_ITS_TURN,
                label="Start after",
                info="It waits until this job has succeeded; if that one fails or is cancelled, this one does not run.",
                elem_id="train-after",
            )
            self.grid = gr.Textbox(
                "",
                label="Values to try (sweep)",
                info="One option per line with its values: learning_rate=[0.0001, 0.0003]. Trains once per combination, at most 64 times.",
                placeholder="learning_rate=[0.0001, 0.0003]\nlora.r=[8, 16]",
                lines=2,
                elem_id="train-grid",
            )
        self.fields = [self.after, self.grid]

    def enter(self, after: str) -> Any:
        """The trainings that have not ended, and what was chosen, where it is still one of them."""
        offers = _offers([job for job in self._studio.jobs.list() if job.kind == JobKind.TRAIN and job.status not in ENDED])
        if after not in [value for _, value in offers]:
            after = AT_ITS_TURN
        return gr.Dropdown(choices=offers, value=after)

    @staticmethod
    def chosen(after: str, grid: str) -> tuple[str | None, dict[str, Any]]:
        """The job to wait for, and the sweep's values by option; empty for one training. Raises ConfigError."""
        lines = [line for line in grid.splitlines() if line.strip()]
        return after or None, parse_assignments(lines)


def _offers(jobs: list[Job]) -> list[tuple[str, str]]:
    return [("as soon as its turn comes", AT_ITS_TURN), *((job.name, job.id) for job in jobs)]
