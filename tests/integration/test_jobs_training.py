"""Real small trainings on the starter: they learn, they resume to the bit, and they fail in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.rundir import manifest_problems
from tests.runs import make_run

ROOT = Path(__file__).resolve().parents[2]

# a wish at step n is met by a checkpoint at n + 1; at a step that is evaluated (4, 8, 12) by leaving at once
STOPPED = {"mid-epoch, between epochs, in an evaluation": [2, 5, 7], "at its end": [12]}
RESUMED = list(zip(("qlora-sft", "lora-sft"), STOPPED, strict=True))
# which question for a stop is answered with yes: one before the first step, then one after each of its two batches
INSIDE: dict[str, list[Any]] = {"in its first step": ["2"], "in steps whose last is not kept yet": ["4", "4"]}
SPARSE = {"logging_steps": 4, "packing": True, "max_length": 64}
GROUPED = {"train_sampling_strategy": "batch_rebalance"}  # stopped in its second epoch
# a rate so high that the loss on held-out rows soon rises
WILD = {"learning_rate": 0.05, "eval_steps": 1, "save_steps": 3, "num_train_epochs": 6, "early_stopping_patience": 4}
# what a checkpoint keeps beside its adapter, and the objectives' own counts
SHORT = {"rows": 12, "eval_steps": 2}  # six steps
OTHERS: dict[str, dict[str, Any]] = {
    "p-tuning": {"method": "p-tuning", "prompt.num_virtual_tokens": 4, **SHORT},
    "pissa": {"lora.init_lora_weights": "pissa", "lora.loraplus_lr_ratio": 4.0, **SHORT},
    "full": {"method": "full", **SHORT},
    "dpo": {"objective": "dpo", "dpo.loss_type": ["sigmoid", "sft"], "eval_steps": 4},
    "kto": {"objective": "kto", **SHORT},
    "orpo": {"objective": "orpo", "quantization.load_in_4bit": True, **SHORT},
}
IS_ALL = os.environ.get("STUDIO_ALL_CELLS") == "1"  # `make chaos`
if not IS_ALL:
    OTHERS = {"dpo": OTHERS["dpo"]}
FLOAT16_FAILURES = {
    "float16, below every scale": "in float16 failed: the gradient is not a number any more at step 1",
    "float16, poisoned": "in float16 failed: the loss",
}
UNWATCHED = {"sample_answers": 0, "measure_drift": False}
PRECISIONS: dict[str, dict[str, Any]] = {
    "16 bit": {"quantization.load_in_4bit": False},
    "8 bit": {"quantization.load_in_4bit": False, "quantization.load_in_8bit": True},
    "NF4": {"quantization.load_in_4bit": True},
    "full": {"method": "full", "quantization.load_in_4bit": False},
}
# 60 steps whose scale doubles after every second one, until gradients overflow
ONE_ROW = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "max_steps": 60}  # a processor computes float16 slowly
IN_HALF: dict[str, Any] = {"dtype": "float16", "device": "cpu", "eval_steps": 30, **ONE_ROW}
HALF = {"recipe": "lora-sft", "scaler": [2.0**16, 2.0, 0.5, 2], "options": IN_HALF}
CASES: list[dict[str, Any]] = [
    {"name": "float16", **HALF},
    {"name": "float16 stopped", **HALF, "stops": [31]},
    {
        "name": "float16, begun too high",
        **HALF,
        "scaler": [2.0**60, 2.0, 0.5, 2000],
        "options": {**IN_HALF, "max_steps": 22, "eval_steps": 22},
    },
    {"name": "float16, below every scale", **HALF, "scaler": [2.0**60, 2.0, 2.0**-61, 2000]},
    {"name": "float16, poisoned", **HALF, "poisoned": True},
    *({"name": name, "recipe": "lora-sft", "options": own} for name, own in OTHERS.items()),
    *({"name": f"{name} stopped", "recipe": "lora-sft", "options": own, "stops": [2]} for name, own in OTHERS.items()),
    *({"name": recipe, "recipe": recipe} for recipe in ("lora-sft", "qlora-sft")),
    *({"name": f"{recipe} {when}", "recipe": recipe, "stops": STOPPED[when]} for recipe, when in RESUMED),
    {"name": "unwatched", "recipe": "qlora-sft"},
    *({"name": f"lora-sft {when}", "recipe": "lora-sft", "stops": at} for when, at in INSIDE.items()),
    {"name": "often saved", "recipe": "lora-sft", "saves": True, "options": {"save_steps": 1000, "max_steps": 3}},
    {"name": "damaged", "recipe": "lora-sft", "stops": [7], "damage": "optimizer.pt"},
    {"name": "sparse", "recipe": "lora-sft", "options": SPARSE},
    {"name": "sparse stopped", "recipe": "lora-sft", "stops": [3], "options": SPARSE},
    {"name": "grouped", "recipe": "lora-sft", "options": GROUPED},
    {"name": "grouped stopped", "recipe": "lora-sft", "stops": [8], "options": GROUPED},
    {"name": "wild", "recipe": "lora-sft", "options": WILD},
    {"name": "wild stopped", "recipe": "lora-sft", "options": WILD, "stops": [2, 4]},
    {"name": "wild over", "recipe": "lora-sft", "options": WILD, "stops": [5]},
    {"name": "wild to the last", "recipe": "lora-sft", "options": {**WILD, "num_train_epochs": 1, "load_best_model_at_end": False}},
    {"name": "no model", "options": {"model_name_or_path": "/nowhere"}},
    *({"name": f"no norm, {how}", "lacks": "model.norm.weight", "options": options} for how, options in PRECISIONS.items()),
    {"name": "leftover adapter", "leftover": True},
    {"name": "no such layer", "options": {"lora.target_modules": ["q_proj", "zz_proj"]}},
    {"name": "too short", "options": {"max_length": 8}},
    {"name": "no rows", "options": {"rows": 0}},
    {"name": "diverging", "recipe": "lora-sft", "poisoned": True},
]

for one in CASES:  # watching takes longer than these trainings do; the four-bit ones are watched, stopped or not
    if not one["name"].startswith("qlora-sft"):
        one["options"] = {**UNWATCHED, **one.get("options", {})}


FOR_LONG_TESTS = ("float16", "grouped", "sparse", "wild over", "wild stopped")  # float16 is slow on a processor


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.trainings", str(tmp_path_factory.mktemp("runs"))]
    chosen = [item for item in request.session.items if item.path == request.path]
    cases = [one for one in CASES if any(item.get_closest_marker("long") for item in chosen) or not one["name"].startswith(FOR_LONG_TESTS)]
    done = subprocess.run(command, input=json.dumps(cases), capture_output=True, text=True, cwd=ROOT, timeout=1700)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize(("recipe", "when"), RESUMED)
def test_a_resumed_run_repeats_the_unbroken_one_to_the_bit(trained: dict[str, dict[str, Any]], recipe: str, when: str) -> None:
    unbroken, resumed = trained[recipe], trained[f"{recipe} {when}"]
    assert len(unbroken["curve"]) == 12 + 3  # 12 steps, every fourth evaluated
    assert resumed["curve"] == unbroken["curve"]
    assert resumed["sha256"] == unbroken["sha256"]


@pytest.mark.parametrize("when", INSIDE)
def test_a_stop_within_a_step_keeps_the_last_whole_one(trained: dict[str, dict[str, Any]], when: str) -> None:
    """Red where the begun step leaves a trace in random numbers or sums, and where its whole steps are lost."""
    unbroken, resumed = trained["lora-sft"], trained[f"lora-sft {when}"]
    assert resumed["curve"] == unbroken["curve"] and resumed["sha256"] == unbroken["sha256"]
    goes_on = [event["text"] for event in resumed["events"] if event["type"] == "notice" and "Going on" in event["text"]]
    assert goes_on == {"in its first step": []}.get(when, ["Going on from checkpoint-2."])


def test_a_checkpoint_is_made_wherever_ten_minutes_have_passed(trained: dict[str, dict[str, Any]]) -> None:
    assert [event["step"] for event in trained["often saved"]["events"] if event["type"] == "checkpoint"] == [1, 2, 3]


def test_watching_changes_no_bit_and_tells_what_it_saw(trained: dict[str, dict[str, Any]]) -> None:
    watched, unwatched = trained["qlora-sft"], trained["unwatched"]
    assert watched["sha256"] == unwatched["sha256"] and watched["curve"] == unwatched["curve"]
    told = {kind: [event for event in watched["events"] if event["type"] == kind] for kind in ("samples", "drift", "rows", "machine")}
    base, last = told["samples"][0], told["samples"][-1]
    assert (base["step"], last["step"]) == (0, 12) and len(base["rows"]) == len(base["answers"]) == len(last["answers"]) == 4
    assert base["answers"] != last["answers"]
    assert told["drift"][-1]["step"] == 12 and told["drift"][-1]["base_loss"] > 0
    best, worst = told["rows"][0]["best"], told["rows"][0]["worst"]
    assert best[0]["loss"] < worst[0]["loss"] and best[0]["answer"] and best[0]["reference"]
    assert told["machine"][0]["process_bytes"] > 2**28 and told["machine"][0]["cores"] > 0
    assert {event["type"] for event in unwatched["events"]}.isdisjoint({"samples", "drift", "rows"})


@pytest.mark.parametrize("case", OTHERS)
def test_other_methods_and_objectives_resume_exactly_too(trained: dict[str, dict[str, Any]], case: str) -> None:
    assert len(trained[case]["curve"]) == (12 if case == "dpo" else 6) + 3
    assert trained[f"{case} stopped"]["curve"] == trained[case]["curve"]
    assert trained[f"{case} stopped"]["sha256"] == trained[case]["sha256"]


def test_dpo_begins_where_nothing_is_preferred_and_learns_to(trained: dict[str, dict[str, Any]]) -> None:
    events = [event for event in trained["dpo"]["events"] if event["type"] == "progress"]
    assert events[0]["reward_margin"] == 0  # measured against the base, which the fresh adapter still is
    assert events[-1]["reward_accuracy"] > 0.9 and events[-1]["reward_margin"] > 0.1


@pytest.mark.long
@pytest.mark.parametrize("case", ["sparse", "grouped"])
def test_logging_now_and_then_packing_and_grouping_resume_exactly_too(trained: dict[str, dict[str, Any]], case: str) -> None:
    assert trained[f"{case} stopped"]["curve"] == trained[case]["curve"]
    assert trained[f"{case} stopped"]["sha256"] == trained[case]["sha256"]


def test_a_run_that_gets_worse_stops_early_and_its_best_checkpoint_is_the_adapter(trained: dict[str, dict[str, Any]]) -> None:
    wild = trained["wild"]
    losses = {int(key.split()[1]): point["loss"] for key, point in wild["curve"].items() if key.startswith("eval")}
    best = min(losses, key=lambda step: losses[step])
    assert max(losses) == best + WILD["early_stopping_patience"] < 36
    notices = [event["text"] for event in wild["events"] if event["type"] == "notice"]
    assert any(text.startswith(f"Stopped early at step {max(losses)}") for text in notices)
    card = json.loads((Path(wild["folder"]) / "studio.json").read_text(encoding="utf-8"))
    assert (card["metrics"]["best_step"], card["metrics"]["eval_loss"]) == (best, losses[best])
    pinned = Path(wild["folder"]).parent / f"checkpoints/checkpoint-{best}"  # kept, though two newer ones are there
    assert manifest_problems(pinned) == []
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (pinned / "adapter", Path(wild["folder"]))]
    assert weights[0] == weights[1]
    assert trained["wild to the last"]["sha256"] != wild["sha256"]


@pytest.mark.long
@pytest.mark.parametrize("case", ["wild stopped", "wild over"])
def test_stopping_early_and_the_best_checkpoint_resume_exactly_too(trained: dict[str, dict[str, Any]], case: str) -> None:
    assert trained[case]["curve"] == trained["wild"]["curve"]
    assert trained[case]["sha256"] == trained["wild"]["sha256"]


@pytest.mark.long
def test_float16_goes_on_where_gradients_overflow_and_a_resume_keeps_the_scale(trained: dict[str, dict[str, Any]]) -> None:
    """Red where an infinite gradient ends a run, and where the scale of a checkpoint is forgotten: other steps are skipped then."""
    unbroken, resumed = trained["float16"], trained["float16 stopped"]
    norms = [point["grad_norm"] for key, point in unbroken["curve"].items() if key.startswith("progress")]
    assert len(norms) == 60 and 5 < norms.count(None) < 30
    card = json.loads((Path(unbroken["folder"]) / "studio.json").read_text(encoding="utf-8"))
    assert card["metrics"]["skipped_steps"] >= norms.count(None)
    assert unbroken["curve"]["progress 60"]["loss"] < 0.7 * unbroken["curve"]["progress 1"]["loss"]
    assert resumed["curve"] == unbroken["curve"] and resumed["sha256"] == unbroken["sha256"]
    assert not [event for event in unbroken["events"] if event["type"] == "notice" and "skipped" in event["text"]]


@pytest.mark.long
def test_many_skipped_steps_in_a_row_are_told_once(trained: dict[str, dict[str, Any]]) -> None:
    notices = [event["text"] for event in trained["float16, begun too high"]["events"] if event["type"] == "notice"]
    assert [text for text in notices if "skipped" in text and "dtype=float32" in text and "up to step 20" in text]


def test_training_learns(trained: dict[str, dict[str, Any]]) -> None:
    for recipe in ("lora-sft", "qlora-sft"):
        curve = trained[recipe]["curve"]
        assert curve["progress 12"]["loss"] < 0.7 * curve["progress 1"]["loss"]
        assert curve["progress 12"]["tokens"] > curve["progress 1"]["tokens"] > 0


def test_a_four_bit_base_gives_another_adapter_than_a_sixteen_bit_one(trained: dict[str, dict[str, Any]]) -> None:
    assert trained["lora-sft"]["sha256"] != trained["qlora-sft"]["sha256"]


def test_an_adapter_explains_itself_and_names_no_path(trained: dict[str, dict[str, Any]]) -> None:
    folder = Path(trained["qlora-sft"]["folder"])
    assert {p.name for p in folder.iterdir()} == {
        "adapter_model.safetensors", "adapter_config.json", "chat_template.jinja", "studio.json", "README.md"
    }  # fmt: skip
    card = json.loads((folder / "studio.json").read_text(encoding="utf-8"))
    assert card["chat_template"]["name"] == card["config"]["chat_template"] == "model"
    assert card["base_model"] == "starter" and card["metrics"]["steps"] == 12 and card["stop_strings"]
    assert json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == "starter"
    for file in folder.iterdir():
        assert str(ROOT).encode() not in file.read_bytes(), file.name


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no model", "is not in /nowhere"),
        ("no such layer", "no layers named zz_proj"),
        ("too short", "hold no token to learn"),
        ("no rows", "no rows to train on"),
        ("diverging", "is not a number any more at step"),
        *(pytest.param(*one, marks=pytest.mark.long) for one in FLOAT16_FAILURES.items()),
    ],
)
def test_a_training_that_cannot_work_says_why_in_one_sentence(trained: dict[str, dict[str, Any]], case: str, words: str) -> None:
    reason, fix = trained[case]["failure"]
    assert words in reason and fix and "\n" not in reason + fix


def test_by_hand_a_run_makes_its_first_attempt_with_all_its_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rows=8, num_train_epochs=1)
    done = subprocess.run([sys.executable, "-m", "jobs.train", str(run.path)], capture_output=True, text=True, cwd=tmp_path, timeout=1200)
    assert done.returncode == 0, done.stderr
    attempt = run.attempt(1)
    assert json.loads(attempt.result.read_text())["status"] == "succeeded"
    assert json.loads(run.result.read_text())["steps"] == 2
    assert (run.adapter / "adapter_model.safetensors").exists()
    assert [manifest_problems(folder) for folder in run.checkpoint_folders()] == [[]]
    assert not list(run.path.rglob("*.bin")) and not list(run.path.rglob(".part*"))
    told = ("start", "progress", "eval", "checkpoint", "rows")
    kinds = [event["type"] for event in attempt.read_events(0)[0] if event["type"] in told]
    assert kinds == ["start", "progress", "progress", "eval", "checkpoint", "rows"]


def test_a_folder_that_is_no_run_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "jobs.train", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.count("\n"), list(tmp_path.iterdir())) == (1, 1, [])
    assert "no run directory" in done.stderr


def test_importing_the_trainer_has_no_side_effects() -> None:
    code = "import os, sys; before = dict(os.environ); import jobs.train; print(before == dict(os.environ), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "False"]


def test_damage_is_noticed_and_the_checkpoint_before_is_taken(trained: dict[str, dict[str, Any]]) -> None:
    resumed = trained["damaged"]
    notices = [event["text"] for event in resumed["events"] if event["type"] == "notice"]
    # upstream would go on with a fresh optimizer and say nothing
    assert "Checkpoint checkpoint-7 is damaged (optimizer.pt is missing) and was left out." in notices
    assert "Going on from checkpoint-6." in notices
    assert resumed["sha256"] == trained["lora-sft"]["sha256"]


@pytest.mark.parametrize("how", PRECISIONS)
def test_a_base_that_lacks_a_weight_is_not_trained_in_any_precision(trained: dict[str, dict[str, Any]], how: str) -> None:
    reason, fix = trained[f"no norm, {how}"]["failure"]
    assert "lacks 1 of its" in reason and "model.norm.weight" in reason and "Download" in fix


def test_a_base_with_a_leftover_adapter_is_not_trained(trained: dict[str, dict[str, Any]]) -> None:
    reason, fix = trained["leftover adapter"]["failure"]
    assert "adapter_config.json" in reason and "Remove adapter_config.json" in fix
