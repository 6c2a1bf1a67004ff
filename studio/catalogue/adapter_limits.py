"""adapter_config.json of a stranger, believed only as far as the adapter's own tensors bear it out.

peft makes what the file says, before it looks at a tensor: matrices of any rank, any number of virtual tokens; and it matches the names
of layers by regular expressions from the file, some of which take years. Knows no base, no database, and imports no library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from studio.catalogue.adapter_fit import ADDED, place
from studio.catalogue.models import tensors, weight_files
from studio.engine.kinds import LEADING_KINDS
from studio.errors import ModelError, plain

LARGEST = 1_000_000  # of any number; published adapters stay far below
MOST_NAMES = 20_000  # of layers: a list of all layers of the largest models has a few thousand
PLAIN_NAME = re.compile(r"[\w.-]{1,300}")
BY_PEFT = "Use an adapter saved by peft."
WHOLE = (
    "r", "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules", "encoder_hidden_size",
    "encoder_num_layers", "qalora_group_size",
)  # fmt: skip
NUMBERS = ("lora_alpha", "lora_dropout", "encoder_dropout")
FLAGS = (
    "use_rslora", "use_dora", "fan_in_fan_out", "lora_bias", "inference_mode", "use_qalora", "prefix_projection", "ensure_weight_tying",
    "init_ia3_weights",
)  # fmt: skip
TEXTS = ("task_type", "bias", "base_model_name_or_path", "revision")
NAME_LISTS = ("modules_to_save", "target_parameters")
NAMES = ("target_modules", "exclude_modules", "layers_pattern", "feedforward_modules")  # or one text, which is a pattern
BY_NAME = ("rank_pattern", "alpha_pattern")
CHOOSING = ("target_modules", "exclude_modules", "layers_pattern")  # which layers are adapted, which the tensors' names say too
SEEDS = ("seed", "prng")  # parts of the names of numbers that are no sizes
UNUSED = ("auto_mapping", "runtime_config", "megatron_core")  # they name a class or a module to import, or how to load


def settled(config: Mapping[str, Any], folder: Path, base: Path) -> dict[str, Any]:
    """The configuration as the studio keeps it, which peft evaluates no pattern of. Raises ModelError naming the field.

    `folder` of the adapter; `base`: the folder of the model that it is for.
    """
    reader = _Reader(folder)
    found = {key: value for key, value in config.items() if key not in UNUSED}
    reader.check_types(found)
    if found.get("layer_replication"):
        raise reader.refusal(
            "layer_replication", "makes another model of the base, which other adapters share", "Merge it where it was made."
        )
    if found["peft_type"] in LEADING_KINDS:
        reader.check_virtual_tokens(found)
        return found
    for key in NAME_LISTS:
        reader.check_plain(key, found.get(key) or [])
    if any(_is_pattern(found.get(key)) for key in CHOOSING):
        found |= {"target_modules": reader.layers(found, base), "exclude_modules": None}
        found |= {key: None for key in ("layers_pattern", "layers_to_transform") if key in found}
    if _is_pattern(found.get("feedforward_modules")):
        raise reader.refusal("feedforward_modules", "is a pattern", "Write the names of the layers as a list.")
    if found["peft_type"] == "LORA":
        for key in BY_NAME:
            if found.get(key):
                found[key] = {_plain_form(name): value for name, value in found[key].items()}
        reader.check_plain("alpha_pattern", found.get("alpha_pattern") or [])
        found["rank_pattern"] = reader.ranks(found)
    else:
        reader.check_sizes(found)
    return found


class _Reader:
    """One adapter's files."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "adapter_config.json"
        self._tensors = [
            (name.removeprefix("base_model.model."), shape) for name, _, shape in tensors(folder / "adapter_model.safetensors")
        ]
        self._largest = max((size for _, shape in self._tensors for size in shape), default=0)

    def refusal(self, field: str, problem: str, fix: str = BY_PEFT) -> ModelError:
        return ModelError(f"{self._file}: {field} {problem}.", fix)

    def check_types(self, config: Mapping[str, Any]) -> None:
        for field, value in config.items():
            if value is not None and (said := _mistyped(field, value)):
                raise self.refusal(plain(field), said)
        if problem := next((said for field, value in config.items() if (said := _beyond(field, value))), ""):
            raise ModelError(f"{self._file}: {problem}.", BY_PEFT)

    def check_plain(self, field: str, names: Sequence[str] | Mapping[str, Any]) -> None:
        for name in names:
            if not PLAIN_NAME.fullmatch(name):
                raise self.refusal(field, f"holds the pattern {plain(name)!r}", "Write the names of the layers instead.")

    def check_virtual_tokens(self, config: Mapping[str, Any]) -> None:
        """What is put before a prompt must have the size that the file tells."""
        shape = next((shape for name, shape in self._tensors if name.split(".")[-1] == "prompt_embeddings" and len(shape) == 2), None)
        if shape is None:
            raise ModelError(f"{self._file.parent / 'adapter_model.safetensors'} holds no prompt_embeddings.", BY_PEFT)
        is_prefix = config["peft_type"] == "PREFIX_TUNING"
        times = 1 if is_prefix else config.get("num_transformer_submodules") or 1
        count = config.get("num_virtual_tokens")
        if count is None or count * times != shape[0]:
            raise self.refusal("num_virtual_tokens", f"is {count}, and the weights have {shape[0]:,} tokens")
        width = config.get("token_dim")
        layers = config.get("num_layers")
        if is_prefix and width is not None and layers is not None and 2 * layers * width != shape[1]:
            raise self.refusal("num_layers", f"is {layers:,} and token_dim {width:,}, and the weights are {shape[1]:,} wide")
        if not is_prefix and width not in (None, shape[1]):
            raise self.refusal("token_dim", f"is {width:,}, and the weights are {shape[1]:,} wide")

    def check_sizes(self, config: Mapping[str, Any]) -> None:
        """Of kinds whose tensors are not known here: nothing may be larger than the file is."""
        total = sum(math.prod(shape) for _, shape in self._tensors)
        for field, value in config.items():
            most = self._largest if field == "r" else max(1024, total)
            if isinstance(value, int) and value > most and not any(part in field for part in SEEDS):
                raise self.refusal(plain(field), f"is {value:,}, and the weights are no larger than {most:,}")

    def ranks(self, config: Mapping[str, Any]) -> dict[str, int]:
        """rank_pattern by names alone, where r and it are the ranks of the weights."""
        usual, pattern = config.get("r", 8), dict(config.get("rank_pattern") or {})
        by_name = {name: rank for name, rank in pattern.items() if PLAIN_NAME.fullmatch(name)}
        others = {rank for name, rank in pattern.items() if name not in by_name}
        bare = [name.rpartition(".")[0] for name in config.get("target_parameters") or []]
        found: dict[str, int] = {}
        used: set[str] = set()
        largest = 0
        for module, rank in self._ranks():
            key = next((name for name in by_name if _ends(module, name)), None)
            used |= {key} if key else set()
            expected = by_name[key] if key else usual
            is_shared = any(
                _ends(module.replace(".base_layer", ""), name) for name in bare
            )  # of all experts of a layer, one after the other
            largest = max(largest, rank)
            if rank == expected or (is_shared and rank % expected == 0):
                continue
            if rank not in others:
                told = f"rank_pattern gives {key} rank {expected:,}" if key else f"r is {expected:,}"
                raise ModelError(f"{self._file}: {told}, and the weights of {plain(module)} have rank {rank:,}.", BY_PEFT)
            found[module] = rank
        if usual > largest:
            raise self.refusal("r", f"is {usual:,}, and the weights have rank {largest:,} at most")
        return {**found, **{name: rank for name, rank in by_name.items() if name in used}}

    def _ranks(self) -> Iterator[tuple[str, int]]:
        """Each low-rank layer and its rank."""
        for name, shape in self._tensors:
            module, mark, _ = name.partition(".lora_A")
            if not mark:
                module, mark, _ = name.partition(".lora_embedding_A")
            if mark and len(shape) > 1:
                yield module, shape[0]

    def layers(self, config: Mapping[str, Any], base: Path) -> list[str]:
        """The layers that the tensors are of: by their last names where the base has no other layer of such a name."""
        bare = [name.rpartition(".")[0] for name in config.get("target_parameters") or []]
        found = {name[: mark.start()] for name, _ in self._tensors if (mark := ADDED.search(name))}
        found = {name for name in found if not any(_ends(name.replace(".base_layer", ""), one) for one in bare)}
        if not found:
            raise self.refusal("target_modules", "is a pattern", "Write the names of the layers as a list.")
        lasts = {name.rpartition(".")[2] for name in found}
        there = {place(name) for name in found}
        stored = (name.removesuffix(".weight") for file in weight_files(base) for name, _, shape in tensors(file) if len(shape) > 1)
        if all(place(name) in there for name in stored if name.rpartition(".")[2] in lasts):
            return sorted(lasts)
        return sorted(found)


def _mistyped(field: str, value: Any) -> str:
    """What is wrong with the type of a field's value, as the end of a sentence; "" where nothing is."""
    if field in WHOLE and not _is_whole(value):
        return f"is {plain(value)!r}, no whole number"
    if field in NUMBERS and not (_is_whole(value) or isinstance(value, float)):
        return f"is {plain(value)!r}, no number"
    if field in FLAGS and not isinstance(value, bool):
        return f"is {plain(value)!r}, neither true nor false"
    if field in TEXTS and not isinstance(value, str):
        return f"is {plain(value)!r}, no text"
    if field in NAME_LISTS and not _are_names(value):
        return "is no list of names"
    if field in NAMES and not (isinstance(value, str) or _are_names(value)):
        return "is no list of names"
    if field == "rank_pattern" and not (isinstance(value, dict) and all(_is_whole(rank) and rank > 0 for rank in value.values())):
        return "gives no ranks by name"
    if field == "alpha_pattern" and not (
        isinstance(value, dict) and all(_is_whole(one) or isinstance(one, float) for one in value.values())
    ):
        return "gives no strengths by name"
    if field == "layers_to_transform" and not (_is_whole(value) or (isinstance(value, list) and all(map(_is_whole, value)))):
        return "is no list of layers"
    if isinstance(value, (list, dict)) and len(value) > MOST_NAMES:
        return f"has {len(value):,} entries, and {MOST_NAMES:,} is the limit"
    return ""


def _beyond(field: str, value: Any) -> str:
    """Which number of a field is larger than any adapter's; "" where none is. Nesting is limited where the file is read."""
    if isinstance(value, dict):
        return next((said for name, inner in value.items() if (said := _beyond(f"{field}.{plain(name)}", inner))), "")
    if isinstance(value, list):
        return next((said for inner in value if (said := _beyond(field, inner))), "")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and not any(part in field for part in SEEDS) and not abs(value) <= LARGEST:
        return f"{plain(field)} is {plain(value)}, beyond any adapter's"
    return ""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_pattern(value: Any) -> bool:
    """Whether peft would match it as a regular expression, other than a plain name."""
    names = [value] if isinstance(value, str) else value or []
    return any(not PLAIN_NAME.fullmatch(name) for name in names)


def _plain_form(name: str) -> str:
    """A key such as `^model\\.layers\\.0\\.q_proj$`, as peft documents them, without its signs of a pattern."""
    return name.removeprefix("^").removesuffix("$").replace(r"\.", ".")


def _ends(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")
