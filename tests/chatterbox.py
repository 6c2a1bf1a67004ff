"""A child process that never stops telling its progress: `python -m tests.chatterbox`."""

from __future__ import annotations

if __name__ == "__main__":
    while True:
        print('{"stage": "on and on", "share": 0.5}', flush=True)
