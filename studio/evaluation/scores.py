"""What a metric gives: a score, or the reason why it can't say anything about a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Pair = tuple[str, list[str]]
NO_MODEL = "no base model was named to read the texts"  # of a metric that needs one and was not asked for


@dataclass(frozen=True)
class CantSay:
    """A metric says nothing about a text, or about all of them: null, with this reason, and never 0."""

    reason: str


@dataclass(frozen=True)
class CorpusScore:
    """One score of many pairs."""

    value: float
    counted: int  # pairs that it speaks of
    tokenizer: str = ""  # BLEU's


def mean(scores: Sequence[float | CantSay]) -> CorpusScore | CantSay:
    """Of the rows that have a score; without one, the commonest reason."""
    known = [score for score in scores if not isinstance(score, CantSay)]
    if known:
        return CorpusScore(sum(known) / len(known), len(known))
    reasons = Counter(score.reason for score in scores if isinstance(score, CantSay))
    return CantSay(reasons.most_common(1)[0][0])
