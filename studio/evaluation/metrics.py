"""Scores of predictions against references. Definitions are named; nothing is normalised behind the reader's back."""

from __future__ import annotations

from collections.abc import Sequence


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Verbatim equality after trimming white space at both ends, with any of the references."""
    return prediction.strip() in {reference.strip() for reference in references}
