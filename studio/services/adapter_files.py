"""Uploaded files of an adapter, gathered into a folder: the files themselves, or a zip file of the folder that peft has saved."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from studio.catalogue import rope
from studio.errors import ModelError, StudioError, listed
from studio.services.archives import open_archive

CONFIG, WEIGHTS, TEMPLATE = "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"
KEPT = (CONFIG, WEIGHTS, TEMPLATE, rope.CARD)
ZIP = ".zip"
PICKLE = ".bin"  # never read: only that it is there is told
SEND = f"Send {CONFIG} and {WEIGHTS}, or a zip file of the folder that holds them."


def stem(uploads: Sequence[Path]) -> str:
    """What a name can be made of: the zip file's, "adapter" for files alone."""
    return next((file.stem for file in uploads if _is_zip(file)), "adapter")


def gather(uploads: Sequence[Path], folder: Path) -> None:
    """Put what belongs to an adapter into `folder`, which is made. Raises StudioError for a zip file that holds none, or several."""
    folder.mkdir(parents=True)
    for file in uploads:
        if _is_zip(file):
            _unpack(file, folder)
        elif file.suffix == PICKLE:
            (folder / file.name).touch()
        elif file.name in KEPT:
            shutil.copyfile(file, folder / file.name)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"There is no {CONFIG} among the files.", SEND)


def _is_zip(file: Path) -> bool:
    return file.suffix.lower() == ZIP


def _unpack(file: Path, folder: Path) -> None:
    try:
        with open_archive(file, folder) as archive:
            places = [PurePosixPath(name).parent for name in archive.names if PurePosixPath(name).name == CONFIG]
            places = [place for place in places if "__MACOSX" not in place.parts]
            if len(places) != 1:
                raise ModelError(f"{file.name} holds {_counted(places)}.", SEND)
            for name in archive.names:
                inner = PurePosixPath(name)
                if inner.parent != places[0]:
                    continue
                if inner.suffix == PICKLE:
                    (folder / inner.name).touch()
                elif inner.name in KEPT:
                    archive.extract(name, folder / inner.name)
    except ModelError:
        raise
    except StudioError as refusal:
        raise ModelError(refusal.message, SEND) from None


def _counted(places: Sequence[PurePosixPath]) -> str:
    if not places:
        return f"no {CONFIG}"
    return f"{len(places)} adapters ({listed([str(place) for place in places], 5)})"
