"""Orders of rows by length: nothing lost, little padding, chance in it, and the same again for the same seed and epoch."""

from __future__ import annotations

import random

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_pt_utils import get_length_grouped_indices

from jobs.trainers.lengths import ByLength
from jobs.trainers.objectives import padding_share

LENGTHS = st.lists(st.integers(1, 4096), min_size=1, max_size=60)


def order(lengths: list[int], size: int, epoch: int = 0, seed: int = 42) -> list[int]:
    sampler = ByLength(lengths, size, seed)
    sampler.set_epoch(epoch)
    assert len(sampler) == len(lengths)
    return list(sampler)


def padding(lengths: list[int], rows: list[int], size: int) -> float:
    batches = [[lengths[row] for row in rows[start : start + size]] for start in range(0, len(rows), size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


@given(lengths=LENGTHS, size=st.integers(1, 70), epoch=st.integers(0, 5))
def test_each_row_comes_once_in_an_order_that_repeats(lengths: list[int], size: int, epoch: int) -> None:
    rows = order(lengths, size, epoch)
    assert sorted(rows) == list(range(len(lengths)))
    assert rows == order(lengths, size, epoch)


@given(lengths=LENGTHS, size=st.integers(1, 8))
def test_the_dearest_complete_batch_comes_first(lengths: list[int], size: int) -> None:
    rows = order(lengths, size)
    whole = len(rows) // size * size
    longest = [max(lengths[row] for row in rows[start : start + size]) for start in range(0, whole, size)]
    assert not longest or longest[0] == max(longest)


def test_small_datasets_lose_their_padding_too_and_every_epoch_has_other_batches() -> None:
    chance = random.Random(7)
    lengths = [round(chance.lognormvariate(5, 0.6)) for _ in range(400)]
    upstream = get_length_grouped_indices(lengths, 16, generator=torch.Generator().manual_seed(7))
    assert padding(lengths, order(lengths, 16), 16) < padding(lengths, upstream, 16) / 2 < padding_share(lengths, 16) / 2
    batches = [
        {frozenset(rows[start : start + 16]) for start in range(0, 400, 16)} for rows in (order(lengths, 16, epoch) for epoch in (0, 1))
    ]
    assert len(batches[0] & batches[1]) < 3
    # long and short batches are mixed: a half of the order holds about half of the tokens
    assert 0.3 < sum(lengths[row] for row in order(lengths, 16)[:200]) / sum(lengths) < 0.7
