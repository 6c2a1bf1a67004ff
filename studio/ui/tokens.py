"""Rows as runs of tokens with the same fate: learned, only read, or cut off. Knows nothing of the page around them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from studio.records import RenderedRow

FATES = {True: "learned", False: "read"}
CUT = "cut"
MAX_CHARACTERS = 2_000  # of each part of a row; a long one is cut on the page, not in the data


def coloured(row: RenderedRow) -> dict[str, Any]:
    """Data of one row of templates/tokens.html from a row of DatasetService.render."""
    kept = _runs(row.tokens, [FATES[own] for own in row.learned])
    return {
        "row": row.row,
        "pieces": kept + _runs(row.cut, [CUT] * len(row.cut)),
        "length": row.length,
        "learned": sum(row.learned),
        "truncated": row.truncated,
        "problem": row.problem or "",
    }


def _runs(tokens: list[str], fates: list[str]) -> list[list[str]]:
    """`[text, fate]` of neighbours with one fate, at most MAX_CHARACTERS in all."""
    runs: list[list[str]] = []
    room = MAX_CHARACTERS
    for fate, members in groupby(zip(tokens, fates, strict=True), key=lambda pair: pair[1]):
        text = "".join(token for token, _ in members)
        runs.append([text[:room] + " …" * (len(text) > room), fate])
        room -= len(text)
        if room <= 0:
            break
    return runs
