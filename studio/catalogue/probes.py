"""Probes without torch: asked of a child, kept by the hash of all that they depend on. studio.catalogue.probing says what is asked."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from studio.catalogue import keys, library_child
from studio.catalogue.keys import WeightKeys
from studio.catalogue.models import read_json
from studio.errors import ModelError
from studio.records import Probe
from studio.settings import STATIC

VERSION = 2  # of what is asked; a stored probe of another version is made again
KEPT = 1024  # probes in memory: the catalogue's, and more
KEPT_FOLDERS = 64  # of which the comparison of their weights is in memory
FOLDER = "probes"  # of the studio's cache
STARTER = STATIC / "starter" / "probe.json"  # comes with the starter, which then answers at once

_found: dict[str, Probe | ModelError] = {}
_compared: dict[str, WeightKeys] = {}
_places: list[Path] = []  # the studio's cache, once it is known


def keep_in(cache: Path) -> None:
    """Keep what this process finds in the studio's cache, and look there first."""
    _places[:] = [cache / FOLDER]


def ask(config: Mapping[str, Any], name: str = "This config.json") -> Probe:
    """The probe of a config.json: from memory, from a file, or of a child. Raises ModelError where no model can be built."""
    key = digest(config)
    if key not in _found:
        answer: Probe | ModelError | None = _read(key)
        if answer is None:
            try:
                answer = _ask_child(config, name)
                _write(answer)
            except library_child.Unanswered:
                raise  # what killed it may be over
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


def _read(key: str) -> Probe | None:
    for file in (*(place / f"{key}.json" for place in _places), STARTER):
        try:
            found = Probe.model_validate_json(file.read_bytes())
        except (OSError, ValueError):
            continue  # it is made again
        if found.digest == key:
            return found
    return None


def _write(probe: Probe) -> None:
    """Whole or not at all; without it, the next process asks again."""
    for place in _places:
        part = place / f".{probe.digest}.{os.getpid()}.part"
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            part.write_text(probe.model_dump_json(), encoding="utf-8")
            os.replace(part, place / f"{probe.digest}.json")
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                part.unlink()


def _ask_child(config: Mapping[str, Any], name: str) -> Probe:
    return answered(_child(config, name))


def of_folder(folder: Path) -> tuple[WeightKeys, Probe]:
    """How the weights of a folder match its config.json, and its probe, of one child. Raises ModelError where no model can be built."""
    config, key = read_json(folder / "config.json"), keys.digest(folder)
    compared = _compared.get(key)
    if compared is None:
        keys.check_layers(folder)
        found = _child(config, str(folder), folder)
        if error := found["unmatched"]:
            raise ModelError(error["message"], error["fix"])
        compared = WeightKeys(**found["keys"])
        while len(_compared) >= KEPT_FOLDERS:
            _compared.pop(next(iter(_compared)))
        _compared[key] = compared
        answer: Probe | ModelError
        try:
            answer = answered(found)
            _write(answer)
        except ModelError as refusal:
            answer = refusal
        keep(digest(config), answer)
    return compared, ask(config, str(folder))


def _child(config: Mapping[str, Any], name: str, *folder: Path) -> dict[str, Any]:
    """What studio.catalogue.probing answers. Raises ModelError where it is killed."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "config.json"
        file.write_text(json.dumps(dict(config)), encoding="utf-8")
        found: dict[str, Any] = library_child.ask(
            "studio.catalogue.probing", file, name, *map(str, folder), failure=f"{name} describes a model that could not be built"
        )
    return found


def answered(found: Mapping[str, Any]) -> Probe:
    """The probe of a child's answer. Raises ModelError where it gives none."""
    if error := found["error"]:
        raise ModelError(error["message"], error["fix"])
    return Probe.model_validate(found["probe"])
