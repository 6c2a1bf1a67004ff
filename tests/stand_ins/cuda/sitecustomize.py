"""In the child that asks torch, and nowhere else: a torch that sees the GPUs of the variable TEST_TORCH (JSON), put there by tests.gpus.

Every other process keeps the installed torch, so nothing is ever computed on a device that is not there.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from types import ModuleType, SimpleNamespace
from typing import Any

SEEN = json.loads(os.environ.get("TEST_TORCH", "null"))


def visible() -> list[dict[str, Any]]:
    """The first device as CUDA counts is the fastest one: the order of TEST_TORCH, not of the driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return list(SEEN["devices"])
    words = [word for word in chosen.split(",") if word]
    by_name = {str(index): one for index, one in enumerate(SEEN["devices"])} | {f"GPU-{one['uuid']}": one for one in SEEN["devices"]}
    return [by_name[word] for word in words if word in by_name]


class Cuda:
    """As torch.cuda, of the devices that it is told."""

    def is_available(self) -> bool:
        if SEEN.get("said"):
            warnings.warn(SEEN["said"], stacklevel=2)
        return not SEEN.get("said") and bool(visible())

    def init(self) -> None:
        if SEEN.get("said"):
            raise RuntimeError(SEEN["said"])

    def device_count(self) -> int:
        return len(visible())

    def get_arch_list(self) -> list[str]:
        return list(SEEN["architectures"])

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(**visible()[index])

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return visible()[index]["free"], visible()[index]["total_memory"]


class Torch(ModuleType):
    """As much of torch as that child asks."""

    __version__ = (SEEN or {}).get("version")
    version = SimpleNamespace(cuda=(SEEN or {}).get("cuda"), hip=(SEEN or {}).get("hip"))
    cuda = Cuda()


if SEEN and "studio.catalogue.torch_view" in sys.orig_argv:
    sys.modules["torch"] = Torch("torch")
