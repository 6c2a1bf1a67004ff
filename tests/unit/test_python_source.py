"""Threads that parse Python at once."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from studio import python_source


class Loop:
    """Garbage whose end lets another thread run: the collector may meet it in the middle of a parse."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        time.sleep(0)


@pytest.mark.parametrize(
    ("parse", "text"),
    [(python_source.parse, f"x = [{'f(a, b, [c]), ' * 300}]"), (python_source.literal, repr([[1, {"a": 2}]] * 400))],
    ids=["parse", "literal"],
)
def test_threads_that_parse_at_once_all_succeed(parse: Callable[[str], Any], text: str) -> None:
    # red without the lock: SystemError: AST constructor recursion depth mismatch
    def work(_number: int) -> None:
        Loop()
        parse(text)

    often = gc.get_threshold()
    gc.freeze()  # what pytest holds need not be looked through each time
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(work, range(100)))) == 100
    finally:
        gc.set_threshold(*often)
        gc.unfreeze()
