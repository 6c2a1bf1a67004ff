"""Picking rows: as many as asked, the same again, good ones that differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.datasets import curation
from studio.datasets.curation import farthest_first
from tests import plants


def pick(path: Path, rows: int, seed: int = 1, findings: dict[str, list[int]] | None = None) -> list[int]:
    found: list[int] = curation.pick(path, rows, seed, findings or {}, lambda stage, share: None)["rows"]
    return found


@given(st.integers(1, 30), st.integers(0, 3))
@settings(max_examples=6, deadline=None)
def test_a_choice_has_its_size_and_is_made_again_the_same(tmp_path_factory: pytest.TempPathFactory, rows: int, seed: int) -> None:
    path = plants.write(tmp_path_factory.mktemp("pick") / "rows.jsonl", plants.rows(30))
    chosen = pick(path, rows, seed)
    assert chosen == pick(path, rows, seed) == sorted(set(chosen)) and len(chosen) == rows
    assert set(chosen) <= set(range(30))


def test_faulty_and_repeated_rows_come_last(tmp_path: Path) -> None:
    good = plants.rows(20)
    faulty = [plants.answered(row, "no") for row in plants.rows(10, seed=5)]
    path = plants.write(tmp_path / "rows.jsonl", [*good, *good[:10], *faulty])
    findings = {"exact_duplicates": list(range(21, 31)), "refusals": list(range(31, 41))}
    assert pick(path, 20, findings=findings) == list(range(20))


def test_rows_are_picked_from_every_group(tmp_path: Path) -> None:
    topics = ["cats purr and sleep on warm sofas", "stocks rise and fall on busy markets", "stars shine above the dark desert"]
    rows = [plants.chat(f"Say something about number {n}: {topics[n % 3]}?", f"Well, {topics[n % 3]}, as {n} know.") for n in range(60)]
    chosen = pick(plants.write(tmp_path / "rows.jsonl", rows), 3)
    assert {number % 3 for number in chosen} == {0, 1, 2}


def test_farthest_first_by_hand() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0.6, 0.8]], np.float32)
    assert farthest_first(vectors, np.array([1, 0.9, 0.5, 0.5], np.float32), 4).tolist() == [0, 2, 3, 1]


def test_texts_and_preferences_can_be_picked(tmp_path: Path) -> None:
    texts = plants.write(tmp_path / "texts.jsonl", [{"text": row["messages"][1]["content"]} for row in plants.rows(9)])
    assert len(pick(texts, 4)) == 4
    pairs = [{"prompt": r["messages"][:1], "chosen": r["messages"][1:], "rejected": r["messages"][1:]} for r in plants.rows(9)]
    assert len(pick(plants.write(tmp_path / "pairs.jsonl", pairs), 9)) == 9
