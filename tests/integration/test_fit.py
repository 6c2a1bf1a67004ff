"""`studio fit` as a person, a program and past runs meet it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.config import build
from studio.catalogue import memory
from studio.catalogue.cards import Gpus
from studio.cli import app
from studio.db.models import JobRow
from studio.errors import StudioError
from studio.services import Studio
from studio.services.models import STARTER_FOLDER
from studio.services.room import RESERVE_BYTES
from studio.settings import Settings

EIGHT_B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip
PARTS = {"base_weights", "full_precision_weights", "adapter", "optimizer", "activations", "logits", "overhead"}


@pytest.fixture
def studio(settings: Settings) -> Studio:
    return Studio.open(settings, at_terminal=True)


def test_a_qlora_of_8b_fits_8_gib_and_its_advice_is_true(studio: Studio) -> None:
    # red when parts don't add up, advice promises another saving than the change brings, or a limit does not hold
    options = {"per_device_train_batch_size": 1, "max_length": 2048, "gradient_checkpointing": True, "per_device_eval_batch_size": 1}
    found = studio.fit.fit(model_config=EIGHT_B, options=options, gpu_gib=8)
    parts = found.breakdown.model_dump()
    assert set(parts) == PARTS and sum(parts.values()) == found.predicted_bytes
    assert found.fits is True and found.margin_bytes == 8 * 1024**3 - found.predicted_bytes
    dear = {"per_device_train_batch_size": 8, "max_length": 4096}
    large = studio.fit.fit(model_config=EIGHT_B, options=dear, gpu_gib=24)
    assert large.fits is False and large.advice
    for one in large.advice:
        changed = studio.fit.fit(model_config=EIGHT_B, options={**dear, **one.options}, gpu_gib=24)
        assert large.predicted_bytes - changed.predicted_bytes == one.saves_bytes
    longest = large.longest_max_length
    for length, fits in ((longest, True), (longest + 64, False)):
        assert studio.fit.fit(model_config=EIGHT_B, options={**dear, "max_length": length}, gpu_gib=24).fits is fits


def test_every_figure_beside_the_prediction_is_right(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    # red when a margin forgets the program itself, an error or a chat's memory is of another size, or a limit is off by one
    on_gpu = studio.fit.fit(model_config=EIGHT_B, gpu_gib=24)
    assert on_gpu.parameters == 8_030_261_248 and on_gpu.trainable_parameters == 41_943_040  # of Llama 3 8B, and rank 16 on all of it
    assert on_gpu.error_bytes == round(0.1 * on_gpu.predicted_bytes) and on_gpu.process_bytes == 0
    assert on_gpu.chat.bytes == 2 * 8_030_261_248 and on_gpu.room_bytes == 24 * 1024**3
    for room, margin in ((on_gpu.predicted_bytes, 0), (on_gpu.predicted_bytes - 1, -1)):  # the last byte is enough
        exact = studio.fit.fit(model_config=EIGHT_B, gpu_gib=room / 1024**3)
        assert (exact.margin_bytes, exact.fits) == (margin, margin == 0)
    both = on_gpu.predicted_bytes + on_gpu.chat.bytes
    for room, stays in ((both, True), (both - 1, False)):
        beside = studio.fit.fit(model_config=EIGHT_B, gpu_gib=room / 1024**3)
        assert beside.room_bytes == room and beside.chat.stays_loaded is stays and beside.fits is True
    roomy = studio.fit.fit(base_model="starter", gpu_gib=100)
    assert roomy.longest_max_length == 512 and roomy.largest_batch == 1024  # the model's context, and the most that is looked at
    for batch, fits in ((on_gpu.largest_batch, True), ((on_gpu.largest_batch or 0) + 1, False)):
        assert studio.fit.fit(model_config=EIGHT_B, options={"per_device_train_batch_size": batch}, gpu_gib=24).fits is fits
    machine = SimpleNamespace(total_bytes=8 * 1024**3, used_bytes=6 * 1024**3, free_bytes=2 * 1024**3)
    monkeypatch.setattr("studio.catalogue.hardware.memory", lambda: machine)
    here = studio.fit.fit(base_model="starter", options={"device": "cpu"})
    room = 2 * 1024**3 - RESERVE_BYTES
    assert here.process_bytes == memory.CPU_PROCESS and here.room_bytes == room
    assert here.margin_bytes == room - here.predicted_bytes - here.process_bytes and here.fits is True
    machine.used_bytes = machine.total_bytes - here.predicted_bytes - here.process_bytes - RESERVE_BYTES + 1
    assert studio.fit.fit(base_model="starter", options={"device": "cpu"}).fits is False


@pytest.mark.parametrize(("device", "context"), [("cpu", 0), ("cuda", memory.CUDA_CONTEXT)])
def test_a_measured_peak_is_held_against_what_torch_counts(studio: Studio, device: str, context: int) -> None:
    options = {"max_length": 256, "device": device}
    config = {"model_name_or_path": str(STARTER_FOLDER), "quantization": {"load_in_4bit": True}, **options}
    with studio.db.write() as session:
        result = {"peak_memory_bytes": 5, "device": device, "longest_row": 64}
        session.add(job := JobRow(kind="train", name="past", status="SUCCEEDED", config=config, result=result, ended_at=1.0))
        session.flush()
        job_id = job.id
    short = memory.predict(memory.model_config(STARTER_FOLDER), build({**config, "max_length": 64}), device=device).total
    found = studio.fit.measured(job_id)
    assert found is not None and found.model_dump() == {"measured_bytes": 5, "predicted_bytes": short - context, "device": device}
    assert studio.fit.measured("gone") is None


def test_without_a_gpu_nobody_knows_whether_it_fits(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.catalogue.hardware.gpus", Gpus)
    found = studio.fit.fit(model_config=EIGHT_B, device="cuda")
    assert found.fits is None and found.margin_bytes is None and found.longest_max_length is None


def test_past_runs_of_this_machine_correct_the_prediction(studio: Studio) -> None:
    # red when measured peaks are not learned from, or a run unlike this one counts too
    options = {"max_length": 256, "device": "cpu"}
    plain = studio.fit.fit(base_model="starter", options=options)
    config = {"model_name_or_path": str(STARTER_FOLDER), "quantization": {"load_in_4bit": True}, **options}
    with studio.db.write() as session:
        for number in range(3):
            result = {"peak_memory_bytes": round(plain.predicted_bytes * 1.2), "device": "cpu", "longest_row": 256}
            job = JobRow(kind="train", name=f"past-{number}", status="SUCCEEDED", config=config, result=result, ended_at=1.0)
            session.add(job)
    learned = studio.fit.fit(base_model="starter", options=options)
    assert learned.correction.model_dump() == {"factor": 1.2, "runs": 3}
    assert learned.predicted_bytes == pytest.approx(plain.predicted_bytes * 1.2, rel=0.001)
    assert studio.fit.fit(model_config=EIGHT_B, options=options).correction.runs == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name one model"),
        (["--model-config", "/nowhere.json"], "is no file"),
        (["--base-model", "starter", "--gpu-gib", "-3"], "no size of a GPU"),
        (["--base-model", "starter", "--device", "cpu", "--gpu-gib", "3"], "goes with a GPU"),
        (["--base-model", "startr"], "no base model"),
        (["--base-model", "starter", "--set", "lora.q=3"], "lora.q is no option"),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_in_words(settings: Settings, arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["fit", *arguments])
    assert isinstance(done.exception, StudioError) and said in str(done.exception)


def test_what_a_launch_would_refuse_is_predicted_with_a_warning(settings: Settings, tmp_path: Any) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(EIGHT_B), encoding="utf-8")
    done = CliRunner().invoke(app, ["fit", "--model-config", str(file), "--gpu-gib", "24", "--set", "learning_rate=0.9", "--json"])
    found = json.loads(done.stdout)
    assert found["predicted_bytes"] > 4e9 and any("learning_rate" in warning for warning in found["warnings"])


def test_a_length_nobody_asked_for_is_the_models_and_no_reason_to_warn(studio: Studio) -> None:
    assert studio.fit.fit(base_model="starter").warnings == []
    assert "Set max_length=512." in studio.fit.fit(base_model="starter", options={"max_length": 1024}).warnings[0]
