"""Steps that are recorded once on a CUDA device and then launched as a whole: every call of CUDA graphs is here.

A recorded step reads and writes the tensors that it had when it was recorded, at their addresses. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

WARM_UP = 2  # runs before: libraries choose their kernels and take their memory on the first ones


class Recording(Protocol):
    """A step on the device. `result` is the tensor that it gave, which every further run fills anew."""

    result: Tensor

    def replay(self) -> None: ...


class Recorder(Protocol):
    def record(self, step: Callable[[], Tensor]) -> Recording:
        """Run `step` some times, and keep what it launches. Raises whatever it raises, and RuntimeError where it asks the host."""
        ...


class CudaRecording:
    def __init__(self, graph: Any, result: Tensor) -> None:
        self._graph, self.result = graph, result

    def replay(self) -> None:
        self._graph.replay()


class CudaRecorder:
    """torch.cuda.graph. All recordings share one pool of memory: they run one after the other, and what one gave is used before the next."""

    def __init__(self) -> None:
        self._pool: Any = None

    def record(self, step: Callable[[], Tensor]) -> Recording:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = step()
        return CudaRecording(graph, result)


def recorder_for(device: torch.device) -> Recorder | None:
    """None where nothing can be recorded."""
    return CudaRecorder() if device.type == "cuda" else None
