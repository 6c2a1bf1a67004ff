"""How an answer is made: sampling, presets, form and speed, as fields of the page and as values for the service.

Knows nothing of conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic import ValidationError

from studio.errors import StudioError
from studio.types import GenerationParams
from studio.ui.handlers import QUIET

FIELDS = GenerationParams.model_fields
PRESETS: dict[str, dict[str, Any]] = {
    "Balanced": {"temperature": 0.7, "top_p": 1.0, "top_k": 0},
    "Precise: always the likeliest": {"temperature": 0, "top_p": 1.0, "top_k": 0},
    "Careful: a little variety": {"temperature": 0.3, "top_p": 0.9, "top_k": 0},
    "Inventive": {"temperature": 1.1, "top_p": 0.95, "top_k": 0},
    "As trained: nothing bent": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
}
PRECISIONS = [("as it is (16 or 32 bit)", ""), ("8 bit", "int8"), ("4 bit (NF4)", "nf4")]
DRAFTS = [("off", ""), ("from the prompt itself", "prompt_lookup")]
TITLES = {
    "temperature": "Temperature",
    "max_new_tokens": "Longest answer · max_new_tokens",
    "top_p": "Likeliest share · top_p",
    "top_k": "Likeliest tokens · top_k",
    "repetition_penalty": "Repetition penalty",
    "presence_penalty": "Presence penalty",
    "frequency_penalty": "Frequency penalty",
    "seed": "Seed",
    "stop": "Stop at",
}


@dataclass(frozen=True)
class Wishes:
    """What was chosen, for ChatService.stream."""

    params: GenerationParams
    json_schema: str
    grammar: str
    quantization: str
    speculation: str
    recalls: bool
    tools: str = ""


class SettingsPiece:
    """The fields. `inputs` are handed to a handler, whose values `wishes` reads."""

    def __init__(self) -> None:
        self.preset = gr.Dropdown(
            list(PRESETS), value="Balanced", label="Preset", info="A starting point; change what you like.", elem_id="chat-preset"
        )
        with gr.Row():
            self.temperature = _number("temperature", 0.7, step=0.1)
            self.max_new_tokens = _number("max_new_tokens", 256, precision=0)
        with gr.Accordion("More sampling", open=False, elem_id="chat-more"):
            with gr.Row():
                self.top_p, self.top_k = _number("top_p", 1.0, step=0.05), _number("top_k", 0, precision=0)
            with gr.Row():
                self.repetition_penalty = _number("repetition_penalty", 1.0, step=0.05)
                self.presence_penalty = _number("presence_penalty", 0.0, step=0.1)
                self.frequency_penalty = _number("frequency_penalty", 0.0, step=0.1)
            with gr.Row():
                self.seed = gr.Textbox("", label=TITLES["seed"], info=FIELDS["seed"].description, max_lines=1, min_width=150)
                self.stop = gr.Textbox("", label=TITLES["stop"], info="A text that ends the answer.", max_lines=1, min_width=150)
        with gr.Accordion("Form and speed", open=False, elem_id="chat-form"):
            self.schema = gr.Textbox(
                "", label="JSON schema", info="The answer must fit it, whatever the model.", lines=1, max_lines=10, elem_id="chat-schema"
            )
            self.grammar = gr.Textbox("", label="GBNF grammar", info="Instead of a schema.", lines=1, max_lines=10, elem_id="chat-grammar")
            with gr.Row():
                self.quantization = gr.Dropdown(
                    PRECISIONS, value="", label="Precision of the base", info="4 bit takes a quarter of the memory.", min_width=150
                )
                self.speculation = gr.Dropdown(
                    DRAFTS,
                    value="",
                    label="Drafts · speculative decoding",
                    info="The same answer, sometimes sooner; for one contestant at temperature 0. The gain is told below it.",
                    min_width=150,
                    elem_id="chat-drafts",
                )
            self.recalls = gr.Checkbox(
                True,
                label="Recall equal questions",
                info="At temperature 0 or with a seed, an equal question gets its kept answer at once.",
            )
        with gr.Accordion("Tools", open=False, elem_id="chat-tools-fold"):
            self.tools = gr.Textbox(
                "",
                label="Tools that may be called",
                info="A JSON list of functions, as OpenAI's API takes them. A call is shown under the answer; you type its result.",
                lines=2,
                max_lines=16,
                placeholder='[{"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]',
                elem_id="chat-tools",
            )
        self.preset.input(choose_preset, inputs=[self.preset], outputs=[self.temperature, self.top_p, self.top_k], **QUIET)

    @property
    def inputs(self) -> list[Any]:
        numbers = [self.temperature, self.max_new_tokens, self.top_p, self.top_k, self.repetition_penalty]
        numbers += [self.presence_penalty, self.frequency_penalty, self.seed, self.stop]
        return [*numbers, self.schema, self.grammar, self.quantization, self.speculation, self.recalls, self.tools]


def choose_preset(name: str) -> list[Any]:
    chosen = PRESETS.get(name, PRESETS["Balanced"])
    return [chosen["temperature"], chosen["top_p"], chosen["top_k"]]


def wishes(values: Sequence[Any]) -> Wishes:
    """From the values of `inputs`. Raises StudioError naming the field that can't be used."""
    names = list(TITLES)
    given = dict(zip(names, values[: len(names)], strict=True))
    seed, stop = str(given.pop("seed") or "").strip(), str(given.pop("stop") or "")
    if seed and not seed.lstrip("-").isdigit():
        raise StudioError("The seed must be a whole number.", "Leave it empty for a new answer each time.")
    try:
        params = GenerationParams(**_whole(given), seed=int(seed) if seed else None, stop=(stop,) if stop else ())
    except ValidationError as exc:
        raise StudioError(*_problem(exc)) from None
    *texts, recalls, tools = values[len(names) :]
    schema, grammar, quantization, speculation = ((text or "").strip() for text in texts)
    return Wishes(params, schema, grammar, quantization, speculation, bool(recalls), (tools or "").strip())


def _whole(given: dict[str, Any]) -> dict[str, Any]:
    return {name: int(value) if name in ("max_new_tokens", "top_k") and value is not None else value for name, value in given.items()}


def _problem(exc: ValidationError) -> tuple[str, str]:
    error = exc.errors()[0]
    name = str(error["loc"][0])
    return f"{TITLES[name].partition(' · ')[0]}: {error['msg'][0].lower()}{error['msg'][1:]}.", f"{FIELDS[name].default} is usual."


def _number(name: str, value: float, **more: Any) -> gr.Number:
    return gr.Number(value, label=TITLES[name], info=FIELDS[name].description, min_width=140, elem_id=f"chat-{name}", **more)
