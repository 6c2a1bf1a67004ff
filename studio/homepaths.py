"""Paths as they are stored: without the folder of STUDIO_HOME, so that a home can be moved or restored elsewhere.

A path column holds `runs/ID`, relative to the home. Among JSON values the same path is `$STUDIO_HOME/runs/ID`, and
a file that ships with the package (the starter) is `$STUDIO_STATIC/starter`. Every other path stays absolute.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from studio.settings import STATIC

MARK_STEM = "STUDIO_"  # in every mark
HOME_MARK, STATIC_MARK = "$STUDIO_HOME", "$STUDIO_STATIC"
NAME_KEYS = ("name", "base_model")  # a model that was named by its folder keeps that name when the home moves
_MARKED = re.compile(r"\$+STUDIO_(HOME|STATIC)")


class HomePaths:
    """Turns absolute paths into stored ones and back.

    `former_homes` and `former_statics`: where the home and the package's files lay when a row was written.
    """

    def __init__(self, home: Path, former_homes: Iterable[str] = (), former_statics: Iterable[str] = ()) -> None:
        self.home = str(home.absolute())
        homes = {self.home, os.path.realpath(self.home), *former_homes}  # it may be named by a link or its target
        statics = {str(STATIC), *former_statics}
        roots = [*((root, HOME_MARK) for root in homes), *((root, STATIC_MARK) for root in statics)]
        self._roots = sorted(roots, key=lambda root: -len(root[0]))

    def stored(self, path: str) -> str:
        """A path column's value: relative where `path` lies inside the home."""
        mark, inside = self._split(path)
        if mark == HOME_MARK and inside:
            return inside
        return path

    def absolute(self, path: str) -> str:
        """The path of a path column's value."""
        if not path or os.path.isabs(path) or ".." in path.split("/"):
            return path
        return f"{self.home}/{path}"

    def stored_json(self, value: Any) -> Any:
        """`value` with marks for the home and the package in every string that is a path inside them."""
        return _mapped(value, self._marked)

    def absolute_json(self, value: Any) -> Any:
        """What `stored_json` was given, at the place where the home and the package lie now."""
        return _mapped(value, self._unmarked)

    def _split(self, path: str) -> tuple[str, str]:
        """The mark of the root that holds `path`, and the path inside it; ("", "") where none does."""
        for root, mark in self._roots:
            if path == root:
                return mark, ""
            if path.startswith(f"{root}/") and ".." not in path.split("/"):
                return mark, path[len(root) :].strip("/")
        return "", ""

    def _marked(self, text: str) -> str:
        if _MARKED.match(text):
            return f"${text}"  # a text that looks like a mark: one more $ says that it is none
        mark, inside = self._split(text)
        if not mark:
            return text
        return f"{mark}/{inside}".rstrip("/")

    def _unmarked(self, text: str) -> str:
        found = _MARKED.match(text)
        if found is None or ".." in text.split("/"):
            return text
        if text.startswith("$$"):
            return text[1:]
        rest = text[found.end() :]
        if rest and not rest.startswith("/"):
            return text
        root = {HOME_MARK: self.home, STATIC_MARK: str(STATIC)}[found.group()]
        return f"{root}{rest}"


def _mapped(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """`value` with every string in it changed, but for dictionary keys and names."""
    if isinstance(value, str) and key not in NAME_KEYS:
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(inner, change, key) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(inner, change) for inner in value]
    return value
