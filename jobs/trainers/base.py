"""The frozen base of a training: where it is computed, in which precision, and its tokenizer. Knows no methods and no rows."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from jobs.trainers import placing
from jobs.trainers.events import EventLog
from studio.catalogue import anatomy, keys, models, precision, quantising, rope, text_models
from studio.catalogue.architecture import sees_whole_rows
from studio.catalogue.reach import WORDS
from studio.catalogue.ready_copy import ReadyCopy
from studio.datasets.rendering import Renderer
from studio.errors import ModelError

M_MMAP_THRESHOLD = -3  # malloc.h
OWN_MAPPING = 256 * 1024  # bytes
LARGE_WEIGHTS = 128 * 1024**2  # bytes of weights from which on memory counts more than the time that fresh pages take


@dataclass(frozen=True)
class ComputeDevice:
    """Where to compute, and in which type: the frozen base's, and of the arithmetic."""

    name: str  # cuda, cpu
    dtype: str  # bfloat16, float16, float32


def folder_of(config: JobConfig) -> Path:
    """The base's folder. Raises ModelError where it holds no model."""
    folder = Path(config.model_name_or_path or config.base_model)
    if not (folder / "config.json").is_file():
        raise ModelError(f"The base model {config.base_model} is not in {folder}.", "Add it again under Models, or restore its folder.")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"The base model {config.base_model} has no safetensors file in {folder}.", "Add a model in safetensors form.")
    models.check_no_adapter(folder)
    return folder


def check_weights(config: JobConfig, folder: Path, log: EventLog) -> None:
    """Every weight that the model needs is stored, whatever the precision. Raises ModelError naming the first that is not."""
    found = keys.compare(folder)
    found.check(f"The base model {config.base_model}")
    if note := found.note():
        log.notice(note)


def max_length(config: JobConfig, folder: Path) -> int:
    """Rows longer than the model's context can't be learned, whatever the option says."""
    return min(config.max_length, rope.context(models.read_json(folder / "config.json"), config.rope) or config.max_length)


def choose_device(config: JobConfig, log: EventLog) -> ComputeDevice:
    name = placing.device_of(config, log)
    return ComputeDevice(name, _dtype(config, name, log))


def _dtype(config: JobConfig, device: str, log: EventLog) -> str:
    """As asked for, else by the rule of studio.catalogue.precision. Raises ModelError for what this GPU does not compute in."""
    has_bfloat16 = precision.has_bfloat16(device)
    if config.dtype == "bfloat16" and device == "cuda" and not has_bfloat16:
        raise ModelError("dtype=bfloat16, but this GPU does not compute in it.", "Set dtype=auto.", remedy={"dtype": "auto"})
    if config.dtype != "auto":
        return config.dtype
    model_type = str(models.read_json(folder_of(config) / "config.json").get("model_type"))
    chosen = precision.compute_dtype(device, has_bfloat16, model_type)
    if chosen == "float32" and device == "cuda":
        log.notice(
            f"Models of the family {model_type} overflow float16, and this GPU does not compute in bfloat16: computing in float32, "
            "which is slower and takes more memory."
        )
    elif chosen == "float32":
        log.notice("This processor has no bfloat16 instructions: computing in float32, which is several times faster here.")
    return chosen


def bound_threads(config: JobConfig) -> None:
    import torch

    if config.num_threads:
        torch.set_num_threads(config.num_threads)


def is_large(folder: Path) -> bool:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) >= LARGE_WEIGHTS


def give_back_freed_memory(folder: Path, log: EventLog) -> bool:
    """Where memory is short, have glibc map every larger block by itself, so that what a step frees goes back to the system at once.

    By default it learns to keep blocks of up to 32 MB in its heap, where tensors of changing sizes leave gaps that nothing fits:
    measured on 110 M parameters, a fifth more at the peak. Fresh pages cost time, a third of a training's there, which large pages
    save again in part. So a worker asks for both, by THP_MEM_ALLOC_ENABLE, where the prediction says that memory is short.
    A small model's gaps are small. Returns whether it is done.
    """
    if os.environ.get("THP_MEM_ALLOC_ENABLE") != "1" or not is_large(folder):
        return False
    try:
        done = ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, OWN_MAPPING)
    except (AttributeError, OSError):  # another C library
        return False
    log.notice("Memory is short for this job: what a step frees is given back at once, which makes training slower.")
    return bool(done)


def load(config: JobConfig, device: ComputeDevice, tell: Callable[[str], None] = print, copies: Path | None = None) -> Any:
    """The base in its precision, from safetensors alone. Frozen embeddings, norms and head stay in 16 bits.

    `tell` hears how it is read and computed where there is a choice. `copies`: the folder of copies in 4 bits, where these are kept.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # a log file can't show it
    folder = folder_of(config)
    options = {
        "dtype": getattr(torch, device.dtype),
        "device_map": {"": {"cuda": 0}.get(device.name, "cpu")},
        **_attention(config, folder),
    }
    shape, quantization = text_models.config_of(folder, config.rope), _quantization(config, device, folder)
    copy, found = None, None
    if config.quantization.load_in_4bit and copies is not None and copies.is_dir():
        copy = ReadyCopy.of(copies, config.base_model, folder, quantization, device=device.name, dtype=device.dtype)
        found = copy.load(shape, tell, **options)
    model, report = found or text_models.load(folder, config=shape, quantization_config=quantization, **options)
    keys.reported(report).check(f"The base model {config.base_model}")
    if copy is not None:
        copy.keep(model, tell)
    if config.quantization.load_in_4bit:
        quantization = config.quantization
        quantising.quantise_experts(
            model, folder, quant_type=quantization.bnb_4bit_quant_type, double_quant=quantization.bnb_4bit_use_double_quant
        )
    for module in model.modules():
        # else the first forward in eval mode repacks 4-bit weights in place: widths that are no multiple of 64 fail,
        # and models with biases can't be evaluated during training
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if getattr(model, "is_quantized", False) and device.name == "cpu":
        _leave_the_file(model)
    _name_inner_model(model)
    if config.packing:
        _check_packs(config, model)
    if config.packing:
        from jobs.trainers import packed

        packed.use(model, tell, sees_whole_rows(model.config.to_dict(), config.max_length))
    if config.method == "full":
        _name_experts_as_trl_does(model)
    return model


def _name_inner_model(model: Any) -> None:
    """trl takes the last hidden states from `base_model`, which in a text model cut out of a multimodal one may be itself."""
    from transformers import PreTrainedModel

    if model.base_model is not model:
        return
    inner = [name for name, child in model.named_children() if isinstance(child, PreTrainedModel)]
    if len(inner) == 1:
        model.base_model_prefix = inner[0]


def _attention(config: JobConfig, folder: Path) -> dict[str, str]:
    """transformers' option; none leaves the choice to the model's class. Raises ModelError for what the class does not have."""
    wanted = config.attn_implementation
    if wanted == "auto":
        return {}
    family, _ = text_models.family_of(text_models.config_of(folder))
    needed = text_models.ATTENTION.get(wanted)
    if needed is not None and not getattr(family, needed):
        raise ModelError(
            f"{config.base_model} ({family.__name__}) has no attention code for {wanted}.",
            "Set attn_implementation=auto, which takes what it has.",
            remedy={"attn_implementation": "auto"},
        )
    return {"attn_implementation": wanted}


def _check_packs(config: JobConfig, model: Any) -> None:
    """Raises ModelError where packed rows would read each other: eager attention, and what carries a state over the row."""
    _, blocks = anatomy.blocks_of(model)
    kinds = {part.kind for block in blocks for part in anatomy.parts(block)} & set(anatomy.CARRY)
    if model.config._attn_implementation != "eager" and not kinds:
        return
    why = "eager attention, which does not keep packed rows apart"
    if kinds:
        why = f"layers that carry a state from token to token ({', '.join(sorted(WORDS[kind] for kind in kinds))}), also from one packed row into the next"
    raise ModelError(f"{config.base_model} has {why}.", "Set packing=false.", remedy={"packing": False})


def _name_experts_as_trl_does(model: Any) -> None:
    """trl's loss that balances experts asks for `num_experts`, which some configurations call `num_local_experts`."""
    text = model.config.get_text_config()
    if not hasattr(text, "num_experts") and hasattr(text, "num_local_experts"):
        text.num_experts = text.num_local_experts


def _leave_the_file(model: Any) -> None:
    """Copy what was not quantised out of the mapped file: one view of it would hold the pages of all weights in memory."""
    floats = [tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    whole = [(tensor, (tensor.data_ptr(), tensor.shape)) for tensor in floats]
    copies = {place: tensor.data.clone() for tensor, place in whole}  # embeddings and head may be one tensor under two names
    for tensor, place in whole:
        tensor.data = copies[place]


def _quantization(config: JobConfig, device: ComputeDevice, folder: Path) -> Any:
    import torch

    values = config.quantization.model_dump()
    if values["load_in_8bit"]:
        return quantising.bits_and_bytes(folder, load_in_8bit=True)
    if not values["load_in_4bit"]:
        return None
    compute = values["bnb_4bit_compute_dtype"]
    if compute == "bfloat16":
        compute = device.dtype
    return quantising.bits_and_bytes(folder, **{**values, "bnb_4bit_compute_dtype": getattr(torch, compute)})


def tokenizer(renderer: Renderer) -> Any:
    """What trl's trainers ask for; the rows are tokens already, so only its padding token is used."""
    from transformers import PreTrainedTokenizerFast

    def text(token_id: int | None) -> str | None:
        return None if token_id is None else renderer.tokenizer.id_to_token(token_id)

    padding = next((i for i in (renderer.pad_token_id, renderer.eos_token_id) if i is not None), 0)
    return PreTrainedTokenizerFast(
        tokenizer_object=renderer.tokenizer,
        bos_token=text(renderer.bos_token_id),
        eos_token=text(renderer.eos_token_id),
        pad_token=text(padding),
    )
