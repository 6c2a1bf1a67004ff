"""The report that follows a training: queued with its success, out of the way of trainings, and never a danger to them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.conclusion import conclude
from jobs.follow_up import AUTOMATIC
from jobs.light import LightContext
from jobs.outcome import Outcome
from jobs.report import Yielding
from jobs.rundir import RunDir
from jobs.runner import Runner
from jobs.slots import PROCESSOR
from studio.catalogue.models import tensors
from studio.db import lifecycle, queue_order
from studio.db.models import JobRow
from studio.errors import StudioError
from studio.records import JobDetail, JobKind
from studio.services import Studio
from studio.settings import Settings
from tests.engines import KEY, PROJECTIONS, RANK, engine
from tests.runs import STARTER, make_run, submit


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    opened = Studio.open(settings, at_terminal=True)
    yield opened
    opened.db.dispose()


def write_adapter(folder: Path) -> None:
    """A LoRA of the starter with random weights, strong enough to change what it says."""
    random, weights = np.random.default_rng(1), {}
    for name, _, shape in tensors(STARTER / "model.safetensors"):
        if "_proj." in name:
            place = f"base_model.model.{name.removesuffix('.weight')}"
            weights[f"{place}.lora_A.weight"] = random.normal(0, 0.1, (RANK, shape[1])).astype(np.float32)
            weights[f"{place}.lora_B.weight"] = random.normal(0, 0.3, (shape[0], RANK)).astype(np.float32)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": RANK, "target_modules": PROJECTIONS, "bias": "none"}
    folder.mkdir(parents=True)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(STARTER)}))


def claimed(studio: Studio, name: str, **options: Any) -> tuple[lifecycle.Claim, RunDir]:
    """A training that holds the device, with its adapter written."""
    run = make_run(studio.settings.runs / name, **options)
    job = submit(studio.db, run, name)
    with studio.db.write() as session:
        held = lifecycle.claim(session, job, "somebody", PROCESSOR)
    assert held is not None
    return held, run


def succeeded(studio: Studio, name: str = "first", **options: Any) -> JobDetail:
    """A training whose success has been written down."""
    held, run = claimed(studio, name, **options)
    write_adapter(run.adapter)
    with studio.db.write() as session:
        conclude(session, held, session.get_one(JobRow, held.job_id), Outcome("succeeded"))
    return studio.jobs.show(name)


def waiting(studio: Studio, without: tuple[str, ...] = ()) -> list[str]:
    with studio.db.read() as session:
        return queue_order.claimable(session, "light", without=without)


def test_base_and_adapter_answer_rows_that_were_held_out(studio: Studio, tmp_path: Path) -> None:
    job = succeeded(studio)
    assert job.report.status == "QUEUED" and [row.name for row in studio.jobs.list()] == ["first"]
    with engine(tmp_path / "engine") as running:
        Runner(replace(studio.settings, engine_url=running.url, engine_key=KEY), studio.db, "light").run()
    found = studio.reports.show("first")

    assert found.status == "SUCCEEDED", found
    assert (found.rows, found.held_out, found.base, found.adapter) == (4, 4, "base", "first")
    for figures in found.metrics.values():
        assert figures["n"] == figures["answers"] == 4 and 0 <= figures["exact_match"] <= 1 and figures["ci95"]["rougeL"]
        # from `studio.evaluation.likelihood`, a process of its own
        assert figures["perplexity"] > 1 and math.isfinite(figures["perplexity"])
    assert found.judge.judge == "reference" and found.judge.ci95[0] <= found.judge.win_rate <= found.judge.ci95[1]
    assert sum(dict(found.counts).values()) == 4 and len(found.losses) == min(3, found.counts.losses)
    shown = studio.comparisons.show(found.comparison)
    assert {row.contestant for row in shown.answers} == {"base", "first"} and all(row["tokens"] for row in found.metrics.values())
    assert studio.preferences.worst(found.comparison, "first")[:1] or not found.counts.losses
    assert studio.jobs.show("first").report.judge == found.judge


def test_it_waits_for_an_engine_and_for_trainings_unless_somebody_asks(studio: Studio) -> None:
    report = succeeded(studio).report.job
    assert waiting(studio) == [report] and waiting(studio, (JobKind.REPORT,)) == []
    Runner(studio.settings, studio.db, "light").run()  # no engine: it stays as it is
    assert studio.reports.show("first").status == "QUEUED"

    claimed(studio, "second")
    with studio.db.write() as session:
        assert waiting(studio) == [] and session.get_one(JobRow, report).priority == AUTOMATIC
    context = LightContext(studio.settings, studio.db, report, 1, {}, lambda: False, lambda *_: None)
    assert Yielding(context).is_stopping(), "a report that runs gives way"
    studio.reports.hurry("first")
    assert waiting(studio) == [report] and not Yielding(context).is_stopping()


def test_it_does_not_begin_in_the_moment_between_two_trainings(studio: Studio) -> None:
    report = succeeded(studio).report.job
    submit(studio.db, make_run(studio.settings.runs / "second"), "second")
    assert waiting(studio) == [], "the device is free only until the next training takes it"
    studio.jobs.pause_queue()
    assert waiting(studio) == [report]
    studio.jobs.resume_queue()
    studio.jobs.cancel("second")
    assert waiting(studio) == [report]


@pytest.mark.parametrize("trouble", ["no rows", "broken rows", "gone", "unwanted"])
def test_a_training_succeeds_whatever_is_wrong_with_its_report(studio: Studio, trouble: str) -> None:
    held, run = claimed(studio, "first", report_rows=0 if trouble == "unwanted" else 5)
    write_adapter(run.adapter)
    if trouble == "gone":
        run.eval.unlink()
    elif trouble != "unwanted":
        run.eval.write_text("" if trouble == "no rows" else '{"messages": 5}\n')
    with studio.db.write() as session:
        conclude(session, held, session.get_one(JobRow, held.job_id), Outcome("succeeded"))

    job = studio.jobs.show("first")
    assert job.status == "SUCCEEDED" and job.adapter and job.report is None
    assert studio.comparisons.list() == [] and waiting(studio) == []


def test_held_out_rows_and_published_questions_can_be_asked(studio: Studio) -> None:
    succeeded(studio)
    asked = studio.comparisons.create(held_out="first", base_model="starter", contestants=["base", "first"])
    assert asked.prompt_count == 4 and all(prompt["reference"] for prompt in asked.prompts)
    known = studio.comparisons.create(questions="mt-bench", base_model="starter", contestants=["base"])
    assert known.prompt_count == 80 and {len(prompt["turns"]) for prompt in known.prompts} == {2}
    assert sum("references" in prompt for prompt in known.prompts) == 30
    for wrong in ({"questions": "mt-bank"}, {"held_out": "second"}, {"questions": "vicuna", "held_out": "first"}):
        with pytest.raises(StudioError):
            studio.comparisons.create(**wrong, base_model="starter", contestants=["base"])


def test_an_adapter_can_be_deleted_before_its_report(studio: Studio) -> None:
    succeeded(studio)
    studio.adapters.delete("first")
    assert studio.reports.show("first").status == "CANCELLED"
