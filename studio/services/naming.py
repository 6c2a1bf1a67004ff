"""Names that people give and that files give: which are valid, which are taken, which was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

from studio.errors import StudioError, TakenError

PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = frozenset({"base", "file", "reference", "likelihood"})  # words of the contestant grammar
LENGTH = 64


def valid(name: str) -> bool:
    return PATTERN.fullmatch(name) is not None and name.lower() not in RESERVED


def claim(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """`wanted`, if it is valid and free. Raises StudioError or TakenError otherwise."""
    if wanted.lower() in RESERVED:
        raise StudioError(f"The name {wanted!r} has a meaning of its own here.", "Choose another name.")
    if not valid(wanted):
        raise StudioError(
            f"The name {wanted[:80]!r} can't be used.",
            "Take up to 64 letters, digits, dots, dashes or underscores, a letter or digit first.",
        )
    if is_taken(wanted):
        raise TakenError(f"The name {wanted!r} is taken.", f"Choose another, such as {unique(wanted, is_taken)}.")
    return wanted


def from_stem(stem: str) -> str:
    """A valid name made of a file's stem."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[: LENGTH - 4]
    return name if valid(name) else f"my-{name}"[:LENGTH] if name else "unnamed"


def unique(wanted: str, is_taken: Callable[[str], bool]) -> str:
    """`wanted`, or `wanted-2`, `wanted-3` … where it is taken."""
    name, number = wanted, 1
    while is_taken(name):
        number += 1
        suffix = f"-{number}"
        name = wanted[: LENGTH - len(suffix)] + suffix
    return name


def suggest(wanted: str, known: Iterable[str]) -> str:
    """The sentence that helps after an unknown name."""
    names = list(known)
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return f"There are: {', '.join(sorted(names)[:8])}." if names else "There are none yet."
