"""Watching a training learn: answers to fixed questions at every evaluation, drift from the base, memory and use, the best and
worst held-out rows at the end. Everything becomes an event; nothing of it changes a bit of the adapter.

Looks are cheap or left out: all but the last keep to SHARE of the expected time of the run, or FLOOR_S. One that fails is
told once and not tried again: what watches must never end what it watches. Knows no queue and no database.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jobs.config import JobConfig
from jobs.rundir import RunDir
from jobs.trainers import drift
from jobs.trainers.events import EventLog
from jobs.trainers.machine import Machine
from jobs.trainers.probing import answers, surprise, undisturbed
from jobs.trainers.questions import RowQuestion, questions
from jobs.trainers.stopping import StopWish
from studio.datasets.rendering import Renderer

SHARE, FLOOR_S = 0.02, 3.0
SHORT_S = 20.0  # a run that is over before anybody has read anything is looked at once, at its end
ANSWER_TOKENS = 32
JUDGED_ROWS, EXTREMES = 200, 3
ROW_TOKENS = 1024  # of a row that is looked at: what watches must need less memory than what it watches
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "eva", "lora_ga")  # ways to begin that leave no untouched base to compare with


class Watch(TrainerCallback):
    """`attach` it to a trainer before training, `conclude` when the final weights are in the model."""

    def __init__(self, run: RunDir, config: JobConfig, renderer: Renderer, log: EventLog, stop: StopWish) -> None:
        self._config, self._renderer, self._log, self._stop = config, renderer, log, stop
        self._held_out = run.eval if run.eval.exists() and run.eval.stat().st_size else None
        self._length = min(config.max_length, ROW_TOKENS)
        self._asked = questions(self._held_out or run.train, renderer, self._length, config.sample_answers)
        self._general = questions(drift.GENERAL, renderer, self._length, 1000) if config.measure_drift else []
        self._base_surprise: float | None = None
        self._base_answered = self._told_drift = self._has_failed = False
        self._begun, self._first_step = time.monotonic(), 0
        self._spent = self._base_cost = 0.0
        self._costs: dict[Callable[..., None], float] = {}

    def attach(self, trainer: Any) -> None:
        self._trainer = trainer
        self._machine = Machine(trainer.model.device.type)
        trainer.add_callback(self)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._begun, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}) and (reading := self._machine.read()):
            self._log.write("machine", step=state.global_step, **reading)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._look(state, is_last=state.global_step >= state.max_steps or control.should_training_stop)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        is_last = state.global_step >= state.max_steps
        if args.eval_strategy == "no" and (is_last or state.global_step % args.eval_steps == 0):
            self._look(state, is_last)

    def conclude(self) -> None:
        """Which held-out rows the adapter answers best and worst."""
        if self._held_out and self._config.sample_answers:
            self._guarded(self._judge_rows, FLOOR_S)

    # one look

    def _look(self, state: TrainerState, is_last: bool) -> None:
        done = max(state.global_step - self._first_step, 1)
        total = (time.monotonic() - self._begun - self._spent) / done * state.max_steps
        if total < SHORT_S and not is_last:
            return
        allowed = max(FLOOR_S, SHARE * total)
        for act in (self._answer, self._measure_drift):
            left = allowed - self._spent
            # the last look, which has to be paid too, will take about what the one before took
            if is_last or left >= self._costs.get(act, 0.0) + sum(self._costs.values()):
                before, self._base_cost = self._spent, 0.0
                self._guarded(act, max(left, FLOOR_S / 3), state.global_step)
                self._costs[act] = self._spent - before - self._base_cost

    def _guarded(self, act: Callable[..., None], seconds: float, *rest: Any) -> None:
        if self._has_failed or self._stop.is_set:
            return
        begun = time.monotonic()
        try:
            with undisturbed(self._trainer.model):
                act(max(seconds, 0.1), *rest)
        except Exception as exc:  # noqa: BLE001  whatever a model of a stranger does here, its training goes on
            self._has_failed = True
            if isinstance(exc, torch.OutOfMemoryError):
                torch.cuda.empty_cache()  # training is to find what it left
            self._log.notice(f"Sample answers and drift are left out from here on ({type(exc).__name__}: {str(exc)[:120]}).")
        finally:
            self._spent += time.monotonic() - begun

    def _measure_drift(self, seconds: float, step: int) -> None:
        if not self._general or not self._has_base():
            return
        if self._base_surprise is None:
            with self._base():
                self._base_surprise = self._general_surprise()
        value = self._general_surprise() - self._base_surprise
        self._log.write("drift", step=step, drift=round(value, 5), base_loss=round(self._base_surprise, 5))
        if not self._told_drift and (sentence := drift.advice(value)):
            self._told_drift = True
            print(f"Step {step}: {sentence}", flush=True)  # whoever shows the run says it of the latest drift

    def _general_surprise(self) -> float:
        found = self._surprise(self._general, lambda: True)
        return sum(loss for loss, _ in found) / max(sum(count for _, count in found), 1)

    def _answer(self, seconds: float, step: int) -> None:
        if not self._asked:
            return
        if not self._base_answered:
            self._base_answered, seconds = True, seconds / 2
            rows = [{"line": one.line, "prompt": one.prompt, "reference": one.reference} for one in self._asked]
            said: list[str] = []
            if self._has_base():
                with self._base():
                    said = self._answers(self._asked, seconds)
            self._log.write("samples", step=0, rows=rows, answers=said)
        self._log.write("samples", step=step, answers=self._answers(self._asked, seconds))

    # at the end

    def _judge_rows(self, seconds: float) -> None:
        assert self._held_out
        deadline = time.monotonic() + seconds / 2
        rows = questions(self._held_out, self._renderer, self._length, JUDGED_ROWS)
        found = self._surprise(rows, lambda: time.monotonic() < deadline and not self._stop.is_set)
        losses = [loss / count for loss, count in found]
        order = sorted(range(len(losses)), key=lambda place: losses[place])
        half = min(EXTREMES, len(order) // 2)
        ends = {"best": order[:half], "worst": list(reversed(order))[:half]}
        chosen = list(itertools.chain.from_iterable(ends.values()))
        if not chosen:
            return
        said = dict(zip(chosen, self._answers([rows[place] for place in chosen], seconds / 2), strict=True))
        told = {name: [_told(rows[place], losses[place], said[place]) for place in places] for name, places in ends.items()}
        self._log.write("rows", step=self._trainer.state.global_step, judged=len(losses), **told)

    # asking

    def _has_base(self) -> bool:
        model = self._trainer.model
        if not hasattr(model, "disable_adapter"):
            return False
        begins = (getattr(one, "init_lora_weights", True) for one in model.peft_config.values())
        return not any(isinstance(how, str) and how.startswith(CHANGES_BASE) for how in begins)

    @contextmanager
    def _base(self) -> Iterator[None]:
        """The base alone answers; what that takes is not taken again."""
        begun = time.monotonic()
        with self._trainer.model.disable_adapter():
            yield
        self._base_cost += time.monotonic() - begun

    def _answers(self, asked: Sequence[RowQuestion], seconds: float) -> list[str]:
        return answers(
            self._trainer.model,
            [one.ids for one in asked],
            self._renderer,
            ANSWER_TOKENS,
            seconds,
            self._trainer.accelerator.autocast,
            lambda: self._stop.is_set,
        )

    def _surprise(self, asked: Sequence[RowQuestion], go_on: Callable[[], bool]) -> list[tuple[float, int]]:
        rows = [(one.row, one.learned) for one in asked]
        return surprise(self._trainer.model, rows, self._renderer, self._trainer.accelerator.autocast, go_on)


def _told(row: RowQuestion, loss: float, answer: str) -> dict[str, Any]:
    return {"line": row.line, "loss": round(loss, 4), "prompt": row.prompt, "reference": row.reference, "answer": answer}
