"""`python -m studio.datasets.report OPTIONS OUT`: make the report that the JSON file OPTIONS asks for (see wanted.py)."""

from __future__ import annotations

import sys

from studio.datasets.report.child import run
from studio.datasets.report.making import make
from studio.datasets.report.wanted import Wanted

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], lambda options, progress: make(Wanted(**options), progress)))
