"""Runs the parts of `make gpu` one after the other, each in a process of its own, and reports each as it ends."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.gpu.child import Child, ChildFailed
from tests.gpu.outcome import Outcome, Verdict
from tests.gpu.registry import Part
from tests.gpu.scale import Scale

CLOSING_S = 5.0  # of a part's limit: what it keeps to write down what it has


@dataclass(frozen=True)
class Runner:
    """`until`: when all has to be done (time.time()). `hardware`: of the machine, for each line of JSON."""

    work: Path
    is_reduced: bool
    until: float
    hardware: Mapping[str, Any]
    now: Callable[[], float] = time.time

    def run(self, parts: Sequence[Part]) -> Iterator[Outcome]:
        for part in parts:
            left = self.until - self.now()
            if not self.is_reduced and left < part.needed_s:
                said = f"{max(0.0, left):.0f} s are left, and it takes {part.needed_s}"
                yield self._outcome(part, Verdict.LEFT_OUT, 0.0, said)
            else:
                yield self._measured(part, self._limit_s(part, left))

    def _limit_s(self, part: Part, left: float) -> float:
        """On a processor it may be busy with other things."""
        if self.is_reduced:
            return left
        return min(left, part.limit_s)

    def _measured(self, part: Part, limit_s: float) -> Outcome:
        begun = self.now()
        scale = Scale(str(self.work), self.is_reduced, begun + limit_s - CLOSING_S)
        child = Child(self.work, "tests.gpu.running:measure", leads=True, module=part.module, scale=scale.as_json())
        try:
            found = child.wait(limit_s)
        except ChildFailed as exc:
            return self._outcome(part, Verdict.FAILED, self.now() - begun, str(exc))
        finally:
            child.kill()
        verdict = Verdict.MISSED if found["missed"] else Verdict.KEPT
        more = {name: found[name] for name in ("figures", "missed", "left_out")}
        return self._outcome(part, verdict, self.now() - begun, found["said"], **more)

    def _outcome(self, part: Part, verdict: Verdict, seconds: float, said: str, **more: Any) -> Outcome:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        return Outcome(part.name, verdict, round(seconds, 1), part.promise, said, self.is_reduced, self.hardware, date, **more)


def measure(module: str, scale: Mapping[str, Any]) -> dict[str, Any]:
    """In the child of a part."""
    from tests.gpu import models

    here = Scale(**scale)
    models.keep_probes(here)
    measured = importlib.import_module(f"tests.gpu.{module}").measure(here)
    found: dict[str, Any] = measured.as_json()
    return found


def summary(outcomes: Sequence[Outcome]) -> str:
    """The last line: how many kept their promise, and by name what did not and what was left out."""
    named = {verdict: [one.part for one in outcomes if one.verdict is verdict] for verdict in Verdict}
    told = [f"{len(named[Verdict.KEPT])} of {len(outcomes)} parts kept their promise"]
    told += [f"{verdict}: {', '.join(names)}" for verdict, names in named.items() if names and verdict is not Verdict.KEPT]
    return "; ".join(told)
