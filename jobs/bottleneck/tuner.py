"""peft's parts of a bottleneck adapter: its configuration, its layer, its tuner. Import through `jobs.bottleneck.register`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from jobs.bottleneck import KIND

FUNCTIONS = {"relu": torch.nn.functional.relu, "gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}


@dataclass
class BottleneckConfig(PeftConfig):
    """`target_modules`: layers behind which an adapter goes; `reduction_factor`: how many times narrower it is than their output."""

    target_modules: list[str] | None = field(default=None)
    exclude_modules: list[str] | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    reduction_factor: int = field(default=8)
    non_linearity: str = field(default="relu")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = KIND


class BottleneckLayer(torch.nn.Module, BaseTunerLayer):
    """A frozen layer with adapters behind it; each starts as the identity."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: torch.nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = torch.nn.ModuleDict()
        self.bottleneck_up = torch.nn.ModuleDict()
        self.functions: dict[str, Any] = {}
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.add(adapter_name, config)

    def add(self, adapter_name: str, config: BottleneckConfig) -> None:
        # Conv1D of GPT-2 has no out_features
        width = getattr(self.base_layer, "out_features", None) or self.base_layer.nf
        narrow = max(width // config.reduction_factor, 1)
        self.bottleneck_down[adapter_name] = torch.nn.Linear(width, narrow)
        self.bottleneck_up[adapter_name] = torch.nn.Linear(narrow, width)
        torch.nn.init.zeros_(self.bottleneck_up[adapter_name].weight)
        torch.nn.init.zeros_(self.bottleneck_up[adapter_name].bias)
        self.functions[adapter_name] = FUNCTIONS[config.non_linearity]
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                down, up = self.bottleneck_down[name], self.bottleneck_up[name]
                result = result + up(self.functions[name](down(result.to(down.weight.dtype)))).to(result.dtype)
        return result

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError("A bottleneck adapter is no linear change of a layer: it can't be merged into the base.")

    def unmerge(self) -> None:
        return


class BottleneckModel(BaseTuner):
    """peft's tuner of this kind."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: torch.nn.Module,
        target_name: str,
        parent: torch.nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.add(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name != self.active_adapter:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)
