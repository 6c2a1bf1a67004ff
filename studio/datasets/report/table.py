"""A file of rows, one JSON object per line, by row number: where each line is, and which lines are the same. Knows no checks."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson


class RowTable:
    """Rows count from 0 here. Holds 24 bytes per row; lines are read when they are asked for, inside `with`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        starts, prints = [0], bytearray()
        with path.open("rb") as file:
            for line in file:
                starts.append(starts[-1] + len(line))
                prints += blake2b(line.strip(), digest_size=16).digest()
        self._starts = np.array(starts, np.int64)
        self._prints = np.frombuffer(bytes(prints), np.dtype([("a", "<u8"), ("b", "<u8")]))
        self._file = path.open("rb")

    def __len__(self) -> int:
        return len(self._prints)

    def __enter__(self) -> RowTable:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def lines(self, start: int, stop: int) -> list[bytes]:
        """Some lines, from row `start` to before `stop`."""
        self._file.seek(int(self._starts[start]))
        content = self._file.read(int(self._starts[stop] - self._starts[start]))
        return content.splitlines()  # JSON escapes every line end inside a text

    def row(self, number: int) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.lines(number, number + 1)[0])
        return found

    def chunks(self, rows: int, limit_bytes: int) -> Iterator[tuple[int, int]]:
        """Ranges of at most so many rows and (but for a single row) bytes."""
        start = 0
        while start < len(self):
            by_bytes = int(np.searchsorted(self._starts, self._starts[start] + limit_bytes, side="right")) - 1
            stop = min(len(self), start + rows, max(start + 1, by_bytes))
            yield start, stop
            start = stop

    def sample(self, rows: int, limit_bytes: int) -> Iterator[int]:
        """At most so many rows, evenly spread; fewer where they are long, so that they have about so many bytes."""
        count = max(1, min(rows, limit_bytes * len(self) // max(1, int(self._starts[-1]))))
        return iter(range(0, len(self), max(1, -(-len(self) // count))))

    def repeats(self) -> npt.NDArray[np.int64]:
        """For each row the first row with the same line, itself included."""
        _, first, group = np.unique(self._prints, return_index=True, return_inverse=True)
        return first[group]

    def also_in(self, other: RowTable) -> npt.NDArray[np.bool_]:
        """For each row whether another table has the same line."""
        return np.isin(self._prints, other._prints)
