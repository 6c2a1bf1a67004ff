"""trl's trainers, but their checkpoints are complete or absent and whose resume repeats the unbroken run bit for bit.

Upstream writes checkpoints in place, with a pickle of its arguments, and forgets the loss summed since the last log and
the tokens counted. Here a checkpoint is a folder with: adapter/ (as chat would load it), optimizer.pt, scheduler.pt,
rng_state.pth, trainer_state.json, progress.json. Knows no queue and no database.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jobs.rundir import PROGRESS, checkpoint_step
from jobs.trainers import adapters, methods, own_logits
from jobs.trainers.balanced import BalancedSteps
from jobs.trainers.best import Best
from jobs.trainers.checkpoints import CheckpointStore
from jobs.trainers.evaluating import HalvingEvaluation
from jobs.trainers.events import EventLog
from jobs.trainers.failures import DivergedError, Divergence
from jobs.trainers.packed import PackedSteps
from jobs.trainers.scaling import SkippedSteps, scale_on_a_processor
from jobs.trainers.stopping import Stopped, StopWish
from jobs.trainers.whole_step import RandomStates, WholeStep

LONGEST_UNSAVED_S = 600.0  # between two checkpoints, however long the run: what a crash may cost


class Exact(HalvingEvaluation, PackedSteps, BalancedSteps):
    """Put before one of trl's trainers: `card` describes the adapter, `reporter` counts and reports, `store` keeps checkpoints."""

    def __init__(self, *args: Any, card: adapters.AdapterCard, store: CheckpointStore, reporter: Reporter, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.card = card
        self.store = store
        self.reporter = reporter
        scale_on_a_processor(self.accelerator)
        reporter.attach(self)
        self.remove_callback(PrinterCallback)  # the reporter prints what a person wants to read
        self.add_callback(reporter)
        # trl makes adapters on a 4-bit base bfloat16, but loads them as float32 on resume: one type, or resume isn't exact
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        self._whole_step: WholeStep | None = None
        # where PiSSA began: what is saved is the difference
        self.start: Any = None
        if methods.is_pissa(card.config):
            self.start = adapters.weights(self.model)
        methods.faster_second_matrix(self, card.config)
        if own_logits.use_where_needed(self.model, self.accelerator.autocast()):
            reporter.log.notice("The loss is computed from the model's own logits, which takes more memory: trl computes others for it.")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        if not all(torch.isfinite(p).all() for p in self.model.parameters() if p.requires_grad):
            raise DivergedError("adapter", step)
        tensors = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        self.store.write(step, self._fill, expected_bytes=tensors * 3, pinned=self.reporter.pinned)  # with Adam's two moments
        self.reporter.log.write("checkpoint", step=step)

    def _fill(self, folder: Path) -> None:
        adapters.save(folder / "adapter", self.model, self.card, self.reporter.figures(), self.start)
        if methods.keeps_raw(self.card.config):
            adapters.save_raw(folder, self.model)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.store_flos()
        self.state.save_to_json(str(folder / "trainer_state.json"))
        (folder / PROGRESS).write_text(json.dumps(self.reporter.as_json()), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        adapters.restore(Path(resume_from_checkpoint), self.model if model is None else model)

    def adopt(self, checkpoint: Path) -> None:
        """Take the state of a checkpoint that lies at the end of the run."""
        self._load_from_checkpoint(str(checkpoint))
        self.state.global_step = checkpoint_step(checkpoint)
        self._total_train_tokens = self.reporter.restored["unlogged"]["tokens"]

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # nobody reads the sum, and counting walks the whole model in every batch

    # what upstream forgets between two logs

    def unlogged(self) -> dict[str, Any]:
        sums = {name: list(values) for name, values in self._metrics["train"].items()}
        return {"loss": self._tr_loss.item(), "logged_step": self._globalstep_last_logged, "sums": sums, "tokens": self._total_train_tokens}

    def restore_unlogged(self, values: dict[str, Any]) -> None:
        self._tr_loss += values["loss"]
        self._globalstep_last_logged = values["logged_step"]
        self._total_train_tokens = values["tokens"]
        for name, entries in values["sums"].items():
            self._metrics["train"][name] = list(entries)

    # a stop within an accumulated step

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        if self.args.gradient_accumulation_steps > 1:
            self._whole_step = WholeStep(self.state.global_step, RandomStates.take(), self.unlogged())

    def drop_begun_step(self) -> None:
        """Go back to the end of the last whole step, and keep it. Of no whole step since the start or the resume there is nothing to keep."""
        self.model.zero_grad()
        if (whole := self._whole_step) is None:
            return
        whole.states.put_back()
        self._tr_loss.zero_()
        self._metrics["train"].clear()
        self.restore_unlogged(whole.unlogged)
        if whole.step not in map(checkpoint_step, self.store.run.checkpoint_folders()):
            self._save_checkpoint(self.model, None)

    @property
    def tokens(self) -> int:
        return int(self._total_train_tokens)


class Reporter(TrainerCallback):
    """Reports progress as events, stops at a wish, and ends a run whose numbers are no numbers."""

    trainer: Exact

    def __init__(self, log: EventLog, stop: StopWish, resumed: Path | None, best: Best, keeps_best: bool) -> None:
        self.log = log
        self.stop = stop
        self.best = best
        self.keeps_best = keeps_best
        self.restored: dict[str, Any] = json.loads((resumed / PROGRESS).read_text(encoding="utf-8")) if resumed else {}
        best.restore(self.restored.get("best", {}))
        self._latest: dict[str, float] = dict(self.restored.get("latest", {}))
        self._seconds_before = float(self.restored.get("seconds", 0.0))
        self._begun = time.monotonic()
        self._kept = self._begun
        self._first_step = 0
        self._divergence = Divergence()

    def attach(self, trainer: Exact) -> None:
        self.trainer = trainer
        self.skipped = SkippedSteps(trainer.accelerator, self.log)
        self.skipped.restore(**self.restored.get("skipped", {"count": 0, "in_a_row": 0}))

    @property
    def pinned(self) -> int | None:
        """The step whose checkpoint must not be pruned."""
        if not self.keeps_best:
            return None
        return self.best.step

    @property
    def seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._begun

    def figures(self) -> dict[str, Any]:
        """What the adapter's card says."""
        counts = {"tokens": self.trainer.tokens, "seconds": round(self.seconds, 3), **self.skipped.figures()}
        return {"steps": self.trainer.state.global_step, **self._latest, **counts}

    def as_json(self) -> dict[str, Any]:
        state = {"best": self.best.as_json(), "is_over": self.best.is_over, "skipped": self.skipped.as_json()}
        return {"seconds": self.seconds, "latest": self._latest, "unlogged": self.trainer.unlogged(), **state}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.restored:
            self.trainer.restore_unlogged(self.restored["unlogged"])
        self._begun = self._kept = time.monotonic()
        self._first_step = state.global_step

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.skipped.see(state.global_step)
        if state.global_step >= state.max_steps:
            control.should_log = True
            control.should_evaluate = args.eval_strategy != "no"
        elif self.stop.is_set:
            control.should_save = control.should_training_stop = True
        elif time.monotonic() - self._kept > LONGEST_UNSAVED_S:
            control.should_save = True

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stop.is_set:
            self.trainer.drop_begun_step()
            raise Stopped

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._kept = time.monotonic()

    def on_prediction_step(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.stop.is_set:
            raise Stopped  # an evaluation may take minutes; the run goes on from the checkpoint before it

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        is_best = self.best.see(state.global_step, metrics["eval_loss"])
        if is_best and self.keeps_best:
            control.should_save = True
        if self.best.is_over and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True  # the checkpoint says that it is the last
            self.log.notice(
                f"Stopped early at step {state.global_step}: the loss on held-out rows has not been lower than "
                f"{self.best.loss:.4f} (step {self.best.step}) for {self.best.worse} evaluations."
            )

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        state.log_history.clear()  # it would grow every checkpoint; the events hold it all
        if "eval_loss" in logs:
            self._report_evaluation(state, logs)
        elif "loss" in logs:
            self._report_step(state, logs)

    def _report_step(self, state: TrainerState, logs: dict[str, float]) -> None:
        step, loss, norm = state.global_step, logs["loss"], logs.get("grad_norm")
        passed = step - self._first_step
        each = (time.monotonic() - self._begun) / max(passed, 1)
        self._latest["train_loss"] = loss
        self.log.write(
            "progress",
            step=step,
            max_steps=state.max_steps,
            loss=loss,
            learning_rate=logs.get("learning_rate"),
            grad_norm=norm,
            token_accuracy=logs.get("mean_token_accuracy"),
            entropy=logs.get("entropy"),
            **_preference(logs, ""),
            epoch=round(logs.get("epoch", 0.0), 4),
            tokens=self.trainer.tokens,
            seconds=round(self.seconds, 3),
            eta_s=round((state.max_steps - step) * each, 1),
        )
        print(f"step {step}/{state.max_steps}  loss {loss:.4f}  learning rate {logs.get('learning_rate', 0):.3g}", flush=True)
        if not math.isfinite(loss):
            raise DivergedError("loss", step, in_float16=self.skipped.is_scaled)
        if norm is not None and not math.isfinite(norm) and not self.skipped.is_scaled:  # a scaler skips such a step
            raise DivergedError("gradient", step)
        if sentence := self._divergence.notice(step, loss):
            self.log.notice(sentence)

    def _report_evaluation(self, state: TrainerState, logs: dict[str, float]) -> None:
        loss = logs["eval_loss"]
        self._latest["eval_loss"] = loss
        self.log.write(
            "eval",
            step=state.global_step,
            loss=loss,
            token_accuracy=logs.get("eval_mean_token_accuracy"),
            **_preference(logs, "eval_"),
            seconds=round(self.seconds, 3),
        )
        print(f"step {state.global_step}/{state.max_steps}  loss on held-out rows {loss:.4f}", flush=True)


def _preference(logs: dict[str, float], prefix: str) -> dict[str, float]:
    """Share of pairs in which the better answer is found likelier than before, and by how much; {} where nothing is preferred."""
    found = {"reward_accuracy": logs.get(f"{prefix}rewards/accuracies"), "reward_margin": logs.get(f"{prefix}rewards/margins")}
    return {name: value for name, value in found.items() if value is not None}
