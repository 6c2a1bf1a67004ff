"""Rows of train.jsonl and eval.jsonl as tokens and labels, rendered by the same renderer as the preview and the chat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from studio.datasets.rendering import Renderer
from studio.errors import DatasetError
from studio.types import Example

if TYPE_CHECKING:
    from datasets import Dataset

IGNORED = -100  # label of a token that is read but not learned


@dataclass(frozen=True)
class TokenRows:
    """Columns `input_ids` and `labels`, without the rows that hold nothing to learn or that the template refuses.

    `refusal` says where and why the template refused a row first; those rows count as without learned tokens.
    """

    dataset: Dataset
    read: int
    without_learned_tokens: int
    truncated: int
    refusal: str


def tokenize(path: Path, renderer: Renderer, max_length: int) -> TokenRows:
    """Raises DatasetError naming the line of what is no row at all."""
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    ids, labels = [np.empty(0, np.int32)], [np.empty(0, np.int32)]
    read = empty = truncated = 0
    refusal = ""
    for number, example in _examples(path):
        read += 1
        try:
            row = renderer.example(example, max_length)
        except DatasetError as exc:
            refusal = refusal or f"{path.name}, line {number}: {exc.message}"
            empty += 1
            continue
        truncated += row.truncated
        if not any(row.learned[1:]):  # the first token is never predicted
            empty += 1
            continue
        tokens = np.asarray(row.ids, np.int32)
        ids.append(tokens)
        labels.append(np.where(row.learned, tokens, IGNORED).astype(np.int32))
    ends = np.cumsum([len(part) for part in ids]).astype(np.int64)
    columns = {
        name: pa.LargeListArray.from_arrays(ends, pa.array(np.concatenate(parts), type=pa.int32()))
        for name, parts in (("input_ids", ids), ("labels", labels))
    }
    return TokenRows(Dataset(pa.table(columns)), read, empty, truncated, refusal)


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
