"""Rows as a base model sees them: single rows rendered whole, and what all rows come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from studio.datasets import lengths
from studio.datasets.ingest import Problems
from studio.datasets.records import Problem
from studio.datasets.rendering import Rendered, Renderer
from studio.datasets.report.control_tokens import ControlTokens
from studio.errors import DatasetError
from studio.records import RenderedRow, TrainingCheck
from studio.types import DroppedPart, Example, Message, Role


class Rows(Protocol):
    """Rows as they are learned: a renderer, or one with the options of a training."""

    def example(self, example: Example, max_length: int | None = None) -> Rendered: ...


UNCUT = 2**31
SAMPLE = [
    Message(role=Role.SYSTEM, content="Answer in one word."),
    Message(role=Role.USER, content="What is the capital of Peru?"),
    Message(role=Role.ASSISTANT, content="Lima"),
]


def rendered_row(renderer: Rows, example: Example, number: int, max_length: int) -> RenderedRow:
    """A row as training cuts it, and what it cuts; a refusal of the template is the row's problem."""
    rendered = _rendered(renderer, example)
    if isinstance(rendered, DatasetError):
        nothing = RenderedRow(row=number, text="", tokens=[], ids=[], learned=[], cut=[], cut_learned=[], truncated=False, length=0)
        return nothing.model_copy(update={"problem": str(rendered)})
    tokens = rendered.tokens()
    return RenderedRow(
        row=number,
        text=rendered.text,
        tokens=tokens[:max_length],
        ids=rendered.ids[:max_length],
        learned=rendered.learned[:max_length],
        cut=tokens[max_length:],
        cut_learned=rendered.learned[max_length:],
        truncated=rendered.length > max_length,
        length=rendered.length,
        left_out=list(rendered.left_out),
    )


def preview(renderer: Renderer) -> RenderedRow:
    """How a template writes SAMPLE; one that refuses system prompts gets it without."""
    shown = rendered_row(renderer, Example(messages=SAMPLE), 1, UNCUT)
    if shown.problem is None:
        return shown
    return rendered_row(renderer, Example(messages=SAMPLE[1:]), 1, UNCUT)


def check(
    renderer: Rows, examples: Iterable[tuple[int, Example]], max_length: int, rows: int, control: ControlTokens | None = None
) -> TrainingCheck:
    """Lengths and learned tokens of numbered rows, out of `rows`, and their `control` tokens; a row that can't be rendered learns nothing."""
    problems, found, truncated, checked = Problems(), [], 0, 0
    cut = nothing = empty = 0
    left_out: Counter[DroppedPart] = Counter()
    written: Counter[str] = Counter()
    for number, example in examples:
        checked += 1
        if control is not None:
            written.update(control.in_row(example.as_json()))
        rendered = _rendered(renderer, example, max_length)
        if isinstance(rendered, DatasetError):
            problems.add(Problem(number, rendered.message, rendered.fix))
            continue
        found.append(rendered.length)
        truncated += rendered.truncated
        left_out.update(rendered.left_out)
        empty += rendered.teaches_empty_reasoning
        if not any(rendered.learned[1:]):  # the first token is never predicted
            behind = rendered.truncated and any(renderer.example(example).learned)
            cut += behind
            nothing += not behind
    return TrainingCheck(
        rows=rows,
        checked=checked,
        truncated=truncated,
        share_truncated=truncated / max(1, checked),
        share_without_learned_tokens=(problems.count + cut + nothing) / max(1, checked),
        **dict(lengths.summary(found)),
        problems=problems.records(),
        problem_count=problems.count,
        cut_before_learned=cut,
        nothing_learned=nothing,
        left_out=dict(left_out),
        empty_reasoning=empty,
        control_tokens=dict(written.most_common()),
    )


def _rendered(renderer: Rows, example: Example, max_length: int | None = None) -> Rendered | DatasetError:
    try:
        return renderer.example(example, max_length)
    except DatasetError as exc:
        return exc
