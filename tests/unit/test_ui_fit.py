"""The fit bar's arithmetic: shares of what there is, or of what is needed where that is more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import JsonValue

from studio.commands.fit import _text
from studio.records import Fit, MemoryAdvice, MemoryPlan, PlanChange
from studio.ui import pieces
from studio.ui.fit import PLAN, FitBar, bar

FOUND = Fit.model_validate({
    "predicted_bytes": 1000, "process_bytes": 0, "room_bytes": 2000, "margin_bytes": 1000, "fits": True, "error_bytes": 100, "advice": [],
    "breakdown": {
        "base_weights": 600, "full_precision_weights": 0, "adapter": 100, "optimizer": 0, "activations": 200, "logits": 50, "overhead": 50,
    },
    "warnings": ["<script>"], "device": "cuda", "peak_at": "output layer", "paged_bytes": 0, "longest_max_length": 512,
    "largest_batch": 8, "chat": {"bytes": 10, "stays_loaded": True}, "correction": {"factor": 1.0, "runs": 0}, "parameters": 300,
    "trainable_parameters": 20,
})  # fmt: skip


@pytest.mark.parametrize(("room", "share", "limit"), [(2000, 30.0, 100.0), (500, 60.0, 50.0), (None, 60.0, None)])
def test_segments_are_shares_of_the_larger_of_room_and_need(room: int | None, share: float, limit: float | None) -> None:
    # red when a bar that does not fit overflows, or one that fits hides its margin
    shown = bar(FOUND.model_copy(update={"room_bytes": room}))
    assert shown["segments"][0]["percent"] == share and shown["room_percent"] == limit
    assert sum(part["percent"] for part in shown["segments"]) <= 100.01


def test_the_piece_escapes_and_says_what_is_short() -> None:
    html = pieces.piece("fit", **bar(FOUND.model_copy(update={"fits": False, "margin_bytes": -1024, "room_bytes": 500})))
    assert "<script>" not in html and "does not fit" in html and "1.0 KiB short" in html


def test_the_terminal_names_every_part_and_the_margin_in_gib() -> None:
    # red when a figure is in another unit than it says, or a shortage is shown as room
    gib = 1024**3
    values = {"predicted_bytes": 3 * gib, "margin_bytes": -gib // 2, "fits": False, "process_bytes": gib // 4, "room_bytes": 2 * gib}
    advice = [MemoryAdvice(change="Half the rank (lora.r=8)", saves_bytes=gib // 8, options={"lora.r": 8})]
    breakdown = FOUND.breakdown.model_copy(update={"logits": 2 * gib})
    text = _text(FOUND.model_copy(update={**values, "advice": advice, "breakdown": breakdown}))
    lines = text.splitlines()
    assert lines[0] == "3.00 GiB at its peak (output layer), on cuda; it does not fit: 0.50 GiB short"
    assert [line.split()[-2] for line in lines if line.startswith("  output layer")] == ["2.00"]
    assert [line.split()[-2] for line in lines if "the program itself" in line] == ["0.25"]
    assert "      0.12 GiB  Half the rank (lora.r=8)" in lines and "up to max_length 512" in text and lines[-1] == "Note: <script>"
    assert "it fits, 0.50 GiB to spare" in _text(FOUND.model_copy(update={"margin_bytes": gib // 2}))
    assert "--gpu-gib" in _text(FOUND.model_copy(update={"margin_bytes": None, "fits": None, "room_bytes": None}))


def test_the_plans_button_sets_what_the_plan_names_and_nothing_else() -> None:
    # red when the button takes a piece of advice instead, or empties other fields
    fields = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "optim": "adamw_torch", "max_length": 2048}
    change = PlanChange(option="per_device_train_batch_size", before=8, value=2, reason="")
    options: dict[str, JsonValue] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    plan = MemoryPlan(changes=[change], options=options, needed_bytes=1, fits=True, beside="")
    advice = [MemoryAdvice(change="", saves_bytes=1, options={"max_length": 1024})]
    found = FOUND.model_copy(update={"plan": plan, "advice": advice})
    form: Any = SimpleNamespace(options=[SimpleNamespace(key=key) for key in fields], changed=lambda recipe, shown: {})
    studio: Any = SimpleNamespace(fit=SimpleNamespace(fit=lambda **asked: found))
    shown = object.__new__(FitBar)  # without its place on a page
    vars(shown).update(_studio=studio, _form=form)

    def clicked(number: int) -> list[Any]:
        event: Any = SimpleNamespace(_data={"number": number})
        return shown.apply(event, "starter", "lora-sft", *fields.values())

    assert clicked(PLAN) == [2, 4, "adamw_torch", 2048] and clicked(0) == [8, 1, "adamw_torch", 1024]
    assert f'data-number="{PLAN}"' in pieces.piece("fit", **bar(found)) and "Take the fastest that fits" in pieces.piece(
        "fit", **bar(found)
    )
    assert clicked(7) == [*fields.values()]
