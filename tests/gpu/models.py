"""Part `models`: random bases of the sizes that people train, built on the device, with the starter's tokenizer, and LoRAs for them.

A random base computes, takes memory and can be trained as a real one of its shape does; what it says is noise.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.catalogue import hardware, probes
from studio.catalogue.architecture import decoder
from studio.settings import STATIC
from tests.gpu import child
from tests.gpu.outcome import Measured
from tests.gpu.scale import GIB, Scale

SHARED = {
    "model_type": "llama", "max_position_embeddings": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "1B": {
        **SHARED, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "head_dim": 64, "tie_word_embeddings": True,
    },
    "8B": {**SHARED, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "tie_word_embeddings": False},
}  # fmt: skip
REDUCED = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 4160,
}  # fmt: skip
ADAPTERS, RANK = 8, 16
SHARD_BYTES = 4 * GIB
WORKING_ROOM = 1.2  # of the weights: what computing takes beside them
SPREAD = 0.02  # of the weights
STRENGTH = 0.05  # of the adapters' second matrices: enough that every one says something of its own


def config(scale: Scale, size: str) -> dict[str, Any]:
    """config.json of a size, or of what stands for it where all is reduced."""
    return CONFIGS[size] | scale.of({}, REDUCED)


def base(scale: Scale, size: str) -> Path:
    """The folder of a base, which is built where it is not there yet: in a child, so that whoever asks holds nothing of the card."""
    folder = scale.folder / "models" / size
    if not (folder / "complete").exists():
        child.call(scale.folder, "tests.gpu.models:build", scale.limit_s, size=size, scale=scale.as_json())
    return folder


def lacks_room(scale: Scale, size: str) -> str:
    """Why a base in 16 bits does not fit this card, in a few words; empty where it does, and on a processor."""
    device = hardware.usable()[0]
    needed = WORKING_ROOM * 2 * decoder(config(scale, size)).parameters
    if device.kind != "cuda" or needed <= device.memory_bytes:
        return ""
    return f"it needs {needed / GIB:.1f} GiB, and the card has {device.memory_bytes / GIB:.1f}"


def adapters(scale: Scale, size: str) -> list[Path]:
    """The folders of ADAPTERS LoRAs for a base, which are made where they are not there yet."""
    made = [scale.folder / "models" / f"{size}-lora-{number}" for number in range(ADAPTERS)]
    for number, folder in enumerate(made):
        if not (folder / "adapter_config.json").exists():
            _lora(config(scale, size), folder, number, scale.device)
    return made


def build(size: str, scale: Mapping[str, Any]) -> int:
    """In a child: tensor after tensor, so that a card smaller than the base can make it. Returns its parameters."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    here = Scale(**scale)
    folder = here.folder / "models" / size
    folder.mkdir(parents=True, exist_ok=True)
    values = config(here, size)
    shape = AutoConfig.for_model(values.pop("model_type"), dtype="bfloat16", architectures=["LlamaForCausalLM"], **values)
    with torch.device("meta"):
        parameters = {name: tensor.shape for name, tensor in AutoModelForCausalLM.from_config(shape).named_parameters()}
    random = torch.Generator(here.device).manual_seed(len(parameters))
    shards: list[dict[str, Any]] = [{}]
    written: dict[str, str] = {}

    def write() -> None:
        name = f"model-{len(set(written.values())) + 1:05}.safetensors"
        save_file(shards[-1], folder / name, metadata={"format": "pt"})
        written.update(dict.fromkeys(shards[-1], name))
        shards[-1] = {}

    for name, sizes in parameters.items():
        tensor = torch.empty(sizes, dtype=torch.bfloat16, device=here.device).uniform_(-SPREAD, SPREAD, generator=random)
        if "norm" in name:
            tensor += 1
        shards[-1][name] = tensor.cpu()
        if sum(one.numel() * one.element_size() for one in shards[-1].values()) > SHARD_BYTES:
            write()
    write()
    index = {"metadata": {}, "weight_map": written}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    shape.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(STATIC / "starter" / file, folder)
    _probe(here, size)
    (folder / "complete").touch()
    return sum(sizes.numel() for sizes in parameters.values())


def keep_probes(scale: Scale) -> None:
    """What predictions ask about a base is asked once, while it is built, and not by each process of its own child."""
    scale.cache.mkdir(exist_ok=True)
    probes.keep_in(scale.cache)


def _probe(here: Scale, size: str) -> None:
    from studio.catalogue import probing

    keep_probes(here)
    probes._write(probes.answered(probing.asked(config(here, size), size)))


def _lora(values: Mapping[str, Any], folder: Path, seed: int, device: str) -> None:
    """A LoRA of random weights on every linear layer, as peft saves it."""
    import torch
    from safetensors.torch import save_file

    hidden, inner = values["hidden_size"], values["intermediate_size"]
    head = values.get("head_dim", hidden // values["num_attention_heads"])
    queries, keys = head * values["num_attention_heads"], head * values["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (hidden, queries), "self_attn.k_proj": (hidden, keys), "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden), "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }  # fmt: skip
    random, weights = torch.Generator(device).manual_seed(seed), {}
    for layer in range(values["num_hidden_layers"]):
        for name, (width, height) in shapes.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            first, second = torch.empty(RANK, width, device=device), torch.empty(height, RANK, device=device)
            weights[f"{place}.lora_A.weight"] = first.normal_(std=width**-0.5, generator=random).to(torch.bfloat16).cpu()
            weights[f"{place}.lora_B.weight"] = second.normal_(std=STRENGTH, generator=random).to(torch.bfloat16).cpu()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    described = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none",
        "target_modules": sorted(name.partition(".")[2] for name in shapes), "base_model_name_or_path": "random",
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(described), encoding="utf-8")


def measure(scale: Scale) -> Measured:
    figures: dict[str, Any] = {}
    told = []
    for size in CONFIGS:
        begun = time.monotonic()
        folder = base(scale, size)
        written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        loras = adapters(scale, size)
        weight = sum((lora / "adapter_model.safetensors").stat().st_size for lora in loras)
        seconds = time.monotonic() - begun
        figures[size] = {"bytes": written, "adapters": len(loras), "adapter_bytes": weight, "seconds": round(seconds, 1)}
        told.append(f"{size} {written / GIB:.2f} GiB and {len(loras)} LoRAs of rank {RANK} in {seconds:.0f} s")
    return Measured(figures, ", ".join(told))
