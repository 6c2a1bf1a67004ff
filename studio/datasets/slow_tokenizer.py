"""Convert a tokenizer without tokenizer.json: `python -m studio.datasets.slow_tokenizer SRC DST`.

A child process of studio.datasets.tokenization and the only file of this room that imports transformers.
DST is complete or absent. Runs no code of the model folder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Write `target`/tokenizer.json and tokenizer_config.json. Raises what transformers raises."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, local_files_only=True)
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no fast form")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        made = Path(name) / "made"
        tokenizer.save_pretrained(str(made))
        if not target.exists():
            made.rename(target)


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m studio.datasets.slow_tokenizer SRC DST", file=sys.stderr)
        return 2
    try:
        convert(Path(arguments[0]), Path(arguments[1]))
    except Exception as exc:  # noqa: BLE001 - the edge of this process: one line for the parent
        print(f"{type(exc).__name__}: {' '.join(str(exc).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
