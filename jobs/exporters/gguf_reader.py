"""Read a GGUF export back through transformers, where its reader knows the family.

The weights are put on the base's own config, since the reader leaves some keys of the metadata out (the size of a head, soft caps,
windows); what it does read of the metadata is compared with that config. A model of which tensors are missing is not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoTokenizer

from jobs.exporters import gguf_rope
from jobs.sections import RopeSection
from studio.catalogue import text_models
from studio.errors import ModelError, message_of

NAME = f"transformers {transformers.__version__}"
NOT_COMPARED = ("model_type", "_model_name_or_path", "rope_theta", "vocab_size")  # the third is in rope_parameters, the last may grow
TOLERANCE = 1e-6  # relative: GGUF keeps figures in 32 bits


class UnknownFamily(ModelError):
    """transformers' reader does not know the family of the file, or not all of its tensors."""


def model(folder: Path, file_name: str, base: Path, positions: RopeSection) -> nn.Module:
    """The file's weights on the base's config with the file's positions. Raises UnknownFamily where transformers has no reader for them.

    `positions`: those that the adapter was trained with.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    stated = _stated(folder, file_name)
    own = text_models.config_of(base, positions).get_text_config()
    if differences := list(_differences(stated, own)):
        raise ModelError(f"The file states other sizes than the base: {', '.join(differences)}.", "Report this as a defect.")
    file = gguf.GGUFReader(folder / file_name)
    gguf_rope.read_back(file, own)
    config, family = own, type(stated)
    if stated.model_type == "mistral":  # what transformers calls a Llama that is named so
        family = CONFIG_MAPPING["llama"]
    if family is not type(own):
        config = family.from_dict(own.to_dict() | {"model_type": family.model_type})
    names = {tensor.name for tensor in file.tensors}
    config.tie_word_embeddings, config.vocab_size = "output.weight" not in names, stated.vocab_size
    found, seen = AutoModelForCausalLM.from_pretrained(
        str(folder),
        config=config,
        gguf_file=file_name,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    if missing := sorted(seen["missing_keys"]):
        raise UnknownFamily(f"transformers' reader finds no place for {missing[0]} and {len(missing) - 1} others.", "")
    read: nn.Module = found.eval().requires_grad_(False)
    return read


def tokenizer(folder: Path, file_name: str) -> Any:
    """The tokenizer of the file. Raises UnknownFamily as `model` does."""
    _stated(folder, file_name)
    return AutoTokenizer.from_pretrained(str(folder), gguf_file=file_name, local_files_only=True)


def _stated(folder: Path, file_name: str) -> Any:
    """The config that transformers reads out of the file's metadata."""
    try:
        return AutoConfig.from_pretrained(str(folder), gguf_file=file_name, local_files_only=True)
    except ValueError as exc:
        if "not supported" in str(exc):
            raise UnknownFamily(f"transformers' reader says: {message_of(exc)}", "") from None
        raise


def _differences(stated: Any, own: Any) -> Iterator[str]:
    """What the metadata says otherwise than the base's config, of the keys that transformers reads."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

    mapping = GGUF_CONFIG_MAPPING.get(stated.model_type) or GGUF_CONFIG_MAPPING.get(stated.model_type.removesuffix("_text")) or {}
    for key in mapping.values():
        expected = getattr(own, key, None) if isinstance(key, str) else None
        if expected is None or key in NOT_COMPARED:
            continue
        actual = getattr(stated, key, None)
        if not isinstance(expected, (int, float)) or not isinstance(actual, (int, float)):
            continue
        if not math.isclose(actual, expected, rel_tol=TOLERANCE):
            yield f"{key} {actual} for {expected}"
