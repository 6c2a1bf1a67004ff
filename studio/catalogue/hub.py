"""Fetch one model of the Hugging Face hub: `python -m studio.catalogue.hub REPOSITORY FOLDER`.

A process of its own, so that the page never waits for a download's libraries. Prints {"error": null} or
{"error": {"message", "fix"}}; progress goes to stderr. FOLDER is complete or absent. Knows no database.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from studio import lifeline
from studio.errors import ModelError
from studio.records import HubModel

FOUND = 20  # models that a search lists
# no Python, no pickles: what is not fetched can't be run
WANTED = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt"]
WANTED += ["special_tokens_map.json", "added_tokens.json", "*.jinja", "spiece.model", "LICENSE*", "README.md"]


def fetch(repository: str, folder: Path) -> None:
    """Raises ModelError in one line: no such model, no access, no network, no space."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.utils import filter_repo_objects

    part = folder.with_name(f".{folder.name}.part")
    try:
        files = HfApi().model_info(repository, files_metadata=True).siblings or []
        wanted = list(filter_repo_objects(files, allow_patterns=WANTED, key=lambda file: file.rfilename))
        _check_space(repository, sum(file.size or 0 for file in wanted), folder.parent)
        snapshot_download(repository, local_dir=part, allow_patterns=WANTED)
        shutil.rmtree(part / ".cache", ignore_errors=True)
        part.rename(folder)
    except GatedRepoError:
        raise ModelError(
            f"The hub gives {repository} only to people who accepted its terms.", "Accept them on its page and set HF_TOKEN."
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise ModelError(
            f"The hub has no model {repository!r} that you may read.", "Write it as OWNER/NAME; for a private model set HF_TOKEN."
        ) from None
    except (OfflineModeIsEnabled, HfHubHTTPError, ConnectionError, TimeoutError) as exc:
        raise _unreachable(repository, exc) from None
    except OSError as exc:  # httpx's connection errors are no OSError; those of sockets and disks are
        raise ModelError(
            f"{repository} could not be fetched ({exc.strerror or type(exc).__name__}).", "Check the disk and the network; try again."
        ) from None


def search(query: str) -> list[HubModel]:
    """Text generation models whose name holds `query`, the most downloaded first. Raises ModelError without a network."""
    from huggingface_hub import HfApi

    found = HfApi().list_models(search=query, filter="text-generation", sort="downloads", limit=FOUND)
    return [HubModel(repository=one.id, downloads=one.downloads or 0, gated=bool(one.gated)) for one in found]


def _unreachable(repository: str, exc: Exception) -> ModelError:
    return ModelError(
        f"The hub can't be reached, so {repository} was not fetched ({type(exc).__name__}).",
        "Check the network, or copy the model's folder to this machine and add it with `studio models add PATH`.",
    )


def _check_space(repository: str, needed: int, place: Path) -> None:
    free = shutil.disk_usage(place).free
    if needed * 1.05 > free:
        raise ModelError(
            f"{repository} needs {needed / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free.", "Free some space, or move STUDIO_HOME."
        )


def main() -> None:
    lifeline.end_with_parent()
    if sys.argv[1] == "--search":
        _tell_search(sys.argv[2])
        return
    repository, folder = sys.argv[1:]
    error = None
    try:
        fetch(repository, Path(folder))
    except ModelError as exc:
        error = exc.as_json()
    except Exception as exc:  # noqa: BLE001 - the edge of this process: whatever the hub's client raises becomes one line
        error = _unreachable(repository, exc).as_json()
    print(json.dumps({"error": error}))


def _tell_search(query: str) -> None:
    try:
        answer: dict[str, Any] = {"error": None, "models": [model.model_dump() for model in search(query)]}
    except Exception as exc:  # noqa: BLE001 - the edge of this process
        reason = f"The hub can't be reached ({type(exc).__name__})."
        answer = {"error": {"message": reason, "fix": "Check the network, or add a folder that is on this machine."}}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
