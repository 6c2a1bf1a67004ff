"""The adapter folder: weights, peft's config, the template, and what a stranger needs to know to use it.

The weights hold no names and no times, so the same run gives the same bytes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.config import JobConfig
from jobs.trainers import methods
from studio.catalogue import fused, rope, rope_flags
from studio.catalogue.reach import sentence
from studio.catalogue.targets import LoraTargets
from studio.datasets.rendering import TEMPLATES, TOLD_AS_TEXT, TOLD_BY_TEMPLATE, TOOLS_KEY, Renderer

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

WEIGHTS = "adapter_model.safetensors"
RAW = "trained.safetensors"  # in a checkpoint: what is trained, where the adapter folder holds something made from it


@dataclass(frozen=True)
class AdapterCard:
    """What stays the same over a run and is written beside the weights."""

    config: JobConfig
    renderer: Renderer
    targets: LoraTargets | None = None  # of a LoRA
    has_tools: bool = False  # some of its rows name tools

    @property
    def template_name(self) -> str:
        """One of the studio's own, a file's name, or `model` for the model's own."""
        if self.config.chat_template is not None:
            return Path(self.config.chat_template).name
        return "alpaca" if self.renderer.template == (TEMPLATES / "alpaca.jinja").read_text(encoding="utf-8") else "model"

    def as_json(self, figures: dict[str, Any]) -> dict[str, Any]:
        # paths of this machine would mean nothing elsewhere and tell more than they should
        options = self.config.model_dump(mode="json", exclude={"model_name_or_path", "chat_template"})
        return {
            "base_model": self.config.base_model,
            "method": self.config.method,
            "objective": self.config.objective,
            "chat_template": {"name": self.template_name, "sha256": self.renderer.template_sha256},
            "special_tokens": self.renderer.card()["special_tokens"],
            "stop_strings": list(self.renderer.stop_strings),
            "config": {**options, "chat_template": self.template_name},
            **self._adapted(),
            **self._told(),
            "metrics": figures,
            **self._positions(),
        }

    def _adapted(self) -> dict[str, Any]:
        """Which share of the blocks' weights a LoRA reaches, and what it leaves as it is."""
        if self.targets is None:
            return {}
        left_out = {str(kind): round(share, 6) for kind, share in self.targets.left_out.items()}
        return {"targets": {"share": round(self.targets.share, 6), "left_out": left_out}}

    def _told(self) -> dict[str, Any]:
        """How the rows tell of their tools, so that chat tells of tools in the same way; nothing where no row has any."""
        if not self.has_tools:
            return {}
        return {TOOLS_KEY: TOLD_AS_TEXT if self.renderer.tells_tools_as_text else TOLD_BY_TEMPLATE}

    def _positions(self) -> dict[str, Any]:
        """What whoever loads the base has to know; nothing where the base keeps its own positions."""
        if not self.config.rope.is_set:
            return {}
        return {rope.CARD_KEY: self.config.rope.chosen}


def weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The trained tensors under peft's names, on the CPU. Never asks the hub about the base model."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    # a copy: what is trained on a CPU would go on changing
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def save(folder: Path, model: PeftModel, card: AdapterCard, figures: dict[str, Any], start: dict[str, torch.Tensor] | None = None) -> None:
    """Write everything an adapter needs into `folder`, which is made. `start`: the weights at the start, for PiSSA."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    state = weights(model)
    if start:
        state = methods.plain_lora(state, start)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(_json(_peft_config(model, card.config)), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(card.renderer.template, encoding="utf-8")
    (folder / "studio.json").write_text(_json(card.as_json(figures)), encoding="utf-8")
    lost = fused.misnamed_by_peft(model, state)
    (folder / "README.md").write_text(_readme(card, figures, model.config, len(lost)), encoding="utf-8")


def save_raw(checkpoint: Path, model: PeftModel) -> None:
    """Beside the adapter, what resuming needs of the methods that keep more than they hand out."""
    from safetensors.torch import save_file

    save_file({name: tensor.to("cpu").contiguous() for name, tensor in methods.raw(model).items()}, checkpoint / RAW)


def restore(checkpoint: Path, model: PeftModel) -> None:
    """Put the weights of a checkpoint into the model. Raises ValueError when they are not this model's."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if (checkpoint / RAW).exists():
        methods.take_raw(model, load_file(checkpoint / RAW))
        return
    state = load_file(checkpoint / "adapter" / WEIGHTS)
    if (expected := set(weights(model))) != set(state):
        raise ValueError(f"the checkpoint's tensors are not this model's ({len(expected ^ set(state))} differ)")
    set_peft_model_state_dict(model, state)


def _peft_config(model: PeftModel, config: JobConfig) -> dict[str, Any]:
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in model.peft_config["default"].to_dict().items()}
    if config.method == "lora":
        values = fused.for_any_peft(values, model)
    return {**methods.saved_config(config, values), "base_model_name_or_path": config.base_model, "inference_mode": True}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, default=str) + "\n"


def _readme(card: AdapterCard, figures: dict[str, Any], base: Any, lost: int = 0) -> str:
    """`base`: transformers' configuration of the base, as it was trained on; `lost`: tensors that peft alone does not find."""
    config = card.config
    reached = long_context = ""
    if card.targets is not None:
        reached = f"{sentence(card.targets.share, card.targets.left_out)}\n\n"
    names, loading = "AutoModelForCausalLM", 'base = AutoModelForCausalLM.from_pretrained("PATH OF THE BASE MODEL")\n'
    if config.rope.is_set:
        found = rope_flags.overrides(base)
        names, loading = f"AutoConfig, {names}", rope_flags.transformers_lines(found, "PATH OF THE BASE MODEL")
        long_context = f"{rope_flags.sentence(config.rope, found)} The base has to be loaded with them, as here.\n\n"
    lines = "\n".join(f"- {name}: {value:.6g}" if isinstance(value, float) else f"- {name}: {value}" for name, value in figures.items())
    return (
        f"---\nbase_model: {config.base_model}\nlibrary_name: peft\ntags: [{config.method}, {config.objective}, adapter-studio]\n---\n\n"
        f"# Adapter for {config.base_model}\n\n"
        f"Trained by Adapter Studio: {methods.describe(config)}, objective {config.objective}, learning rate {config.learning_rate:g}. "
        "Every option is in `studio.json`; write conversations with `chat_template.jinja`.\n\n"
        f"{reached}{long_context}"
        f"```python\nfrom peft import PeftModel\nfrom transformers import {names}\n\n"
        + ("from jobs.bottleneck import register  # of Adapter Studio\n\nregister()\n" if config.method == "bottleneck" else "")
        + "from studio.catalogue import fused  # of Adapter Studio: by peft alone "
        f"{lost} of its tensors are not found\n\nfused.prepare_peft()\n"
        * bool(lost)
        + loading
        + 'model = PeftModel.from_pretrained(base, "PATH OF THIS FOLDER")\n```\n\n'
        f"## Figures\n\n{lines or '- none yet'}\n"
    )
