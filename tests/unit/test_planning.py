"""The fastest training in the memory that there is: which options change, in which order, and what is said where nothing fits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jobs.config import build
from studio.errors import ModelError
from studio.services import planning
from studio.services.planning import FitQuestion, plan

BASE = 1000


class Question(FitQuestion):
    """A model of 1000 bytes. A token of a batch takes one byte, a tenth where activations are computed again; Adam takes 200, paged 50."""

    def predict(self, **changes: Any) -> Any:
        job = build(self.job.model_dump(mode="json"), changes)
        if job.max_length > 100_000:
            raise ModelError("Longer than the model.", "Shorten it.")
        each = 0.1 if job.gradient_checkpointing else 1.0
        states = 50 if job.optim == planning.PAGED else 200
        training = states + job.per_device_train_batch_size * job.max_length * each
        evaluation = job.per_device_eval_batch_size * job.max_length * 0.1
        moment = planning.EVALUATION if evaluation > training else "backward"
        return SimpleNamespace(total=BASE + max(training, evaluation), process=10, moment=moment)


def asked(room: int | None, device: str = "cpu", correction: float = 1.0, **options: Any) -> Question:
    given = {"per_device_train_batch_size": 8, "max_length": 512, "gradient_checkpointing": False, "per_device_eval_batch_size": 1}
    return Question({}, build({"method": "lora", **given, **options}), device, room, correction)


def planned(question: Question, among: frozenset[str] | None = None) -> tuple[dict[str, Any], bool]:
    found = plan(question, among)
    assert found is not None and found.needed_bytes == question.bytes(**found.options)
    assert [change.option for change in found.changes] == list(found.options)
    return found.options, found.fits


def test_bytes_are_corrected_by_what_was_measured_and_a_process_is_added() -> None:
    question = asked(0, correction=1.5)
    assert question.bytes() == round((BASE + 200 + 8 * 512) * 1.5) + 10
    whole = asked(BASE + 200 + 8 * 512 + 10)
    assert whole.fits() and not asked(BASE + 200 + 8 * 512 + 9).fits() and not asked(None).fits()
    assert plan(asked(None)) is None and planned(whole) == ({}, True)


def test_fewer_rows_at_once_keep_the_rows_of_a_step() -> None:
    fewer = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert planned(asked(BASE + 200 + 4 * 512 + 10, gradient_accumulation_steps=1)) == (fewer, True)
    found = planned(asked(BASE + 200 + 3 * 512 + 10, per_device_train_batch_size=6, gradient_accumulation_steps=2))
    assert found == ({"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4}, True)
    changes = plan(asked(BASE + 200 + 4 * 512 + 10, gradient_accumulation_steps=1)).changes  # type: ignore[union-attr]
    assert [planning.sentence(change) for change in changes] == [
        "per_device_train_batch_size=4 instead of 8: fewer rows at once hold fewer activations.",
        "gradient_accumulation_steps=2 instead of 1: as many rows per step as before.",
    ]
    assert [planning.text(value) for value in (True, False, 3, "x")] == ["true", "false", "3", "x"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "room", "options", "changed"),
    [
        # on a processor a pass costs as much as 30 tokens: one row of 512 is cheaper than computing again
        ("cpu", 200 + 1 * 512, {}, {"per_device_train_batch_size"}),
        ("cpu", 200 + 1 * 511, {}, {"gradient_checkpointing"}),
        # on a GPU as 300: computing all again is cheaper than half of the rows at once where these are short
        ("cuda", 50 + 4 * 512, {}, {"per_device_train_batch_size", "optim"}),
        ("cuda", 200 + 4 * 512, {}, {"per_device_train_batch_size"}),
        ("cuda", 200 + 1 * 512, {}, {"gradient_checkpointing"}),
        ("cuda", 50 + 8 * 52, {}, {"gradient_checkpointing", "optim"}),
        ("cpu", 200 + 4 * 52, {"gradient_checkpointing": True}, {"per_device_train_batch_size"}),
    ],
)  # fmt: skip
def test_the_fastest_of_what_fits_is_chosen(device: str, room: int, options: dict[str, Any], changed: set[str]) -> None:
    found, fits = planned(asked(BASE + room + 10, device, per_device_eval_batch_size=1, **options))
    assert fits and set(found) - {"gradient_accumulation_steps"} == changed


def test_what_is_slower_costs_more() -> None:
    found, fits = planned(asked(BASE + 60 + 10, "cuda", optim="sgd"), frozenset(planning.REASONS) - {"max_length"})
    assert not fits and "optim" not in found, "only Adam has a paged form that computes the same"
    assert planning._cost(asked(1), {}) < planning._cost(asked(1), {"optim": planning.PAGED}) < planning._cost(
        asked(1), {"gradient_checkpointing": True}
    )  # fmt: skip
    costs = [planning._cost(asked(1, device, per_device_train_batch_size=1, max_length=100), {}) for device in ("cpu", "cuda")]
    assert costs == [1.3, 4.0]
    assert planning._cost(asked(1), {"max_length": 30, "per_device_train_batch_size": 1}) == 2.0
    assert planning._cost(asked(1, gradient_checkpointing=True), {"per_device_train_batch_size": 1, "max_length": 30}) == 2.6


def test_the_evaluation_follows_where_it_decides_the_peak() -> None:
    wanted = ((16, 2, {}), (100, 2, {"per_device_eval_batch_size": 2}), (100, 8, {"per_device_eval_batch_size": 8}))
    for evaluated, rows, changes in wanted:
        found, fits = planned(asked(BASE + 200 + rows * 512 + 10, per_device_eval_batch_size=evaluated))
        assert fits and {key: value for key, value in found.items() if "eval" in key} == changes
        assert found.get("per_device_train_batch_size", 8) == rows


def test_a_shorter_length_comes_last() -> None:
    def longest(room: int, among: frozenset[str] | None = None) -> Any:
        options, fits = planned(asked(room, per_device_eval_batch_size=1), among)
        return options.get("max_length") if fits else None

    assert longest(BASE + 200 + 51 + 10) is None, "as long as before"
    assert [longest(BASE + room) for room in (236, 235, 223, 222)] == [256, 192, 128, None], "multiples of 64, from 128 on"
    among = frozenset({"per_device_train_batch_size", "gradient_accumulation_steps"})
    assert longest(BASE + 236, among) is None and longest(BASE + 722, among) is None
    assert planned(asked(5), among)[0] == {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    assert planned(asked(5), frozenset()) == ({}, False)
    assert longest(BASE + 236, among | {"gradient_checkpointing", "max_length"}) == 256


def test_beside_a_shorter_length_stands_what_the_whole_one_would_need() -> None:
    gib = planning.GIB
    found = plan(asked(round(1.236 * gib), correction=gib / 1000))
    assert found is not None and found.options["max_length"] == 320 and found.fits
    assert found.beside == "max_length=512 would need 1.25 GiB at the least, and 1.24 GiB are available: 0.02 GiB too few."
    whole = plan(asked(round(1.26 * gib), correction=gib / 1000))
    assert whole is not None and whole.beside == "" and "max_length" not in whole.options


def test_a_change_that_a_launch_would_refuse_is_none() -> None:
    for changes, allowed in (({"max_length": 200_000}, False), ({"per_device_train_batch_size": 0}, False), ({"optim": "sgd"}, True)):
        assert planning._is_allowed(asked(1), changes) is allowed  # type: ignore[arg-type]
