"""Parts of the trainer that stand between peft, trl and a folder: what is stored, what is refused, what trl's older trainers are given."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from jobs.config import build
from jobs.trainers import base, methods, whole
from jobs.trainers.whole import OnTheBase
from studio.errors import ModelError


def layers(**modules: nn.Module) -> nn.Module:
    made = nn.Module()
    made.block = nn.ModuleDict(modules)
    return made


def test_tensors_of_another_model_are_no_checkpoint() -> None:
    model = nn.Linear(2, 1)
    state = {name: tensor + 1 for name, tensor in methods.raw(model).items()}
    with torch.no_grad():
        methods.take_raw(model, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in methods.raw(model).items())
    for other, differ in (({"weight": state["weight"]}, 1), ({**state, "more": state["bias"]}, 1), ({"a": state["bias"]}, 3)):
        with pytest.raises(ValueError, match=f"{differ} differ"):
            methods.take_raw(model, other)
    model.bias.requires_grad = False
    assert list(methods.raw(model)) == ["weight"]


def test_the_change_since_a_start_is_a_lora_of_twice_the_rank() -> None:
    torch.manual_seed(0)
    names = ("q.lora_A.weight", "q.lora_B.weight", "head.weight")
    shapes = ((2, 5), (3, 2), (4, 4))
    state, start = ({name: torch.randn(shape) for name, shape in zip(names, shapes, strict=True)} for _ in range(2))
    found = methods.plain_lora(state, start)
    a, b, _ = names
    assert torch.allclose(found[b] @ found[a], state[b] @ state[a] - start[b] @ start[a], atol=1e-5)
    assert (found[a].shape, found[b].shape) == ((4, 5), (3, 4)) and found["head.weight"] is state["head.weight"]


@pytest.mark.parametrize("use_rslora", [True, False])
def test_twice_the_rank_keeps_the_scale(use_rslora: bool) -> None:
    config = build({"lora.init_lora_weights": "pissa", "lora.use_rslora": use_rslora})

    def scale(values: dict[str, Any]) -> float:
        rank = float(values["r"])
        return float(values["lora_alpha"]) / (math.sqrt(rank) if values["use_rslora"] else rank)

    values = {"r": 8, "lora_alpha": 24, "use_rslora": use_rslora, "init_lora_weights": "pissa"}
    saved = methods.saved_config(config, values)
    assert saved["r"] == 16 and saved["init_lora_weights"] is True and scale(saved) == pytest.approx(scale(values))
    assert methods.saved_config(build({}), values) == values
    prompt = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "x", "tokenizer_name_or_path": "/home", "tokenizer_kwargs": {}}
    assert methods.saved_config(build({"method": "prompt-tuning"}), {**prompt, "num": 1}) == {
        **dict.fromkeys(prompt),
        "prompt_tuning_init": "RANDOM",
        "num": 1,
    }


@pytest.mark.parametrize(
    ("wanted", "missing", "fix"),
    [
        (["k_proj", "all-linear"], "", ""),
        ("k_proj", "", ""),
        (["block.k_proj", "proj"], "proj", "Set ia3.target_modules to auto, or to some of fc1, k_proj."),
        (["x", "k_proj", "y"], "x, y", "Set ia3.target_modules to auto, or to some of fc1, k_proj."),
    ],
)
def test_layers_that_a_model_does_not_have_are_named_beside_those_that_it_has(wanted: Any, missing: str, fix: str) -> None:
    model = layers(k_proj=nn.Linear(1, 1), fc1=nn.Linear(1, 1), norm=nn.LayerNorm(1))
    config = build({"base_model": "one"})
    if not missing:
        methods._check_layers(model, config, wanted)
        return
    with pytest.raises(ModelError) as refused:
        methods._check_layers(model, config, wanted)
    assert (refused.value.message, refused.value.fix) == (f"one has no layers named {missing}.", fix)


def test_a_model_without_layers_of_usual_names_offers_none() -> None:
    with pytest.raises(ModelError) as refused:
        methods._check_layers(layers(odd=nn.Linear(1, 1)), build({}), "k_proj")
    assert refused.value.fix == "Set ia3.target_modules to auto."


def test_rows_of_preferences_as_trls_older_trainers_read_them() -> None:
    assert whole.columns({"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5]}) == {
        "prompt_input_ids": [1, 2],
        "prompt_attention_mask": [1, 1],
        "chosen_input_ids": [1, 2, 3],
        "chosen_attention_mask": [1, 1, 1],
        "chosen_labels": [-100, -100, 3],
        "rejected_input_ids": [1, 2, 4, 5],
        "rejected_attention_mask": [1, 1, 1, 1],
        "rejected_labels": [-100, -100, 4, 5],
    }


def test_an_older_trainer_is_given_the_adapter_on_the_base_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        def __init__(self, model: Any, **options: Any) -> None:
            self.model, self.options, self._stored_metrics = SimpleNamespace(name=model, training=True), options, {"a": 1}

        def compute_loss(self, *arguments: Any) -> str:
            return "loss"

        def compute_loss_context_manager(self) -> Any:
            return nullcontext()

        def prediction_step(self) -> str:
            return "step"

    class Trainer(OnTheBase, Older):
        pass

    seeds: list[int] = []
    monkeypatch.setattr(whole, "set_seed", seeds.append)
    monkeypatch.setattr(whole, "get_peft_model", lambda model, config: f"{model} with {config}")
    arguments = SimpleNamespace(seed=7)
    assert Trainer(model="base", peft_config=None, args=arguments).model.name == "base"
    made = Trainer(model="base", peft_config="lora", args=arguments)
    assert (made.model.name, made.options, made._metrics, seeds) == ("base with lora", {"args": arguments}, {"a": 1}, [7, 7])
    inputs = {"chosen_attention_mask": torch.ones(2, 3), "rejected_attention_mask": torch.tensor([[1, 1], [1, 0]])}
    assert (made.compute_loss(None, inputs), made._total_train_tokens) == ("loss", 9)
    made.model.training = False
    assert (made.compute_loss(None, inputs), made._total_train_tokens) == ("loss", 9)
    assert made.tokenize_row({"a": 1}) == {"a": 1} and made.prediction_step() == "step"


def test_the_inner_model_is_found_where_there_is_one() -> None:
    from transformers import LlamaConfig, LlamaModel

    small = LlamaConfig(
        vocab_size=4, hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
    )  # fmt: skip

    class Outer(nn.Module):
        base_model_prefix = "nothing"

        def __init__(self, *names: str) -> None:
            super().__init__()
            self.head = nn.Linear(1, 1)
            for name in names:
                setattr(self, name, LlamaModel(small))

        @property
        def base_model(self) -> Any:
            return getattr(self, self.base_model_prefix, self)

    for names, found in ((("text",), "text"), ((), "nothing"), (("one", "two"), "nothing")):
        model = Outer(*names)
        base._name_inner_model(model)
        assert model.base_model_prefix == found
