"""The best evaluation, and when a run ends for want of a better one."""

from __future__ import annotations

import json
import math

from jobs.trainers.best import Best


def test_the_lowest_loss_is_the_best_and_an_equal_one_is_no_better() -> None:
    best = Best(patience=None)
    assert [best.see(step, loss) for step, loss in enumerate([2.0, 1.0, 1.0, math.nan, 0.5], 1)] == [True, True, False, False, True]
    assert (best.step, best.loss, best.is_over) == (5, 0.5, False)


def test_patience_counts_evaluations_in_a_row() -> None:
    best = Best(patience=2)
    over = []
    for step, loss in enumerate([2.0, 3.0, 1.0, 3.0, 3.0], 1):
        best.see(step, loss)
        over.append(best.is_over)
    assert over == [False, False, False, False, True]


def test_it_goes_through_a_checkpoint_unchanged_also_before_the_first_evaluation() -> None:
    for losses in ([], [1.0 / 3], [0.1 + 0.2, 5.0]):
        best, other = Best(patience=3), Best(patience=3)
        for step, loss in enumerate(losses, 1):
            best.see(step, loss)
        other.restore(json.loads(json.dumps(best.as_json(), allow_nan=False)))
        assert other == best
    best.forget()
    assert (best.step, best.loss, best.worse) == (None, math.inf, 0)
