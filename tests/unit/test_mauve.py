"""MAUVE is mauve-text's: to 1e-6 from the same cluster labels, within .02 of its mean over five seeds from the same features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studio.evaluation import mauve

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures" / "mauve_text.json").read_text())


def drawn(row: dict[str, Any]) -> tuple[Any, Any]:
    random = np.random.default_rng(row["seed"])
    weights = np.arange(1, row["clusters"] + 1) ** row["power"]
    p = random.choice(row["clusters"], row["p"], p=weights[::-1] / weights.sum())
    return p, random.choice(row["clusters"], row["q"], p=weights / weights.sum())


def sets(n: int, shift: float, seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    basis = random.normal(size=(8, 32))
    p = random.normal(size=(n, 8)) @ basis + random.normal(size=(n, 32)) * 0.3
    moved = random.normal(size=(n, 8))
    moved[:, 0] += shift
    return p, moved @ basis + random.normal(size=(n, 32)) * 0.3


@pytest.mark.parametrize("row", [row for row in GOLDEN["labels"] if "seed" in row], ids=lambda row: f"{row['clusters']} clusters")
def test_from_the_same_labels(row: dict[str, Any]) -> None:
    assert mauve.of_labels(*drawn(row), row["clusters"]) == pytest.approx(row["mauve"], abs=1e-6)


def test_equal_and_disjoint_labels() -> None:
    disjoint, equal = (row["mauve"] for row in GOLDEN["labels"] if "seed" not in row)
    assert mauve.of_labels([0] * 50, [1] * 50, 2) == pytest.approx(disjoint, abs=1e-6)
    assert mauve.of_labels([n % 5 for n in range(50)], [n % 5 for n in range(50)], 5) == pytest.approx(equal, abs=1e-6)


@pytest.mark.parametrize("row", GOLDEN["features"], ids=lambda row: f"{row['n']} texts, shift {row['shift']}")
def test_from_the_same_features(row: dict[str, Any]) -> None:
    found = mauve.of_features(*sets(row["n"], row["shift"], row["seed"]))
    assert found == pytest.approx(np.mean(row["values"]), abs=0.02)


def test_equal_texts_score_one() -> None:
    p, _ = sets(150, 0.0, 4)
    assert mauve.of_features(p, p) == pytest.approx(1.0)
    same = np.ones((120, 4))
    assert mauve.of_features(same, same) == pytest.approx(1.0), "all texts are one text"


def test_as_many_clusters_as_mauve_text_takes() -> None:
    assert [mauve.number_of_clusters(n, 2000) for n in (5, 100, 1000, 1004)] == [2, 10, 100, 100]
