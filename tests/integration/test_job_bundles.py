"""Runs that are trained for real: paused and resumed to the bit, bundled, run again, verified, backed up and restored."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.rundir import sha256
from studio import settings as studio_settings
from studio.datasets.rendering import TEMPLATES
from studio.db import lifecycle
from studio.errors import StudioError
from studio.records import ENDED, BundleCheck, QueueOverview
from studio.services import Studio, backups
from studio.services.bundles import CARD
from studio.settings import Settings
from tests.workers import trainers, wait_for, wait_for_status, worker

OPTIONS = {"max_steps": 40, "per_device_train_batch_size": 2, "lora.r": 4, "lora.lora_dropout": 0.1, "eval_steps": 20, "save_steps": 15}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Studio, Path, BundleCheck]]:
    """A studio in which `first` was trained without a break, its bundle, and what verifying that says after a rerun with a pause."""
    place = tmp_path_factory.mktemp("studio")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STUDIO_HOME", str(place / "home"))
        environment.setenv("OMP_NUM_THREADS", "1")
        studio = Studio.open(studio_settings.load())
        rows = place / "tiny.jsonl"
        rows.write_text("".join(json.dumps({"prompt": f"Say {n}", "completion": f"number {n}"}) + "\n" for n in range(40)))
        studio.datasets.add(rows)
        with worker():
            studio.jobs.submit(data="tiny", base_model="starter", name="first", options=OPTIONS)
            first = wait_for_status(studio.db, studio.jobs.show("first").id, *ENDED)
            assert first.status == "SUCCEEDED", first.reason
            bundle = place / "first.zip"
            studio.bundles.bundle("first", bundle)
            before = studio.bundles.verify(bundle)
            assert before.reproduces is None and before.status in ("QUEUED", "RUNNING")
            _pause_in_the_middle(studio, before.job)
            wait_for_status(studio.db, before.job, *ENDED)
        yield studio, bundle, studio.bundles.verify(bundle)
        studio.db.dispose()


def _pause_in_the_middle(studio: Studio, job_id: str) -> None:
    wait_for(lambda: (studio.jobs.show(job_id).progress.step or 0) >= 3)
    assert studio.jobs.pause(job_id).stopping == "pause"
    wait_for_status(studio.db, job_id, "PAUSED")
    assert trainers(studio.settings.runs) == []
    step = studio.jobs.show(job_id).progress.step
    assert 3 <= step < 40 and studio.jobs.overview() == QueueOverview(running=[], queued=0, paused=False, queue_eta_s=None)
    studio.jobs.resume(job_id)


@pytest.mark.long
def test_a_run_that_was_paused_gives_the_same_adapter_to_the_bit(trained: tuple[Studio, Path, BundleCheck]) -> None:
    studio, _, verified = trained
    assert verified.reproduces is True and verified.expected == verified.actual
    assert verified.environment_differences == {}
    again = studio.jobs.show(verified.job)
    assert again.attempt == 2 and again.name == "first-2" and again.data == studio.datasets.show("tiny").id
    assert {"paused", "continued", "rerun"} <= {event.kind for event in again.events}
    unbroken, paused = (
        [(point["step"], point["loss"], point.get("eval_loss")) for point in studio.jobs.metrics(name)] for name in ("first", "first-2")
    )
    assert len(unbroken) == 40 and paused == unbroken


def test_a_bundle_explains_the_run_and_names_no_path(trained: tuple[Studio, Path, BundleCheck]) -> None:
    studio, bundle, _ = trained
    with zipfile.ZipFile(bundle) as archive:
        card = json.loads(archive.read(CARD))
        metrics = archive.read("metrics.jsonl").splitlines()
        for name in archive.namelist():
            assert str(studio.settings.home).encode() not in archive.read(name), name
    assert card["dataset"]["sha256"] == studio.datasets.show("tiny").sha256 and card["seed"] == 42
    assert card["environment"]["versions"]["trl"] and card["environment"]["hardware"]["threads"] and len(metrics) == 40
    assert {"train.jsonl", "eval.jsonl", "chat_template.jinja", "adapter/adapter_model.safetensors"} <= set(card["files"])


def test_the_bare_script_trains_the_same_adapter(trained: tuple[Studio, Path, BundleCheck], tmp_path: Path) -> None:
    studio, _, verified = trained
    file = tmp_path / "first.py"
    threads = json.loads((Path(studio.jobs.show("first").run_dir) / "attempts/1/environment.json").read_text())["hardware"]["threads"]
    studio.jobs.script("first", file)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "STUDIO_HOME": "/nowhere"}
    done = subprocess.run([sys.executable, str(file), "out"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 40
    assert sha256(tmp_path / "out" / "adapter_model.safetensors") == verified.expected


def test_verifying_another_adapter_says_so(trained: tuple[Studio, Path, BundleCheck], tmp_path: Path) -> None:
    studio, bundle, verified = trained
    with studio.db.write() as session:
        from studio.db.models import AdapterRow

        adapter = session.query(AdapterRow).filter(AdapterRow.job_id == verified.job).one()
        true, adapter.sha256 = adapter.sha256, "0" * 64
    assert studio.bundles.verify(bundle).reproduces is False
    with studio.db.write() as session:
        session.query(AdapterRow).filter(AdapterRow.job_id == verified.job).one().sha256 = true


def test_a_rerun_reports_to_nobody(trained: tuple[Studio, Path, BundleCheck], tmp_path: Path) -> None:
    studio, bundle, _ = trained
    talkative = tmp_path / "talkative.zip"
    _changed(lambda files, card: card["config"].update(report_to="wandb"))(bundle, talkative)
    job = studio.bundles.rerun(talkative)
    assert job.config["report_to"] == "none"
    studio.jobs.cancel(job.id)


def _foreign_template(files: dict[str, bytes], card: dict[str, Any]) -> None:
    card["config"]["chat_template"] = str(TEMPLATES / "chatml.jinja")  # a file that is here, though not in the bundle
    for name in [name for name in files if name == "chat_template.jinja"]:
        del files[name], card["files"][name]


def _changed(change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        with zipfile.ZipFile(source) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        card = json.loads(files.pop(CARD))
        change(files, card)
        with zipfile.ZipFile(target, "w") as archive:
            for name, data in {**files, CARD: json.dumps(card).encode()}.items():
                archive.writestr(name, data)

    return write


HOSTILE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "other rows": (_changed(lambda files, card: files.update({"train.jsonl": files["train.jsonl"] + b"\n"})), "has changed"),
    "other adapter": (_changed(lambda files, card: files.update({"adapter/adapter_model.safetensors": b"x"})), "has changed"),
    "no rows": (_changed(lambda files, card: files.pop("train.jsonl") and None), "is missing"),
    "escaping": (_changed(lambda files, card: files.update({"../../evil": b"x"})), "no studio writes"),
    "absolute": (_changed(lambda files, card: files.update({"/tmp/evil": b"x"})), "no studio writes"),
    "other case": (_changed(lambda files, card: files.update({"TRAIN.jsonl": b"x"})), "no studio writes"),
    "options": (_changed(lambda files, card: card["config"].update(learning_rate="much")), "options are none"),
    "a template of the server": (_changed(_foreign_template), "chat template is missing"),
    "other model": (_changed(lambda files, card: card["base_model"].update(fingerprint="0")), "not here"),
    "no card": (_changed(lambda files, card: card.clear()), "no bundle"),
    "bomb": (_changed(lambda files, card: files.update({"bomb": b""})), ""),
    "no zip": (lambda source, target: target.write_bytes(b"rubbish"), "no zip file"),
    "cut": (lambda source, target: target.write_bytes(source.read_bytes()[:-400]), "no zip file"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bundle_that_is_not_whole_or_hostile_queues_nothing(trained: tuple[Studio, Path, BundleCheck], tmp_path: Path, kind: str) -> None:
    studio, bundle, _ = trained
    make, words = HOSTILE[kind]
    bad = tmp_path / "bad.zip"
    make(bundle, bad)
    if kind == "bomb":
        with zipfile.ZipFile(bad, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb2", "w") as target:
            for _ in range(80):
                target.write(bytes(1_000_000))
        words = "would unpack"
    jobs, runs = len(studio.jobs.list()), len(list(studio.settings.runs.iterdir()))
    with pytest.raises(StudioError, match=words):
        studio.bundles.verify(bad)
    assert (len(studio.jobs.list()), len(list(studio.settings.runs.iterdir()))) == (jobs, runs)
    assert [path.name for path in studio.settings.cache.iterdir() if path.name != "leases"] == [] and not (
        tmp_path.parent / "evil"
    ).exists()


def test_only_what_has_succeeded_is_bundled(trained: tuple[Studio, Path, BundleCheck], tmp_path: Path) -> None:
    studio, _, _ = trained
    waiting = studio.jobs.submit(data="tiny", base_model="starter", options=OPTIONS)
    with pytest.raises(StudioError, match="no training that has succeeded"):
        studio.bundles.bundle(waiting.id, tmp_path / "x.zip")
    studio.jobs.cancel(waiting.id)
    for place in (tmp_path, tmp_path / "no" / "x.zip"):
        with pytest.raises(StudioError, match="folder"):
            studio.bundles.bundle("first", place)
    assert list(tmp_path.iterdir()) == []


# backup and restore


@pytest.fixture
def backup(trained: tuple[Studio, Path, BundleCheck], tmp_path: Path) -> Path:
    file = tmp_path / "studio.zip"
    made = backups.backup(trained[0].settings, file)
    assert made.files > 10 and file.stat().st_mode & 0o077 == 0
    return file


def test_a_restored_studio_has_everything_in_its_new_place(
    trained: tuple[Studio, Path, BundleCheck], backup: Path, settings: Settings
) -> None:
    there = trained[0]
    Studio.open(settings).db.dispose()  # a database to be kept beside it
    done = backups.restore(settings, backup)
    assert done.before and (Path(done.before) / "studio.db").exists()
    here = Studio.open(settings)
    assert [job.id for job in here.jobs.list()] == [job.id for job in there.jobs.list()]
    assert here.jobs.metrics("first") == there.jobs.metrics("first")
    first = here.jobs.show("first")
    assert first.run_dir == str(settings.runs / first.id)
    (adapter, *_) = here.adapters.list()
    assert Path(adapter.path).is_relative_to(settings.home)
    assert sha256(Path(adapter.path) / "adapter_model.safetensors") == trained[2].expected
    assert list(here.datasets.rows("tiny")) == list(there.datasets.rows("tiny"))
    assert here.jobs.clone("first").status == "QUEUED"
    assert not list(settings.runs.glob("*/checkpoints"))
    here.db.dispose()


def test_a_restore_waits_for_jobs_that_run_here(trained: tuple[Studio, Path, BundleCheck], backup: Path, settings: Settings) -> None:
    from studio import processes
    from studio.db.models import JobRow

    here = Studio.open(settings)
    with here.db.write() as session:
        job = lifecycle.submit(session, JobRow(kind="train", name="busy"))
        assert lifecycle.claim(session, job.id, processes.owner_id(), None)
    with pytest.raises(StudioError, match="Job busy runs here"):
        backups.restore(settings, backup)
    assert [job.name for job in here.jobs.list()] == ["busy"]
    here.db.dispose()


def _in_database(statement: str) -> Callable[[Path, Path], None]:
    def write(source: Path, target: Path) -> None:
        database = target.with_name("evil.db")
        with zipfile.ZipFile(source) as archive:
            database.write_bytes(archive.read("studio.db"))
            files = {name: archive.read(name) for name in archive.namelist() if name != "studio.db"}
        connection = sqlite3.connect(database)
        connection.execute(statement)
        connection.commit()
        connection.close()
        with zipfile.ZipFile(target, "w") as archive:
            archive.write(database, "studio.db")
            for name, data in files.items():
                archive.writestr(name, data)

    return write


EVIL: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "run elsewhere": (_in_database("UPDATE jobs SET run_dir = '/etc'"), "outside the studio"),
    "adapter above": (_in_database("UPDATE adapters SET path = path || '/../../../..'"), "outside the studio"),
    "id that climbs": (_in_database("UPDATE datasets SET id = '../..'"), "IDs that no studio gives"),
    "trigger": (_in_database("CREATE TRIGGER t AFTER INSERT ON jobs BEGIN DELETE FROM jobs; END"), "programs of its own"),
    "newer": (_in_database("UPDATE alembic_version SET version_num = '9999'"), "newer Adapter Studio"),
    "no zip": (lambda source, target: target.write_bytes(b"rubbish"), "no zip file"),
    "a bundle": (lambda source, target: shutil.copy(source.with_name("bundle.zip"), target) and None, "no"),
}


@pytest.mark.parametrize("kind", EVIL)
def test_a_hostile_backup_changes_nothing(
    trained: tuple[Studio, Path, BundleCheck], backup: Path, settings: Settings, tmp_path: Path, kind: str
) -> None:
    shutil.copy(trained[1], backup.with_name("bundle.zip"))
    make, words = EVIL[kind]
    bad = tmp_path / "bad.zip"
    make(backup, bad)
    here = Studio.open(settings)
    here.jobs.pause_queue()
    with pytest.raises(StudioError, match=words):
        backups.restore(settings, bad)
    assert here.jobs.overview().paused is True
    here.db.dispose()
    assert {path.name for path in settings.home.iterdir() if path.is_dir()} == {
        "datasets", "runs", "adapters", "exports", "models", "quantised", "cache", "logs"
    }  # fmt: skip
