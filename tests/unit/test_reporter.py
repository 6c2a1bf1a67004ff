"""What a training reports at each step, when it asks for a checkpoint, and when it ends by itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.trainers import exact
from jobs.trainers.best import Best
from jobs.trainers.events import EventLog
from jobs.trainers.exact import Reporter, _preference
from jobs.trainers.failures import DivergedError
from jobs.trainers.stopping import Stopped, StopWish

Start = Callable[..., "Run"]


class Run:
    """A run as its reporter sees it, at a time that stands still."""

    def __init__(self, folder: Path, now: list[float], *, resumed: Path | None = None, keeps_best: bool = True, scaler: Any = None) -> None:
        self.stop, self.best = StopWish(), Best(patience=2)
        self.reporter = Reporter(EventLog(folder / "events.jsonl"), self.stop, resumed, self.best, keeps_best)
        self.state = SimpleNamespace(global_step=0, max_steps=10, log_history=["x"])
        self.now, self.folder, self.dropped = now, folder, 0
        accelerator = SimpleNamespace(scaler=scaler, optimizer_step_was_skipped=False)
        restored: list[Any] = []
        self.restored = restored
        self.trainer = SimpleNamespace(
            accelerator=accelerator, tokens=50, state=self.state, unlogged=lambda: {"loss": 0.5}, restore_unlogged=restored.append,
            drop_begun_step=self._drop,
        )  # fmt: skip
        self.reporter.attach(self.trainer)  # type: ignore[arg-type]

    def _drop(self) -> None:
        self.dropped += 1

    def call(self, name: str, step: int = 0, **values: Any) -> dict[str, bool]:
        """Call one of the reporter's hooks; what it asks of the trainer."""
        self.state.global_step = step
        control = SimpleNamespace()
        getattr(self.reporter, name)(SimpleNamespace(eval_strategy="steps"), self.state, control, **values)
        return vars(control)

    def events(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key != "at"} for line in lines]


@pytest.fixture
def start(tmp_path: Path, now: list[float]) -> Iterator[Start]:
    """Begins runs in one folder, and closes their logs."""
    begun: list[Run] = []

    def make(**options: Any) -> Run:
        begun.append(Run(tmp_path, now, **options))
        return begun[-1]

    yield make
    for run in begun:
        run.reporter.log.close()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    said = [100.0]
    monkeypatch.setattr(exact.time, "monotonic", lambda: said[0])
    return said


def test_a_step_is_reported_with_what_is_left_by_the_pace_so_far(start: Start, now: list[float], capsys: Any) -> None:
    run = start()
    now[0] = 200.0
    run.call("on_train_begin", step=2)
    now[0] = 230.0
    run.call("on_log", step=4, logs={"loss": 2.0, "learning_rate": 1e-4, "grad_norm": 1.5, "mean_token_accuracy": 0.5, "epoch": 0.123456})
    assert run.events() == [
        {
            "type": "progress", "step": 4, "max_steps": 10, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 1.5, "token_accuracy": 0.5,
            "entropy": None, "epoch": 0.1235, "tokens": 50, "seconds": 30.0, "eta_s": 90.0,
        }
    ]  # fmt: skip
    assert run.state.log_history == [] and "step 4/10  loss 2.0000  learning rate 0.0001" in capsys.readouterr().out
    run.call("on_log", step=4, logs={"loss": 2.0})
    assert run.events()[1]["epoch"] == 0 and "learning rate 0\n" in capsys.readouterr().out
    run.call("on_log", step=4, logs={"train_runtime": 3.0})
    assert len(run.events()) == 2
    assert run.reporter.figures() == {"steps": 4, "train_loss": 2.0, "tokens": 50, "seconds": 30.0}


def test_an_evaluation_is_reported_and_the_best_one_is_kept(start: Start, now: list[float], capsys: Any) -> None:
    run = start()
    run.call("on_train_begin")
    logs = {"eval_loss": 1.5, "eval_mean_token_accuracy": 0.25, "eval_rewards/accuracies": 0.75, "eval_rewards/margins": 0.1}
    assert run.call("on_evaluate", 2, metrics=logs) == {"should_save": True} and run.reporter.pinned == 2
    run.call("on_log", 2, logs=logs)
    assert run.events() == [
        {"type": "eval", "step": 2, "loss": 1.5, "token_accuracy": 0.25, "reward_accuracy": 0.75, "reward_margin": 0.1, "seconds": 0.0}
    ]
    assert "step 2/10  loss on held-out rows 1.5000" in capsys.readouterr().out and run.reporter.figures()["eval_loss"] == 1.5
    assert run.call("on_evaluate", 4, metrics={"eval_loss": 1.6}) == {}
    assert run.call("on_evaluate", 6, metrics={"eval_loss": 1.7}) == {"should_save": True, "should_training_stop": True}
    (notice,) = [event["text"] for event in run.events() if event["type"] == "notice"]
    assert notice == (
        "Stopped early at step 6: the loss on held-out rows has not been lower than 1.5000 (step 2) for 2 evaluations."
    )  # fmt: skip
    assert run.call("on_evaluate", 10, metrics={"eval_loss": 1.7}) == {}, "at the end there is nothing to stop"
    plain = start(keeps_best=False)
    assert plain.call("on_evaluate", 2, metrics={"eval_loss": 1.0}) == {} and plain.reporter.pinned is None


def test_a_checkpoint_is_asked_for_at_a_stop_and_after_ten_minutes(start: Start, now: list[float]) -> None:
    run = start()
    run.call("on_train_begin")
    now[0] += exact.LONGEST_UNSAVED_S
    assert exact.LONGEST_UNSAVED_S == 600 and run.call("on_step_end", 3) == {}
    now[0] += 1
    assert run.call("on_step_end", 4) == {"should_save": True}
    run.call("on_save", 4)
    assert run.call("on_step_end", 5) == {}
    assert run.call("on_step_end", 10) == {"should_log": True, "should_evaluate": True}
    for hook in ("on_substep_end", "on_prediction_step"):
        assert run.call(hook, 5) == {}
    run.stop.set()
    assert run.call("on_step_end", 5) == {"should_save": True, "should_training_stop": True}
    assert run.call("on_step_end", 10) == {"should_log": True, "should_evaluate": True}, "the last step needs no stop"
    for hook in ("on_prediction_step", "on_substep_end"):
        with pytest.raises(Stopped):
            run.call(hook, 5)
    assert run.dropped == 1


def test_what_a_checkpoint_holds_goes_on_after_a_resume(tmp_path: Path, start: Start, now: list[float]) -> None:
    run = start()
    run.call("on_train_begin")
    run.call("on_evaluate", 2, metrics={"eval_loss": 1.5})
    run.call("on_log", 3, logs={"loss": 2.0})
    run.reporter.skipped.restore(count=3, in_a_row=1)
    now[0] += 7
    (tmp_path / exact.PROGRESS).write_text(json.dumps(run.reporter.as_json()))
    now[0] += 1000
    again = start(resumed=tmp_path)
    again.call("on_train_begin", 3)
    now[0] += 5
    assert again.restored == [{"loss": 0.5}] and again.best == Best(patience=2, step=2, loss=1.5) and run.restored == []
    assert again.reporter.figures() == {"steps": 3, "train_loss": 2.0, "tokens": 50, "seconds": 12.0, "skipped_steps": 3}
    again.call("on_log", 4, logs={"loss": 1.0})
    assert again.events()[-1]["eta_s"] == 30.0, "by the pace since the resume"


def test_numbers_that_are_none_end_the_run_except_gradients_that_a_scaler_skips(start: Start, now: list[float]) -> None:
    run = start()
    run.call("on_log", 1, logs={"loss": 1.0, "grad_norm": 1.0})
    for logs, said in (({"loss": math.nan}, "loss"), ({"loss": 1.0, "grad_norm": math.inf}, "gradient")):
        with pytest.raises(DivergedError, match=said):
            run.call("on_log", 2, logs=logs)
    assert run.events()[-2]["loss"] is None
    scaled = start(scaler=SimpleNamespace(get_scale=lambda: 2.0))
    scaled.call("on_log", 2, logs={"loss": 1.0, "grad_norm": math.inf})
    with pytest.raises(DivergedError):
        scaled.call("on_log", 2, logs={"loss": math.inf})


def test_a_loss_of_twice_its_start_is_told_once(start: Start, now: list[float]) -> None:
    run = start()
    for step in range(5):
        run.call("on_log", step, logs={"loss": 1.0})
    for step in range(60):
        run.call("on_log", step, logs={"loss": 2.0 if step == 19 else 2.1})
    (notice,) = [event["text"] for event in run.events() if event["type"] == "notice"]
    assert "above 2 times its start (1) for 20 points, up to step 39" in notice


def test_steps_that_a_scaler_skips_are_counted_and_twenty_in_a_row_are_told(start: Start, now: list[float]) -> None:
    scale = [64.0]
    run = start(scaler=SimpleNamespace(get_scale=lambda: scale[0]))
    run.trainer.accelerator.optimizer_step_was_skipped = True
    for step in range(1, 20):
        run.call("on_step_end", step % 9)
    run.trainer.accelerator.optimizer_step_was_skipped = False
    run.call("on_step_end", 1)
    assert run.events() == []
    run.trainer.accelerator.optimizer_step_was_skipped = True
    for _ in range(25):
        run.call("on_step_end", 7)
    (event,) = run.events()
    assert "The last 20 steps, up to step 7, were skipped" in event["text"] and "down to 64." in event["text"]
    assert run.reporter.figures()["skipped_steps"] == 44 and run.reporter.skipped.as_json() == {"count": 44, "in_a_row": 25}
    scale[0] = 1.0
    run.call("on_step_end", 8)
    scale[0] = 0.5
    with pytest.raises(DivergedError):
        run.call("on_step_end", 8)
    plain = start()
    plain.trainer.accelerator.optimizer_step_was_skipped = True
    plain.call("on_step_end", 1)
    assert "skipped_steps" not in plain.reporter.figures()


def test_preferences_are_told_where_there_are_some() -> None:
    logs = {"rewards/accuracies": 0.0, "eval_rewards/margins": 0.5}
    assert _preference(logs, "") == {"reward_accuracy": 0.0} and _preference(logs, "eval_") == {"reward_margin": 0.5}
