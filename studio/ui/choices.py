"""What dropdowns offer: datasets, base models, who can answer. A choice is a (words, name) pair.

Knows nothing of tabs.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import BaseModel
from studio.services import Studio
from studio.types import Example, Role
from studio.ui import words

STARTER = "starter"
EXAMPLE = "What is the capital of France?"
KINDS = {
    "sft": "examples to imitate",
    "preference": "better and worse answers",
    "unpaired-preference": "answers marked good or bad",
    "prompts": "prompts without answers",
    "text": "plain text",
}
Choice = tuple[str, str]


def datasets(studio: Studio) -> list[Choice]:
    """Newest first; the value is the ID."""
    return [(f"{dataset.name} · {words.count(dataset.rows, 'row')}", dataset.id) for dataset in studio.datasets.list()]


def base_models(studio: Studio) -> list[Choice]:
    """The starter first; models that can't be loaded are left out."""
    return [(_base_model(model), model.name) for model in studio.models.list() if model.loadable]


def adapters(studio: Studio, base_model: str | None) -> list[Choice]:
    return [(adapter.name, adapter.name) for adapter in studio.adapters.list(base_model)]


def contestants(studio: Studio) -> list[Choice]:
    """Everything that can answer here: `BASE` and `BASE:ADAPTER`."""
    return [(name + toy_mark(name), name) for name in studio.chat.available()]


def judges(studio: Studio) -> list[Choice]:
    """Who can say which of two answers is better, where there are no references."""
    models = studio.chat.available()
    own = [(f"What {name} itself would say", f"likelihood:{name}") for name in models]
    return [*own, *((f"{name} answers A, B or tie{toy_mark(name)}", name) for name in models)]


def update(offered: list[Choice], chosen: str | None) -> Any:
    """Offer `offered`; keep what was chosen where it is still there, else take the first.

    A value that stays is not sent: whoever has chosen another one meanwhile keeps that.
    """
    if any(value == chosen for _, value in offered):
        return gr.Dropdown(choices=offered)
    return choose(offered, None)


def choose(offered: list[Choice], chosen: str | None) -> Any:
    """Offer `offered` with `chosen` taken, or the first where it is not there."""
    values = [value for _, value in offered]
    return gr.Dropdown(choices=offered, value=next((value for value in (chosen, *values) if value in values), None))


def is_toy(contestant: str) -> bool:
    """The starter and whatever stands on it."""
    return contestant == STARTER or contestant.startswith(STARTER + ":")


def toy_mark(contestant: str) -> str:
    """What stands behind the name of a toy."""
    return " (toy)" if is_toy(contestant) else ""


def _base_model(model: BaseModel) -> str:
    said = f"{model.name} · {words.parameters(model.parameters)} parameters"
    return f"{said} · toy" if is_toy(model.name) else said


def example_for(studio: Studio, adapter: str) -> str:
    """A question that `adapter` should know: the first of the rows it learned from; a general one for the base ("")."""
    job_id = data = None
    try:
        if adapter:
            job_id = studio.adapters.show(adapter).job
        if job_id:
            data = studio.jobs.show(job_id).data
        if data:
            rows = studio.datasets.rows(data, offset=0, limit=1)
            return next((question(row) for row in rows), "") or EXAMPLE
    except StudioError:  # the job or its data was deleted since
        pass
    return EXAMPLE


def question(row: Example) -> str:
    """What is asked in a row."""
    prompt = row.messages or row.prompt or ""
    if isinstance(prompt, str):
        return prompt
    return next((turn.content for turn in prompt if turn.role == Role.USER), "")
