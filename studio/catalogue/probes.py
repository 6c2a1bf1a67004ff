"""Probes without torch: asked of a child, kept by the hash of all that they depend on. studio.catalogue.probing says what is asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from studio import processes
from studio.errors import ModelError
from studio.records import Probe

VERSION = 2  # of what is asked; a stored probe of another version is made again
PATIENCE_S = 120.0
MOST_BYTES = 8 * 1024**3  # of the child's memory
KEPT = 256  # probes in memory
FOLDER = "probes"  # of the studio's cache

_found: dict[str, Probe | ModelError] = {}


def ask(config: Mapping[str, Any], name: str = "This config.json", cache: Path | None = None) -> Probe:
    """The probe of a config.json: from memory, from the files in `cache`, or of a child. Raises ModelError where no model can be built."""
    key = digest(config)
    if key not in _found:
        answer: Probe | ModelError | None = _read(key, cache)
        if answer is None:
            try:
                answer = _ask_child(config, name)
                _write(answer, cache)
            except ModelError as refusal:
                answer = refusal
        keep(key, answer)
    found = _found[key]
    if isinstance(found, ModelError):
        raise ModelError(found.message, found.fix)
    return found


def keep(key: str, probe: Probe | ModelError) -> None:
    """Remember it for this process."""
    while len(_found) >= KEPT:
        _found.pop(next(iter(_found)))
    _found[key] = probe


def digest(config: Mapping[str, Any]) -> str:
    """Of all that a probe depends on."""
    text = json.dumps([VERSION, *_libraries(), dict(config)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


@lru_cache(maxsize=1)
def _libraries() -> tuple[str, str]:
    try:
        return version("transformers"), version("peft")
    except PackageNotFoundError:
        return "", ""


def _read(key: str, cache: Path | None) -> Probe | None:
    if cache is None:
        return None
    try:
        found = Probe.model_validate_json((cache / FOLDER / f"{key}.json").read_bytes())
    except (OSError, ValueError):
        return None  # it is made again
    if found.digest != key:
        return None
    return found


def _write(probe: Probe, cache: Path | None) -> None:
    """Whole or not at all; without it, the next process asks again."""
    if cache is None:
        return
    with contextlib.suppress(OSError):
        (cache / FOLDER).mkdir(mode=0o700, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=cache / FOLDER, delete=False) as part:
            part.write(probe.model_dump_json())
        os.replace(part.name, cache / FOLDER / f"{probe.digest}.json")


def _ask_child(config: Mapping[str, Any], name: str) -> Probe:
    environment = {**processes.child_environment(), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "config.json"
        file.write_text(json.dumps(dict(config)), encoding="utf-8")
        command = processes.module_command("studio.catalogue.probing", str(file), name)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as child:
            assert child.stdout is not None
            timer = threading.Timer(PATIENCE_S, child.kill)
            timer.start()
            out = child.stdout.read()  # stdin stays open until here: its end tells the child that we are gone
            timer.cancel()
    try:
        answer = json.loads(out.splitlines()[-1])
    except (ValueError, IndexError):
        said = f"{name} describes a model that could not be built: its process was killed for taking too much memory or time."
        raise ModelError(said, "Check its config.json.") from None
    if error := answer["error"]:
        raise ModelError(error["message"], error["fix"])
    return Probe.model_validate(answer["probe"])
