"""The rows of each step as they come by chance, but those of like length computed together: less padding, the same steps.

transformers' sampler for this (`batch_rebalance`) leaves the seed at its default and fills an epoch's last step with rows that it
repeats, or leaves them out. Here every row comes once per epoch, as in any other order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer_pt_utils import BatchRebalanceSampler


class Balanced(BatchRebalanceSampler):
    """Batches of row numbers: `accumulated` for each step of `size` times as many rows, fewer for the last step of an epoch.

    `lengths` are the rows' tokens. Trainer gives samplers of the base class to its loader as whole batches.
    """

    def __init__(self, lengths: Sequence[int], size: int, accumulated: int, seed: int) -> None:
        super().__init__(list(lengths), size * accumulated, dp_size=1, grad_accum=accumulated, seed=seed, drop_last=True)

    def __len__(self) -> int:
        return super().__len__() + min(self.remainder, self.grad_accum)

    def __iter__(self) -> Iterator[list[int]]:
        yield from super().__iter__()
        order = torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        rest = order[len(order) - self.remainder :]
        if self.remainder >= self.grad_accum:
            yield from self._yield_global_batch(rest)
        else:
            yield from ([row] for row in rest)


class BalancedSteps(Trainer):
    """Put before a trainer whose rows are tokens: where its order is `batch_rebalance`, it is that of Balanced."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "batch_rebalance":
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        lengths = [len(ids) for ids in rows["input_ids"]]
        return Balanced(lengths, self._train_batch_size, self.args.gradient_accumulation_steps, self.args.seed)
