"""Which order of rows is chosen where nobody has chosen one."""

from __future__ import annotations

from itertools import product
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import config as job_config
from jobs.trainers.objectives import in_parts, padding_share, sampling

UNEQUAL = [10, 20, 400, 30] * 60


@given(lengths=st.lists(st.integers(1, 500), min_size=1, max_size=5), size=st.integers(1, 3))
def test_the_share_of_padding_is_what_all_possible_batches_have(lengths: list[int], size: int) -> None:
    longest = mean(max(batch) for batch in product(lengths, repeat=size))
    assert padding_share(lengths, size) == pytest.approx(1 - mean(lengths) / longest)


@pytest.mark.parametrize(
    ("options", "lengths", "order"),
    [
        ({"gradient_accumulation_steps": 4}, UNEQUAL, "batch_rebalance"),
        ({"gradient_accumulation_steps": 4}, [100, 101] * 120, "random"),
        ({"gradient_accumulation_steps": 1}, UNEQUAL, "random"),
        ({"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}, UNEQUAL, "random"),
        ({"gradient_accumulation_steps": 4, "packing": True}, UNEQUAL, "random"),
        ({"gradient_accumulation_steps": 4, "objective": "dpo"}, UNEQUAL, "random"),
        ({"gradient_accumulation_steps": 4, "train_sampling_strategy": "group_by_length"}, UNEQUAL, "group_by_length"),
    ],
)
def test_rows_of_like_length_go_together_where_that_saves_much_and_changes_no_step(
    options: dict[str, object], lengths: list[int], order: str
) -> None:
    assert sampling(job_config.build(options), lengths) == order


@given(size=st.integers(2, 4096))
def test_advice_keeps_the_rows_of_a_step(size: int) -> None:
    part, accumulated = in_parts(size)
    assert part * accumulated == size and accumulated >= 2
