"""The name under which a trainer waits (jobs.warm): `python -m jobs.ready --stand-by`. Whatever is called jobs.train, trains."""

from __future__ import annotations

from jobs.train import leave, main

if __name__ == "__main__":
    leave(main())
