"""`python -m studio.evaluation OPTIONS OUT`: figures of verdicts and of answers, outside the process that serves the page.

OPTIONS: `do` is "leaderboard" or "agreement" with `verdicts` as rows (and for agreement `truth` and `invalid`), or "metrics" with
`contestants`, `schema` and `pattern`.
"""

from __future__ import annotations

import sys
from typing import Any

from studio.datasets.report.child import Progress, run
from studio.evaluation import agreement, metrics, ratings
from studio.evaluation.verdicts import VerdictLine


def work(options: dict[str, Any], _progress: Progress) -> dict[str, Any]:
    if options["do"] == "metrics":
        checks = {"schema": options.get("schema"), "pattern": options.get("pattern")}
        return {name: contestant(given, **checks) for name, given in options["contestants"].items()}
    lines = [VerdictLine(*row) for row in options["verdicts"]]
    if options["do"] == "leaderboard":
        return ratings.leaderboard(lines)
    return agreement.agreement(lines, options.get("truth", ()), options.get("invalid", "tie"))


def contestant(given: dict[str, Any], *, schema: Any = None, pattern: str | None = None) -> dict[str, Any]:
    """Figures of one contestant: `answers`, `errors`, `empty`, mean `seconds` and `tokens` of an answer, and the metrics of its pairs."""
    texts = given["texts"]
    found = {
        "answers": len(texts),
        "errors": given["errors"],
        "empty": sum(not text.strip() for text in texts),
        "seconds": None,
        "tokens": None,
    }
    if texts:
        found |= {name: sum(given[name]) / len(texts) for name in ("seconds", "tokens")}
    if given["pairs"]:
        return {**found, **metrics.measure(given["pairs"], schema=schema, pattern=pattern, with_intervals=True)}
    if texts:
        found |= metrics.checked(texts, schema, pattern)
    return {**found, "n": 0}


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], work))
