"""Orders of passages, the likeliest to hold an answer first: by the words that they share with a question, and of several orders one.

Knows text only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from studio.compress import spans

K1, B = 1.2, 0.75  # Okapi BM25's usual ones


def by_words(passages: Sequence[str], question: str) -> list[int]:
    """Indexes of the passages that share a word with the question, by BM25 (Robertson and Zaragoza 2009); others are left out."""
    bags = [Counter(_words(text)) for text in passages]
    lengths = [sum(bag.values()) for bag in bags]
    mean = sum(lengths) / max(1, len(lengths)) or 1.0
    scores = [0.0] * len(bags)
    for word in set(_words(question)):
        holding = sum(word in bag for bag in bags)
        rarity = math.log(1 + (len(bags) - holding + 0.5) / (holding + 0.5))
        for n, bag in enumerate(bags):
            scores[n] += rarity * bag[word] * (K1 + 1) / (bag[word] + K1 * (1 - B + B * lengths[n] / mean))
    return [n for n in sorted(range(len(bags)), key=lambda n: -scores[n]) if scores[n] > 0]


def fused(orders: Sequence[Sequence[int]], count: int) -> list[int]:
    """One order of several by reciprocal ranks (Cormack, Clarke and Buettcher 2009): what any of them has in front comes early."""
    scores = [0.0] * count
    for order in orders:
        for place, index in enumerate(order):
            scores[index] += 1 / (1 + place)
    return sorted(range(count), key=lambda n: -scores[n])


def _words(text: str) -> list[str]:
    return [match.group().lower() for match in spans.WORD.finditer(text) if match.group()[0].isalnum()]
