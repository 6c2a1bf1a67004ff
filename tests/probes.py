"""The probes that the catalogue brings."""

from __future__ import annotations

import functools
import json

from studio.catalogue.known import STORED
from studio.records import Probe


@functools.cache
def stored() -> dict[str, Probe]:
    """One probe for each architecture."""
    found = {}
    for file in sorted(STORED.glob("*.json")):
        if values := json.loads(file.read_text(encoding="utf-8"))["probe"]:
            probe = Probe.model_validate(values)
            found.setdefault(probe.class_name, probe)
    return found
