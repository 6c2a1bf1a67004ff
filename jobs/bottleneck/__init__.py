"""Bottleneck adapters ("adapter tuning") as a kind that peft can train, save and load: call `register()`, then use peft as ever.

Houlsby et al. 2019 put h + up(f(down(h))) behind attention and feed-forward layers, Pfeiffer et al. 2020 behind the latter only.
peft has no such method. Imports peft on use; knows no jobs, no engine and no database.
"""

from __future__ import annotations

from typing import Any

KIND = "BOTTLENECK"  # peft_type in adapter_config.json
# last linear layer of a block's feed-forward and attention part, by the names that transformers' decoders use
FEED_FORWARD = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "mlp.c_proj")
ATTENTION = ("o_proj", "out_proj", "attention.dense", "self_attention.dense", "attn.c_proj")


def targets(module_names: list[str], mh_adapter: bool) -> list[str]:
    """Names (as suffixes) of the layers behind which adapters go; empty where this model has none of the known ones."""
    wanted = (*FEED_FORWARD, *(ATTENTION if mh_adapter else ()))
    return sorted({suffix for suffix in wanted if any(name.endswith("." + suffix) for name in module_names)})


def register() -> Any:
    """Teach peft the kind, once per process; returns its configuration class."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    if KIND not in PEFT_TYPE_TO_CONFIG_MAPPING:
        from jobs.bottleneck.tuner import BottleneckConfig, BottleneckModel  # needs torch and peft

        PEFT_TYPE_TO_CONFIG_MAPPING[KIND] = BottleneckConfig
        PEFT_TYPE_TO_TUNER_MAPPING[KIND] = BottleneckModel
        PEFT_TYPE_TO_PREFIX_MAPPING[KIND] = BottleneckModel.prefix
    return PEFT_TYPE_TO_CONFIG_MAPPING[KIND]
