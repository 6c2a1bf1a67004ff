"""The edge of a child process that works on rows: `python -m MODULE OPTIONS OUT`, both JSON files.

Progress goes to stdout, a JSON line each; what a person can mend to stderr, as one JSON line. It ends with its parent.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from studio.errors import StudioError
from studio.lifeline import end_with_parent

Progress = Callable[[str, float], None]


def run(arguments: list[str], work: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> int:
    """Exit code 0, or 1 for a StudioError, 3 for a defect."""
    if len(arguments) != 2:
        print("usage: OPTIONS OUT", file=sys.stderr)
        return 2
    options, out = map(Path, arguments)
    end_with_parent()
    try:
        out.write_bytes(orjson.dumps(work(orjson.loads(options.read_bytes()), tell)))
    except StudioError as exc:
        print(orjson.dumps(exc.as_json()).decode(), file=sys.stderr)
        return 1
    except Exception:  # noqa: BLE001 - the edge of this process
        traceback.print_exc()
        return 3
    return 0


def tell(stage: str, share: float) -> None:
    print(orjson.dumps({"stage": stage, "share": round(share, 3)}).decode(), flush=True)
