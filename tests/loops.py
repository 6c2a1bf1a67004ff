"""Gradio builds a page only where an event loop runs; Playwright keeps one of its own in the thread of the browser tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_a_loop(make: Callable[[], T]) -> T:
    """What `make` returns, called in an event loop of its own, in a thread of its own, whatever runs in this one."""

    async def called() -> T:
        return make()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(called())).result()
