"""What the end of an attempt means. Success is this attempt's result.json and exit code 0; nothing else is.

A death from outside costs nothing but time; an exit code, a crash, or the kernel's want of memory is the attempt's own.
Knows no database.
"""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.config import JobConfig
from jobs.executor import Exit, last_lines
from jobs.rundir import STOPPED, Attempt
from jobs.trainers.failures import LESS_MEMORY, LOOK_AT_LOG, OUT_OF_MEMORY, less_memory, of_log

# signals that a process earns by what it does itself
OWN_FAULTS = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGXFSZ")

LAST_WORDS = 20  # lines of a log in which a reason is looked for


@dataclass(frozen=True)
class Outcome:
    """`stopped`: it left because we asked; `lost`: something outside ended it. `cause` and `remedy` are what a program reads."""

    kind: Literal["succeeded", "failed", "stopped", "lost"]
    reason: str = ""
    fix: str = ""
    cause: str = ""
    remedy: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)


def judge(ended: Exit, attempt: Attempt, we_asked: bool, config: JobConfig | None = None) -> Outcome:
    """What became of an attempt; `we_asked` says whether we sent a signal, `config` what it was to do."""
    code, result = ended.code, _result(attempt)
    if code is None:
        return Outcome("lost", "its exit status was lost")
    if code == 0 and result.get("status") == "succeeded":
        return Outcome("succeeded", result=result.get("metrics") or {})
    if code < 0:
        return _killed(-code, ended.ran_out_of_memory, we_asked, attempt, config)
    if code == STOPPED:
        if we_asked:
            return Outcome("stopped")
        return Outcome("lost", "it was asked to stop from outside (SIGTERM)")
    if result.get("status") == "failed":
        remedy = result.get("remedy")
        return Outcome(
            "failed",
            str(result.get("reason")),
            str(result.get("fix") or ""),
            str(result.get("cause") or ""),
            remedy if isinstance(remedy, dict) else {},
            result.get("metrics") or {},
        )
    if code == 0:
        return Outcome("failed", "The trainer ended without a result.", LOOK_AT_LOG)
    if failure := _of_log(attempt, config):
        return failure
    reason = f"The trainer ended with exit code {code}."
    if last := last_lines(attempt.log, 1).strip()[:300]:
        reason = f"The trainer ended with exit code {code}: {last}"
    return Outcome("failed", reason, LOOK_AT_LOG)


def _of_log(attempt: Attempt, config: JobConfig | None) -> Outcome | None:
    """What its last words say of the GPU or of memory."""
    failure = of_log(last_lines(attempt.log, LAST_WORDS).splitlines(), config)
    if failure is None:
        return None
    return Outcome("failed", failure.reason, failure.fix, failure.cause, failure.remedy)


def _killed(number: int, ran_out_of_memory: bool, we_asked: bool, attempt: Attempt, config: JobConfig | None) -> Outcome:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if we_asked:
        return Outcome("stopped")
    if name in OWN_FAULTS:
        return _of_log(attempt, config) or Outcome("failed", f"The trainer crashed ({name}).", LOOK_AT_LOG)
    if name == "SIGKILL" and ran_out_of_memory:
        reason = "The memory of this machine is not enough for this job: the system ended it."
        return Outcome("failed", reason, LESS_MEMORY, OUT_OF_MEMORY, less_memory(config))
    return Outcome("lost", f"something outside ended it ({name})")


def _result(attempt: Attempt) -> dict[str, Any]:
    try:
        value = json.loads(attempt.result.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
