"""How far a download is, on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from studio.terminals import redraw

if TYPE_CHECKING:
    from studio.records import Fetched


class DownloadBar:
    """On a terminal one line that is written again, elsewhere a line for every tenth."""

    def __init__(self) -> None:
        self._told = -1

    def __call__(self, now: Fetched) -> None:
        part = 100
        if now.total:
            part = 100 * now.done // now.total
        if sys.stderr.isatty():
            redraw(f"Fetched {now.done / 1e9:.2f} of {now.total / 1e9:.2f} GB ({part} %)", is_last=part == 100)
        elif part // 10 > self._told // 10 or self._told < 0:
            print(f"Fetched {now.done:,} of {now.total:,} bytes ({part} %)", file=sys.stderr, flush=True)
        self._told = part
