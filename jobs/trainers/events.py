"""What a trainer reports: one JSON object a line in events.jsonl, written and flushed at once. Knows nothing of who reads it."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events; each has `type` and `at`. Numbers that are not finite become null, as JSON has none."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, **values: Any) -> None:
        event = {"type": kind, "at": round(time.time(), 3), **{key: _finite(value) for key, value in values.items()}}
        self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def notice(self, text: str) -> None:
        """Something a person should know; also in the log."""
        print(text, flush=True)
        self.write("notice", text=text)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
