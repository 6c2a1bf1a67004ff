"""Which tensors a base model needs, and which of them its folder holds.

transformers builds the model on the meta device and matches the names of the safetensors headers by its own rules (renamed, fused and
tied weights), so nothing is read or computed. Importing this loads no library: the web process asks a child (studio.catalogue.probes).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.catalogue.models import read_json, tensors, weight_files
from studio.catalogue.text_models import config_of, family_of
from studio.errors import ModelError, plain

AGAIN = "Download the model again, or save it whole with save_pretrained."
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
BLOCK = re.compile(r"^(.*?\.)(\d+)\.")  # of a tensor's name: the list of layers, and the layer's number


@dataclass(frozen=True)
class WeightKeys:
    """How the tensors of a folder match the model of its config.json. `mismatched`: name, stored shape, shape that is needed."""

    expected: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, list[int], list[int]]] = field(default_factory=list)
    unjoined: list[str] = field(default_factory=list)  # made of several stored tensors that do not fit together
    extra_layers: list[str] = field(default_factory=list)  # of the unexpected, those of layers that config.json does not count

    def check(self, name: str) -> None:
        """Raises ModelError where the model would run on random numbers, or without layers that the folder holds."""
        if self.missing:
            total = max(self.expected, len(self.missing))
            raise ModelError(
                f"{name} lacks {len(self.missing):,} of its {total:,} weights; the first is {self.missing[0]}.",
                f"{AGAIN} Random numbers would take their place.",
            )
        if self.unjoined:
            first = plain(self.unjoined[0])
            raise ModelError(f"{name} lacks parts of {len(self.unjoined):,} weights that are stored in parts; the first is {first}.", AGAIN)
        if self.mismatched:
            tensor, stored, needed = self.mismatched[0]
            raise ModelError(
                f"{name} holds {len(self.mismatched):,} weights of another shape than config.json asks for; the first is "
                f"{plain(tensor)}, {_shape(stored)} instead of {_shape(needed)}.",
                "Use the config.json that was saved with these weights.",
            )
        if self.extra_layers:
            raise ModelError(
                f"{name} holds {len(self.extra_layers):,} weights of layers that config.json does not count; the first is "
                f"{plain(self.extra_layers[0])}.",
                "Use the config.json that was saved with these weights: without these layers it is another model.",
            )

    def note(self) -> str:
        """What is stored and not used, by count and name; "" where there is no such thing."""
        if not self.unexpected:
            return ""
        more = ""
        if len(self.unexpected) > 3:
            more = f" and {len(self.unexpected) - 3:,} more"
        return f"The model has no place for {len(self.unexpected):,} stored weights, which are ignored: " + (
            f"{', '.join(map(plain, self.unexpected[:3]))}{more}."
        )


def reported(info: Mapping[str, Any], expected: Iterable[str] = (), stored: Iterable[str] = ()) -> WeightKeys:
    """What transformers says about a loading: `output_loading_info` of from_pretrained."""
    names, unexpected = list(expected), sorted(info.get("unexpected_keys", ()))
    ends = {_end(name) for name in stored}
    mismatched, unjoined = [], sorted(info.get("conversion_errors", ()))
    for name, found, needed in sorted(info.get("mismatched_keys", ()), key=lambda entry: _in_order(entry[0])):
        if ends and _end(name) not in ends:  # made of several stored tensors, such as the experts of a layer
            unjoined.append(f"{name} ({_shape(found)} instead of {_shape(needed)})")
        else:
            mismatched.append((name, list(found), list(needed)))
    return WeightKeys(
        expected=len(names),
        missing=sorted(set(info.get("missing_keys", ())) - set(unjoined), key=_in_order),
        unexpected=unexpected,
        mismatched=mismatched,
        unjoined=unjoined,
        extra_layers=_extra_layers(unexpected, names),
    )


def _extra_layers(unexpected: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Those of whole layers behind the ones that the model has."""
    lists: dict[str, set[str]] = {}
    for name in expected:
        if found := BLOCK.match(name):
            lists.setdefault(found[1], set()).add(found[2])
    places = ((name, BLOCK.match(name)) for name in unexpected)
    return [name for name, place in places if place and place[1] in lists and place[2] not in lists[place[1]]]


def _end(name: str) -> str:
    """Prefixes differ between what is stored and what is needed."""
    return ".".join(name.split(".")[-2:])


def _in_order(name: str) -> tuple[Any, ...]:
    """Layer 10 comes after layer 9."""
    return tuple(int(part) if part.isdecimal() and len(part) < 20 else -1 for part in name.split(".")), name


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(str(size) for size in shape) or "a single number"


# with torch: in the child, and in a trainer


def compare(folder: Path) -> WeightKeys:
    """Match the headers of `folder` with the model of its config.json. Reads no weights. Raises whatever building the model raises."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    family, config = family_of(config_of(folder))
    stored = {
        name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for file in weight_files(folder) for name, _, shape in tensors(file)
    }
    with _reports() as reports:
        model = family.from_pretrained(
            None,
            config=config,
            state_dict=stored,
            dtype=torch.bfloat16,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
    info = vars(reports[0])
    copies = getattr(model, "all_tied_weights_keys", {})  # missing only where the tensor that they copy is
    return reported({**info, "missing_keys": set(info["missing_keys"]) - set(copies)}, model.state_dict(), stored)


@contextlib.contextmanager
def _reports() -> Iterator[list[Any]]:
    """transformers' loading infos, kept here instead of printed: from_pretrained gives a part of them, or raises without a name."""
    from transformers import modeling_utils

    found: list[Any] = []
    usual = modeling_utils.log_state_dict_report
    modeling_utils.log_state_dict_report = lambda *_, loading_info, **__: found.append(loading_info)
    try:
        yield found
    finally:
        modeling_utils.log_state_dict_report = usual


# without torch


def check_layers(folder: Path) -> None:
    """Every layer has a tensor at least, so a config.json that asks for more layers is not built at all."""
    config = read_json(folder / "config.json")
    stored = sum(1 for file in weight_files(folder) for _ in tensors(file))
    for place in (config, *(inner for inner in config.values() if isinstance(inner, dict))):
        for key in LAYERS:
            if isinstance(place.get(key), int) and place[key] > stored:
                raise ModelError(f"{folder} holds {stored:,} weights, and config.json asks for {place[key]:,} layers ({key}).", AGAIN)


def digest(folder: Path) -> str:
    """Of all that decides the result."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in weight_files(folder):
        for name, _, shape in tensors(file):
            digest.update(f"{name}{shape}\n".encode("utf-8", "replace"))
    return digest.hexdigest()
