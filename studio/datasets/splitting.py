"""A seeded split into train and eval rows that keeps exact duplicates on one side. Knows rows only as bytes."""

from __future__ import annotations

import random
from collections.abc import Iterable
from hashlib import blake2b


def split(rows: Iterable[bytes], test_size: float, seed: int) -> list[bool]:
    """For each row whether it is held out.

    `test_size` is a share (below 1) or a number of rows. Whole groups of equal rows are held out, in a seeded order, until the
    wanted number is reached as nearly as the groups allow; at least one group stays on each side where there are two.
    """
    groups: dict[bytes, int] = {}
    sizes: list[int] = []
    members: list[int] = []
    for row in rows:
        group = groups.setdefault(blake2b(row.strip(), digest_size=16).digest(), len(sizes))
        if group == len(sizes):
            sizes.append(0)
        sizes[group] += 1
        members.append(group)
    held_out = _chosen(sizes, _wanted(len(members), test_size), seed)
    return [held_out[group] for group in members]


def _wanted(count: int, test_size: float) -> int:
    if test_size <= 0 or count < 2:
        return 0
    return min(count - 1, max(1, round(count * test_size if test_size < 1 else test_size)))


def _chosen(sizes: list[int], wanted: int, seed: int) -> list[bool]:
    chosen = [False] * len(sizes)
    if not wanted or len(sizes) < 2:
        return chosen
    order = list(range(len(sizes)))
    random.Random(seed).shuffle(order)
    total = 0
    for group in order[:-1]:  # the last one stays for training
        if total + sizes[group] <= wanted or total == 0:
            chosen[group] = True
            total += sizes[group]
        if total >= wanted:
            break
    return chosen
