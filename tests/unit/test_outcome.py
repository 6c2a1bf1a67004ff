"""What the end of an attempt means, case by case."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from jobs.config import JobConfig
from jobs.executor import Exit
from jobs.outcome import judge
from jobs.rundir import STOPPED, RunDir, write_json

SUCCEEDED = {"status": "succeeded", "metrics": {"steps": 3}}
FAILED = {"status": "failed", "reason": "The loss is not a number.", "fix": "Lower learning_rate."}


@pytest.mark.parametrize(
    ("ended", "result", "we_asked", "kind"),
    [
        (Exit(0), SUCCEEDED, False, "succeeded"),
        (Exit(0), SUCCEEDED, True, "succeeded"),
        (Exit(0), None, False, "failed"),  # an exit code without a result is no success
        (Exit(None), None, False, "lost"),  # somebody took the exit status: nobody knows
        (Exit(None), SUCCEEDED, False, "lost"),
        (Exit(-signal.SIGKILL), SUCCEEDED, False, "lost"),  # killed after writing: the next attempt ends at once
        (Exit(1), FAILED, False, "failed"),
        (Exit(3), None, False, "failed"),
        (Exit(STOPPED), None, True, "stopped"),
        (Exit(STOPPED), None, False, "lost"),  # a SIGTERM that we did not send
        (Exit(-signal.SIGKILL), None, False, "lost"),
        (Exit(-signal.SIGTERM), None, False, "lost"),
        (Exit(-signal.SIGHUP), None, False, "lost"),
        (Exit(-signal.SIGKILL), None, True, "stopped"),
        (Exit(-signal.SIGKILL, ran_out_of_memory=True), None, False, "failed"),
        (Exit(-signal.SIGSEGV), None, False, "failed"),
        (Exit(-signal.SIGABRT), None, False, "failed"),
    ],
)
def test_outcomes(tmp_path: Path, ended: Exit, result: dict[str, object] | None, we_asked: bool, kind: str) -> None:
    attempt = RunDir(tmp_path).attempt(1)
    if result:
        write_json(attempt.result, result)
    outcome = judge(ended, attempt, we_asked)
    assert outcome.kind == kind
    if kind == "failed":
        assert outcome.reason and outcome.fix and "\n" not in outcome.reason


def test_a_failure_is_told_in_the_trainers_words(tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).attempt(1)
    write_json(attempt.result, FAILED)
    outcome = judge(Exit(1), attempt, we_asked=False)
    assert (outcome.reason, outcome.fix) == (FAILED["reason"], FAILED["fix"])


def test_without_a_result_the_log_has_the_last_word(tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).attempt(1)
    attempt.path.mkdir(parents=True)
    attempt.log.write_text("loading\nImportError: no such thing\n", encoding="utf-8")
    assert "ImportError: no such thing" in judge(Exit(2), attempt, we_asked=False).reason


def test_a_failure_carries_what_a_program_reads(tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).attempt(1)
    write_json(attempt.result, {**FAILED, "cause": "diverged", "remedy": {"learning_rate": 1e-5}})
    outcome = judge(Exit(1), attempt, we_asked=False)
    assert (outcome.cause, outcome.remedy) == ("diverged", {"learning_rate": 1e-5})
    write_json(attempt.result, {**FAILED, "remedy": "rubbish"})
    assert judge(Exit(1), attempt, we_asked=False).remedy == {}


def test_a_trainer_that_the_system_ended_for_memory_gets_a_smaller_batch(tmp_path: Path) -> None:
    ended = Exit(-signal.SIGKILL, ran_out_of_memory=True)
    outcome = judge(ended, RunDir(tmp_path).attempt(1), we_asked=False, config=JobConfig())
    assert outcome.cause == "out_of_memory" and outcome.remedy["per_device_train_batch_size"] == 2
