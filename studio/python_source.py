"""Python's own parser, in one thread at a time: on Python 3.11 two threads that parse at once may both fail.

CPython counts the depth of the tree per interpreter and not per thread. Where threads take turns in the middle of a tree, it raises
"SystemError: AST constructor recursion depth mismatch".
"""

from __future__ import annotations

import ast
import threading
from typing import Any

_lock = threading.Lock()


def parse(text: str) -> ast.Module:
    """As ast.parse."""
    with _lock:
        return ast.parse(text)


def literal(text: str) -> Any:
    """As ast.literal_eval of a text."""
    with _lock:
        return ast.literal_eval(text)
