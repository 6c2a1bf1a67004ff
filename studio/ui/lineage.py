"""What was done to get a dataset, in words, and datasets in the order of their descent. Knows nothing of the page."""

from __future__ import annotations

from typing import Any

from studio.ui import words

MAX_DEPTH = 4  # of the list's indentation


def made(dataset: dict[str, Any]) -> str:
    """How a version came to be, such as `12 rows dropped`; "" for what was brought in."""
    how = dataset.get("provenance") or {}
    kind = how.get("made_by")
    dropped, changed = how.get("dropped") or 0, how.get("changed") or 0
    counts = [words.count(dropped, "row") + " dropped"] * bool(dropped) + [words.count(changed, "row") + " changed"] * bool(changed)
    match kind:
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


def source(dataset: dict[str, Any]) -> str:
    """Where the rows come from."""
    return made(dataset) or (f"from {dataset['source']}" if dataset.get("source") else "brought in")


def ordered(datasets: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each dataset with `depth` and `made`, versions behind what they were made of; the newest families first."""
    known = {dataset["id"] for dataset in datasets}
    children: dict[str | None, list[dict[str, Any]]] = {}
    for dataset in datasets:
        children.setdefault(dataset["parent"] if dataset["parent"] in known else None, []).append(dataset)
    found: list[dict[str, Any]] = []

    stack = [(root, 0) for root in reversed(sorted(children.get(None, []), key=lambda root: -_newest(root, children)))]
    while stack:
        dataset, depth = stack.pop()
        found.append({**dataset, "depth": min(depth, MAX_DEPTH), "made": made(dataset)})
        stack += [(child, depth + 1) for child in sorted(children.get(dataset["id"], []), key=lambda child: -child["created_at"])]
    return found


def _newest(root: dict[str, Any], children: dict[str | None, list[dict[str, Any]]]) -> float:
    """When the family of `root` grew last."""
    latest, stack = 0.0, [root]
    while stack:
        dataset = stack.pop()
        latest = max(latest, dataset["created_at"])
        stack += children.get(dataset["id"], [])
    return latest
