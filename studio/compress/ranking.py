"""Orders of passages, the likeliest to hold an answer first, by what they share with a question beside what a model says of them.

Knows text only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from studio.compress import spans

K1, B = 1.2, 0.75  # Okapi BM25's usual ones


def shared_words(passages: Sequence[str], question: str) -> list[float]:
    """How much each passage shares of the question's rare words, 0-1: BM25 (Robertson and Zaragoza 2009), the best one is 1.

    Without BM25's constant factor, which the division by the best one takes out again.
    """
    bags = [Counter(_words(text)) for text in passages]
    lengths = [sum(bag.values()) for bag in bags]
    mean = sum(lengths) / max(1, len(lengths)) or 1.0
    scores = [0.0] * len(bags)
    for word in set(_words(question)):
        holding = sum(word in bag for bag in bags)
        rarity = math.log(1 + (len(bags) - holding + 0.5) / (holding + 0.5))
        for n, bag in enumerate(bags):
            scores[n] += rarity * bag[word] / (bag[word] + K1 * (1 - B + B * lengths[n] / mean))
    best = max(scores, default=0.0)
    return [score / best if best else 0.0 for score in scores]


def fused(order: Sequence[int], shared: Sequence[float]) -> list[int]:
    """The order changed so that passages come early that either are in front of it or share most: reciprocal place plus share."""
    scores = {index: 1 / (1 + place) + shared[index] for place, index in enumerate(order)}
    return sorted(order, key=lambda index: -scores[index])


def _words(text: str) -> list[str]:
    return [match.group().lower() for match in spans.WORD.finditer(text) if match.group()[0].isalnum()]
