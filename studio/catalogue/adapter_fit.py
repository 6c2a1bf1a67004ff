"""Whether the tensors of an adapter fit a base model, read from safetensors files alone. Knows no database and imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from studio.catalogue.models import tensors, weight_files
from studio.errors import ModelError

# parts of the names of what an adapter adds to a layer; any other tensor is a layer of the base, saved whole
ADDED = re.compile(
    r"\.(?:lora_|ia3_|vera_|hada_|oft_|boft_|adapter|bottleneck|internal_embeddings|token_adapter)|^(?:prompt_|base_model\.prompt_)|lambda"
)
WRAPPED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer|original_module)(?=\.)")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight")
CLOSE = 2**-7  # relative: one of the two may have been rounded to bfloat16
READERS = {"F32": ("<f4", None), "F16": ("<f2", None), "BF16": ("<u2", 16)}
OTHER_BASE = "Name the base model it was trained on with --base-model."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, by its name there."""

    file: Path
    name: str
    dtype: str
    shape: list[int]


def check(weights: Path, config: Mapping[str, Any], base: Path, base_name: str) -> None:
    """Raises ModelError for layers that the base does not have, or has in another size, and for whole layers that chat can't use.

    Kinds other than LoRA and IA3 are checked when they are loaded.
    """
    if config.get("peft_type") not in ("LORA", "IA3"):
        return
    stored = [StoredTensor(file, name, dtype, shape) for file in weight_files(base) for name, dtype, shape in tensors(file)]
    layers = {place(tensor.name): tensor for tensor in stored} | {tensor.name: tensor for tensor in stored}
    who = weights.parent.name
    whole = config.get("modules_to_save") or []
    if not isinstance(whole, list):
        raise ModelError(f"{who}: modules_to_save of its adapter_config.json is no list of names.", "Use an adapter saved by peft.")
    for name, dtype, shape in tensors(weights):
        bare = name.removeprefix("base_model.model.")
        if ".lora_embedding_A" in bare:
            rows = (0, *shape)[-1]
            _check_rows(who, bare.partition(".lora_embedding_A")[0], rows, layers, base_name)
        elif not ADDED.search(bare):
            layer = WRAPPED.sub("", bare)
            _check_whole(who, layer, StoredTensor(weights, name, dtype, shape), layers, base_name)
            _check_is_named(who, layer, StoredTensor(weights, name, dtype, shape), layers, list(map(str, whole)), config)


def place(name: str) -> str:
    """A tensor's name from its block's number on, or its last two parts: wrappers put different prefixes before it."""
    if found := re.search(r"(?:^|\.)(\w+\.\d+\..+)$", name):
        return found.group(1)
    return ".".join(name.split(".")[-2:])


def _counterpart(layer: str, layers: Mapping[str, StoredTensor]) -> StoredTensor | None:
    """The base's tensor; a tied head is stored as the embeddings."""
    found = layers.get(layer) or layers.get(place(layer))
    if found is None and place(layer) in HEADS:
        found = next((layers[name] for name in EMBEDDINGS if name in layers), None)
    return found


def _check_whole(who: str, layer: str, saved: StoredTensor, layers: Mapping[str, StoredTensor], base_name: str) -> None:
    found = _counterpart(layer, layers)
    if found is None:
        raise ModelError(f"{who} does not fit {base_name}: it saves {layer} whole, and that layer does not exist there.", OTHER_BASE)
    if saved.shape == found.shape:
        return
    if place(layer) in (*EMBEDDINGS, *HEADS) and saved.shape[1:] == found.shape[1:]:
        raise _resized(who, layer, saved.shape[0], found.shape[0], base_name)
    raise ModelError(
        f"{who} does not fit {base_name}: its saved layer {layer} is {_shape(saved.shape)}, and {_shape(found.shape)} there.", OTHER_BASE
    )


def _check_rows(who: str, module: str, rows: int, layers: Mapping[str, StoredTensor], base_name: str) -> None:
    found = _counterpart(f"{module}.weight", layers)
    if found is not None and rows != found.shape[0]:
        raise _resized(who, module, rows, found.shape[0], base_name)


def _check_is_named(
    who: str, layer: str, saved: StoredTensor, layers: Mapping[str, StoredTensor], whole: Sequence[str], config: Mapping[str, Any]
) -> None:
    """A whole layer that modules_to_save does not name would be written into the base, which other adapters share."""
    module = layer.rpartition(".")[0]
    if config.get("peft_type") != "LORA" or any(module == name or module.endswith(f".{name}") for name in whole):
        return
    found = _counterpart(layer, layers)
    if found is not None and not _are_equal(saved, found):
        raise ModelError(
            f"{who} holds its own {layer}, which its modules_to_save does not name: loading it would change the base for other adapters.",
            "Save it again with that layer in modules_to_save, or with save_embedding_layers=False where it was not trained.",
        )


def _resized(who: str, layer: str, rows: int, base_rows: int, base_name: str) -> ModelError:
    return ModelError(
        f"{who} was trained with another vocabulary: its {layer} has {rows:,} rows, and {base_name} has {base_rows:,}.",
        "Merge it where it was trained and add the merged model, or resize the base to that tokenizer and add it as a model.",
    )


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _are_equal(first: StoredTensor, second: StoredTensor) -> bool:
    if first.dtype not in READERS or second.dtype not in READERS:
        return False
    return bool(numpy.allclose(_read(first), _read(second), rtol=CLOSE, atol=1e-7))


def _read(tensor: StoredTensor) -> Any:
    with tensor.file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        begin, end = json.loads(stream.read(length))[tensor.name]["data_offsets"]
        stream.seek(8 + length + begin)
        content = stream.read(end - begin)
    kind, shift = READERS[tensor.dtype]
    values = numpy.frombuffer(content, dtype=kind)
    if shift:
        return (values.astype("<u4") << shift).view("<f4")
    return values.astype("<f4")
