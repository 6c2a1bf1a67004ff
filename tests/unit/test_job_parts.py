"""Parts of a job's way that no short job takes: a trainer that stands still, a database that is busy, an adapter that does not fit."""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from jobs import attempts, frozen, runner
from jobs.config import build
from jobs.rundir import RunDir
from jobs.trainers import objectives
from studio.catalogue import attaching
from studio.db import lifecycle
from studio.errors import StudioError
from studio.services import adapters


def test_a_trainer_that_was_stopped_is_woken_and_the_second_time_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked, done = [0.0], [0], []
    state = {"stopped": True}

    def is_stopped(pid: int) -> bool:
        asked[0] += 1
        return state["stopped"]

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(frozen.processes, "is_stopped", is_stopped)
    monkeypatch.setattr(frozen.processes, "signal_group", lambda pid, number: done.append((pid, number)))
    monkeypatch.setattr(frozen.executor, "kill", lambda child: done.append((child.pid, "killed")))
    watch = frozen.StoppedTrainer(SimpleNamespace(pid=7))  # type: ignore[arg-type]

    def look(at: float) -> list[Any]:
        now[0] = at
        watch.look()
        return done

    assert look(10.0) == [] and asked == [1]
    assert look(10.5) == [] and asked == [1], "it is looked at once a second"
    assert look(11.0) == [] and asked == [2]
    assert look(10.0 + lifecycle.LEASE_S - 0.5) == []
    state["stopped"] = False
    assert look(10.0 + lifecycle.LEASE_S + 1) == [], "it went on by itself"
    state["stopped"] = True
    begun = 100.0 + lifecycle.LEASE_S
    assert look(begun) == []
    assert look(begun + lifecycle.LEASE_S) == [(7, signal.SIGCONT)]
    assert look(begun + lifecycle.LEASE_S + 2) == [(7, signal.SIGCONT)], "it has as long again"
    assert look(begun + 2 * lifecycle.LEASE_S + 2)[1:] == [(7, "killed")]


@pytest.mark.parametrize("busy", [0, 1, runner.ENDING_TRIES - 1, runner.ENDING_TRIES])
def test_the_end_of_an_attempt_is_written_when_the_database_has_time(monkeypatch: pytest.MonkeyPatch, busy: int) -> None:
    left, naps, written = [busy], [], []

    @contextmanager
    def write() -> Any:
        if left[0]:
            left[0] -= 1
            raise OperationalError("", {}, Exception("locked"))
        yield "session"

    monkeypatch.setattr(time, "sleep", naps.append)
    monkeypatch.setattr(runner, "conclude", lambda *arguments: written.append(arguments))
    owner: Any = SimpleNamespace(db=SimpleNamespace(write=write))
    conclude: Any = runner.Runner._conclude
    if busy == runner.ENDING_TRIES:
        with pytest.raises(OperationalError):
            conclude(owner, "held", "job", "outcome", written.append)
        assert written == [] and len(naps) == busy - 1
    else:
        conclude(owner, "held", "job", "outcome", written.append)
        assert written == ["session", ("session", "held", "job", "outcome")] and len(naps) == busy


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            RuntimeError("Error: size mismatch for base_model.model.h.0.q_proj.lora_A.one.weight: copying"),
            "its layer h.0.q_proj has another size there",
        ),
        (ValueError("Target modules {'x.y'} not found in the base model."), "this base has no layer x.y"),
        (ValueError("something else"), "something else"),
    ],
)
def test_why_an_adapter_does_not_fit(raised: Exception, said: str) -> None:
    assert said in attaching._reason(raised, "one")


def test_want_of_memory_is_no_word_about_an_adapter() -> None:
    with pytest.raises(RuntimeError, match="memory"):
        attaching._reason(RuntimeError("not enough memory"), "one")


@pytest.mark.parametrize(
    ("options", "order", "neighbours"),
    [
        ({}, "mixed", [[2], [1], [4], [3]]),
        ({"train_sampling_strategy": "sequential"}, "as it was", [[2], [1], [4], [3]]),
        ({"kto.loss_type": "apo_zero_unpaired"}, "mixed", None),
    ],
)
def test_rows_of_kto_are_measured_against_a_neighbour(options: dict[str, Any], order: str, neighbours: Any) -> None:
    from datasets import Dataset

    config = build({"objective": "kto", "per_device_train_batch_size": 2, **options})
    found = objectives._mixed_with_neighbours(Dataset.from_dict({"completion_ids": [[1], [2], [3], [4]]}), config)
    ids = found["completion_ids"][:]
    assert sorted(ids) == [[1], [2], [3], [4]] and (ids == [[1], [2], [3], [4]]) is (order == "as it was")
    if neighbours is None:
        assert found.column_names == ["completion_ids"]
    else:
        assert found["KL_completion_ids"][:] == [ids[1], ids[0], ids[3], ids[2]]


@pytest.mark.parametrize(("answer", "kind"), [(True, "done"), (False, "stopped"), (None, "failed")])
def test_an_export_asks_for_four_bytes_a_parameter_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool | None, kind: str
) -> None:
    asked: list[Any] = []

    def count(folder: Path) -> int:
        if answer is None:
            raise StudioError("It is gone.", "Add it.")
        return 10

    def ask(needed: int, most: int) -> bool:
        asked.append((needed, most))
        return bool(answer)

    monkeypatch.setattr(attempts, "count_parameters", count)
    monkeypatch.setattr(attempts.slots, "threads", lambda slot: 1)
    attempt: Any = SimpleNamespace(
        job=SimpleNamespace(config={"base_path": "/b", "to": str(tmp_path / "to")}),
        run_dir=RunDir(tmp_path),
        slot=SimpleNamespace(device=SimpleNamespace(memory_bytes=99)),
        _ask_for_memory=ask,
        _supervise=lambda *_: SimpleNamespace(kind="done"),
        _give_memory_back=lambda: asked.append("given back"),
    )
    assert attempts.ExportAttempt.run(attempt).kind == kind
    assert asked == ([] if answer is None else [(40, 99), "given back"])


def test_when_a_folder_of_a_model_was_made(tmp_path: Path) -> None:
    assert adapters.made_at(tmp_path) == 0.0
    (tmp_path / "config.json").touch()
    os.utime(tmp_path / "config.json", (5, 7))
    assert adapters.made_at(tmp_path) == 7.0
