"""The fit bar's arithmetic: shares of what there is, or of what is needed where that is more."""

from __future__ import annotations

from typing import Any

import pytest

from studio.ui import pieces
from studio.ui.fit import bar

FOUND: dict[str, Any] = {
    "breakdown": {"base_weights": 600, "adapter": 100, "activations": 200, "logits": 50, "overhead": 50},
    "process_bytes": 0, "room_bytes": 2000, "margin_bytes": 1000, "fits": True, "error_bytes": 100, "advice": [], "warnings": ["<script>"],
    "device": "cuda", "peak_at": "output layer", "paged_bytes": 0, "longest_max_length": 512, "largest_batch": 8,
    "chat": {"bytes": 10, "stays_loaded": True}, "correction": {"factor": 1.0, "runs": 0},
}  # fmt: skip


@pytest.mark.parametrize(("room", "share", "limit"), [(2000, 30.0, 100.0), (500, 60.0, 50.0), (None, 60.0, None)])
def test_segments_are_shares_of_the_larger_of_room_and_need(room: int | None, share: float, limit: float | None) -> None:
    # red when a bar that does not fit overflows, or one that fits hides its margin
    shown = bar({**FOUND, "room_bytes": room})
    assert shown["segments"][0]["percent"] == share and shown["room_percent"] == limit
    assert sum(part["percent"] for part in shown["segments"]) <= 100.01


def test_the_piece_escapes_and_says_what_is_short() -> None:
    html = pieces.piece("fit", **bar({**FOUND, "fits": False, "margin_bytes": -1024, "room_bytes": 500}))
    assert "<script>" not in html and "does not fit" in html and "1.0 KiB short" in html
