"""`python -m studio.evaluation OPTIONS OUT`: figures of verdicts, outside the process that serves the page.

OPTIONS: `do` ("leaderboard" or "agreement"), `verdicts` as rows, and for agreement `truth` and `invalid`.
"""

from __future__ import annotations

import sys
from typing import Any

from studio.datasets.report.child import Progress, run
from studio.evaluation import agreement, ratings
from studio.evaluation.verdicts import Verdict


def work(options: dict[str, Any], _progress: Progress) -> dict[str, Any]:
    lines = [Verdict(*row) for row in options["verdicts"]]
    if options["do"] == "leaderboard":
        return ratings.leaderboard(lines)
    return agreement.agreement(lines, options.get("truth", ()), options.get("invalid", "tie"))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], work))
