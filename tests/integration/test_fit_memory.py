"""What there is, who holds the rest, and the fastest plan that fits: asked by `studio fit`, taken by a launch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.config import build
from studio import processes
from studio.catalogue import memory
from studio.cli import app
from studio.engine import holders
from studio.errors import ConfigError
from studio.services import Studio, planning, room
from studio.services.models import STARTER_FOLDER
from studio.services.planning import FitQuestion
from studio.services.room import RESERVE_BYTES, Room
from studio.settings import Settings
from tests.integration.test_fit import EIGHT_B

GIB = 1024**3
ONE_LONG_ROW = {"per_device_train_batch_size": 1, "max_length": 2048, "quantization": {"load_in_4bit": True}}


@pytest.fixture
def studio(settings: Settings) -> Studio:
    return Studio.open(settings, at_terminal=True)


@pytest.mark.parametrize(("free", "length", "beside"), [(7.2, 1536, "max_length=2,048 would need 7.25 GiB"), (7.6, 2048, "")])
def test_8b_trains_on_8_gib_with_the_longest_rows_that_fit(
    settings: Settings, tmp_path: Path, free: float, length: int, beside: str
) -> None:
    # red when the reserve is forgotten, a saving that costs less is passed over, or a length is cut that would fit
    file = tmp_path / "config.json"
    file.write_text(json.dumps(EIGHT_B), encoding="utf-8")
    asked = ["fit", "--model-config", str(file), "--free-gib", str(free), "--set", "per_device_train_batch_size=1"]
    found = json.loads(CliRunner().invoke(app, [*asked, "--set", "max_length=2048", "--json"]).stdout)
    plan, available = found["plan"], found["available"]
    assert found["fits"] is False and plan["fits"] is True and available["available_bytes"] == found["room_bytes"]
    assert plan["options"].get("max_length", 2048) == length and plan["options"]["optim"] == "paged_adamw_8bit"
    assert plan["needed_bytes"] + RESERVE_BYTES <= round(free * GIB) and plan["beside"].startswith(beside)
    assert [change["option"] for change in plan["changes"]] == [*plan["options"]] and all(change["reason"] for change in plan["changes"])
    shown = CliRunner().invoke(app, [*asked, "--set", "max_length=2048"]).stdout
    assert "gradient_checkpointing=true instead of false" in shown and (plan["beside"] or "--fit-memory") in shown


@pytest.mark.parametrize(
    ("options", "gib", "expected"),
    [
        ({}, 80, {}),
        ({}, 24, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),  # faster than recomputing, which would fit too
        ({}, 12, {"gradient_checkpointing": True}),
        ({"per_device_eval_batch_size": 64, "gradient_checkpointing": True}, 12, {"per_device_eval_batch_size": 4}),
    ],
)
def test_the_fastest_that_fits_keeps_the_rows_per_step(options: dict[str, Any], gib: float, expected: dict[str, Any]) -> None:
    job = build({"quantization": {"load_in_4bit": True}, **options})
    found = planning.plan(FitQuestion(EIGHT_B, job, "cuda", round(gib * GIB)))
    assert found is not None and found.fits and found.options == expected
    changed = build(job.model_dump(mode="json"), found.options)
    assert changed.per_device_train_batch_size * changed.gradient_accumulation_steps == 4


def test_what_fits_nowhere_is_said_to_and_names_the_least(studio: Studio) -> None:
    found = planning.plan(FitQuestion(EIGHT_B, build(ONE_LONG_ROW), "cuda", 2 * GIB))
    assert found is not None and not found.fits and found.needed_bytes > 5 * GIB


def test_what_the_studio_gives_back_is_available_and_the_rest_has_a_holder(
    settings: Settings, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    # red when a loaded model counts as somebody else's, or a compressor that has ended still holds memory
    card = SimpleNamespace(kind="cuda", name="Card", memory_bytes=8 * GIB, used_bytes=6 * GIB, selector="GPU-0", is_usable=True)
    monkeypatch.setattr("studio.catalogue.hardware.devices", lambda: [card])
    place = settings.cache / "holders"
    holders.note(place, holders.HolderKind.ENGINE, "the engine (m)", 3 * GIB, "cuda")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        compressor = {
            "kind": "compressor",
            "name": "the compressor gpt2",
            "bytes": GIB // 2,
            "device": "cuda",
            "owner": processes.owner_id(other.pid),
        }
        (place / "2.json").write_text(json.dumps(compressor), encoding="utf-8")
        _all_are_counted(settings, studio, place)
        other.kill()
    assert [one.name for one in holders.alive(place)] == ["the engine (m)"]


def _all_are_counted(settings: Settings, studio: Studio, place: Path) -> None:
    (place / "1.json").write_text(
        json.dumps({"kind": "compressor", "name": "gone", "bytes": GIB, "device": "cuda", "owner": "nobody"}), encoding="utf-8"
    )
    found = Room(settings, studio.db).available("cuda")
    assert found is not None and found.free_bytes == 2 * GIB
    engine_bytes, compressor_bytes = 3 * GIB + memory.CUDA_CONTEXT, GIB // 2 + memory.CUDA_CONTEXT
    assert (
        found.returned_bytes == engine_bytes + compressor_bytes and found.available_bytes == 2 * GIB + found.returned_bytes - RESERVE_BYTES
    )
    assert [(one.name, one.bytes, one.is_given_back) for one in found.holders] == [
        ("the engine (m)", engine_bytes, True),
        ("the compressor gpt2", compressor_bytes, True),
        (room.OTHERS["cuda"], 6 * GIB - engine_bytes - compressor_bytes, False),
    ]
    assert Room(settings, studio.db).available("cpu") is not None and not (place / "1.json").exists()


def test_a_launch_takes_the_plan_when_asked_and_says_what_it_changed(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    # red when a launch changes what a person has set without being asked, or changes anything without a word
    rows = [json.dumps({"prompt": f"Say {number}", "completion": f"{number}"}) + "\n" for number in range(8)]
    studio.datasets.add_text("".join(rows), name="rows")
    machine = SimpleNamespace(total_bytes=8 * GIB, used_bytes=GIB, free_bytes=7 * GIB)
    monkeypatch.setattr("studio.catalogue.hardware.memory", lambda: machine)
    options = {"device": "cpu", "per_device_train_batch_size": 8, "gradient_checkpointing": False}
    config = memory.model_config(STARTER_FOLDER)
    job = build({"max_length": 512, "quantization": {"load_in_4bit": True}, **options})
    small = FitQuestion(config, job, "cpu", 0).bytes(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    machine.used_bytes = machine.total_bytes - small - RESERVE_BYTES
    asked = {"data": "rows", "base_model": "starter", "recipe": "qlora-sft", "options": options}
    kept = studio.jobs.submit(**asked)
    assert kept.config["per_device_train_batch_size"] == 8 and not kept.config["gradient_checkpointing"]
    assert "Launched with --fit-memory it would train with" in str(kept.events) and "other programs and the system hold" in str(kept.events)
    taken = studio.jobs.submit(**asked, fit_memory=True)
    assert (taken.config["per_device_train_batch_size"], taken.config["gradient_accumulation_steps"]) == (2, 4)
    assert "per_device_train_batch_size=2 instead of 8: fewer rows at once" in str(taken.events)
    alone = studio.jobs.submit(**{**asked, "options": {"device": "cpu", "per_device_train_batch_size": 8}})
    assert alone.config["gradient_checkpointing"] and "gradient_checkpointing=true instead of false" in str(alone.events)
    machine.used_bytes = machine.total_bytes - 400_000_000
    with pytest.raises(ConfigError, match="With every saving this training needs"):
        studio.jobs.submit(**asked, fit_memory=True)
