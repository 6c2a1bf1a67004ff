"""Base models as folders: what they are and whether they load, read from config.json and safetensors headers.

Knows no names in a database and imports neither torch nor transformers. Nothing of a folder is ever executed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.catalogue import library, wrappers
from studio.errors import ModelError, plain

TOKENIZER_ONLY = "Tokenizer only: it shows how rows become tokens, and can't answer or be trained."

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")
OWN_ATTENTION = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")  # values that name no kernel of the hub
MAX_JSON_BYTES = 100_000_000  # safetensors' own limit on a header
MAX_CONFIG_BYTES = 4_000_000  # of the files that describe a model, which are some kilobytes
DESCRIPTIONS = ("config.json", "adapter_config.json", "generation_config.json")
MOST_NESTED = 50  # objects and lists inside each other
MOST_DIGITS = 40  # of a whole number: tokenizer_config.json writes "no limit" with 31
LARGEST_SIZE = 2**31  # of any other number of a config.json
LARGEST_CONTEXT = 10**18  # fits into a row; no model has it
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
IN_16_BIT = "Use the model's 16-bit version: the studio quantises it to 4 bits itself."
# ends of tensors' names that only quantised checkpoints hold
QUANTISED = {
    ".qweight": "GPTQ or AWQ", ".qzeros": "GPTQ or AWQ", ".g_idx": "GPTQ", ".SCB": "bitsandbytes, 8 bit", ".absmax": "bitsandbytes, 4 bit",
    ".quant_map": "bitsandbytes, 4 bit", ".weight_packed": "compressed-tensors", ".weight_scale": "compressed-tensors or FP8",
    ".weight_scale_inv": "FP8", ".weight_shape": "compressed-tensors",
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
# bytes of a number, by dtypes of safetensors
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
# tensors that old checkpoints store but no parameter: causal masks, rotary tables
WEIGHT_FILE = re.compile(r"[^/\\\x00-\x1f]{1,200}\.safetensors")
BUFFER = re.compile(r"(\.masked_bias|rotary_emb\.inv_freq|\.position_ids)$")


@dataclass(frozen=True)
class ModelRef:
    """A base model as it is asked for: `name` for people, `path` for whoever loads it."""

    name: str
    path: Path


@dataclass(frozen=True)
class ModelFacts:
    """What a folder holds. `parameters` counts a tied output layer once; `reason` and `fix` say why it is not loadable."""

    architecture: str = ""
    parameters: int = 0
    context: int = 0
    loadable: bool = False
    reason: str = ""
    fix: str = ""

    @property
    def is_tokenizer_only(self) -> bool:
        return self.reason == TOKENIZER_ONLY


def inspect_folder(folder: Path) -> ModelFacts:
    """Read what `folder` is. Never raises for what a folder may hold: then `loadable` is False, with reason and fix."""
    config: dict[str, Any] = {}
    parameters = 0
    try:
        _check_is_model(folder)
        config = read_json(folder / "config.json")
        check_no_remote_code(folder, config)
        _check_numbers(folder, config)
        wrappers.text_model(config)
        _check_one_checkpoint(folder, config)
        check_no_adapter(folder)
        parameters = count_parameters(folder, tied=config.get("tie_word_embeddings") is True)
        _check_full_precision(folder, config)
        _check_tokenizer(folder)
    except ModelError as refusal:
        return ModelFacts(*_said(config, parameters), False, refusal.message, refusal.fix)
    except OSError as exc:  # no right to read it, a name that no disk takes
        reason = f"{folder} can't be read ({exc.strerror or type(exc).__name__})."
        return ModelFacts(*_said(config, parameters), False, reason, "Check the rights of the folder and its files.")
    return ModelFacts(*_said(config, parameters), True)


def _check_numbers(folder: Path, values: Any, key: str = "") -> None:
    """Raises ModelError for a whole number that no size and no token can be. Of a context it is said by itself, in tokens."""
    if isinstance(values, dict):
        for name, inner in values.items():
            _check_numbers(folder, inner, str(name))
    elif isinstance(values, list):
        for inner in values:
            _check_numbers(folder, inner, key)
    elif isinstance(values, int) and abs(values) > LARGEST_SIZE and key not in CONTEXT_KEYS:
        raise ModelError(
            f"config.json of {folder} gives {plain(key)} as {values:,}, which no model has.",
            "Use the config.json that was published with it.",
        )


def check_described(folder: Path) -> None:
    """Raises ModelError where the files beside the weights say already that the folder can't be used."""
    _check_is_model(folder)
    config = read_json(folder / "config.json")
    check_no_remote_code(folder, config)
    wrappers.text_model(config)
    _check_one_checkpoint(folder, config)
    _check_not_quantised(config)
    _check_tokenizer(folder)


def _said(config: dict[str, Any], parameters: int) -> tuple[str, int, int]:
    return wrappers.architecture(config), parameters, context(config)


def context(config: Mapping[str, Any]) -> int:
    """Tokens that the text model of a config.json reads; 0 where nothing says it."""
    longest = min(wrappers.context(config, CONTEXT_KEYS), LARGEST_CONTEXT)
    return round(min(longest * _dynamic_factor(wrappers.text_part(config) or config), LARGEST_CONTEXT))


def _dynamic_factor(text: Mapping[str, Any]) -> float:
    """How much further than max_position_embeddings dynamic positions reach."""
    for key in ("rope_scaling", "rope_parameters"):
        stated = text.get(key)
        if isinstance(stated, Mapping) and "dynamic" in (stated.get("rope_type"), stated.get("type")):
            factor = stated.get("factor")
            if isinstance(factor, (int, float)) and 1 <= factor < math.inf:
                return float(factor)
    return 1.0


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def count_parameters(folder: Path, *, tied: bool = False) -> int:
    """Exact number of parameters, from the headers of all weight files. Raises ModelError for damaged or missing files."""
    total = 0
    for file in weight_files(folder):
        for name, dtype, shape in tensors(file):
            is_mask = name.endswith(".attn.bias") and len(shape) == 4
            is_tied_copy = tied and name.endswith("lm_head.weight")
            if dtype in FLOATS and not (is_mask or is_tied_copy or BUFFER.search(name)):
                total += math.prod(shape)
    return total


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model; all of them are there."""
    index = folder / INDEX
    if index.is_file() and not (folder / SINGLE).is_file():  # as transformers chooses
        names = indexed(index)
    else:
        names = [SINGLE]
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return [folder / name for name in names]
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds an adapter, not a base model.", f"Add it with `studio adapters add {folder}`.")
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} stores its weights as {pickles[0]}, a format that can run code when it is opened.",
            "Use a version of the model with safetensors files, or convert it: save_pretrained of transformers writes safetensors.",
        )
    raise ModelError(f"{folder} lacks its weights: {missing[0]} is not there.", "Download the model again, with its *.safetensors files.")


def indexed(index: Path) -> list[str]:
    """Names of the weight files that an index lists, all beside it. Raises ModelError."""
    weight_map = read_json(index).get("weight_map")
    names: list[str] = []
    if isinstance(weight_map, Mapping):
        names = sorted({str(name) for name in weight_map.values()})
    if not names or any(not WEIGHT_FILE.fullmatch(name) for name in names):
        raise ModelError(f"{index} names no safetensors files of this folder.", "Download the model again.")
    return names


def tensors(file: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, dtype and shape of every tensor of a safetensors file, from its header. Raises ModelError when it is damaged."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_JSON_BYTES, size - 8):
                raise ValueError("header length")
            header = _parsed(stream.read(length))
        found, end = [], 0
        for name, entry in header.items():
            if name != "__metadata__":
                dtype, shape, end_of_one = _entry(entry)
                found.append((name, dtype, shape))
                end = max(end, end_of_one)
        if 8 + length + end != size:
            raise ValueError("size")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ModelError(f"{file} is damaged or was not downloaded to its end.", "Download it again.") from None
    yield from found


def _entry(entry: Any) -> tuple[str, list[int], int]:
    """dtype, shape and end of one tensor of a header. Raises what a header that lies deserves: its numbers must fit its bytes."""
    dtype, shape, (start, end) = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (start, end, *shape)):
        raise ValueError("numbers")
    count, room = math.prod(shape), end - start
    if count * WIDTHS.get(dtype, 0) not in (0, room) or count > 8 * room:  # of other dtypes a number has a bit at least
        raise ValueError("shape")
    return dtype, list(shape), end


def _parsed(content: bytes) -> Any:
    """JSON. Raises ValueError for numbers that no computation here takes."""
    return json.loads(content, parse_int=_whole)


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError("number too large")
    return int(digits)


def _check_nesting(value: Any) -> None:
    """Raises ValueError for what would take a function that looks at every part too deep."""
    layer = [value]
    for _ in range(MOST_NESTED):
        layer = [inner for one in layer for inner in _parts(one) if isinstance(inner, (dict, list))]
        if not layer:
            return
    raise ValueError("nested too deeply")


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file that came from outside. Raises ModelError naming the file."""
    most = MAX_CONFIG_BYTES if file.name in DESCRIPTIONS else MAX_JSON_BYTES
    try:
        if file.stat().st_size > most:
            raise ModelError(f"{file} is larger than {most:,} bytes.", "Use the file that was published with the model.")
        if not file.is_file():  # a pipe would never end
            raise ModelError(f"{file} is no file.", "Download the model again.")
        value = _parsed(file.read_bytes())
        if isinstance(value, dict):
            _check_nesting(value)
    except FileNotFoundError:
        raise ModelError(f"{file} is not there.", "Download the model again, or point at the folder that holds it.") from None
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelError(f"{file} can't be read as JSON ({type(exc).__name__}).", "Download the model again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file} holds no JSON object.", "Download the model again.")
    return value


def _check_is_model(folder: Path) -> None:
    if not folder.is_dir():
        wrong = "is a file, not a folder" if folder.exists() else "is not there"
        raise ModelError(f"{folder} {wrong}.", "Give the folder that holds config.json and the *.safetensors files.")
    if (folder / "config.json").is_file():
        return
    if (folder / "adapter_config.json").is_file():
        raise ModelError(f"{folder} holds an adapter, not a base model.", f"Add it with `studio adapters add {folder}`.")
    if has_tokenizer(folder):
        raise ModelError(TOKENIZER_ONLY, "To chat and train, give a folder with config.json and *.safetensors files too.")
    raise ModelError(
        f"{folder} holds no config.json, so it is no model.", "Give the folder that holds config.json and the *.safetensors files."
    )


def check_no_remote_code(folder: Path, config: dict[str, Any]) -> None:
    """transformers would fetch and run Python named by these keys, some of them even with trust_remote_code=False.

    What nothing here reads, because transformers has its own code for the model_type, passes: see wrappers.ignored_code.
    """
    is_built_in = library.is_built_in(config.get("model_type"))
    names = [key for key, value in wrappers.code_keys(config) if not (is_built_in and _is_left_out(key, value))]
    places = [("config.json", names)]
    if (folder / "tokenizer_config.json").is_file():
        places.append(("tokenizer_config.json", [key for key, _ in wrappers.code_keys(read_json(folder / "tokenizer_config.json"))]))
    for name, found in places:
        if found:
            raise ModelError(
                f"{folder / name} asks for code of its own ({plain(found[0])}), which the studio never runs.",
                f"Use a model that transformers supports by itself, or remove {plain(found[0])} if this one is.",
            )


def _is_left_out(key: str, value: object) -> bool:
    """Whether every loading here leaves a key out that names no code by itself: `attn_implementation` may name a kernel of the hub."""
    return key in wrappers.IGNORED or isinstance(value, bool) or (isinstance(value, str) and value in OWN_ATTENTION)


def check_no_adapter(folder: Path) -> None:
    """transformers would attach an adapter that lies beside a model, unasked. Raises ModelError."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds a model and adapter_config.json, so transformers would attach that adapter to it.",
            "Remove adapter_config.json where the adapter was merged into the model; otherwise move it, with adapter_model.safetensors, "
            "to a folder of its own and add it with `studio adapters add`.",
        )


def _check_one_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    other = config.get("transformers_weights")
    if other not in (None, "", SINGLE, INDEX):
        raise ModelError(
            f"config.json of {folder} names another weights file ({plain(other)}).", f"Rename it to {SINGLE} and remove that key."
        )


def unused_weights(folder: Path) -> list[str]:
    """Safetensors files that lie in the folder and are no part of the model."""
    used = {file.name for file in weight_files(folder)}
    return sorted(file.name for file in folder.glob("*.safetensors") if file.name not in used)


def _check_not_quantised(config: dict[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict) and quantization:
        method = quantization.get("quant_method", "an unnamed method")
        raise ModelError(f"The weights are stored quantised ({plain(method)}).", IN_16_BIT)


def _check_full_precision(folder: Path, config: dict[str, Any]) -> None:
    _check_not_quantised(config)
    for name, dtype, shape in (tensor for file in weight_files(folder) for tensor in tensors(file)):
        how = next((form for ending, form in QUANTISED.items() if name.endswith(ending)), "")
        if not how and name.endswith(".weight") and len(shape) > 1 and dtype not in FLOATS:
            how = dtype
        if how:
            raise ModelError(f"The weights are stored quantised ({plain(how)}), which config.json does not say: {plain(name)}.", IN_16_BIT)


def _check_tokenizer(folder: Path) -> None:
    if not has_tokenizer(folder):
        raise ModelError(f"{folder} holds no tokenizer.", "Add tokenizer.json and tokenizer_config.json of the same model to the folder.")
