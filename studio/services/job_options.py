"""Options of jobs by dotted key, and in what the options of several jobs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue


def flat(config: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """{"lora": {"r": 8}} -> {"lora.r": 8}"""
    found: dict[str, JsonValue] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(options: Sequence[Mapping[str, JsonValue]]) -> dict[str, list[JsonValue]]:
    """The keys whose values are not all equal, with them."""
    keys = dict.fromkeys(key for one in options for key in one if key != "model_name_or_path")
    columns = {key: [one.get(key) for one in options] for key in keys}
    return {key: values for key, values in columns.items() if any(value != values[0] for value in values)}
