"""What a chat template leaves out of rows, in sentences with the ways on. Knows no files and no database."""

from __future__ import annotations

from collections.abc import Mapping

from studio.datasets.rendering import Renderer
from studio.records import Advice, Alternative, TemplateLoss, TokenFigures
from studio.types import DroppedPart

WHAT = {
    DroppedPart.SYSTEM: "the system message",
    DroppedPart.REASONING: "the reasoning",
    DroppedPart.EARLIER_REASONING: "the reasoning of earlier answers that are learned",
}
FOLD = Alternative(
    title="Put the system message before the first question (the changed template goes with the adapter)", change={"system_message": "fold"}
)
LAST = Alternative(title="Learn the last answer only", change={"learned_turns": "last"})
DROP = Alternative(title="Train without reasoning", change={"reasoning": "drop"})
CONTEXT = Alternative(title="Write the block without teaching it", change={"reasoning": "context"})
ACCEPT = Alternative(title="Go on without what is left out", change={"template_losses": "accept"})
OWN = {DroppedPart.SYSTEM: [FOLD], DroppedPart.REASONING: [DROP], DroppedPart.EARLIER_REASONING: [LAST]}


def losses(renderer: Renderer, left_out: Mapping[DroppedPart, int], rows: int) -> list[TemplateLoss]:
    """`left_out` counts rows, out of `rows` that were looked at."""
    keeping = Alternative(
        title="Train with a template that writes it, which goes with the adapter", change={"chat_template": _keeping(renderer)}
    )
    return [
        TemplateLoss(
            what=what,
            rows=left_out[what],
            sentence=f"The chat template ({renderer.template_name}) leaves out {WHAT[what]} of {left_out[what]} of {rows} rows looked at.",
            alternatives=[*OWN[what], keeping, ACCEPT],
        )
        for what in DroppedPart
        if left_out.get(what)
    ]


def advice(renderer: Renderer, found: TokenFigures) -> list[Advice]:
    """What a person should choose about before a training on these rows, with every way on."""
    said: list[Advice] = [*losses(renderer, found.left_out, found.checked)]
    if found.empty_reasoning:
        sentence = f"An empty block of reasoning is learned in {found.empty_reasoning} of {found.checked} rows looked at, which teaches "
        said.append(Advice(sentence=f"{sentence}not to think.", alternatives=[CONTEXT]))
    return said


def _keeping(renderer: Renderer) -> str:
    """A template of the studio that writes system messages and reasoning: with marks that the base knows, or in plain words."""
    if renderer.tokenizer.token_to_id("<|im_start|>") is not None and renderer.template_name != "chatml":
        return "chatml"
    return "alpaca"
