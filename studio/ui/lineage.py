"""What was done to get a dataset, in words, and datasets in the order of their descent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studio.records import Dataset, DatasetVersion
from studio.ui import words

MAX_DEPTH = 4  # of the list's indentation


def made(dataset: Dataset | DatasetVersion) -> str:
    """How a version came to be, such as `12 rows dropped`; "" for what was brought in."""
    how: Mapping[str, Any] = dataset.provenance
    dropped, changed = how.get("dropped") or 0, how.get("changed") or 0
    counts = [words.count(dropped, "row") + " dropped"] * bool(dropped) + [words.count(changed, "row") + " changed"] * bool(changed)
    match how.get("made_by"):
        case "fix":
            return "fixed: " + (", ".join(counts) or "nothing to change")
        case "split":
            return "split off"
        case "merge":
            return f"merged from {len(how.get('parents') or [])}"
        case "pick":
            return "picked"
        case "edit":
            return f"row {', '.join(map(str, how.get('rows') or []))} edited"
        case "delete":
            return words.count(dropped or 1, "row") + " removed"
    return ""


def origin(dataset: Dataset) -> str:
    """Where the first rows of its family come from."""
    return f"from {dataset.source}"


def source(dataset: Dataset) -> str:
    """Where the rows come from."""
    return made(dataset) or origin(dataset)


def ordered(datasets: Sequence[Dataset]) -> list[tuple[Dataset, int, str]]:
    """Each dataset with its depth and how it was made, versions behind what they were made of; the newest families first."""
    known = {dataset.id for dataset in datasets}
    children: dict[str | None, list[Dataset]] = {}
    for dataset in datasets:
        parent = dataset.parent
        if parent not in known:
            parent = None
        children.setdefault(parent, []).append(dataset)
    found: list[tuple[Dataset, int, str]] = []
    stack = [(root, 0) for root in reversed(sorted(children.get(None, []), key=lambda root: -_newest(root, children)))]
    while stack:
        dataset, depth = stack.pop()
        found.append((dataset, min(depth, MAX_DEPTH), made(dataset)))
        stack += [(child, depth + 1) for child in sorted(children.get(dataset.id, []), key=lambda child: -child.created_at)]
    return found


def _newest(root: Dataset, children: Mapping[str | None, list[Dataset]]) -> float:
    """When the family of `root` grew last."""
    latest, stack = 0.0, [root]
    while stack:
        dataset = stack.pop()
        latest = max(latest, dataset.created_at)
        stack += children.get(dataset.id, [])
    return latest
