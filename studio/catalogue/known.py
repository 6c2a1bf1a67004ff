"""The base models that people use, as models.toml lists them, with what transformers and peft say of each.

Knows nothing of what was added here, loads no model, and asks no network.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from studio.catalogue import probes
from studio.catalogue.models import CONTEXT_KEYS
from studio.errors import ModelError
from studio.records import Probe, SizeSource, WeightKind

HERE = Path(__file__).parent
LIST = HERE / "models.toml"
CONFIGS = HERE / "configs"
STORED = HERE / "stored"
REFUSED = {
    "pickle": "Its weights are in a format that can run code when it is opened (no safetensors).",
    "remote-code": "It needs Python code of its own, which the studio never runs.",
    "quantised": "Its weights are stored quantised; the studio trains on 16-bit versions.",
}
NOT_TEXT = (WeightKind.VISION, WeightKind.AUDIO)
BILLION = 10**9
EXACT = 0.001  # of a published number of parameters that is not rounded


@dataclass(frozen=True)
class StoredProbe:
    """What was true of a configuration when the catalogue was last made: a probe, or why there is none."""

    digest: str  # of all that it depends on, as studio.catalogue.probes makes it
    probe: Probe | None
    refusal: str  # one line; "" where there is a probe
    parameters: int  # of the whole model, what reads images and sound included
    fix: str = ""  # what to do about the refusal


@dataclass(frozen=True)
class KnownModel:
    """One entry of the list."""

    repository: str
    licence: str
    template: str
    good_for: str
    is_gated: bool
    weights: str
    published: str  # parameters; "" where nothing comparable is published
    counts_text: bool  # `published` counts the text part alone
    source: SizeSource
    checked: date

    @property
    def name(self) -> str:
        """The stem of its files."""
        return self.repository.replace("/", "--")

    @functools.cached_property
    def config(self) -> Mapping[str, Any]:
        """The sizes of its config.json."""
        found: dict[str, Any] = json.loads((CONFIGS / f"{self.name}.json").read_text(encoding="utf-8"))
        return found

    @functools.cached_property
    def stored(self) -> StoredProbe:
        """Raises ModelError where the catalogue was not made after this entry was added."""
        file = STORED / f"{self.name}.json"
        if not file.is_file():
            raise ModelError(f"{self.repository} has no stored probe.", "Run `make catalogue`.")
        values = json.loads(file.read_text(encoding="utf-8"))
        if error := values["error"]:
            return StoredProbe(values["digest"], None, error["message"], values["parameters"], error["fix"])
        return StoredProbe(values["digest"], Probe.model_validate(values["probe"]), "", values["parameters"])

    def remember(self) -> bool:
        """Let this process know the stored probe, so that no child is asked. False where it is of other libraries than the installed."""
        key = probes.digest(self.config)
        if self.stored.digest != key:
            return False
        probes.keep(key, self.stored.probe or ModelError(self.stored.refusal, self.stored.fix))
        return True

    @property
    def parameters(self) -> int:
        """Of what is loaded here; of the whole model where nothing is, as published where not even that can be built."""
        if self.stored.probe:
            return self.stored.probe.parameters
        return self.stored.parameters or round(published_number(self.published)[0])

    @property
    def text_parameters(self) -> int:
        """Without what reads images and sound."""
        made = self.stored.probe
        if made is None:
            return self.stored.parameters
        return made.parameters - sum(made.parameters_by_kind.get(kind, 0) for kind in NOT_TEXT)

    @property
    def context(self) -> int:
        text = self.config.get("text_config", self.config)
        found = self.stored.probe.context if self.stored.probe else 0
        return found or next((text[key] for key in CONTEXT_KEYS if isinstance(text.get(key), int)), 0)

    @property
    def download_bytes(self) -> int:
        """Of weights in 16 bits."""
        return 2 * max(self.stored.parameters, self.parameters)

    @property
    def refusal(self) -> str:
        """Why it can't be added; "" where nothing is known against it."""
        return REFUSED.get(self.weights) or " ".join(filter(None, (self.stored.refusal, self.stored.fix)))

    @property
    def is_as_published(self) -> bool:
        """Whether the parameters of a build are those that are published, within the digits that are given."""
        if not (self.published and self.stored.parameters):
            return True
        stated, tolerance = published_number(self.published)
        built = {False: self.stored.parameters, True: self.text_parameters}[self.counts_text]
        return abs(built - stated) <= tolerance


def published_number(text: str) -> tuple[float, float]:
    """A number and by how much it may be off: `8.4B` is 8.4 billion, rounded to a tenth; `4022468096` is exact to a thousandth."""
    units = {"B": BILLION, "M": 10**6}
    unit = units.get(text[-1])
    if unit is None:
        return float(text), EXACT * float(text)
    digits = text[:-1]
    places = len(digits.partition(".")[2])
    return float(digits) * unit, 0.5 * unit / 10**places


@functools.cache
def known_models() -> tuple[KnownModel, ...]:
    """In the order of the file: publishers together."""
    rows = tomllib.loads(LIST.read_text(encoding="utf-8"))["model"]
    return tuple(
        KnownModel(
            repository=row["repository"],
            licence=row["licence"],
            template=row["template"],
            good_for=row["good_for"],
            is_gated=row["gated"],
            weights=row["weights"],
            published=row.get("published", ""),
            counts_text=row.get("published_part") == "text",
            source=SizeSource(row["source"]),
            checked=row["checked"],
        )
        for row in rows
    )
