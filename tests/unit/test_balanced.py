"""Steps whose rows of like length go together: every row once, the rows of a step left to chance, less padding, no more room."""

from __future__ import annotations

import math
import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.trainers.balanced import Balanced
from jobs.trainers.objectives import padding_share

LENGTHS = st.lists(st.integers(1, 4096), min_size=1, max_size=60)


def batches_of(lengths: list[int], size: int, accumulated: int, epoch: int = 0, seed: int = 7) -> list[list[int]]:
    sampler = Balanced(lengths, size, accumulated, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@given(lengths=LENGTHS, size=st.integers(1, 8), accumulated=st.integers(1, 8), epoch=st.integers(0, 3))
def test_each_row_comes_once_and_each_step_has_its_rows_by_chance_alone(
    lengths: list[int], size: int, accumulated: int, epoch: int
) -> None:
    batches = batches_of(lengths, size, accumulated, epoch)
    assert all(batches) and math.ceil(len(batches) / accumulated) == math.ceil(len(lengths) / (size * accumulated))
    steps = [sorted(row for rows in batches[i : i + accumulated] for row in rows) for i in range(0, len(batches), accumulated)]
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(7 + epoch)).tolist()
    assert steps == [sorted(order[i : i + size * accumulated]) for i in range(0, len(order), size * accumulated)]


def test_most_padding_goes_and_other_seeds_and_epochs_have_other_steps() -> None:
    chance = random.Random(7)
    lengths = [round(chance.lognormvariate(5, 0.6)) for _ in range(400)]
    batches = batches_of(lengths, 4, 8)
    room = [len(rows) * max(lengths[row] for row in rows) for rows in batches]
    assert 1 - sum(lengths) / sum(room) < padding_share(lengths, 4) / 3
    assert max(room) <= 4 * max(lengths)  # what the prediction of memory reckons with
    assert batches_of(lengths, 4, 8, epoch=1) != batches != batches_of(lengths, 4, 8, seed=8)
