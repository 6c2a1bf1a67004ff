"""What the installed transformers says about model types, read from its source: importing it would import torch.

Mappings of its auto classes, and the defaults of its configuration classes. Knows no folders.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from studio import python_source

CAUSAL_LM = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
IMAGE_TEXT = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"
CONFIGS = "CONFIG_MAPPING_NAMES"
MODULES = "SPECIAL_MODEL_TYPE_TO_MODULE_NAME"
AUTO_FILES = ("modeling_auto.py", "auto_mappings.py", "configuration_auto.py")


@lru_cache(maxsize=8)
def mapping(name: str) -> Mapping[str, tuple[str, ...]]:
    """One mapping of the auto classes: model_type -> names of classes (or of a module). Empty where transformers is missing."""
    found: dict[str, tuple[str, ...]] = {}
    for file in AUTO_FILES:
        for node in ast.walk(_parsed(Path("auto", file))):
            if _names(node) == name:
                found.update(_entries(node))
    return found


def _names(node: ast.AST) -> str:
    """The mapping that a statement fills: `NAME = OrderedDict([…])` or `NAME.update({…})`."""
    if isinstance(node, ast.Assign):
        return str(getattr(node.targets[0], "id", ""))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "update":
        return str(getattr(node.func.value, "id", ""))
    return ""


def _entries(node: ast.AST) -> Iterator[tuple[str, tuple[str, ...]]]:
    for leaf in ast.walk(node):
        pairs: list[tuple[ast.expr | None, ast.expr]] = []
        if isinstance(leaf, ast.Dict):
            pairs = list(zip(leaf.keys, leaf.values, strict=True))
        elif isinstance(leaf, ast.Tuple) and len(leaf.elts) == 2:
            pairs = [(leaf.elts[0], leaf.elts[1])]
        for key, value in pairs:
            texts = tuple(one.value for one in ast.walk(value) if isinstance(one, ast.Constant) and isinstance(one.value, str))
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and texts and isinstance(value, (ast.Constant, ast.Tuple)):
                yield key.value, texts


def classes(name: str) -> frozenset[str]:
    """All class names of one mapping."""
    return frozenset(one for found in mapping(name).values() for one in found)


def is_built_in(model_type: object) -> bool:
    """Whether transformers has code of its own for this model_type."""
    return isinstance(model_type, str) and model_type in mapping(CONFIGS)


@lru_cache(maxsize=1)
def adapter_kinds() -> frozenset[str]:
    """Names by which the installed peft knows kinds of adapters (peft_type); empty where peft is missing."""
    spec = importlib.util.find_spec("peft")
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    tree = python_source.parse(Path(spec.submodule_search_locations[0], "utils", "peft_types.py").read_text(encoding="utf-8"))
    kinds = next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PeftType"), [])
    values = (node.value for node in kinds if isinstance(node, ast.Assign))
    return frozenset(str(value.value) for value in values if isinstance(value, ast.Constant))


@lru_cache(maxsize=256)
def defaults(model_type: str) -> Mapping[str, Any]:
    """What a config.json of this model_type that leaves fields out leaves them at; `None` defaults are left out."""
    found = mapping(CONFIGS).get(model_type)
    if not found:
        return {}
    return {key: value for key, value in _class_values(model_type, found[0]).items() if value is not None}


@lru_cache(maxsize=256)
def other_names(model_type: str) -> Mapping[str, str]:
    """Names by which other code asks for a field -> the field's name in this configuration."""
    found = mapping(CONFIGS).get(model_type)
    if not found:
        return {}
    value = _class_values(model_type, found[0], fields=False).get("attribute_map")
    if not isinstance(value, dict):
        return {}
    return {str(key): str(name) for key, name in value.items()}


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with what its class would add where the file is silent."""
    kind = config.get("model_type")
    if not isinstance(kind, str):
        return dict(config)
    said = {*config, *(name for other, name in other_names(kind).items() if other in config)}
    return {**{key: value for key, value in defaults(kind).items() if key not in said}, **config}


def _class_values(model_type: str, name: str, *, fields: bool = True) -> dict[str, Any]:
    """Literal values in the body of a configuration class and of the classes of its file that it extends."""
    module = mapping(MODULES).get(model_type, (model_type.replace("-", "_"),))[0]
    tree = _parsed(Path(module, f"configuration_{module.rpartition('.')[2]}.py"))
    bodies = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    values: dict[str, Any] = {}
    waiting = [name]
    while waiting:
        body = bodies.pop(waiting.pop(0), None)
        if body is None:
            continue
        waiting += [base.id for base in body.bases if isinstance(base, ast.Name)]
        for key, value in _literals(body, fields):
            values.setdefault(key, value)
    return values


def _literals(body: ast.ClassDef, fields: bool) -> Iterator[tuple[str, Any]]:
    for node in body.body:
        target: ast.expr | None = None
        value: ast.expr | None = None
        if fields and isinstance(node, ast.AnnAssign):
            target, value = node.target, node.value
        elif not fields and isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        if not isinstance(target, ast.Name) or value is None:
            continue
        try:
            yield target.id, ast.literal_eval(value)
        except ValueError:
            continue  # computed: only the library knows it


@lru_cache(maxsize=64)
def _parsed(file: Path) -> ast.Module:
    """A source file below transformers/models; empty where there is none."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        return ast.Module([], [])
    try:
        return python_source.parse(Path(spec.submodule_search_locations[0], "models", file).read_text(encoding="utf-8"))
    except OSError:
        return ast.Module([], [])
