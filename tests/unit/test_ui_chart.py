"""The loss curve as a drawing."""

from __future__ import annotations

import json
from typing import Any

from studio.records import Curves
from studio.ui import chart

TRAIN = [{"step": step, "loss": 4.0 / step} for step in range(1, 101)]
EVAL = [{"step": 50, "loss": 0.3}, {"step": 75, "loss": 0.1}, {"step": 100, "loss": 0.2}]


def points(line: str) -> list[tuple[float, float]]:
    return [tuple(float(number) for number in pair.split(",")) for pair in line.split()]  # type: ignore[misc]


def drawn(train: list[dict[str, Any]], held_out: list[dict[str, Any]]) -> dict[str, Any]:
    drawing = chart.loss(Curves(train=train, eval=held_out))
    assert drawing is not None
    return drawing


def test_the_curve_fills_the_box_and_falls() -> None:
    line = points(drawn(TRAIN, EVAL)["train"])

    assert (line[0][0], line[-1][0]) == (0, chart.WIDTH)
    assert all(0 <= y <= chart.HEIGHT for _, y in line)
    assert line[0][1] < line[-1][1]  # y goes down on the page


def test_the_best_evaluation_is_marked() -> None:
    best = drawn(TRAIN, EVAL)["best"]

    assert round(best["x"]) == round(74 / 99 * 100)
    assert "lowest at step 75 with 0.10" in drawn(TRAIN, EVAL)["description"]


def test_a_loss_that_is_no_number_leaves_a_gap_instead_of_breaking_the_page() -> None:
    drawing = drawn([*TRAIN, {"step": 101, "loss": float("nan")}, {"step": 102, "loss": float("inf")}], [])

    assert len(points(drawing["train"])) == 100
    assert not drawing["has_eval"]


def test_one_point_is_a_drawing_and_none_is_not() -> None:
    assert points(drawn(TRAIN[:1], [])["train"])
    assert chart.loss(Curves(train=[], eval=[])) is None


def test_a_flat_curve_stays_inside_the_box() -> None:
    flat = [{"step": step, "loss": 0.5} for step in range(3)]

    assert all(0 <= y <= chart.HEIGHT for _, y in points(drawn(flat, [])["train"]))


def test_the_readout_names_both_series_of_a_step() -> None:
    readings = json.loads(drawn(TRAIN, EVAL)["points"])

    assert [1.0, "step 100: training 0.040, held-out 0.200"] in readings
    assert [share for share, _ in readings] == sorted(share for share, _ in readings)
