"""Read a hub dataset into a JSON-lines file: `python -m studio.datasets.hub NAME CONFIG SPLIT OUT`; empty CONFIG and SPLIT choose.

A child process of studio.services.datasets and the only file of this room that imports `datasets`. Streams; runs no code of the hub.
"""

from __future__ import annotations

import base64
import os
import sys
from pathlib import Path
from typing import Any

import orjson

from studio import privacy
from studio.datasets.tables import without_nulls


def download(name: str, config: str, split: str, out: Path) -> int:
    """Write the rows to `out` and return their number. Raises what `datasets` raises."""
    import datasets

    loaded = datasets.load_dataset(name, config or None, split=split or None, streaming=True)
    if not split:
        loaded = loaded["train"] if "train" in loaded else next(iter(loaded.values()))
    count = 0
    with out.open("wb") as file:
        for row in loaded:
            row = {key: without_nulls(value) for key, value in row.items()}
            file.write(orjson.dumps(row, default=_plain, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY) + b"\n")
            count += 1
            if count % 100 == 0:
                file.flush()  # the parent watches the file grow
    return count


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def main(arguments: list[str]) -> int:
    if len(arguments) != 4:
        print("usage: python -m studio.datasets.hub NAME CONFIG SPLIT OUT", file=sys.stderr)
        return 2
    name, config, split, out = arguments
    os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")
    from huggingface_hub import constants

    os.umask(privacy.umask_of(Path(constants.HF_HUB_CACHE)))  # the cache is not the studio's: several people may share it
    try:
        download(name, config, split, Path(out))
        privacy.close_to_others(Path(out))
    except Exception as exc:  # noqa: BLE001 - the edge of this process: one line for the parent
        print(_without_token(f"{type(exc).__name__}: {' '.join(str(exc).split())}")[:500], file=sys.stderr)
        return 1
    return 0


def _without_token(message: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return message.replace(token, "…") if token else message


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
