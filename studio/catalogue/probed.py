"""Makes the stored probes of the catalogue: `python -m studio.catalogue.probed [--check] [OWNER/NAME…]`, or `make catalogue`.

Asks the installed transformers and peft about the configuration of every entry, all in one process. `--check` writes nothing and
names the entries whose stored probe says something else.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.catalogue import probes
from studio.catalogue.known import CONFIGS, STORED, KnownModel, known_models
from studio.catalogue.models import read_json
from studio.catalogue.probes import digest


def made(model: KnownModel) -> dict[str, Any]:
    """What is stored for an entry."""
    from studio.catalogue import probing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever asks may turn warnings into errors; here they are no part of the answer
        answer = probing.asked(model.config, model.repository)
        parameters = whole(model.config)
    if not parameters and answer["probe"]:
        parameters = answer["probe"]["parameters"]
    return {"digest": digest(model.config), "parameters": parameters, **answer}


def whole(config: Mapping[str, Any]) -> int:
    """Parameters of a multimodal model with all its parts; 0 for others, and where the installed libraries can't build it."""
    import torch
    from transformers import AutoModelForImageTextToText

    from studio.catalogue import text_models

    if "text_config" not in config:
        return 0
    values = text_models.configuration(config, "The entry")
    if type(values) not in AutoModelForImageTextToText._model_mapping:
        return 0
    try:
        with torch.device("meta"):
            built = AutoModelForImageTextToText.from_config(values)
    except ImportError:  # a vision part that another library holds
        return 0
    return sum(parameter.numel() for parameter in built.parameters())


def written(values: Mapping[str, Any]) -> str:
    """JSON with one key a line, so that changes can be read."""
    return "{\n" + ",\n".join(_lines(values, " ")) + "\n}\n"


def _lines(values: Mapping[str, Any], indent: str) -> list[str]:
    found = []
    for key, value in values.items():
        text = json.dumps(value)
        if isinstance(value, Mapping) and len(text) > 100:
            text = "{\n" + ",\n".join(_lines(value, indent + " ")) + f"\n{indent}}}"
        found.append(f"{indent}{json.dumps(key)}: {text}")
    return found


def stray_files() -> list[Path]:
    """Files of entries that models.toml does not list."""
    names = {model.name for model in known_models()}
    return sorted(file for folder in (CONFIGS, STORED) for file in folder.glob("*.json") if file.stem not in names)


def _starter_differs(is_check: bool) -> bool:
    """The starter's probe lies beside it."""
    from studio.catalogue import probing

    found = probing.probe(read_json(probes.STARTER.with_name("config.json")), "starter")
    text = written(found.model_dump(mode="json"))
    if probes.STARTER.read_text(encoding="utf-8") == text:
        return False
    print({True: "differs", False: "made"}[is_check], "starter", flush=True)
    if not is_check:
        probes.STARTER.write_text(text, encoding="utf-8")
    return True


def main(arguments: Sequence[str]) -> int:
    wanted = [argument for argument in arguments if not argument.startswith("-")]
    is_check = "--check" in arguments
    unknown = sorted(set(wanted) - {model.repository for model in known_models()})
    if unknown:
        print("no entry of models.toml:", ", ".join(unknown))
        return 1
    STORED.mkdir(exist_ok=True)
    differing = 0
    for model in known_models():
        if wanted and model.repository not in wanted:
            continue
        text, file = written(made(model)), STORED / f"{model.name}.json"
        if file.is_file() and file.read_text(encoding="utf-8") == text:
            continue
        differing += 1
        print({True: "differs", False: "made"}[is_check], model.repository, flush=True)
        if not is_check:
            file.write_text(text, encoding="utf-8")
    if not wanted:
        differing += _starter_differs(is_check)
    for file in stray_files():
        print("belongs to no entry:", file.relative_to(STORED.parent), flush=True)
    return int(is_check and differing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
