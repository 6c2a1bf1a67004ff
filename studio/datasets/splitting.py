"""A seeded split into train and eval rows that keeps duplicates on one side: `split` equal rows, `split_file` rows that are alike too.

`python -m studio.datasets.splitting OPTIONS OUT` does it in a process of its own. Knows no database.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

NEAR_ROWS, NEAR_BYTES = 5000, 8 * 1024**2  # up to here rows are compared within a second or two


def split(rows: Iterable[bytes], test_size: float, seed: int, families: Mapping[int, int] | None = None) -> list[bool]:
    """For each row whether it is held out.

    `test_size` is a share (below 1) or a number of rows. Whole groups of equal rows are held out, in a seeded order, until the
    wanted number is reached as nearly as the groups allow; at least one group stays on each side where there are two.
    `families`: row (from 0) -> an earlier row with which it shall stay.
    """
    groups: dict[bytes, int] = {}
    sizes: list[int] = []
    members: list[int] = []
    for number, row in enumerate(rows):
        if families and number in families:
            group = members[families[number]]
        else:
            group = groups.setdefault(blake2b(row.strip(), digest_size=16).digest(), len(sizes))
        if group == len(sizes):
            sizes.append(0)
        sizes[group] += 1
        members.append(group)
    held_out = _chosen(sizes, _wanted(len(members), test_size), seed)
    return [held_out[group] for group in members]


def split_file(path: Path, test_size: float, seed: int, *, always_near: bool = False) -> list[bool]:
    """`split` of a file's rows. Rows that are almost the same stay together too: in files up to 5,000 rows and 8 MB, or `always_near`."""
    families: dict[int, int] = {}
    if test_size > 0 and (always_near or _is_small(path)):
        families = alike_rows(path)
    with path.open("rb") as file:
        return split(file, test_size, seed, families)


def alike_rows(path: Path) -> dict[int, int]:
    """Row (from 0) -> the first row it is connected to, over rows that are each almost the same as the next (see report.likeness)."""
    # here, because a launch of a large dataset needs none of it
    from studio.datasets.report.making import alike

    return alike(path)


def _is_small(path: Path) -> bool:
    if path.stat().st_size > NEAR_BYTES:
        return False
    with path.open("rb") as file:
        return sum(1 for _ in file) <= NEAR_ROWS


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
    for group in order:  # never all of them: fewer rows are wanted than there are
        if total + sizes[group] <= wanted or total == 0:
            chosen[group] = True
            total += sizes[group]
        if total >= wanted:
            break
    return chosen


def answer(options: dict[str, Any]) -> dict[str, Any]:
    """For the child process: the rows (from 0) that are held out."""
    held_out = split_file(Path(options["path"]), options["test_size"], options["seed"], always_near=True)
    return {"held_out": [row for row, out in enumerate(held_out) if out]}


if __name__ == "__main__":
    from studio.datasets.report.child import run

    sys.exit(run(sys.argv[1:], lambda options, _: answer(options)))
