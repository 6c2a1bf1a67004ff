"""Only algorithms that give the same bytes each time (option full_determinism); what has none is told by name. On a processor all are."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

MARK = "does not have a deterministic implementation"  # in torch's warning


def use(tell: Callable[[str], None]) -> None:
    """For the rest of this process, before its first product on the GPU. `tell` hears once of each operation without such code.

    As transformers' enable_full_determinism, but kernels are not waited for one by one: that makes none of them more exact.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True, warn_only=True)
    told: set[str] = set()
    shown = warnings.showwarning

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        text = str(message)
        if MARK not in text:
            shown(message, *args, **kwargs)
            return
        operation = text.partition(MARK)[0].strip()
        if operation not in told:
            told.add(operation)
            tell(f"full_determinism: torch's {operation} has no deterministic code, so two runs may differ by rounding.")

    warnings.showwarning = show
