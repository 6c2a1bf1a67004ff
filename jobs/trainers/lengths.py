"""The order of the rows where rows of like length go together: little padding, batches in random order, other ones in every epoch.

transformers has a sampler for this, but it sorts within a few groups of the rows, which leaves small datasets half of their
padding, and within each it shows long batches before short ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

BLUR = 0.05  # lengths count as up to so much shorter or longer, by chance, so that rows meet others in every epoch


class ByLength(Sampler[int]):
    """Row numbers such that each `size` of them, from the first on, are a batch of like lengths (in tokens).

    The batch with the longest row comes first, so that a run that does not fit in memory says so at once; an incomplete batch comes
    last, as loaders want it. An order depends on the seed and the epoch alone.
    """

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self._lengths = torch.tensor(lengths, dtype=torch.float64)
        self._size = size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the loader before each pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self._seed + self._epoch)
        blurred = self._lengths * (1 + BLUR * (2 * torch.rand(len(self), generator=chance, dtype=torch.float64) - 1))
        order = blurred.argsort()
        whole, left = divmod(len(self), self._size)
        gap = int(torch.randint(whole + 1, (), generator=chance)) * self._size  # else the longest rows were always the incomplete batch
        rest = order[gap : gap + left]
        batches = torch.cat([order[:gap], order[gap + left :]]).view(whole, self._size)
        batches = batches[torch.randperm(whole, generator=chance)]
        if whole:
            first = int(self._lengths[batches].max(dim=1).values.argmax())
            batches[[0, first]] = batches[[first, 0]]
        return iter([*batches.flatten().tolist(), *rest.tolist()])
