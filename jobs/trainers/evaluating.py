"""Evaluations that go on with fewer rows at once where memory runs out: the training before them is kept, and no step is repeated."""

from __future__ import annotations

import gc
from typing import Any

import torch
from transformers import Trainer

from jobs.trainers.failures import is_out_of_memory

EVALUATION = "eval"  # how trl calls its own sums of an evaluation


class HalvingEvaluation(Trainer):
    """Put before trl's trainer. `self.reporter.log` takes the notice."""

    reporter: Any

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        while True:
            try:
                return super().evaluate(*args, **kwargs)
            except Exception as exc:
                rows = self.args.per_device_eval_batch_size
                if rows == 1 or not is_out_of_memory(exc, str(exc)):
                    raise
            # here nothing holds the error any more, and with it what the evaluation has allocated
            self.args.per_device_eval_batch_size = rows // 2
            self._metrics[EVALUATION].clear()  # of the rows that were evaluated in vain
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            self.reporter.log.notice(
                f"The evaluation ran out of memory with per_device_eval_batch_size={rows}: it goes on with {rows // 2}. No step was lost."
            )
