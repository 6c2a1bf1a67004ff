"""Triton compiles trl's kernels for the loss with a C compiler, at their first use on a GPU. Without one trl's plain code does the work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

COMPILERS = ("gcc", "clang")  # as triton.runtime.build looks for them, after CC


def has_compiler() -> bool:
    return bool(os.environ.get("CC")) or any(map(shutil.which, COMPILERS))


def go_without_triton(tell: Callable[[str], None]) -> None:
    """For the rest of this process. `tell` hears what it costs."""
    from trl.kernels import chunked_logprob
    from trl.trainer import utils

    chunked_logprob._TRITON_AVAILABLE = False
    utils.is_triton_available = lambda *_: False
    tell("There is no C compiler here, which Triton needs: the loss is computed by plain code, slower and in more memory. Install gcc.")
