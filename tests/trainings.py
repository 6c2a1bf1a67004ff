"""Train several small runs in one process, some of them stopped and resumed on the way; prints what came out as JSON.

`python -m tests.trainings FOLDER < CASES`: one import of torch for all cases. A case is `{"name", "recipe", "stops", "options"}`;
`stops` are the steps after which an attempt is asked to stop, or as text the how-many-th question for a stop is answered with yes:
it is put after every batch; `saves` has every step saved as if ten minutes had passed; `damage` a file that the newest checkpoint then loses,
`poisoned` gives the base a weight that is no number, `lacks` takes one of its tensors away, `leftover` leaves it an adapter's config,
`scaler` are the first scale, the factors of growth and of back-off and the interval of growth that torch's GradScaler begins with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from jobs.rundir import RunDir
from jobs.trainers import exact, sft
from jobs.trainers.events import EventLog
from jobs.trainers.failures import explain
from jobs.trainers.stopping import Stopped, StopWish
from tests.runs import STARTER, make_run


class StopAfter(EventLog):
    """Reports as ever, and asks the training to stop once it has reported `step`."""

    def __init__(self, path: Path, wish: StopWish, step: int | None) -> None:
        super().__init__(path)
        self.wish = wish
        self.step = step

    def write(self, kind: str, **values: Any) -> None:
        super().write(kind, **values)
        if kind == "progress" and self.step is not None and values["step"] >= self.step:
            self.wish.set()


class StopAtQuestion(StopWish):
    """Is set from the `count`-th time on that somebody asks."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._left = count

    def __getattribute__(self, name: str) -> Any:
        if name == "is_set" and "_left" in vars(self):
            self._left -= 1
            return self._left <= 0
        return super().__getattribute__(name)


def poison(folder: Path) -> Path:
    """A copy of the starter with a NaN among its weights."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(STARTER, folder)
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(folder: Path, tensor: str) -> Path:
    """A copy of the starter that lacks one tensor."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(STARTER, folder)
    weights = load_file(folder / "model.safetensors")
    del weights[tensor]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def base_of(folder: Path, case: dict[str, Any]) -> Path:
    if case.get("poisoned"):
        return poison(folder / f"base of {case['name']}")
    if case.get("lacks"):
        return without(folder / f"base of {case['name']}", case["lacks"])
    if case.get("leftover"):
        shutil.copytree(STARTER, folder / "leftover")
        (folder / "leftover" / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
        return folder / "leftover"
    return STARTER


def set_scaler(values: list[float]) -> None:
    """torch's own defaults, which neither accelerate nor we override."""
    import torch

    vars(torch.amp.GradScaler)["__init__"].__defaults__ = ("cuda", *values, True)


def train(folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    model = base_of(folder, case)
    exact.LONGEST_UNSAVED_S = 0.0 if case.get("saves") else 600.0
    set_scaler(case.get("scaler", [2.0**16, 2.0, 0.5, 2000]))
    run = make_run(folder / case["name"], recipe=case.get("recipe", "qlora-sft"), model=model, **case.get("options", {}))
    curve: dict[str, Any] = {}
    for number, step in enumerate([*case.get("stops", []), None], 1):
        attempt = run.attempt(number)
        wish, asked = StopWish(), step
        if isinstance(step, str):
            wish, asked = StopAtQuestion(int(step)), None
        log = StopAfter(attempt.events, wish, asked)
        out = run.path / f"out-{number}"
        try:
            sft.train(run, JobConfig.model_validate_json(run.config.read_text(encoding="utf-8")), out, log, wish)
        except Stopped:
            pass
        except Exception as exc:  # noqa: BLE001 - a case may be made to fail
            failure = explain(exc)
            return {"failure": (failure.reason, failure.fix), "events": _events(run, number)}
        finally:
            log.close()
        if step is not None and case.get("damage"):
            (run.checkpoint_folders()[-1] / case["damage"]).unlink()
        curve |= _curve(_events(run, number))
    weights = (out / "adapter_model.safetensors").read_bytes()
    return {"curve": curve, "sha256": hashlib.sha256(weights).hexdigest(), "folder": str(out), "events": _events(run, number)}


def _events(run: RunDir, number: int) -> list[dict[str, Any]]:
    return run.attempt(number).read_events(0)[0]


def _curve(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything reported about a step but the time it took."""
    kept = ("loss", "learning_rate", "grad_norm", "tokens", "token_accuracy", "entropy", "epoch")
    return {f"{e['type']} {e['step']}": {key: e.get(key) for key in kept} for e in events if e["type"] in ("progress", "eval")}


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers = sys.stdout
    sys.stdout = sys.stderr
    cases = json.load(sys.stdin)
    json.dump({case["name"]: train(Path(sys.argv[1]), case) for case in cases}, answers)


if __name__ == "__main__":
    main()
