"""What a person does with jobs, through the services and without a worker: queue, forecast, clone, sweep, history."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.rundir import RunDir
from studio.db import lifecycle
from studio.db.models import AdapterRow, ComparisonRow, JobRow, JudgementRow
from studio.errors import ConfigError, NotFoundError, StudioError, TakenError
from studio.records import JobDetail, QueueOverview, RunVerdict
from studio.services import Studio
from studio.settings import STATIC, Settings
from studio.ui import jobs_compare

FINISHED = {"steps": 10, "seconds": 20.0, "train_loss": 1.0}


@pytest.fixture
def studio(settings: Settings, tmp_path: Path) -> Iterator[Studio]:
    opened = Studio.open(settings)
    rows = tmp_path / "tiny.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {n}", "completion": f"number {n}"}) + "\n" for n in range(20)))
    opened.datasets.add(rows)
    yield opened
    opened.db.dispose()


def submit(studio: Studio, name: str | None = None, **options: Any) -> JobDetail:
    return studio.jobs.submit(data="tiny", base_model="starter", name=name, options={"max_steps": 10, **options})


def end(studio: Studio, job_id: str, status: str = "SUCCEEDED", took_s: float = 25.0, **values: Any) -> None:
    """As a worker would: the run took `took_s` seconds from claim to end."""
    with studio.db.write() as session:
        held = lifecycle.claim(session, job_id, "us", "device:0")
        assert held
        lifecycle.finish(session, held, status, result=FINISHED if status == "SUCCEEDED" else None, **values)
    with studio.db.write() as session:
        job = session.get_one(JobRow, job_id)
        assert job.ended_at
        job.started_at = job.ended_at - took_s


def runs(studio: Studio) -> set[str]:
    return {path.name for path in studio.settings.runs.iterdir()}


# forecast


def test_nothing_is_forecast_before_anything_like_it_has_run(studio: Studio) -> None:
    job = submit(studio)
    assert (job.starts_in_s, job.ends_at) == (0.0, None)
    assert studio.jobs.overview() == QueueOverview(running=[], queued=1, paused=False, queue_eta_s=None)


def test_waiting_jobs_know_when_they_start_and_end(studio: Studio) -> None:
    end(studio, submit(studio).id)  # 2 s a step and 5 s around
    first, second = submit(studio), submit(studio, max_steps=20)
    other = submit(studio, max_length=64)  # nothing like it has run
    now = first.created_at
    first, second, other = (studio.jobs.show(job.id) for job in (first, second, other))
    assert first.starts_in_s == 0.0 and first.ends_at == pytest.approx(now + 25, abs=5)
    assert second.starts_in_s == pytest.approx(25.0) and second.ends_at == pytest.approx(now + 25 + 45, abs=5)
    assert other.starts_in_s == pytest.approx(70.0) and other.ends_at is None
    assert studio.jobs.overview().queue_eta_s is None
    studio.jobs.cancel(other.id)
    assert studio.jobs.overview().queue_eta_s == pytest.approx(70.0)
    studio.jobs.move(second.id, before=first.id)
    assert studio.jobs.show(first.id).starts_in_s == pytest.approx(45.0)
    assert [job.name for job in studio.jobs.list("QUEUED")] == [second.name, first.name]
    studio.jobs.pause(second.id)
    assert studio.jobs.show(first.id).starts_in_s == 0.0
    assert studio.jobs.show(second.id).starts_in_s is None
    studio.jobs.pause_queue()
    assert studio.jobs.show(first.id).starts_in_s is None and studio.jobs.overview().queue_eta_s is None


def test_the_forecast_counts_what_runs_and_what_waits_for_what(studio: Studio) -> None:
    end(studio, submit(studio).id)
    running, paused = submit(studio), submit(studio)
    after = studio.jobs.submit(data="tiny", base_model="starter", options={"max_steps": 10}, after=paused.id)
    last = submit(studio)
    studio.jobs.pause(paused.id)
    with studio.db.write() as session:
        held = lifecycle.claim(session, running.id, "us", "device:0")
        assert held
        lifecycle.ingest(session, held, [{"type": "progress", "step": 4, "max_steps": 10, "eta_s": 60.0, "loss": 1.0}], 1)
    assert studio.jobs.show(last.id).starts_in_s == pytest.approx(60.0, abs=5)
    assert studio.jobs.show(after.id).starts_in_s is None  # nobody knows when the paused one goes on
    assert studio.jobs.overview().queue_eta_s is None
    assert [job.name for job in studio.jobs.overview().running] == [running.name]


def test_a_queue_is_paused_for_every_process_and_after_a_restart(studio: Studio, settings: Settings) -> None:
    assert studio.jobs.pause_queue().paused is True
    assert Studio.open(settings).jobs.overview().paused is True
    assert studio.jobs.resume_queue().paused is False


# clone and remedy


def test_a_clone_has_the_same_options_but_those_that_were_changed(studio: Studio) -> None:
    first = studio.jobs.show(submit(studio, "first", **{"lora.r": 4, "test_size": 0.2}).id)
    clone = studio.jobs.clone("first", options={"lora.r": 8})
    assert clone.name == "first-2" and clone.id != first.id and clone.run_dir != first.run_dir
    assert clone.config == {**first.config, "lora": {**first.config["lora"], "r": 8}}
    for file in ("train.jsonl", "eval.jsonl", "chat_template.jinja"):
        assert (Path(clone.run_dir) / file).read_bytes() == (Path(first.run_dir) / file).read_bytes()
    assert clone.events[1].model_extra == {"from": first.id, "name": "first", "changes": {"lora.r": 8}}


def test_a_clone_outlives_its_dataset(studio: Studio) -> None:
    first = submit(studio, "first")
    studio.datasets.delete("tiny")
    clone = studio.jobs.clone("first", options={"learning_rate": 0.01})
    assert (Path(clone.run_dir) / "train.jsonl").read_bytes() == (Path(first.run_dir) / "train.jsonl").read_bytes()
    assert clone.config["learning_rate"] == 0.01
    with pytest.raises(StudioError, match=r"can't be divided anew \(seed\)"):
        studio.jobs.clone("first", options={"seed": 7})


def test_a_clone_outlives_the_file_of_its_template(studio: Studio, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text((STATIC / "starter" / "chat_template.jinja").read_text(encoding="utf-8") + "{# mine #}", encoding="utf-8")
    studio.models.at_terminal = True
    first = submit(studio, "first", chat_template=str(template))
    template.unlink()
    studio.models.at_terminal = False  # on the page too
    clone = studio.jobs.clone("first")
    assert (Path(clone.run_dir) / "chat_template.jinja").read_bytes() == (Path(first.run_dir) / "chat_template.jinja").read_bytes()


def test_what_cannot_be_cloned_leaves_nothing_behind(studio: Studio) -> None:
    submit(studio, "first")
    before, jobs = runs(studio), len(studio.jobs.list())
    for arguments in ({"options": {"lora.rank": 1}}, {"name": "first"}, {"options": {"test_size": 2}}, {"options": {"base_model": "no"}}):
        with pytest.raises(StudioError):
            studio.jobs.clone("first", **arguments)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        studio.jobs.clone("nothing")
    assert (runs(studio), len(studio.jobs.list())) == (before, jobs)


def test_a_remedy_is_a_click(studio: Studio) -> None:
    job = submit(studio, "first")
    with pytest.raises(StudioError, match="No change of options"):
        studio.jobs.apply_remedy("first")
    end(studio, job.id, "FAILED", reason="diverged", fix="lower it", cause="diverged", remedy={"learning_rate": 1e-5})
    shown = studio.jobs.show("first")
    assert (shown.cause, shown.remedy) == ("diverged", {"learning_rate": 1e-5})
    mended = studio.jobs.apply_remedy("first")
    assert mended.status == "QUEUED" and mended.config["learning_rate"] == 1e-5


# sweeps


def test_a_sweep_queues_one_job_per_combination_with_the_same_rows(studio: Studio) -> None:
    sweep = studio.jobs.sweep(
        data="tiny", base_model="starter", grid={"lora.r": [4, 8], "seed": [1, 2]}, options={"max_steps": 2}, name="grid"
    )
    assert (sweep.kind, sweep.status, sweep.progress.max_steps) == ("sweep", "QUEUED", 4)
    assert [(child.name, child.options) for child in sweep.children] == [
        (f"grid-{n}", {"lora.r": r, "seed": seed}) for n, (r, seed) in enumerate([(4, 1), (4, 2), (8, 1), (8, 2)], 1)
    ]
    rows = {(child.options["seed"]): set() for child in sweep.children}  # type: ignore[var-annotated]
    for child in sweep.children:
        rows[child.options["seed"]].add((RunDir(Path(child.run_dir)).train).read_bytes())
    assert [len(found) for found in rows.values()] == [1, 1] and rows[1] != rows[2]
    for child in sweep.children:
        end(studio, child.id)
    assert studio.jobs.wait("grid", timeout=0).status == "SUCCEEDED"
    compared = studio.jobs.compare(["grid"])
    assert compared.differences == {"seed": [1, 2, 1, 2], "lora.r": [4, 4, 8, 8]}


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({}, "at least one option"),
        ({"lora.rank": [1]}, "no option"),
        ({"base_model": ["starter"]}, "can't be varied"),
        ({"seed": []}, "no list of values"),
        ({"seed": 3}, "no list of values"),
        ({"seed": [1, 1]}, "twice"),
        ({"seed": list(range(65))}, "at most 64"),
        ({"max_steps": [1, 2]}, "set and varied"),
        ({"lora.r": [4, -1], "learning_rate": [7, 0.1]}, "lora.r=-1"),
    ],
)
def test_a_sweep_that_cannot_work_queues_nothing(studio: Studio, grid: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        studio.jobs.sweep(data="tiny", base_model="starter", grid=grid, options={"max_steps": 2})
    assert studio.jobs.list() == [] and runs(studio) == set()


def test_cancelling_a_sweep_cancels_what_waits(studio: Studio) -> None:
    studio.jobs.sweep(data="tiny", base_model="starter", grid={"seed": [1, 2]}, name="grid")
    end(studio, studio.jobs.show("grid-1").id)
    assert studio.jobs.cancel("grid").status == "CANCELLED"
    assert [studio.jobs.show(name).status for name in ("grid-1", "grid-2")] == ["SUCCEEDED", "CANCELLED"]
    with pytest.raises(TakenError):
        submit(studio, "grid-2")


# history


def test_jobs_are_found_by_what_people_wrote_on_them(studio: Studio) -> None:
    submit(studio, "first")
    submit(studio, "second")
    studio.jobs.tag("first", ["good run", "good  run", "Ältere"])
    studio.jobs.note("second", " too high a rate ")
    assert studio.jobs.show("first").tags == ["good run", "Ältere"]
    for search, names in (
        ("GOOD", ["first"]),
        ("rate high", ["second"]),
        ("tiny", ["first", "second"]),
        ("ältere no", []),
        ("", ["first", "second"]),
    ):
        assert [job.name for job in studio.jobs.list(search=search)] == names, search
    studio.jobs.tag("second", ["x" * 40])
    studio.jobs.tag("first", [], remove=["good run"])
    assert studio.jobs.note("second", "").notes == "" and studio.jobs.show("first").tags == ["Ältere"]
    for bad in ([""], ["x" * 41], ["a\nb\x00"], [str(n) for n in range(20)]):
        with pytest.raises(StudioError):
            studio.jobs.tag("first", bad)


def test_runs_are_compared_by_what_differs(studio: Studio) -> None:
    first, second = submit(studio, "first"), submit(studio, "second", **{"lora.r": 8})
    for number, job in enumerate((first, second)):
        with studio.db.write() as session:
            held = lifecycle.claim(session, job.id, "us", "device:0")
            assert held
            lifecycle.ingest(session, held, [{"type": "progress", "step": n, "loss": 1.0 + number} for n in range(1000)], 1)
            lifecycle.finish(session, held, "SUCCEEDED", result=FINISHED)
    found = studio.jobs.compare(["second", "first"])
    assert [job.name for job in found.jobs] == ["second", "first"]
    assert found.differences == {"lora.r": [8, 16]}
    assert {len(curves.train) for curves in found.curves.values()} == {400}
    assert found.results == {first.id: FINISHED, second.id: FINISHED}
    assert found.judged == {first.id: None, second.id: None}
    for few in ([], ["first"], ["first", "first"]):
        with pytest.raises(StudioError, match="two to twenty"):
            studio.jobs.compare(few)


def test_what_a_judge_said_last_joins_the_table_of_runs(studio: Studio) -> None:
    first, second = submit(studio, "first"), submit(studio, "second")
    with studio.db.write() as session:
        session.add(AdapterRow(name="first", base_model="starter", method="lora", job_id=first.id, path="", bytes=0, sha256=""))
        session.add(ComparisonRow(id="c1", name="held-out", base_model="starter", contestants=["base", "first"], prompts=[]))
        session.add(ComparisonRow(id="c2", name="elsewhere", base_model="other", contestants=["base", "first"], prompts=[]))
        for at, (comparison, rate) in enumerate([("c1", 0.25), ("c1", 0.75), ("c2", 0.5)]):
            readings = {"win_rate": {"base": 1 - rate, "first": rate}, "ci95": {"first": [rate - 0.1, rate + 0.1]}}
            session.add(
                JudgementRow(comparison_id=comparison, judge="reference", kind="reference", readings=readings, created_at=float(at))
            )
        session.add(JudgementRow(comparison_id="c1", judge="starter", kind="model", created_at=9.0))  # has not ended
    found = studio.jobs.compare(["first", "second"])
    assert found.judged == {
        first.id: RunVerdict(win_rate=0.75, ci95=[0.65, 0.85], judge="reference", comparison="held-out"),
        second.id: None,
    }
    told = dict(jobs_compare.beside(found, {first.id: "run-1", second.id: "run-2"})["parts"][0][1])
    assert told["win rate when judged"] == ["75 % (65 % to 85 %)", "-"] and told["judge, comparison"] == ["reference, held-out", "-"]


def test_a_script_is_python_and_carries_the_options(studio: Studio) -> None:
    submit(studio, "first", **{"lora.r": 5, "learning_rate": 0.0123})
    made = studio.jobs.script("first")
    compile(made.script, "first.py", "exec")
    assert "r=5," in made.script and "0.0123" in made.script and made.name == "first" and made.files == []
