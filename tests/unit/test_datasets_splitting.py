"""The split: seeded, of the wanted size, duplicates on one side."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets import splitting
from studio.datasets.splitting import split, split_file
from tests import plants

ROWS = [b"row %d" % n for n in range(100)]


@pytest.mark.parametrize(("test_size", "count"), [(0.1, 10), (0.25, 25), (7, 7), (0, 0), (0.001, 1), (1000, 99)])
def test_sizes(test_size: float, count: int) -> None:
    assert sum(split(ROWS, test_size, seed=1)) == count


def test_the_seed_decides() -> None:
    assert split(ROWS, 0.2, seed=1) == split(ROWS, 0.2, seed=1) != split(ROWS, 0.2, seed=2)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.floats(0.01, 0.9), st.integers(0, 5))
def test_duplicates_stay_together_and_neither_side_is_empty(values: list[int], test_size: float, seed: int) -> None:
    held_out = split([b"%d\n" % value for value in values], test_size, seed)
    sides: dict[int, set[bool]] = {}
    for value, out in zip(values, held_out, strict=True):
        sides.setdefault(value, set()).add(out)
    assert all(len(side) == 1 for side in sides.values())
    assert any(held_out) == (len(sides) > 1) and not all(held_out)


def test_one_row_is_for_training() -> None:
    assert split([b"a"], 0.5, seed=0) == [False]
    assert split([b"a", b"a", b"a\n"], 0.5, seed=0) == [False] * 3


@given(st.integers(0, 30), st.floats(0.05, 0.6))
@settings(max_examples=8, deadline=None)
def test_rows_that_are_almost_the_same_stay_together(tmp_path_factory: pytest.TempPathFactory, seed: int, test_size: float) -> None:
    chance = random.Random(seed)
    rows = plants.rows(25, seed)
    origins = list(range(25))
    for _ in range(25):
        origin = chance.randrange(25)
        rows.append(plants.nearly(rows[origin], chance.randrange(6)))
        origins.append(origin)
    held_out = split_file(plants.write(tmp_path_factory.mktemp("split") / "rows.jsonl", rows), test_size, seed)
    sides: dict[int, set[bool]] = {}
    for origin, out in zip(origins, held_out, strict=True):
        sides.setdefault(origin, set()).add(out)
    assert all(len(side) == 1 for side in sides.values())
    assert any(held_out) and not all(held_out)


def test_large_files_keep_equal_rows_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "NEAR_ROWS", 10)
    rows = plants.rows(12)
    path = plants.write(tmp_path / "rows.jsonl", [*rows, *rows])
    held_out = split_file(path, 0.5, seed=1)
    assert held_out[:12] == held_out[12:] and sum(held_out) == 12
    assert split_file(path, 0.5, seed=1, always_near=True) == held_out
