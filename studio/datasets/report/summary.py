"""From what was seen in single rows to findings about the dataset, and its languages. Knows no files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from studio.datasets.report.checks import CHECKS
from studio.datasets.report.scan import EXAMPLES, ScannedPart

SHOWN_ROWS = 100
SHOWN_NAMES = 100
LONG_CHARS, LONG_TIMES = 6000, 10
MOSTLY = 0.5  # a language that fewer rows are in is not the dataset's own
ONE_WORD_SHARE = 0.3  # from here on, answering in one word is how this dataset answers
LABELS, ROWS_PER_LABEL = 20, 3


def very_long(sizes_in_chars: Sequence[int]) -> list[int]:
    """Rows (from 1) of at least 6,000 characters and ten times the median of the others."""
    sizes = np.array(sizes_in_chars, np.int64)
    long = np.zeros(len(sizes), bool)
    while not long.all():
        more = (sizes >= LONG_CHARS) & (sizes > LONG_TIMES * np.median(sizes[~long]))
        if (more <= long).all():
            break
        long |= more
    return [] if long.all() else (np.flatnonzero(long) + 1).tolist()


def one_word_answers(part: ScannedPart) -> list[int]:
    """Rows, where answers are neither labels nor mostly one word."""
    if part.rows_of_one_word >= ONE_WORD_SHARE * max(1, part.rows_with_answers):
        return []
    if len(part.labels) <= LABELS and part.rows_with_answers >= ROWS_PER_LABEL * len(part.labels):
        return []
    return part.one_word


def other_languages(languages: Mapping[int, str]) -> dict[int, str]:
    """Row -> its language, where most rows are in another one."""
    main, count = (Counter(languages.values()).most_common(1) or [("", 0)])[0]
    if count <= MOSTLY * len(languages):
        return {}
    return {row: code for row, code in languages.items() if code != main}


def shares(languages: Mapping[int, str]) -> list[dict[str, Any]]:
    counts = Counter(languages.values()).most_common()
    return [{"language": code, "share": round(count / len(languages), 4)} for code, count in counts]


def single_class(part: ScannedPart) -> list[int]:
    """All rows, where every answer is marked and all are marked alike."""
    return list(range(1, len(part.sizes) + 1)) if len(part.marks) == 1 and part.marks.total() == len(part.sizes) else []


def findings(
    rows: Mapping[str, list[int]], excerpts: Mapping[str, list[tuple[int, str]]], names: Mapping[str, Counter[str]]
) -> list[dict[str, Any]]:
    """One entry per check that found rows, in the order of the checks."""
    return [
        {
            "check": check.name,
            "title": check.title,
            "count": len(rows[check.name]),
            "rows": rows[check.name][:SHOWN_ROWS],
            "examples": [{"row": row, "text": text} for row, text in excerpts.get(check.name, [])[:EXAMPLES]],
            "explanation": check.explanation,
            "fix": check.fix,
            "action": check.action,
            "severity": check.severity,
            "names": dict(names[check.name].most_common(SHOWN_NAMES)) if check.name in names else {},
        }
        for check in CHECKS
        if rows.get(check.name)
    ]
