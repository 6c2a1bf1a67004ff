"""What a chat template may use: time, loops, characters, list and object sizes; each call and filter is measured before it runs.

A template comes from a stranger's model folder. Every render in a thread has one budget.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import jinja2

MAX_TEXT_CHARS = 128 * 1024**2  # of any one string
MAX_ALLOCATED_CHARS = 1024**3  # of all strings of one render together
MAX_LOOPS = 500_000
MAX_CPU_S = 5.0
REQUEST_CPU_S, PREVIEW_CPU_S = 10.0, 60.0  # of all renders for one chat request; for a preview of many rows
MAX_NODES = 200_000  # of any list or dict, shared parts counted each time they occur
MAX_INTEGER = 1_000_000  # as an argument: widths, precisions, repetitions

LONG_NUMBER = re.compile(r"\d{6,}")


class LimitError(jinja2.TemplateError):
    """The template wants more time, loops or text than any honest one needs."""


class Budget(threading.local):
    """What the render running in this thread may still use."""

    marking = False
    loops = 0
    chars = 0
    deadline = 0.0
    began = 0.0
    left_s = math.inf  # for all renders of what is being answered

    def start(self, marking: bool, *, alone: bool = False) -> None:
        self.marking, self.loops, self.chars = marking, MAX_LOOPS, MAX_ALLOCATED_CHARS
        self.began = time.thread_time()
        self.deadline = self.began + (MAX_CPU_S if alone else min(MAX_CPU_S, self.left_s))
        self.check_time()

    def end(self) -> None:
        """The render is over."""
        self.left_s -= time.thread_time() - self.began

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """All renders in this block have so much processor time together: one answer takes a dozen of them, a preview thousands."""
        before, self.left_s = self.left_s, min(self.left_s, seconds)
        given = self.left_s
        try:
            yield
        finally:
            self.left_s = before - (given - self.left_s)

    def tick(self) -> None:
        self.loops -= 1
        if self.loops < 0:
            raise LimitError(f"it loops more than {MAX_LOOPS:,} times")
        if self.loops % 256 == 0:
            self.check_time()

    def charge(self, chars: int) -> None:
        self.chars -= chars
        if chars > MAX_TEXT_CHARS or self.chars < 0:
            raise LimitError("it writes more text than fits")
        if chars > 100_000:
            self.check_time()

    def check_time(self) -> None:
        if time.thread_time() > self.deadline:
            if self.deadline - self.began < MAX_CPU_S:
                raise LimitError("its renders together compute for longer than one request may")
            raise LimitError(f"it computes for more than {MAX_CPU_S:.0f} s")


budget = Budget()


def join(pieces: Iterable[str]) -> str:
    """`"".join` that looks at the sum first; the environment's `concat`, through which macros and blocks write."""
    parts = list(pieces)
    budget.charge(sum(map(len, parts)))
    return "".join(parts)


class Guarded:
    """An iterable of a for loop that counts its steps; `loop.length` still works."""

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            budget.tick()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)


def weigh(value: Any) -> int:
    """Characters in `value`, counting shared parts each time they occur. Raises LimitError when it is too large to walk."""
    if isinstance(value, str):
        return len(value)
    total, budget, stack = 0, MAX_NODES, [value]
    while stack:
        item = stack.pop()
        budget -= 1
        if budget < 0:
            raise LimitError("it builds a list or object that is too large")
        if isinstance(item, dict):
            stack += item.keys()
            stack += item.values()
        elif isinstance(item, (list, tuple)):
            stack += item
        elif isinstance(item, str):
            total += len(item)
        elif isinstance(item, int) and item.bit_length() > 4096:
            raise LimitError("it computes with numbers that are too large")
    return total


def check_arguments(args: Iterable[Any]) -> None:
    for arg in args:
        if isinstance(arg, int) and abs(arg) > MAX_INTEGER:
            raise LimitError(f"it asks for a size of {MAX_INTEGER:,} and more")
        if isinstance(arg, (str, list, tuple, dict)):
            budget.charge(weigh(arg))


def check_growth(name: str, text: Any, args: tuple[Any, ...]) -> None:
    """Charge what a filter or method makes of `text` before it does, where that can be much more than `text`."""
    if not isinstance(text, str):
        return
    lines = text.count("\n") + text.count("\t") + 1
    words = text.count(" ") + lines if name == "wordwrap" else lines
    given = [len(arg) if isinstance(arg, str) else arg for arg in args if isinstance(arg, (str, int))]
    if name == "replace" and len(given) >= 2:
        budget.charge(text.count(str(args[0])) * given[1] + len(text))
    elif name in ("indent", "wordwrap"):
        budget.charge(words * max(given, default=4) + len(text))
    else:
        budget.charge(lines * max((arg for arg in args if isinstance(arg, int)), default=0) + len(text))


def check_join(separator: Any, items: Any) -> None:
    if isinstance(separator, str):
        budget.charge(len(items) * len(separator) + weigh(items))


def check_format(text: Any) -> None:
    if isinstance(text, str) and LONG_NUMBER.search(text):
        raise LimitError("it formats text to an enormous width")


def guard_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The same filter with its arguments looked at first."""
    skip = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0  # context, environment: jinja's own first argument

    def guarded(*args: Any, **kwargs: Any) -> Any:
        given = args[skip:]
        if given and isinstance(given[0], Iterator):
            given = (list(Guarded(given[0])), *given[1:])
            args = (*args[:skip], *given)
        check_arguments([*given[1:], *kwargs.values()])
        if given and name not in ("length", "count", "first", "last"):
            budget.charge(weigh(given[0]) if isinstance(given[0], (str, list, tuple, dict)) else 0)
        if name == "join" and given:
            given = (given[0] if isinstance(given[0], (str, list, tuple)) else list(Guarded(given[0])), *given[1:])
            args = (*args[:skip], *given)
            check_join(given[1] if len(given) > 1 else kwargs.get("d", ""), given[0])
        elif name == "format" and given:
            check_format(given[0])
        elif given:
            named = [kwargs[key] for key in ("old", "new") if key in kwargs] or list(kwargs.values())
            check_growth(name, given[0], (*given[1:], *named))
        return bounded(function(*args, **kwargs))

    guarded.__dict__.update(getattr(function, "__dict__", {}))
    return guarded


def bounded(value: Any) -> Any:
    """`value`, unless it is too large to walk: pairs of pairs, sixty levels deep, would hang any comparison."""
    if isinstance(value, (list, tuple, dict)):
        weigh(value)
    return value


def concat(first: Any, *rest: Any) -> str:
    """`a ~ b`, with its size looked at first."""
    budget.charge(sum(weigh(part) for part in (first, *rest)))
    return "".join(map(str, (first, *rest)))
