"""Parity: does training see the same token ids as a chat? Rows are rendered both ways and compared id by id.

For every answer of a row a chat would send the prompt before it, and the model would go on with the answer. Training sees the
whole row at once. Where a template writes history, system prompts, thoughts or white space differently, the two differ, and the
model is asked something else than it was taught. Knows no files and no database.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date

from studio.datasets.dialogue import PROBE_ANSWER
from studio.datasets.rendering import Rendered, Renderer
from studio.datasets.template_losses import losses
from studio.datasets.turns import Tools, Turn
from studio.errors import DatasetError
from studio.records import Parity, ParityDifference
from studio.types import DroppedPart, Example, Message

SHOWN_IDS = 24  # of each side in the excerpts, from the first difference on
SHARED_IDS = 16  # before it


@dataclass(frozen=True)
class Sent:
    """What chat would hold in its context once the answer is given. `is_whole`: training sees nothing behind it either."""

    ids: list[int]
    text: str
    reason: str  # what to say when they differ
    is_whole: bool


def compare(renderer: Renderer, rows: Iterable[tuple[int, Example]], max_length: int | None = None) -> Parity:
    """Compare numbered rows; `first_difference` is the first row's that differs."""
    compared = identical = skipped = 0
    first = None
    left_out: Counter[DroppedPart] = Counter()
    for number, example in rows:
        try:
            training = renderer.example(example, max_length)
            sides = list(_sides(renderer, example, training))
        except DatasetError:  # training refuses the row itself: the report on learned tokens says so
            skipped += 1
            continue
        if not sides:
            skipped += 1
            continue
        compared += 1
        left_out.update(training.left_out)
        found = _first_difference(training, sides)
        identical += found is None
        if found is not None and first is None:
            first = _shown(renderer, number, training, *found)
    return Parity(
        rows=compared,
        identical=identical,
        skipped=skipped,
        same=compared > 0 and identical == compared,
        template_name=renderer.template_name,
        template_sha256=renderer.template_sha256,
        first_difference=first,
        losses=losses(renderer, left_out, compared),
        **_dates(renderer),
    )


def _dates(renderer: Renderer) -> dict[str, str]:
    """What a template that prints a date prints here and there; both sides are compared with the training's."""
    today = date.today().isoformat()
    if not renderer.dialogue.prints_date:
        return {}
    return {"training_date": renderer.options.date or today, "chat_date": today}


def _sides(renderer: Renderer, example: Example, training: Rendered) -> Iterator[Sent]:
    """What chat would hold at each answer of the row."""
    if example.text is not None:
        yield _document(renderer, example.text, "")
    elif isinstance(example.prompt, str) and isinstance(example.completion, str):
        yield _document(renderer, example.prompt, example.completion)
    else:
        yield from _answers(renderer, _conversation(example), example.tools, training)


def _conversation(example: Example) -> list[Message]:
    """The turns that training renders, as Renderer.example puts them together."""
    parts = example.parts()
    return [turn for part in parts if part and not isinstance(part, str) for turn in part]


def _document(renderer: Renderer, prompt: str, completion: str) -> Sent:
    """A text sent to /v1/completions, and what follows it up to the end token."""
    start = renderer.completion_prompt(prompt)
    ids = start
    if completion:
        ids = start + _continuation(renderer, prompt, prompt + completion, True)
    end = [token for token in (renderer.eos_token_id,) if token is not None]
    if ids[-1:] == end:
        end = []
    reason = "The tokenizer writes the prompt alone differently from the prompt with its answer."
    return Sent(ids + end, prompt + completion, reason, True)


def _answers(renderer: Renderer, messages: list[Message], tools: Tools, training: Rendered) -> Iterator[Sent]:
    for i, message in enumerate(messages):
        if message.role != "assistant" or i == 0:  # nobody sends an empty conversation
            continue
        try:
            prompt = renderer.prompt(messages[:i], tools)
        except DatasetError as exc:
            yield Sent([], "", f"Chat can't send this conversation: {exc.message}", True)
            continue
        written = _Answer(renderer, messages, tools, i, training, prompt.text)
        text = prompt.text + written.text
        ids = prompt.ids + _continuation(renderer, prompt.text, text, False)
        yield Sent(ids, text, written.reason, i + 1 == len(messages))


class _Answer:
    """Turn `i` as the model would write it behind the prompt: what it learned to put before, its content word for word, its end."""

    def __init__(self, renderer: Renderer, messages: list[Message], tools: Tools, i: int, training: Rendered, prompt: str) -> None:
        self._renderer, self._training, self._prompt = renderer, training, prompt
        turns, tools = renderer.turns(messages, tools)
        self._is_last = i + 1 == len(messages)
        # adapting may put a system turn in front
        place = i + len(turns) - len(messages)
        self._content = str(turns[place]["content"])
        calls = bool(turns[place].get("tool_calls"))
        self._before, self._after = ("", "") if calls else self._frame(turns, tools, place)
        self.text, self.reason = self._calls() if calls else self._words()

    def _frame(self, turns: list[Turn], tools: Tools, place: int) -> tuple[str, str]:
        """What training writes before and after the answer's own words."""
        swapped = [*turns[:place], {**turns[place], "content": PROBE_ANSWER}, *turns[place + 1 :]]
        before, _, after = self._renderer.dialogue.text(swapped, tools).partition(PROBE_ANSWER)
        return before, after

    def _words(self) -> tuple[str, str]:
        if not self._training.text.startswith(self._prompt) or not self._before.startswith(self._prompt):
            return self._content, "The template writes what comes before this answer differently for training and for chat."
        lead = self._before[len(self._prompt) :]
        if not self._learns(len(self._prompt), len(self._before)):
            return self._content + self._after, f"Training puts {lead!r} before the answer; chat does not send it, and nothing teaches it."
        return lead + self._content + self._end(), self._why(lead)

    def _calls(self) -> tuple[str, str]:
        """Calls of tools have no words of their own in the row: what training writes behind the prompt, up to where learning ends."""
        start = len(self._prompt)
        if not self._training.text.startswith(self._prompt):
            return self._content, "The template writes what comes before this call differently for training and for chat."
        return self._training.text[start : self._learned_until(start)], "A token reaches from the prompt into the call."

    def _end(self) -> str:
        """What closes the answer: everything behind the last one, else as much of it as is learned."""
        if self._is_last:
            return self._after
        start = len(self._before) + len(self._content)
        return self._after[: max(0, self._learned_until(start) - start)]

    def _why(self, lead: str) -> str:
        trimmed = self._content.strip()
        written = self._training.text.startswith(self._prompt + lead + self._content)
        if not written and self._training.text[len(self._prompt) :].lstrip().startswith(trimmed):
            return "The template trims white space around the answer, so training sees other words than the row has."
        if not written:
            return "The template writes the answer differently from how it stands in the row."
        return "A token reaches from the prompt into the answer, which the model can't write."

    def _learns(self, start: int, end: int) -> bool:
        """Whether training learns every character of `start:end` of its text."""
        inside = zip(self._training.offsets, self._training.learned, strict=True)
        return all(learned for (first, last), learned in inside if first < end and last > start)

    def _learned_until(self, start: int) -> int:
        """The end of the learned run that reaches over `start`."""
        end = start
        for (first, last), learned in zip(self._training.offsets, self._training.learned, strict=True):
            if last <= start:
                continue
            if not learned and first >= start:
                break
            end = max(end, last)
        return end


def _continuation(renderer: Renderer, prompt: str, text: str, special: bool) -> list[int]:
    """Ids of `text` behind `prompt`, tokenised as they stand there."""
    encoding = renderer.tokenizer.encode(text, add_special_tokens=special)
    at = len(prompt)
    rows = list(zip(encoding.ids, encoding.offsets, encoding.special_tokens_mask, strict=True))
    ids = [i for i, (start, _), added in rows if start >= at and not added]
    crossing = next((end for _, (start, end), _ in rows if start < at < end), None)
    if crossing is None:
        return ids
    # the model can't write a token that begins in its prompt: it writes the rest of it first
    return [*renderer.tokenizer.encode(text[at:crossing], add_special_tokens=False).ids, *ids]


def _first_difference(training: Rendered, sides: list[Sent]) -> tuple[int, Sent] | None:
    """The earliest position at which any of `sides` leaves what training sees."""
    found = [(position, sent) for sent in sides if (position := _difference(training, sent)) is not None]
    return min(found, key=lambda pair: pair[0], default=None)


def _difference(training: Rendered, sent: Sent) -> int | None:
    shared = next(
        (n for n, (a, b) in enumerate(zip(training.ids, sent.ids, strict=False)) if a != b), min(len(training.ids), len(sent.ids))
    )
    is_through = shared == len(training.ids) and (training.truncated or shared == len(sent.ids))
    is_part = 0 < shared == len(sent.ids) and not sent.is_whole
    if is_through or is_part:
        return None
    return shared


def _shown(renderer: Renderer, row: int, training: Rendered, position: int, sent: Sent) -> ParityDifference:
    def excerpt(ids: list[int]) -> str:
        return renderer.decode(ids, skip_special_tokens=False)

    return ParityDifference(
        row=row,
        position=position,
        training=training.ids,
        chat=sent.ids,
        training_text=training.text,
        chat_text=sent.text,
        reason=sent.reason,
        shared=excerpt(training.ids[max(0, position - SHARED_IDS) : position]),
        training_next=excerpt(training.ids[position : position + SHOWN_IDS]),
        chat_next=excerpt(sent.ids[position : position + SHOWN_IDS]),
    )
