"""Fetch one model of the Hugging Face hub into the person's cache: `python -m studio.catalogue.hub REPOSITORY [--compressor]`.

A process of its own, so that the page never waits for a download's libraries. Prints a JSON object a line: {"done", "total"} bytes now
and then, at the end {"error": null, "folder"} or {"error": {"message", "fix"}}. Knows no database.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from studio import lifeline, privacy
from studio.catalogue import hub_cache, models
from studio.errors import ModelError, listed
from studio.records import HubModel

FOUND = 20  # models that a search lists
COMPRESSOR = "--compressor"
EVERY_S = 0.5  # between two reports of progress
# at the top of the repository, beside the weights
BESIDE: tuple[str, ...] = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.json",
)
BESIDE += ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
BESIDE += ("sentencepiece.bpe.model", "special_tokens_map.json", "added_tokens.json", "*.jinja", "LICENSE*", "README.md", models.INDEX)
# no Python, no pickles: what is not fetched can't be run
NEVER = ("*.py", "*.pyc", "*.so", *models.PICKLES)


def fetch(repository: str, *, is_compressor: bool = False) -> Path:
    """The complete snapshot in the cache. Raises ModelError in one line: no such model, no access, no network, no space.

    `is_compressor`: it need not be a causal language model.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    try:
        hub_cache.repository_folder(repository)
        files = HfApi().model_info(repository, files_metadata=True).siblings or []
        sizes = {file.rfilename: file.size or 0 for file in files}
        beside = _beside(repository, sizes)
        folder = Path(snapshot_download(repository, allow_patterns=beside))
        if not is_compressor:
            models.check_described(folder)  # before gigabytes are fetched for nothing
        wanted = [*beside, *_weights(repository, sizes, folder)]
        _check_space(repository, sum(sizes[name] for name in wanted if not (folder / name).is_file()), folder)
        with _progress(folder, {name: sizes[name] for name in wanted}):
            return Path(snapshot_download(repository, allow_patterns=wanted))
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


def _beside(repository: str, sizes: Mapping[str, int]) -> list[str]:
    """Names of the files that go with the weights. Raises ModelError for a repository that holds no model."""
    if "config.json" not in sizes:
        kind = "no config.json, so it is no model"
        if "adapter_config.json" in sizes:
            kind = "an adapter, not a base model"
        elif any(name.endswith(".gguf") for name in sizes):
            kind = "GGUF files only, which can't be trained"
        raise ModelError(f"{repository} holds {kind}.", "Name the repository of the model in safetensors form.")
    return [name for name in sizes if _any(name, BESIDE) and "/" not in name and not _any(name, NEVER)]


def _any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _weights(repository: str, sizes: Mapping[str, int], folder: Path) -> list[str]:
    """The files that transformers would load: one copy, none of `original/` or consolidated.safetensors. Raises ModelError."""
    if models.SINGLE in sizes:
        return [models.SINGLE]
    if models.INDEX in sizes:
        names = models.indexed(folder / models.INDEX)
        missing = [name for name in names if name not in sizes]
        if missing:
            raise ModelError(
                f"{repository} lacks {listed(missing)}, which its {models.INDEX} names.", "Tell its author, or use another model."
            )
        return names
    pickles = sorted(name for name in sizes if _any(name, models.PICKLES))
    if pickles:
        raise ModelError(
            f"{repository} stores its weights as {pickles[0]}, a format that can run code when it is opened.",
            "Use a version of the model with safetensors files.",
        )
    raise ModelError(f"{repository} holds no {models.SINGLE}.", "Use a repository that holds the model's weights as safetensors files.")


@contextlib.contextmanager
def _progress(folder: Path, sizes: Mapping[str, int]) -> Iterator[None]:
    """Say while it lasts how many bytes of these files are here, as the disk shows it."""
    blobs, ended = folder.parent.parent / "blobs", threading.Event()
    older = {path.name for path in blobs.glob("*.incomplete")}  # of downloads that were broken off
    total, told = sum(sizes.values()), -1

    def done() -> int:
        size = 0
        for name, whole in sizes.items():
            size += whole * (folder / name).is_file()
        for path in blobs.glob("*.incomplete"):
            if path.name not in older:
                with contextlib.suppress(OSError):  # it was completed meanwhile
                    size += path.stat().st_size
        return min(size, total)

    def report() -> None:
        nonlocal told
        if (now := done()) != told:
            told = now
            print(json.dumps({"done": now, "total": total}), flush=True)

    def watch() -> None:
        while not ended.wait(EVERY_S):
            report()

    report()
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        report()


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


def _check_space(repository: str, needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed * 1.05 > free:
        raise ModelError(
            f"{repository} needs {needed / 1e9:.1f} GB and {hub_cache.place()} has {free / 1e9:.1f} GB free.",
            "Free some space, or choose another place with HF_HOME.",
        )


def main() -> None:
    lifeline.end_with_parent()
    if sys.argv[1] == "--search":
        _tell_search(sys.argv[2])
        return
    repository = sys.argv[1]
    answer: dict[str, Any] = {"error": None}
    os.umask(privacy.umask_of(hub_cache.place()))  # the cache is not the studio's: several people may share it
    try:
        answer["folder"] = str(fetch(repository, is_compressor=COMPRESSOR in sys.argv))
    except ModelError as exc:
        answer["error"] = exc.as_json()
    except Exception as exc:  # noqa: BLE001 - the edge of this process: whatever the hub's client raises becomes one line
        answer["error"] = _unreachable(repository, exc).as_json()
    print(json.dumps(answer), flush=True)


def _tell_search(query: str) -> None:
    try:
        answer: dict[str, Any] = {"error": None, "models": [model.model_dump() for model in search(query)]}
    except Exception as exc:  # noqa: BLE001 - the edge of this process
        reason = f"The hub can't be reached ({type(exc).__name__})."
        answer = {"error": {"message": reason, "fix": "Check the network, or add a folder that is on this machine."}}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
