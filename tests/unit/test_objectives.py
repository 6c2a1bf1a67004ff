"""The registry of objectives is complete, and which order of rows is chosen where a person has chosen none."""

from __future__ import annotations

from itertools import product
from statistics import mean
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import config as job_config
from jobs import recipes
from jobs.objectives import ANY_ORDER, DESCRIPTION, ENTRIES, OBJECTIVES, Objective, ObjectiveName, ObjectiveSections, RowForm
from jobs.trainers.objectives import _CLASSES, in_parts, padding_share, sampling
from jobs.trainers.rows import _RENDERERS
from studio.catalogue import compatibility, memory
from studio.datasets.formats import FORMATS
from tests.unit.test_compatibility import SMALL

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


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_complete_and_reaches_every_place_that_reads_it(entry: Objective) -> None:
    # red when an objective has no recipe, no kind of dataset, no row form, no trainer, no prediction or no script
    config = job_config.build(recipes.of_objective(entry.name).options)
    assert config.objective == entry.name and entry.help.startswith(f"{entry.name} ") and entry.help in DESCRIPTION
    assert entry.trains_on and set(entry.trains_on) <= {known.kind for known in FORMATS}
    assert entry.rows in RowForm and entry.family in _CLASSES and entry.rows in _RENDERERS
    assert "auto" in entry.orders and set(entry.orders) <= set(ANY_ORDER) and entry.computed_together == 1 + (entry.rows == RowForm.PAIRED)
    known = {option.key for option in job_config.options()}
    assert set(entry.only_options) <= known
    own = {key for key in known if key.startswith(f"{entry.name}.")}
    assert bool(own) == entry.has_options == bool(config.own_options())
    assert memory.predict(SMALL, config, device="cpu", size=4).total > 0
    assert {cell.objective for cell in compatibility.table("cpu") if cell.verdict == "ok"} >= {entry.name}
    for name in (entry.trainer, entry.arguments):
        module, _, of_trl = name.partition(":")
        assert module.partition(".")[0] == "trl" and of_trl


def test_names_of_objectives_are_those_that_a_job_may_have() -> None:
    assert list(OBJECTIVES) == list(get_args(ObjectiveName)) and set(ObjectiveSections.model_fields) <= set(OBJECTIVES)
    shown = next(option for option in job_config.options() if option.key == "objective")
    assert shown.choices == tuple(OBJECTIVES) and shown.description == DESCRIPTION


def test_what_costs_memory_with_an_objective_is_in_its_prediction() -> None:
    # red when a trait of the registry is not read by the prediction
    shape = {**SMALL, "vocab_size": 128_256}  # more than trl's tile of logits
    configs = {name: job_config.build({"objective": name, "max_length": 512}) for name in OBJECTIVES}
    found = {name: memory.predict(shape, config, device="cpu", size=4) for name, config in configs.items()}
    assert found["dpo"].total > found["sft"].total == found["continued-pretraining"].total
    assert found["orpo"].parts["logits"] > found["dpo"].parts["logits"]
    assert [name for name, one in found.items() if any("logits" in note for note in one.notes)] == [
        entry.name for entry in ENTRIES if entry.has_whole_logits
    ]
