"""Train: what will I get? Three choices and a name; every other option behind "All options"; beside them the rows as tokens.

Knows nothing of how a job runs: it hands the choices to the job service and shows its refusals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from jobs import recipes
from studio.errors import StudioError
from studio.records import Refusal
from studio.services import Studio
from studio.ui import choices, pieces, tokens
from studio.ui.data_learned import taken, warnings, way_of
from studio.ui.fit import FitBar
from studio.ui.handlers import QUIET, busy, tells
from studio.ui.options import ONLY_WITH, OptionsForm
from studio.ui.page import Frame, go
from studio.ui.train_start import Starting
from studio.ui.train_text import WrittenChoices

PREVIEW_ROWS = 3
# options that decide what of a row is seen, learned and cut; with those of section rope, which may lengthen the base's context
READING = (
    "max_length", "chat_template", "learned_turns", "reasoning", "system_message", "objective", "assistant_only_loss",
    "completion_only_loss",
)  # fmt: skip


class TrainTab:
    """Left: data, base model, goal, name, all options. Right: what the model will see and learn."""

    def __init__(self, studio: Studio, page: Frame, tab: gr.Tab) -> None:
        self._studio = studio
        self._page = page
        with tab as self.tab, gr.Row(elem_classes="halves"):
            with gr.Column(scale=3, min_width=320):
                self._layout_choices()
            with gr.Column(scale=2, min_width=320):
                self.refusals = pieces.panel(elem_id="train-refusals", elem_classes="notice-place")
                self.fit = FitBar(studio, self.form)
                self.preview = pieces.panel(elem_id="train-preview", elem_classes="card")
        self._wire()

    def _layout_choices(self) -> None:
        self.data = gr.Dropdown(label="Data", info="The rows to learn from. Add them on the Data tab.", elem_id="train-data")
        self.base_model = gr.Dropdown(
            label="Base model", info="The model that learns; it stays as it is, the adapter is added beside it.", elem_id="train-base"
        )
        self.recipe = gr.Radio(
            _offered(),
            value=recipes.DEFAULT_RECIPE,
            label="Goal",
            info="What training should reach, and with how much memory.",
            elem_id="train-goal",
        )
        self.filled = gr.State(recipes.DEFAULT_RECIPE)  # the recipe whose values the fields hold
        self.about_recipe = pieces.panel(self._about(recipes.DEFAULT_RECIPE), elem_classes="hint")
        self.name = gr.Textbox(
            "", label="Name", info="Job and adapter get this name; empty makes one from the data.", max_lines=1, elem_id="train-name"
        )
        with gr.Accordion("All options: method, steps, learning rate, rank, quantisation and more", open=False, elem_id="train-options"):
            others = [(f"{recipe.goal} ({recipe.name})", recipe.name) for recipe in (*recipes.METHODS, *recipes.PAPERS)]
            self.others = gr.Dropdown(
                others,
                value=None,
                label="Start from a method or a paper",
                info="Fills in all fields below as that method or paper has them, and takes its place among the goals above.",
                elem_id="train-others",
            )
            self.form = OptionsForm()
        self.starting = Starting(self._studio)
        self.written = WrittenChoices(self.form)
        self.start = gr.Button("Start training", variant="primary", elem_id="train-start")
        self.notice = pieces.panel(elem_id="train-notice", elem_classes="notice-place")

    def _wire(self) -> None:
        self.tab.select(
            self.enter,
            inputs=[self.data, self.base_model, self.starting.after],
            outputs=[self.data, self.base_model, self.starting.after, self.preview],
            **QUIET,
        )
        filled = [*self.form.fields, self.about_recipe, self.filled]
        self.recipe.change(self.choose_recipe, inputs=[self.recipe], outputs=filled, **QUIET)
        self.written.wire(self.data, self.base_model, self.recipe, self.starting)
        self.others.input(self.take_other, inputs=[self.others], outputs=[self.recipe], **QUIET)
        method, objective = self.form.field("method"), self.form.field("objective")
        shaped = [*self.form.sections.values(), *(self.form.field(key) for key in ONLY_WITH)]
        gr.on([method.change, objective.change], self.form.shape, inputs=[method, objective], outputs=shaped, **QUIET)
        choices_made = [self.data, self.base_model, self.recipe, *self.form.fields]
        self._page.redraw("refusals", [field.change for field in choices_made], self.explain, choices_made, [self.refusals])
        self.refusals.select(self.mend, inputs=choices_made, outputs=self.form.fields, **QUIET)
        reading = [self.form.field(key) for key in READING] + [self.form.field(key) for key in self.form.keys_of("rope")]
        self._page.redraw(
            "rows", [field.change for field in (self.data, self.base_model, *reading)], self.show_rows, choices_made, [self.preview]
        )
        self.fit.wire(self._page, self.tab.select, self.base_model, self.recipe)
        self.start.click(
            tells(self.notice)(self.submit),
            inputs=[self.data, self.base_model, self.recipe, self.filled, self.name, *self.starting.fields, *self.form.fields],
            outputs=[self.notice, self._page.tabs, self._page.place.job, self._page.place.runs, self.name, *self.starting.fields],
            **busy(self.preview),
        )
        self.preview.select(
            tells(self.notice)(self.help_on), inputs=choices_made, outputs=[self.notice, self._page.tabs, *self.form.fields], **QUIET
        )

    def enter(self, data: str | None, base_model: str | None, after: str) -> dict[Any, Any]:
        """Bring the choices up to date; what was chosen stays where it still exists."""
        datasets, models = choices.datasets(self._studio), choices.base_models(self._studio)
        offered = {self.base_model: choices.update(models, base_model), self.starting.after: self.starting.enter(after)}
        if not datasets:
            nothing = pieces.empty("There are no rows to learn from yet.", "Add data", "data")
            return {self.data: gr.Dropdown(choices=[], value=None), self.preview: nothing, **offered}
        return {self.data: choices.update(datasets, data), **offered}

    def help_on(self, event: gr.EventData, data: str | None, base_model: str | None, recipe: str, *fields: Any) -> dict[Any, Any]:
        """A button beside the rows: bring some, or take a way on where the template leaves something out."""
        if event._data["act"] != "way":
            return {self._page.tabs: go("data")}
        chosen = self.form.changed(recipe, fields)
        way = way_of(self._studio.jobs.launcher.rows_seen(data or "", base_model or "", recipe, chosen, PREVIEW_ROWS), event._data)
        return {self.notice: pieces.said(taken(way)), **self.form.set(way.change)}

    def choose_recipe(self, recipe: str) -> list[Any]:
        return [*self.form.values(recipe), self._about(recipe), recipe]

    def take_other(self, name: str | None) -> Any:
        """A method's or a paper's recipe joins the goals, chosen."""
        if not name:
            return gr.skip()
        return gr.Radio(choices=_offered(name), value=name)

    def explain(self, data: str | None, base_model: str | None, recipe: str, *fields: Any) -> str:
        """Why these choices would be refused, with what would mend each; nothing where they go together."""
        found = self._refusals(data, base_model, recipe, fields)
        return pieces.piece("refusals", refusals=found) if found else ""

    def mend(self, event: gr.EventData, data: str | None, base_model: str | None, recipe: str, *fields: Any) -> list[Any]:
        """Take the change that a refusal names."""
        number = int(event._data["number"])
        found = self._refusals(data, base_model, recipe, fields)
        if number >= len(found):
            return self.form.with_changes(fields, {})
        return self.form.with_changes(fields, found[number].change)

    def _refusals(self, data: str | None, base_model: str | None, recipe: str, fields: Sequence[Any]) -> list[Refusal]:
        return self._studio.jobs.launcher.refusals(data, base_model, recipe, self.form.changed(recipe, fields))

    def show_rows(self, data: str | None, base_model: str | None, recipe: str, *fields: Any) -> str:
        """The rows as a training with these options learns and cuts them; a refusal is shown in their place."""
        if not data or not base_model:
            return ""
        chosen = self.form.changed(recipe, fields)
        try:
            rendered = self._studio.jobs.launcher.rows_seen(data, base_model, recipe, chosen, PREVIEW_ROWS)
        except StudioError as exc:
            return pieces.notice(exc)
        return pieces.piece(
            "tokens",
            rendered=rendered,
            rows=[tokens.coloured(row) for row in rendered.rows],
            warnings=warnings(rendered),
            take="Set it",
        )

    def submit(
        self, data: str | None, base_model: str | None, recipe: str, filled: str, name: str, after: str, grid: str, *fields: Any
    ) -> dict[Any, Any]:
        if not data:
            raise StudioError("No data is chosen.", "Choose a dataset above, or add one on the Data tab.")
        if not base_model:
            raise StudioError("No base model is chosen.", "Choose one above.")
        changed = {}
        if filled == recipe:  # otherwise the button was faster than the fields: they still hold the values of the goal before
            changed = self.form.changed(recipe, fields)
        awaited, values = self.starting.chosen(after, grid)
        asked: dict[str, Any] = {"data": data, "base_model": base_model, "recipe": recipe, "name": name.strip() or None, "after": awaited}
        asked["options"] = {key: value for key, value in changed.items() if key not in values}
        jobs, place = self._studio.jobs, self._page.place
        if values:
            job = jobs.sweep(**asked, grid=values)
        else:
            job = jobs.submit(**asked)
        return {
            self._page.tabs: go("jobs"),
            place.job: job.id,
            place.runs: "",
            self.name: "",
            **dict(zip(self.starting.fields, ("", ""), strict=True)),
        }

    def _about(self, recipe: str) -> str:
        return pieces.piece("sentence", text=recipes.get(recipe).description)


def _offered(other: str | None = None) -> list[tuple[str, str]]:
    """The goals, and one more recipe where that was chosen."""
    more = [recipes.get(other)] if other else []
    return [(recipe.goal, recipe.name) for recipe in (*recipes.GOALS, *more)]
