"""The fit bar: what a training would take of the device, live while options change; and the run's own peak beside it. A piece.

`FitBar(form, studio)` inside a tab, `wire(...)` behind the fields. Knows nothing of how a prediction is made.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.records import Fit
from studio.services import Studio
from studio.services.planning import sentence
from studio.ui import pieces
from studio.ui.handlers import QUIET
from studio.ui.options import OptionsForm
from studio.ui.page import Frame

LABELS = {
    "base_weights": "Base model",
    "full_precision_weights": "Embeddings, head, norms",
    "adapter": "What learns, with gradients",
    "optimizer": "Optimizer",
    "activations": "Activations",
    "logits": "Output layer",
    "overhead": "Overhead",
    "process": "The program itself",
}
SHOWN_ADVICE = 4
PLAN = -1  # the number of the plan's button, beside those of the advice


class FitBar:
    """A card that says whether the choices of a form fit."""

    def __init__(self, studio: Studio, form: OptionsForm) -> None:
        self._studio = studio
        self._form = form
        self.panel = pieces.panel(elem_id="fit", elem_classes="card")

    def wire(self, page: Frame, opened: Any, base_model: gr.Dropdown, recipe: gr.Radio) -> None:
        """Draw it when the tab opens and at every change of the model, the recipe or a field that memory depends on."""
        inputs = [base_model, recipe, *self._form.fields]
        changes = [base_model.change, *(field.change for field in self._form.fields)]
        page.redraw("fit", [opened, *changes], self.draw, inputs, [self.panel])
        self.panel.select(self.apply, inputs=inputs, outputs=self._form.fields, **QUIET)

    def draw(self, base_model: str | None, recipe: str, *shown: Any) -> str:
        if not base_model:
            return ""
        try:
            found = self._studio.fit.fit(base_model=base_model, recipe=recipe, options=self._form.changed(recipe, shown))
        except StudioError as exc:
            return pieces.notice(exc)
        return pieces.piece("fit", **bar(found))

    def apply(self, event: gr.EventData, base_model: str | None, recipe: str, *rest: Any) -> list[Any]:
        """Take one piece of advice, or the plan: its options go into the fields."""
        shown, number = list(rest), int(event._data["number"])
        found = self._studio.fit.fit(base_model=base_model, recipe=recipe, options=self._form.changed(recipe, shown))
        if number == PLAN and found.plan is not None:
            taken = dict(found.plan.options)
        elif 0 <= number < len(found.advice):
            taken = dict(found.advice[number].options)
        else:
            return shown
        for key in (key for key, value in taken.items() if value is None):
            taken[key] = ""  # as a field shows an empty option
        return [taken.get(option.key, value) for option, value in zip(self._form.options, shown, strict=True)]


def bar(found: Fit) -> dict[str, Any]:
    """What the template shows of a fit: segments as shares of what there is, or of what is needed where that is more."""
    parts = {**dict(found.breakdown), "process": found.process_bytes}
    needed = sum(parts.values())
    room = found.room_bytes or 0
    whole = max(needed, room) or 1
    return {
        "fit": found,
        "needed": needed,
        "segments": [
            {"name": name, "label": LABELS[name], "bytes": value, "percent": round(100 * value / whole, 2)}
            for name, value in parts.items()
            if value
        ],
        "room_percent": round(100 * room / whole, 2) or None,
        "advice": found.advice[:SHOWN_ADVICE],
        "plan": plan_of(found),
        "holders": [one for one in (found.available.holders if found.available else []) if one.bytes],
    }


def plan_of(found: Fit) -> dict[str, Any] | None:
    """What the template shows of the plan; nothing where the choices fit as they are."""
    if found.plan is None or not found.plan.changes:
        return None
    return {"number": PLAN, "sentences": [sentence(change) for change in found.plan.changes], **dict(found.plan)}
