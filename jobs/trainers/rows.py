"""Rows of train.jsonl and eval.jsonl as tokens, rendered by the same renderer as the preview and the chat.

What a row becomes depends on the objective: ids and labels; a prompt with a better and a worse answer; a prompt with an answer
and whether it is good.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from jobs.config import JobConfig
from jobs.objectives import RowForm
from studio.datasets.rendering import Rendered, Renderer
from studio.errors import DatasetError
from studio.types import DroppedPart, Example, LearnedTurns, Message

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # label of a token that is read but not learned
Row = dict[str, Any]


@dataclass(frozen=True)
class TokenRows:
    """Columns of tokens, without the rows that hold nothing to learn or that the template refuses.

    `refusal` says where and why a row was refused first, and `way_on` what helps; those rows count as without learned tokens.
    """

    dataset: Dataset
    read: int
    without_learned_tokens: int
    truncated: int
    refusal: str
    way_on: str
    left_out: Mapping[DroppedPart, int]  # rows of which the chat template does not write something
    empty_reasoning: int  # rows that teach an empty block of reasoning
    with_tools: int  # rows that name tools


@dataclass(frozen=True)
class Tokens:
    """One row: its columns, None where it holds nothing to learn; `refusal` where the template refuses it."""

    columns: Row | None
    truncated: bool = False
    refusal: str = ""
    way_on: str = ""  # what helps against the refusal
    left_out: Collection[DroppedPart] = ()
    empty_reasoning: bool = False
    has_tools: bool = False


def tokenize(path: Path, renderer: Renderer, config: JobConfig) -> TokenRows:
    """Raises DatasetError naming the line of what is no row at all."""
    rows = list(token_rows(path, renderer, config))
    found = [row.columns for row in rows if row.columns is not None]
    refusal, way_on = next(((row.refusal, row.way_on) for row in rows if row.refusal), ("", ""))
    left_out = Counter(what for row in rows for what in row.left_out)
    empty = sum(row.empty_reasoning for row in rows)
    truncated, with_tools = sum(row.truncated for row in rows), sum(row.has_tools for row in rows)
    return TokenRows(_table(found), len(rows), len(rows) - len(found), truncated, refusal, way_on, left_out, empty, with_tools)


def token_rows(path: Path, renderer: Renderer, config: JobConfig) -> Iterator[Tokens]:
    """Each row of the file; imports no torch. Raises DatasetError naming the line of what is no row at all."""
    render = _RENDERERS[config.objective_entry.rows]
    for number, example in _examples(path):
        try:
            yield dataclasses.replace(render(example, renderer, config), has_tools=bool(example.tools))
        except DatasetError as exc:
            yield Tokens(None, refusal=f"{path.name}, line {number}: {exc.message}", way_on=exc.fix)


@dataclass(frozen=True)
class TrainedRows:
    """Rows as a training with `config` learns and cuts them, for whoever shows them. Imports no torch."""

    renderer: Renderer
    config: JobConfig

    def example(self, example: Example, max_length: int | None = None) -> Rendered:
        """With `max_length`, it is cut as the training's max_length does. Raises DatasetError where the training leaves the row out."""
        form = self.config.objective_entry.rows
        if form is RowForm.IMITATION:
            return _learned(example, self.renderer, self.config, max_length)
        row = self.renderer.example(example, max_length)
        if max_length is None:
            return row
        cut = _RENDERERS[form](example, self.renderer, self.config.model_copy(update={"max_length": max_length}))
        return dataclasses.replace(row, truncated=cut.truncated)


def _learned(example: Example, renderer: Renderer, config: JobConfig, max_length: int | None) -> Rendered:
    row = renderer.example(example, max_length)
    only_answers = config.completion_only_loss
    if example.messages is not None:
        only_answers = config.assistant_only_loss
    if only_answers:
        return row
    return dataclasses.replace(row, learned=[not barred for barred in row.barred])


def _imitated(example: Example, renderer: Renderer, config: JobConfig) -> Tokens:
    """`input_ids` and `labels`."""
    import numpy as np

    row = _learned(example, renderer, config, config.max_length)
    learned = row.learned
    if not any(learned[1:]):  # the first token is never predicted
        return Tokens(None, row.truncated)
    ids = np.asarray(row.ids, np.int32)
    columns = {"input_ids": ids, "labels": np.where(learned, ids, IGNORED).astype(np.int32)}
    return Tokens(columns, row.truncated, left_out=row.left_out, empty_reasoning=row.teaches_empty_reasoning)


def _paired(example: Example, renderer: Renderer, config: JobConfig) -> Tokens:
    """`prompt_ids`, `chosen_ids`, `rejected_ids`: both answers go on from the same prompt."""
    if not example.chosen or not example.rejected:
        raise DatasetError("The row holds no pair of a chosen and a rejected answer.", "Map its columns first.")
    prompt, (chosen, rejected), left_out = _split(example, (example.chosen, example.rejected), renderer)
    room = config.max_length - len(prompt)
    truncated = max(len(chosen), len(rejected)) > room
    if room < 1:
        raise _no_room(len(prompt), config)
    if chosen == rejected:
        raise DatasetError("The two answers are equal, so there is nothing to prefer.", "Leave the row out, or correct an answer.")
    if not chosen or not rejected:
        raise DatasetError("An answer is empty, or the chat template leaves it out.", "Leave the row out, or correct the answer.")
    if chosen[:room] == rejected[:room]:
        raise DatasetError(f"The two answers differ only behind max_length={config.max_length}.", "Raise max_length.")
    return Tokens({"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]}, truncated, left_out=left_out)


def _marked(example: Example, renderer: Renderer, config: JobConfig) -> Tokens:
    """`prompt_ids`, `completion_ids`, `label`."""
    if example.label is None or not example.completion:
        raise DatasetError("The row holds no answer marked good or bad.", "Map its columns first.")
    prompt, (answer,), left_out = _split(example, (_turns(example.completion, "assistant"),), renderer)
    room = config.max_length - len(prompt)
    if room < 1:
        raise _no_room(len(prompt), config)
    if not answer:
        raise DatasetError("The answer is empty, or the chat template leaves it out.", "Leave the row out, or correct the answer.")
    columns = {"prompt_ids": prompt, "completion_ids": answer[:room], "label": example.label}
    return Tokens(columns, len(answer) > room, left_out=left_out)


def _no_room(prompt: int, config: JobConfig) -> DatasetError:
    reason = f"The prompt has {prompt} tokens, so nothing of an answer is left of max_length={config.max_length}."
    return DatasetError(reason, "Raise max_length, or shorten the prompt.")


def _split(
    example: Example, answers: Sequence[list[Message]], renderer: Renderer
) -> tuple[list[int], list[list[int]], Collection[DroppedPart]]:
    """Ids of the prompt, and of each answer behind it, up to the last one that is learned; and what the template leaves out."""
    before = _turns(example.prompt, "user")
    # marks are of rows that are imitated; here the places of whole answers are wanted
    renderer = renderer.with_options(dataclasses.replace(renderer.options, learned_turns=LearnedTurns.ALL))
    prompt = renderer.prompt(before, example.tools).ids
    rows = [renderer.example(Example(messages=[*before, *answer], tools=example.tools)) for answer in answers]
    # a template may render the prompt alone in another way than before an answer
    shared = min(_common(prompt, row.ids) for row in rows)
    ends = [max((place for place, learned in enumerate(row.learned) if learned), default=-1) + 1 for row in rows]
    left_out = {what for row in rows for what in row.left_out}
    return prompt[:shared], [row.ids[shared:end] for row, end in zip(rows, ends, strict=True)], left_out


def _turns(text: str | list[Message] | None, role: Any) -> list[Message]:
    return [Message(role=role, content=text)] if isinstance(text, str) else list(text or [])


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _table(rows: list[Row]) -> Dataset:
    """Whole numbers in 32 bits, lists of any length."""
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    columns = {}
    for name in rows[0] if rows else ("input_ids", "labels"):
        values = [row[name] for row in rows]
        if values and isinstance(values[0], bool):
            columns[name] = pa.array(values)
            continue
        ends = np.cumsum([0, *(len(value) for value in values)]).astype(np.int64)
        flat = np.concatenate([np.empty(0, np.int32), *(np.asarray(value, np.int32) for value in values)])
        columns[name] = pa.LargeListArray.from_arrays(ends, pa.array(flat, type=pa.int32()))
    return Dataset(pa.table(columns))


def _examples(path: Path) -> Iterator[tuple[int, Example]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield number, Example.model_validate_json(line)
            except ValidationError as exc:
                reason = f"{path.name}, line {number}: not a row of the studio ({exc.errors()[0]['msg']})."
                raise DatasetError(reason, "Add the data again.") from None


_RENDERERS: dict[RowForm, Callable[[Example, Renderer, JobConfig], Tokens]] = {
    RowForm.IMITATION: _imitated,
    RowForm.PAIRED: _paired,
    RowForm.MARKED: _marked,
}
