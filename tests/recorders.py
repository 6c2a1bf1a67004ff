"""What CUDA graphs do, on the processor: operations are recorded with the very tensors that they had, and run again on these.

Whatever a step takes from the host is as it was when it was recorded, and a step that asks the host for a number can't be recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS_THE_HOST = ("aten._local_scalar_dense", "aten.lift_fresh", "aten.nonzero", "aten.is_nonzero", "aten.equal")


class FakeRecording(TorchDispatchMode):
    """A step while it is recorded, and afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.result = torch.empty(0)
        self.replays = 0
        self._launched: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith(ASKS_THE_HOST):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        given = func(*args, **(kwargs or {}))
        results, inputs = tensors(given), {place(tensor) for tensor in tensors((args, kwargs))}
        if func._schema.is_mutable or any(place(result) not in inputs for result in results):  # else it is a view, which stays one
            self._launched.append((func, args, kwargs or {}, results))
        return given

    @torch.inference_mode()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, results in self._launched:
            for old, new in zip(results, tensors(func(*args, **kwargs)), strict=True):
                if place(old) != place(new):
                    old.copy_(new)


def tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def place(tensor: Tensor) -> int:
    """Of its memory."""
    return tensor.untyped_storage().data_ptr()


class FakeRecorder:
    """`fails`: the reason why nothing can be recorded."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.made: list[FakeRecording] = []

    @property
    def replays(self) -> int:
        return sum(recording.replays for recording in self.made)

    def record(self, step: Callable[[], Tensor]) -> FakeRecording:
        if self.fails:
            raise RuntimeError(self.fails)
        for _ in range(2):
            step()
        recording = FakeRecording()
        with recording:
            recording.result = step()
        self.made.append(recording)
        return recording
