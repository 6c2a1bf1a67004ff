"""The Data tab's "What is learned": rows as tokens for a base model, lengths, the template, and whether training and chat agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from jobs.config import MAX_ROWS_WITHOUT_LEARNED_TOKEN
from studio.datasets.rendering import TEMPLATE_NAMES
from studio.errors import StudioError, listed
from studio.records import Alternative, Dataset, Rendering, TemplateInfo
from studio.services import Studio
from studio.ui import choices, histogram, pieces, tokens, words
from studio.ui.checks import Options

PAGE_ROWS = 4
MAX_WARNINGS = 3
PARITY_ROWS = 20
TITLES = {
    "model": "the model's own",
    "chatml": "ChatML",
    "alpaca": "Alpaca",
    "alpaca-end": "Alpaca with ### End",
    "plain": "Plain (User: … Assistant: …)",
}
ABOUT = {
    "model": "The template that came with this model; keep it unless you know better.",
    "chatml": "Marks each turn with tokens; suits larger base models and long conversations.",
    "alpaca": "Headings in plain text, closed by the end token; suits base models that never saw a conversation.",
    "alpaca-end": "As Alpaca, and it writes ### End as well, for programs that stop at a text.",
    "plain": "Names before each turn; the fewest tokens.",
}


class LearnedPart:
    """Build it inside the Data tab."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.first = gr.State(0)
        models = choices.base_models(studio)
        with gr.Row(elem_classes="fields thirds"):
            self.base_model = gr.Dropdown(
                models,
                value=next((value for _, value in models), None),
                label="Base model",
                info="Whose tokens are counted; the check of the rows uses it too.",
                elem_id="data-base",
                min_width=150,
            )
            self.max_length = gr.Textbox(  # gr.Number shows 0 where it is empty
                "",
                label="Longest row",
                info="In tokens; what is longer is cut at the end (max_length). Empty: as a training cuts it.",
                placeholder="as a training",
                max_lines=1,
                elem_id="data-length",
                min_width=120,
            )
            self.template = gr.Dropdown(
                [(TITLES["model"], ""), *((TITLES[name], name) for name in TEMPLATE_NAMES)],
                value="",
                label="Chat template",
                info="How a conversation becomes text.",
                elem_id="data-template",
                min_width=150,
            )
        self.panel = pieces.panel(elem_id="data-learned")
        with gr.Row(elem_classes="buttons", visible=False) as self.pager:
            self.earlier = gr.Button("Earlier rows", min_width=110, elem_id="data-learned-earlier")
            self.later = gr.Button("Later rows", min_width=110, elem_id="data-learned-later")
        self.parity = pieces.panel(elem_id="data-parity")
        self.written = pieces.panel(elem_id="data-written")
        self.choices = [self.base_model, self.max_length, self.template]
        self.outputs = [self.panel, self.pager, self.parity, self.written, self.template]

    def show(self, dataset: Dataset, first: int, options: Options) -> dict[Any, Any]:
        """Everything of this part; a refusal stands where the rows would be."""
        base_model, template = options["base_model"], options["chat_template"]
        if base_model is None:
            return {self.panel: pieces.piece("sentence", text="Choose a base model above."), self.parity: "", self.written: ""}
        try:
            rendered = self._studio.datasets.render(dataset.id, rows=PAGE_ROWS, offset=first, **_asked(options))
            compared = self._studio.datasets.parity(dataset.id, rows=PARITY_ROWS, **_asked(options))
            templates = self._studio.datasets.templates(base_model)
        except StudioError as exc:
            return {self.panel: pieces.notice(exc), self.parity: "", self.written: "", self.pager: gr.Row(visible=False)}
        return {
            self.panel: _rows(rendered),
            self.pager: gr.Row(visible=dataset.rows > PAGE_ROWS),
            self.parity: pieces.piece("parity", found=compared),
            self.written: _written(templates, template),
            self.template: gr.Dropdown(choices=_offered(templates)),
        }

    def way(self, dataset_id: str, base_model: str | None, max_length: Any, template: str, data: Mapping[str, Any]) -> Alternative:
        """The way on whose button was pressed, looked up again in the rows."""
        rendered = self._studio.datasets.render(
            dataset_id, base_model=base_model or "", rows=1, max_length=length(max_length), chat_template=template or None
        )
        return way_of(rendered, data)

    def turn(self, step: int, rows: int, first: int) -> int:
        last = max(0, (rows - 1) // PAGE_ROWS * PAGE_ROWS)
        return min(max(0, first + step * PAGE_ROWS), last)


def length(value: Any) -> int | None:
    """What the field means; None, what a training takes, where it is empty or makes no sense."""
    written = str(value).strip().replace(",", "")
    if written.isdecimal() and 8 <= (number := int(written[:9])) <= 1_048_576:
        return number
    return None


def warnings(rendered: Rendering) -> list[str]:
    """What would keep a launch from starting, in sentences."""
    found = [f"Row {problem.line}: {problem.problem}" for problem in rendered.problems[:MAX_WARNINGS]]
    if rendered.share_without_learned_tokens > MAX_ROWS_WITHOUT_LEARNED_TOKEN:
        allowed = words.share(MAX_ROWS_WITHOUT_LEARNED_TOKEN)
        found.append(f"More than {allowed} of the rows would teach nothing, so training will not start. {_way_on(rendered)}")
    for token, count in list(rendered.control_tokens.items())[:MAX_WARNINGS]:
        rows = words.count(count, "row")
        found.append(f"{token} is written as text in {rows}, and the model reads it as a mark, here and in a chat. The report mends it.")
    return found


def _way_on(rendered: Rendering) -> str:
    if rendered.cut_before_learned > max(rendered.nothing_learned, rendered.problem_count):
        return "Raise max length, or shorten the rows."
    if rendered.nothing_learned > rendered.problem_count:
        return "They have no answer, or all their answers are marked not to be trained."
    return "The chat template refuses them: correct them, or choose another template."


def _asked(options: Options) -> dict[str, Any]:
    return {key: options[key] for key in ("base_model", "max_length", "chat_template")}


def _rows(rendered: Rendering) -> str:
    return pieces.piece(
        "learned",
        drawing=histogram.lengths(rendered, "tokens", "Length of the rows in tokens", rendered.max_length),
        offer=0 < rendered.p99 != rendered.max_length,
        p99=max(8, rendered.p99),
        rendered=rendered,
        rows=[tokens.coloured(row) for row in rendered.rows],
        warnings=warnings(rendered),
        take="Train with this",
    )


def way_of(rendered: Rendering, data: Mapping[str, Any]) -> Alternative:
    """The way on whose button was pressed. Raises StudioError where the rows have changed since."""
    number, way = int(data["advice"]), int(data["way"])
    if number >= len(rendered.advice) or way >= len(rendered.advice[number].alternatives):
        raise StudioError("This choice is no longer there.", "Look at the rows again.")
    return rendered.advice[number].alternatives[way]


def taken(way: Alternative) -> str:
    """What was set, for people."""
    return f"{way.title}: {listed(f'{key}={value}' for key, value in way.change.items())}."


def _offered(templates: list[TemplateInfo]) -> list[choices.Choice]:
    """A base model without a template of its own is offered the studio's, Alpaca unless another is chosen."""
    return [(TITLES[template.name], template.choice) for template in templates]


def _written(templates: list[TemplateInfo], chosen: str | None) -> str:
    template = next((each for each in templates if each.choice == (chosen or "")), templates[0])
    row = tokens.coloured(template.preview)
    return pieces.piece(
        "template",
        title=TITLES[template.name],
        about=ABOUT[template.name],
        pieces=row["pieces"],
        problem=row["problem"],
        stops=[stop.replace("\n", "\\n") for stop in template.stop_strings],
    )
