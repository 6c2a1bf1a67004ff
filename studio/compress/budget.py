"""Meet a budget: search for the inner rate at which a method gives the wanted number of tokens. Knows neither texts nor models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TRIES = 8
TOLERANCE = 0.015  # of the original's tokens: closer is not looked for
SMALLEST = 0.005  # inner rate


def iterative_size(tokens: int) -> int:
    """Window of the causal methods: a twelfth of the text, so that short texts are compressed too (the library's 200 leaves them)."""
    return max(10, min(200, tokens // 12))


def meet(
    attempt: Callable[[float], tuple[int, T]], wanted: int, total: int, *, first: float, at_most: bool = False, tries: int = TRIES
) -> tuple[int, T, float]:
    """(tokens, result, inner rate) closest to `wanted` of `total` tokens. `attempt(inner rate)` gives tokens and result.

    Tokens are assumed to grow with the rate. `at_most`: results above `wanted` are taken only when there is no other.
    """
    low, low_tokens, high, high_tokens = 0.0, 0, 1.0, total
    best: tuple[tuple[bool, int], tuple[int, T, float]] | None = None
    inner = min(1.0, max(SMALLEST, first))
    for number in range(tries):
        tokens, result = attempt(inner)
        score = (at_most and tokens > wanted, abs(tokens - wanted))
        if best is None or score < best[0]:
            best = score, (tokens, result, inner)
        if abs(tokens - wanted) <= TOLERANCE * total and not score[0]:
            break
        if tokens > wanted:
            high, high_tokens = inner, tokens
        else:
            low, low_tokens = inner, tokens
        step = (wanted - low_tokens) / (high_tokens - low_tokens) if high_tokens > low_tokens else 0.5
        step = 0.5 if number % 3 == 2 else min(0.9, max(0.1, step))  # a curve that is far from straight gets halves too
        inner = max(SMALLEST, low + step * (high - low))
        if high - low < 0.002:
            break
    assert best is not None
    return best[1]
