"""A LoRA as a GGUF file beside its base's, for `llama-cli --lora` and ollama's ADAPTER; and back, to prove it.

Factors are kept in 32 bit. llama.cpp scales each by alpha / rank with one alpha for all, so what differs goes into B.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import nn

from jobs.exporters.gguf_tensors import rows, tensor_names, text_config, text_name
from jobs.exporters.models import ATTACHED
from studio.catalogue.gguf import check
from studio.errors import ModelError


def write(target: Path, model: nn.Module, base: Path, name: str) -> None:
    """`model` is the base with the adapter attached. Raises ModelError for what GGUF has no place for."""
    family, config = check(base), text_config(model)
    names = tensor_names(family, config)
    writer = gguf.GGUFWriter(target, family.name)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    found = list(_factors(model))
    alpha = found[0][3] * found[0][1].shape[0]
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for module, a, b, scaling in found:
        place = names.get_name(f"{text_name(module)}.weight", try_suffixes=(".weight",))
        if place is None:
            raise ModelError(f"GGUF has no place for an adapter of {module}.", "Export it as merged or as adapter.")
        writer.add_tensor(f"{place}.lora_a", np.ascontiguousarray(a))
        writer.add_tensor(f"{place}.lora_b", np.ascontiguousarray(rows(place, b * (scaling * a.shape[0] / alpha), family, config)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def apply(source: Path, model: nn.Module, base: Path) -> None:
    """Add the file's updates to the weights of a fresh base, as llama.cpp adds them to its activations."""
    family, config = check(base), text_config(model)
    names = tensor_names(family, config)
    reader = gguf.GGUFReader(source)
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    for key, parameter in model.named_parameters():
        place = names.get_name(text_name(key), try_suffixes=(".weight", ".bias"))
        if f"{place}.lora_a" not in stored:
            continue
        a, b = stored.pop(f"{place}.lora_a"), stored.pop(f"{place}.lora_b")
        update = rows(str(place), b @ a, family, config, back=True) * (alpha / a.shape[0])
        parameter.data += torch.from_numpy(update).to(parameter)
    if stored:
        raise ModelError(f"{source.name} has factors for {next(iter(stored))}, which the base lacks.", "Report this as a defect.")


def _factors(model: nn.Module) -> Any:
    """(module of the base, A [r, in], B [out, r], scaling) of every layer with an update."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and ATTACHED in module.lora_A:
            a, b = (factors[ATTACHED].weight.detach().float().cpu().numpy() for factors in (module.lora_A, module.lora_B))
            yield name.removeprefix("base_model.model."), a, b, float(module.scaling[ATTACHED])
