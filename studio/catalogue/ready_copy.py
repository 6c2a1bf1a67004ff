"""A copy of a base as it is kept in 4 bits, made after the first loading and read in its place from then on: a third of the bytes to read,
and nothing to quantise.

A copy names the base by the hashes of its files, and everything that decides on its bytes: settings, kind of device, library versions.
It is read only where all of that is still so and its own files have the bytes that were written; else it is deleted, made again, and a
person is told. Imports torch and transformers in functions only.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from studio.catalogue import text_models
from studio.catalogue.targets import lora_targets

CARD = "copy.json"
FORMAT = 1
LEAST_BASE_BYTES = 1_000_000_000  # of the base's weights: a smaller one is quantised in a moment
LEAST_FREE_BYTES = 10 * 1024**3  # of the disk: what a copy leaves at least
SHARD = "256MB"  # that much of it is in memory while it is written
LIBRARIES = ("bitsandbytes", "transformers")
DECIDING = ("*.safetensors", "*.safetensors.index.json", "config.json")  # files of a base whose bytes decide on those of its copy
Tell = Callable[[str], None]


class StaleCopyError(Exception):
    """Why a copy is not read: what it was made of, or its own bytes, have changed."""


@dataclass(frozen=True)
class ReadyCopy:
    """The copy of the base in `base` with `settings`, which need not be there yet. `name`: of the base, for what a person is told.

    `stamps`: of the base's files before it is loaded.
    """

    path: Path
    name: str
    base: Path
    settings: Mapping[str, str]
    stamps: Mapping[str, list[int]]

    @classmethod
    def of(cls, place: Path, name: str, base: Path, quantization: Any, **settings: object) -> ReadyCopy:
        """`quantization`: transformers' configuration of it; `settings`: what else decides on the bytes."""
        values = {**json.loads(quantization.to_json_string(use_diff=False)), **settings}
        values |= {library: metadata.version(library) for library in LIBRARIES}
        plain = {key: json.dumps(value, sort_keys=True, default=str) for key, value in values.items()}
        key = hashlib.sha256(json.dumps([str(base.resolve()), plain], sort_keys=True).encode()).hexdigest()
        stamps = {name: _stamp(file) for name, file in _deciding(base).items()}
        return cls(place / f"{base.resolve().name[:60]}-{key[:16]}", name, base, plain, stamps)

    def load(self, config: Any, tell: Tell, **options: Any) -> tuple[Any, dict[str, Any]] | None:
        """The model and the report of its loading, from the copy; None where there is none that holds.

        `config`, `options`: as `text_models.load` takes them, without the quantisation.
        """
        if not self.path.is_dir():
            return None
        import torch

        model = report = None
        try:
            card = self._card()
            self._check_base(card)
            with ThreadPoolExecutor(1) as pool:  # while the model is loaded
                hashed = pool.submit(self._check_files, card)
                config.quantization_config = card["quantization"]
                model, report = text_models.load(self.path, config=config, **options)
                hashed.result()
            if lacking := sorted(
                {key for what in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in map(str, report[what])}
            ):
                raise StaleCopyError(f"{lacking[0]} is not as the model has it")
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as exc:  # noqa: BLE001 - whatever it is, the base itself is there
            del model, report
            self._forget(tell, exc)
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            return None
        os.utime(self.path)
        model.config._name_or_path = model.name_or_path = str(self.base)
        made = time.strftime("%Y-%m-%d", time.localtime(card["made_at"]))
        tell(f"{self.name} is read from its copy in 4 bits of {made}, whose base is unchanged.")
        return model, report

    def keep(self, model: Any, tell: Tell) -> None:
        """Make the copy of a model that was just loaded. Where there is a reason not to, a person is told; a failure ends nothing."""
        if self.path.exists() or weight_bytes(self.base) < LEAST_BASE_BYTES:
            return
        needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        if why := self._refusal(model, needed):
            tell(f"No copy of {self.name} in 4 bits is kept, so that it is quantised at each start: {why}.")
            return
        begun, part = time.monotonic(), self.path.with_name(f".{self.path.name}.part-{os.getpid()}")
        try:
            shutil.rmtree(part, ignore_errors=True)
            model.save_pretrained(part, max_shard_size=SHARD)
            self._write_card(part)
            part.rename(self.path)
        except Exception as exc:  # noqa: BLE001 - the model is loaded: the training goes on
            shutil.rmtree(part, ignore_errors=True)
            if not self.path.exists():  # else somebody else has just made it
                tell(
                    f"No copy of {self.name} in 4 bits could be kept ({type(exc).__name__}: {exc}); it is quantised again at the next start."
                )
            return
        seconds = time.monotonic() - begun
        tell(
            f"A copy of {self.name} in 4 bits is kept for the next start ({_size(self.path) / 1e9:.1f} GB, made in {seconds:.0f} s): "
            f"{self.path}. `studio doctor --clean` deletes it."
        )

    def _refusal(self, model: Any, needed: int) -> str:
        config = text_models.config_of(self.base)
        if type(model.config) is not type(config):
            return "only the text part of the model is loaded"
        if lora_targets(text_models.without_weights(config)).parameters:
            return "its experts are stored as one tensor"
        free = shutil.disk_usage(self.path.parent).free
        if free - needed < LEAST_FREE_BYTES:
            return f"it would take {needed / 1e9:.1f} GB of the disk, of which {free / 1e9:.1f} GB are free and {LEAST_FREE_BYTES / 1e9:.1f} stay so"
        return ""

    def _card(self) -> dict[str, Any]:
        card: dict[str, Any] = json.loads((self.path / CARD).read_text(encoding="utf-8"))
        if card["format"] != FORMAT or card["settings"] != dict(self.settings):
            raise StaleCopyError("it was made otherwise")
        return card

    def _check_base(self, card: dict[str, Any]) -> None:
        """Raises StaleCopyError unless the base is the one of which the copy was made. Files that nobody has touched are not read again."""
        files = _deciding(self.base)
        if files.keys() != card["base"].keys():
            raise StaleCopyError("the base has other files")
        for name, file in files.items():
            known = card["base"][name]
            if known["stamp"] == _stamp(file):
                continue
            if known["sha256"] != digest(file):
                raise StaleCopyError(f"{name} of the base has changed")
            known["stamp"] = _stamp(file)
            self._save_card(self.path, card)

    def _check_files(self, card: dict[str, Any]) -> None:
        for name, expected in card["files"].items():
            if digest(self.path / name) != expected:
                raise StaleCopyError(f"{name} is damaged")

    def _write_card(self, part: Path) -> None:
        hashes = {name: digest(self.base / name) for name in self.stamps}
        if self.stamps != {name: _stamp(file) for name, file in _deciding(self.base).items()}:
            raise StaleCopyError("the base has changed since it was loaded")
        card = {
            "format": FORMAT,
            "of": self.name,
            "made_at": time.time(),
            "settings": dict(self.settings),
            "quantization": json.loads((part / "config.json").read_text(encoding="utf-8"))["quantization_config"],
            "base": {name: {"sha256": hashes[name], "stamp": stamp} for name, stamp in self.stamps.items()},
            "files": {file.name: digest(file) for file in sorted(part.iterdir())},
        }
        self._save_card(part, card)

    @staticmethod
    def _save_card(folder: Path, card: Mapping[str, Any]) -> None:
        fresh = folder / f"{CARD}.part-{os.getpid()}"
        fresh.write_text(json.dumps(card, indent=1, sort_keys=True), encoding="utf-8")
        fresh.replace(folder / CARD)

    def _forget(self, tell: Tell, why: Exception) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        gc.collect()
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tell(f"The copy of {self.name} in 4 bits was not used and is deleted ({why}): the base itself is read.")


def weight_bytes(folder: Path) -> int:
    """Of a base's weights on the disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _deciding(base: Path) -> dict[str, Path]:
    return {file.name: file for pattern in DECIDING for file in sorted(base.glob(pattern))}


def _stamp(file: Path) -> list[int]:
    """Changes whenever the file is written, replaced or moved: nobody sets the time of the last change of its entry."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
