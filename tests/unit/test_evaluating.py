"""An evaluation that runs out of memory goes on with fewer rows, and the training with it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from jobs.trainers.evaluating import HalvingEvaluation


class Narrow(nn.Module):
    """A model whose device holds `most` rows while evaluating."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.line, self.most = nn.Linear(2, 1), most
        self.rows: list[int] = []

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not self.training:
            self.rows.append(len(x))
            if len(x) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        found = self.line(x)[:, 0]
        return {"loss": ((found - labels) ** 2).mean(), "logits": found}


def train(folder: Path, most: int) -> tuple[Narrow, Any, list[str], list[float]]:
    rows = [{"x": [float(number), 1.0], "labels": float(number % 3)} for number in range(8)]
    options = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "no", "report_to": "none", "use_cpu": True}
    arguments = TrainingArguments(str(folder), per_device_train_batch_size=2, per_device_eval_batch_size=8, disable_tqdm=True, **options)
    notices: list[str] = []
    torch.manual_seed(0)
    model = Narrow(most)
    trainer = HalvingEvaluation(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.reporter = SimpleNamespace(log=SimpleNamespace(notice=notices.append))
    trainer._metrics = defaultdict(lambda: defaultdict(list))  # as trl's trainers have it
    trainer.train()
    return model, trainer, notices, [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]


def test_the_batch_is_halved_until_it_fits_and_no_step_is_lost(tmp_path: Path) -> None:
    # red when the run ends, evaluates rows twice or not at all, or tries the large batch again at the next evaluation
    wide, narrow = train(tmp_path, 8), train(tmp_path, 3)
    assert wide[0].rows == [8, 8] and narrow[0].rows == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert narrow[1].state.global_step == 4 and narrow[3] == pytest.approx(wide[3], rel=1e-5)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(narrow[0].parameters(), wide[0].parameters(), strict=True))
    assert [notice.split(":")[0][-1] for notice in narrow[2]] == ["8", "4"] and wide[2] == []


def test_one_row_that_does_not_fit_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        train(tmp_path, 0)
