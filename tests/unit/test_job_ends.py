"""What the parts around a job decide: what an end means and earns, when a silent worker loses its job, what is kept ready and shown."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from jobs import conclusion, measures, outcome, rundir, warm
from jobs import reconcile as reconciling
from jobs import report as reports
from jobs.attempts import LightContext
from jobs.executor import Exit
from jobs.outcome import Outcome
from jobs.reconcile import Reconciler
from jobs.rundir import STOPPED, RunDir, write_json, write_manifest
from jobs.runner import Runner
from studio import processes
from studio.db import lifecycle
from studio.db.lifecycle import Claim
from studio.db.models import AdapterRow, AnswerRow, ComparisonRow, JobRow
from studio.db.session import Database
from studio.evaluation.verdicts import VerdictLine
from studio.settings import Settings
from tests.runs import make_run, open_store, submit


@pytest.fixture
def db(settings: Settings) -> Iterator[Database]:
    database = open_store(settings)
    yield database
    database.dispose()


def row(db: Database, job_id: str) -> JobRow:
    with db.read() as session:
        return session.get_one(JobRow, job_id)


# what an end means


@pytest.mark.parametrize(
    ("ended", "result", "we_asked", "wanted"),
    [
        (Exit(None), None, True, Outcome("lost", "its exit status was lost")),
        (Exit(0), {"status": "succeeded"}, False, Outcome("succeeded")),
        (Exit(0), {"status": "succeeded", "metrics": {"steps": 3}}, False, Outcome("succeeded", result={"steps": 3})),
        (Exit(1), {"status": "succeeded"}, False, Outcome("failed", "The trainer ended with exit code 1.", outcome.LOOK_AT_LOG)),
        (Exit(0), [], False, Outcome("failed", "The trainer ended without a result.", outcome.LOOK_AT_LOG)),
        (Exit(0), {"status": "failed", "reason": "r"}, False, Outcome("failed", "r")),
        (Exit(STOPPED), {"status": "failed", "reason": "r"}, True, Outcome("stopped")),
        (Exit(STOPPED), None, False, Outcome("lost", "it was asked to stop from outside (SIGTERM)")),
        (Exit(STOPPED + 1), None, True, Outcome("failed", "The trainer ended with exit code 76.", outcome.LOOK_AT_LOG)),
        (
            Exit(1),
            {"status": "failed", "reason": "r", "fix": "f", "cause": "c", "remedy": {"a": 1}, "metrics": {"b": 2}},
            True,
            Outcome("failed", "r", "f", "c", {"a": 1}, {"b": 2}),
        ),
        (Exit(-signal.SIGSEGV), None, True, Outcome("stopped")),
        (Exit(-signal.SIGSEGV), None, False, Outcome("failed", "The trainer crashed (SIGSEGV).", outcome.LOOK_AT_LOG)),
        (Exit(-signal.SIGTERM, ran_out_of_memory=True), None, False, Outcome("lost", "something outside ended it (SIGTERM)")),
        (Exit(-99), None, False, Outcome("lost", "something outside ended it (signal 99)")),
    ],
)
def test_an_end_means_one_thing(tmp_path: Path, ended: Exit, result: Any, we_asked: bool, wanted: Outcome) -> None:
    attempt = RunDir(tmp_path).attempt(1)
    if result is not None:
        write_json(attempt.result, result)
    assert outcome.judge(ended, attempt, we_asked) == wanted


def test_the_last_line_of_the_log_is_shown_up_to_300_characters(tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).attempt(1)
    attempt.path.mkdir(parents=True)
    attempt.log.write_text("first\n" + "x" * 400 + "\n", encoding="utf-8")
    assert outcome.judge(Exit(3), attempt, we_asked=False).reason == f"The trainer ended with exit code 3: {'x' * 300}"


# what it earns


def begun(db: Database, settings: Settings, **values: Any) -> tuple[RunDir, Claim, str]:
    run = make_run(settings.runs / "run", rows=4)
    job_id = submit(db, run, **values)
    with db.write() as session:
        held = lifecycle.claim(session, job_id, "us", None)
    assert held is not None
    return run, held, job_id


def make_adapter(folder: Path, size: int = 10) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"x" * size)
    (folder / "adapter_config.json").write_text("{}")


def concluded(db: Database, held: Claim, ended: Outcome) -> JobRow:
    with db.write() as session:
        conclusion.conclude(session, held, session.get_one(JobRow, held.job_id), ended)
    return row(db, held.job_id)


FAILED = Outcome("failed", "r", "f", "c", {"seed": 1}, {"steps": 2})


@pytest.mark.parametrize(
    ("asked", "ended", "status", "reason"),
    [
        (None, FAILED, "FAILED", "r"),
        (None, Outcome("stopped"), "QUEUED", ""),
        (None, Outcome("lost", "gone"), "QUEUED", ""),
        ("cancel", FAILED, "CANCELLED", ""),
        ("cancel", Outcome("stopped"), "CANCELLED", ""),
        ("pause", Outcome("stopped"), "PAUSED", ""),
        ("pause", FAILED, "FAILED", "r"),
        ("keep", Outcome("stopped"), "CANCELLED", "There was no checkpoint yet, so no adapter could be kept."),
        ("keep", FAILED, "CANCELLED", "There was no checkpoint yet, so no adapter could be kept."),
    ],
)
def test_what_an_end_earns(db: Database, settings: Settings, asked: str | None, ended: Outcome, status: str, reason: str) -> None:
    _, held, job_id = begun(db, settings)
    with db.write() as session:
        session.get_one(JobRow, job_id).cancel = asked
    job = concluded(db, held, ended)
    assert (job.status, job.reason) == (status, reason)
    assert job.lost == (ended.kind == "lost") and bool(job.fix) == bool(reason)
    if status == "FAILED":
        assert (job.fix, job.cause, job.remedy, job.result) == ("f", "c", {"seed": 1}, {"steps": 2})


@pytest.mark.parametrize("asked", [None, "cancel", "keep"])
def test_success_lists_the_adapter_whatever_was_asked(db: Database, settings: Settings, asked: str | None) -> None:
    run, held, job_id = begun(db, settings, name="mine")
    make_adapter(run.adapter)
    with db.write() as session:
        session.add(AdapterRow(name="mine", base_model="b", method="m", path="/x", bytes=1))
        session.add(AdapterRow(name="mine-2", base_model="b", method="m", path="/x", bytes=1))
        session.get_one(JobRow, job_id).cancel = asked
    job = concluded(db, held, Outcome("succeeded", result={"steps": 3}))
    assert (job.status, job.result) == ("SUCCEEDED", {"steps": 3})
    with db.read() as session:
        (adapter,) = session.scalars(select(AdapterRow).where(AdapterRow.job_id == job_id))
    assert (adapter.name, adapter.bytes, adapter.path, adapter.base_model) == ("mine-3", 12, str(run.adapter), job.base_model)
    assert adapter.sha256 == rundir.sha256(run.adapter / "adapter_model.safetensors") and adapter.method == job.config.get("method")


def test_a_kept_checkpoint_replaces_the_adapter_of_the_same_job(db: Database, settings: Settings) -> None:
    run, _held, job_id = begun(db, settings)
    for step, size in ((2, 20), (4, 40)):
        make_adapter(run.checkpoint(step) / "adapter", size)
        write_manifest(run.checkpoint(step))
    with db.write() as session:
        job = session.get_one(JobRow, job_id)
        assert conclusion.keep_adapter(session, job) == ("", "")
        first = conclusion.register_adapter(session, job, run.adapter)
        assert first.bytes == 42
        (run.checkpoint(4) / "adapter" / "adapter_model.safetensors").write_bytes(b"cut")
        assert conclusion.keep_adapter(session, job) == ("", "")
        assert session.scalars(select(AdapterRow.bytes)).all() == [22]
        assert conclusion.keep_adapter(session, JobRow(name="light", run_dir=""))[0].startswith("There was no checkpoint")


def test_a_second_try_with_half_the_batch_is_for_trainings_once(db: Database, settings: Settings) -> None:
    run, held, job_id = begun(db, settings)
    smaller = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "per_device_eval_batch_size": 4}
    assert conclusion._halved(row(db, job_id)) == smaller
    assert (
        conclusion._halved(JobRow(kind="export", is_halved=False, config={}))
        == {}
        == conclusion._halved(JobRow(kind="train", is_halved=True, config={}))
    )
    run.attempt(1).path.mkdir(parents=True)
    job = concluded(db, held, Outcome("failed", "r", "f", outcome.OUT_OF_MEMORY))
    assert (job.status, job.is_halved) == ("QUEUED", True) and {key: job.config[key] for key in smaller} == smaller
    assert {key: run.read_config()[key] for key in smaller} == smaller
    assert run.attempt(1).log.read_text().startswith("Memory ran out: once more with per_device_train_batch_size 1")


# silent workers


class Processes:
    """Which owners are gone, which trainers live, and what was sent to them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.gone, self.alive, self.sent = 100.0, set(), True, []  # type: ignore[var-annotated]
        monkeypatch.setattr(reconciling.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(processes, "is_gone", lambda owner: owner in self.gone)
        monkeypatch.setattr(processes, "is_local", lambda owner: owner != "far")
        monkeypatch.setattr(processes, "is_alive", lambda pid, born: self.alive)
        monkeypatch.setattr(processes, "signal_group", lambda pid, number: self.sent.append((pid, number)))
        monkeypatch.setattr(processes, "kill_group", lambda pid, born: self.sent.append((pid, born)))


def test_a_lease_that_stands_still_for_twelve_seconds_of_looking_is_lost(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Processes(monkeypatch)
    _, held, job_id = begun(db, settings)
    woken: list[int] = []
    watcher = Reconciler(Runner(settings, db, "gpu"), lambda: woken.append(1), lambda: 0)

    def after(seconds: float) -> str:
        seen.now += seconds
        watcher.look()
        return row(db, job_id).status

    watcher.look()
    assert [after(3.0) for _ in range(4)] == ["RUNNING"] * 4  # 12 s: not longer than a lease
    with db.write() as session:
        lifecycle.beat(session, held)
        session.get_one(JobRow, job_id).lease_until = 5.0  # whatever stands there: it has moved
    assert [after(3.0) for _ in range(5)] == ["RUNNING"] * 5
    assert after(0.5) == "QUEUED" and row(db, job_id).lost == 1, "12.5 s since it moved"
    with db.write() as session:
        session.get_one(JobRow, job_id).not_before = 0.0
    with db.write() as session:
        assert lifecycle.claim(session, job_id, "us", None)
    assert [after(600.0) for _ in range(5)] == ["RUNNING"] * 5, "a watcher that was frozen has seen three seconds"
    assert after(600.0) == "QUEUED" and woken == []


def test_the_trainer_of_a_lost_worker_is_asked_and_then_killed(db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Processes(monkeypatch)
    _, held, job_id = begun(db, settings)
    with db.write() as session:
        lifecycle.record_child(session, held, 77, 8.5)
    seen.gone.add("us")
    watcher = Reconciler(Runner(settings, db, "gpu"), lambda: None, lambda: 0)
    for seconds, sent in ((0.0, 1), (6.0, 1), (0.5, 2)):
        seen.now += seconds
        watcher.look()
        assert len(seen.sent) == sent and row(db, job_id).status == "RUNNING"
    assert seen.sent == [(77, signal.SIGTERM), (77, 8.5)]
    seen.alive = False
    watcher.look()
    assert row(db, job_id).status == "QUEUED"


@pytest.mark.parametrize(("owner", "pid", "born"), [("far", 77, 8.5), ("us", None, 8.5), ("us", 77, None)])
def test_a_trainer_that_is_not_known_here_is_not_waited_for(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, owner: str, pid: int | None, born: float | None
) -> None:
    seen = Processes(monkeypatch)
    seen.gone |= {"us", "far"}
    _, _held, job_id = begun(db, settings)
    with db.write() as session:
        job = session.get_one(JobRow, job_id)
        job.owner, job.pid, job.pid_born = owner, pid, born
    Reconciler(Runner(settings, db, "gpu"), lambda: None, lambda: 0).look()
    assert (row(db, job_id).status, seen.sent) == ("QUEUED", [])


def test_as_many_threads_are_woken_as_are_free_and_needed(db: Database, settings: Settings) -> None:
    woken: list[int] = []
    runner = Runner(settings, db, "gpu")
    ids = []
    with db.write() as session:
        for n in range(3):
            ids.append(lifecycle.submit(session, JobRow(kind="train", name=f"j{n}")).id)

    def wakes(free: int) -> int:
        woken.clear()
        Reconciler(runner, lambda: woken.append(1), lambda: free).look()
        return len(woken)

    assert [wakes(free) for free in (-1, 0, 1, 2, 9)] == [0, 0, 1, 2, 3]
    with db.write() as session:
        held = lifecycle.claim(session, ids[0], processes.owner_id(), "device:0")
    runner.active.add(held)  # type: ignore[arg-type]
    assert wakes(9) == 0, "its slot is taken"
    with db.write() as session:
        assert held
        lifecycle.finish(session, held, lifecycle.JobStatus.FAILED)
        session.get_one(JobRow, ids[1]).after_id = ids[0]
    runner.active.clear()
    assert wakes(9) == 1 and row(db, ids[1]).status == "CANCELLED"
    runner.stopping.set()
    assert wakes(9) == 0


# files of a run


def test_events_are_read_in_blocks_and_what_is_too_long_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = RunDir(tmp_path).attempt(1)
    assert attempt.read_events(7) == ([], 7)
    attempt.path.mkdir(parents=True)
    attempt.events.write_bytes(b'{"a": 1}\n[1]\nnot json\n{"a": 2}\n{"a"')
    assert attempt.read_events(0) == ([{"a": 1}, {"a": 2}], 31) and attempt.read_events(9) == ([{"a": 2}], 31)
    monkeypatch.setattr(rundir, "MAX_EVENT_BYTES", 12)
    assert attempt.read_events(0) == ([{"a": 1}], 9)
    attempt.events.write_bytes(b"x" * 12 + b"\n")
    assert attempt.read_events(0) == ([], 12)
    attempt.events.write_bytes(b"x" * 11)
    assert attempt.read_events(0) == ([], 0)


def test_attempts_and_checkpoints_are_counted_by_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.next_attempt() == 1 and run.kept_template() is None and run.last_verified_checkpoint() == (None, [])
    for name in ("2", "10", "x"):
        (run.attempts / name).mkdir(parents=True)
    assert run.next_attempt() == 11
    run.chat_template.write_text("x")
    assert run.kept_template() == str(run.chat_template)
    for step in (2, 10, 9):
        make_adapter(run.checkpoint(step) / "adapter")
    (run.checkpoints / "checkpoint-x").mkdir()
    assert [folder.name for folder in run.checkpoint_folders()] == ["checkpoint-2", "checkpoint-9", "checkpoint-10"]
    write_manifest(run.checkpoint(2))
    found, damaged = run.last_verified_checkpoint()
    assert found == run.checkpoint(2) and [said.split(" ")[0] for said in damaged] == ["checkpoint-10", "checkpoint-9"]
    (run.checkpoint(2) / "more").write_text("")
    (run.checkpoint(2) / "adapter" / "adapter_config.json").unlink()
    (run.checkpoint(2) / "adapter" / "adapter_model.safetensors").write_bytes(b"y" * 10)
    assert rundir.manifest_problems(run.checkpoint(2)) == [
        "adapter/adapter_config.json is missing",
        "more is not in the manifest",
        "adapter/adapter_model.safetensors has changed",
    ]


# a trainer kept ready


class Machine:
    """Time and memory as a test says; processes that are only noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.free, self.started, self.ended, self.stopped = 0.0, warm.SPARE_BYTES, [], [], False  # type: ignore[var-annotated]
        monkeypatch.setattr(warm.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(warm.hardware, "memory", lambda: SimpleNamespace(free_bytes=self.free))
        monkeypatch.setattr(warm, "_start", self.start)
        monkeypatch.setattr(warm, "_end", lambda process: self.ended.append(process.pid))
        monkeypatch.setattr(warm.processes, "is_stopped", lambda pid: self.stopped)
        monkeypatch.setattr(warm.executor, "set_oom_score", lambda pid, score: None)

    def start(self, threads: int, visible: str | None) -> Any:
        wrote: list[bytes] = []
        pipe = SimpleNamespace(write=wrote.append, flush=lambda: None)
        self.started.append(SimpleNamespace(pid=len(self.started), code=None, stdin=pipe, wrote=wrote, returncode=None))
        made = self.started[-1]
        made.poll = lambda: made.code
        return made


def test_a_trainer_is_kept_ready_once_it_is_quiet_and_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Machine(monkeypatch)
    kept = warm.ReadyTrainer(threads=2)

    def tend(seconds: float, is_quiet: bool = True) -> tuple[int, int]:
        here.now += seconds
        kept.tend(is_quiet)
        return len(here.started), len(here.ended)

    assert [tend(0), tend(8.0), tend(1.0, False), tend(8.0)] == [(0, 0)] * 4
    here.free -= 1
    assert tend(0.5) == (0, 0)
    here.free += 1
    assert tend(0) == (1, 0), "more than eight seconds of quiet, and three GiB"
    here.free = warm.TIGHT_BYTES + 1
    assert tend(warm.IDLE_S - 1, False) == (1, 0)
    here.free = warm.TIGHT_BYTES
    assert tend(0.5) == (1, 1)
    here.free = warm.SPARE_BYTES
    assert tend(3600) == (1, 1), "it rests until the next training"
    assert (warm.QUIET_S, warm.IDLE_S, warm.SPARE_BYTES, warm.TIGHT_BYTES) == (8.0, 900.0, 3 * 2**30, 2**30)


@pytest.mark.parametrize("why", ["idle", "ended", "stopped", "closed"])
def test_a_trainer_that_nobody_needs_is_ended(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    here = Machine(monkeypatch)
    kept = warm.ReadyTrainer(threads=2)
    here.now = 9.0
    kept.tend(True)
    assert len(here.started) == 1
    if why == "closed":
        kept.close()
    here.now += warm.IDLE_S if why == "idle" else 1.0
    here.started[0].code, here.stopped = (1 if why == "ended" else None), why == "stopped"
    kept.tend(True)
    assert here.ended == [0] and len(here.started) == 1


@pytest.mark.parametrize(("why", "fits"), [("", True), ("threads", False), ("another GPU", False), ("ended", False), ("stopped", False)])
def test_a_training_takes_the_ready_trainer_where_it_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, why: str, fits: bool) -> None:
    here = Machine(monkeypatch)
    kept = warm.ReadyTrainer(threads=2, visible=lambda: "GPU-a")
    run = RunDir(tmp_path)
    assert kept.begin(run, 1, 2) is None
    here.now = 9.0
    kept.tend(True)
    process = here.started[0]
    process.code, here.stopped = (0 if why == "ended" else None), why == "stopped"
    wanted = (4 if why == "threads" else 2, "GPU-b" if why == "another GPU" else "GPU-a")
    assert (kept.begin(run, 3, *wanted) is process) is fits
    assert [json.loads(line) for line in process.wrote] == ([{"run_dir": str(tmp_path), "attempt": 3}] if fits else [])
    if fits:
        kept.tend(False)
        assert len(here.started) == 1, "not before the training has begun"
        run.attempt(3).path.mkdir(parents=True)
        run.attempt(3).events.write_text('{"type": "progress"}\n')
        kept.tend(False)
        assert len(here.started) == 1
        run.attempt(3).events.write_text('{"type": "start"}\n')
        kept.tend(False)
        assert len(here.started) == 2


# reports


def test_an_automatic_report_looks_once_a_second_whether_a_training_holds_the_device(
    db: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with db.write() as session:
        automatic, asked, training = (
            lifecycle.submit(session, JobRow(kind=kind, name=name, queue="light", priority=priority)).id
            for kind, name, priority in (("report", "a", -1), ("report", "b", 0), ("train", "t", 0))
        )
    now = 100.0
    monkeypatch.setattr(reports.time, "monotonic", lambda: now)
    steps: list[tuple[int, int]] = []
    wanted_by_user = False

    def context(job_id: str) -> LightContext:
        given: dict[str, Any] = dict.fromkeys(LightContext.__dataclass_fields__)
        return LightContext(
            **{**given, "db": db, "job_id": job_id, "stop_requested": lambda: wanted_by_user, "progress": lambda *step: steps.append(step)}
        )

    yields, stays = reports.Yielding(context(automatic)), reports.Yielding(context(asked))
    assert (yields.is_stopping(), stays.is_stopping()) == (False, False)
    with db.write() as session:
        assert lifecycle.claim(session, training, "us", "device:0")
    now += 0.9
    assert not yields.is_wanted() and yields.is_wanted(at_once=True) and not stays.is_wanted(at_once=True)
    now += 1.0
    assert yields.is_stopping() and not stays.is_stopping()
    wanted_by_user = True
    assert stays.is_stopping()
    yields.part(0).progress(1, 4)
    yields.part(1).progress(1, 4)
    assert steps == [(1, 8), (5, 8)]


def comparison() -> ComparisonRow:
    prompts = [
        {
            "id": str(n),
            "turns": [[{"role": "user", "content": "first"}], [{"role": "user", "content": "q" * 700 + str(n)}]],
            "reference": "r" * 700,
        }
        for n in range(9)
    ]
    return ComparisonRow(id="c", name="c", base_model="b", contestants=["b", "b:a"], prompts=prompts)


def answer(prompt: int, who: str, text: str = "x" * 700, **values: Any) -> AnswerRow:
    return AnswerRow(prompt_id=str(prompt), contestant=who, text=text, seconds=1.0, completion_tokens=2, error="", **values)


def test_three_wins_and_three_losses_are_shown_cut_to_600_characters() -> None:
    winners = "aaaabbbbt"
    said = [VerdictLine(str(n), "b:a", "b", {"t": "tie"}.get(one, one)) for n, one in enumerate(winners)]
    said[1] = VerdictLine("1", "b", "b:a", "b")
    found = reports._examples(comparison(), [answer(n, who) for n in range(8) for who in ("b", "b:a")], said)
    assert found["counts"] == {"wins": 4, "losses": 4, "ties": 1}
    assert [[one["prompt_id"] for one in found[kind]] for kind in ("wins", "losses")] == [["0", "1", "2"], ["4", "5", "6"]]
    first = found["wins"][0]
    assert (first["prompt"], first["reference"], first["base"], first["tuned"]) == ("q" * 599 + "0", "r" * 600, "x" * 600, "x" * 600)
    assert reports._examples(comparison(), [], said[8:])["counts"] == {"wins": 0, "losses": 0, "ties": 1}
    assert [reports._kind(score) for score in (0.0, 0.25, 0.5, 0.75, 1.0)] == ["losses", "losses", "ties", "wins", "wins"]
    assert reports._examples(comparison(), [], said[:1])["wins"][0]["tuned"] == ""


@pytest.mark.parametrize(("parameters", "asked"), [(300_000_000, True), (300_000_001, False)])
def test_perplexity_is_read_from_bases_up_to_300_million(monkeypatch: pytest.MonkeyPatch, parameters: int, asked: bool) -> None:
    monkeypatch.setattr(reports, "count_parameters", lambda folder: parameters)
    monkeypatch.setattr(measures, "perplexity", lambda *_: {"perplexity": 7.0})
    figures: dict[str, Any] = {"reasons": {"bleu": "x"}}
    context: Any = SimpleNamespace(settings=None, stop_if_asked=None)
    reports._add_perplexity(context, comparison(), {"name": "b", "studio": {"base": {"path": "/b"}}}, figures)
    assert figures["perplexity"] == (7.0 if asked else None)
    assert figures["reasons"].get("perplexity", "") == (
        "" if asked else "the base has 0.3 billion parameters, too many to read the references on the processor by itself"
    )


def test_what_is_measured_of_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def child(module: str, options: Any, cache: Any, pulse: Any = None) -> Any:
        seen.append((module, options))
        return {"perplexity": 3.0, "tokens": 4, "rows": 1, "more": 1}

    monkeypatch.setattr(measures, "run_child", child)
    row, settings = comparison(), SimpleNamespace(cache=Path("/c"))
    row.prompts[1] = {"id": "1", "turns": [[{"role": "user", "content": "?"}]], "reference": "one"}
    row.prompts[2] = {"id": "2", "turns": [[{"role": "user", "content": "?"}]]}
    given = [answer(1, "b", "a"), answer(2, "b", "b"), answer(3, "b", "c"), answer(1, "b:a", "d")]
    given[2].error = "too long"
    measures.measure(settings, row, given, schema=1, pattern="p")  # type: ignore[arg-type]
    module, options = seen.pop()
    assert module == "studio.evaluation" and (options["do"], options["schema"], options["pattern"]) == ("metrics", 1, "p")
    assert options["contestants"]["b"] == {
        "texts": ["a", "b"],
        "pairs": [["a", ["one"]]],
        "seconds": [1.0] * 2,
        "tokens": [2] * 2,
        "errors": 1,
    }
    assert measures.measure(settings, row, []) == {} and seen == []  # type: ignore[arg-type]
    assert measures.text_sets(row, given) == {"b": {"texts": ["a"], "references": ["one"]}, "b:a": {"texts": ["d"], "references": ["one"]}}
    assert measures.perplexity(settings, row, {"studio": None}) is None and seen == []  # type: ignore[arg-type]
    assert measures.perplexity(settings, row, {"studio": "s"}) == {"perplexity": 3.0, "tokens": 4, "rows": 1}  # type: ignore[arg-type]
    assert seen.pop()[1]["conversations"] == [[{"role": "user", "content": "?"}, {"role": "assistant", "content": "one"}]], (
        "single questions with a reference"
    )
    figures: dict[str, Any] = {}
    measures.add_perplexity(figures, {"perplexity": 2.0}, "why")
    assert figures == {"perplexity": 2.0}
    measures.add_perplexity(figures, None, "why")
    assert figures == {"perplexity": None, "reasons": {"perplexity": "why"}}
