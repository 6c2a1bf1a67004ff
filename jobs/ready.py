"""The name under which a trainer waits (jobs.warm): `python -m jobs.ready --stand-by`. Whatever is called jobs.train, trains."""

from __future__ import annotations

import sys

from jobs.train import main

if __name__ == "__main__":
    sys.exit(main())
