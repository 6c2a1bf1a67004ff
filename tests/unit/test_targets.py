"""What a LoRA goes to, asked of tiny models: experts and dense layers beside them, no routers, nothing that no gradient reaches."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers

from jobs.config import build
from studio.catalogue import fused, named_targets, quantising, suitability, text_models
from studio.catalogue.targets import learning_layers, lora_targets, within_block
from studio.errors import ModelError
from studio.records import WeightForm
from tests import families


def small(kind: str) -> Any:
    return text_models.without_weights(families.small_config(*families.SPECIAL.get(kind, (kind, {}))))


def names(found: tuple[str, ...]) -> set[str]:
    return {within_block(name) for name in found}


def test_dense_layers_beside_experts_are_targets_and_routers_are_not() -> None:
    # red when peft's conversion for transformers 5 takes gate_proj of a shared expert for one of the experts
    found = lora_targets(small("qwen2_moe"))
    assert {f"mlp.shared_expert.{name}" for name in ("gate_proj", "up_proj", "down_proj")} < names(found.modules)
    assert names(found.parameters) == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    assert list(found.left_out) == ["router"]
    assert not any("gate.weight" in name or "shared_expert_gate" in name for name in (*found.modules, *found.parameters))


def test_a_router_is_a_target_where_it_is_named() -> None:
    found = lora_targets(small("mixtral"), ["q_proj", "gate"])
    assert names(found.modules) == {"self_attn.q_proj"}
    assert names(found.parameters) == {"mlp.gate.weight"}


def test_a_name_that_nothing_bears_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ModelError, match="no layers named query_key_value") as refused:
        lora_targets(small("llama"), ["query_key_value"])
    assert "q_proj" in refused.value.fix


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        ("all-linear", []),
        (["q_proj"], []),
        (["self_attn.q_proj", "proj"], ["proj"]),  # a name is whole, or ends behind a dot
        (["gate"], ["gate"]),  # a linear layer that an adapter does not reach by itself
        (["experts"], ["experts"]),  # a target that is no linear layer
        (["q_proj", "nothing"], ["nothing"]),
    ],
)
def test_names_that_the_probe_does_not_know_are_asked_of_the_model_once(
    monkeypatch: pytest.MonkeyPatch, names: str | list[str], asked: list[str]
) -> None:
    weights = [
        SimpleNamespace(name="self_attn.q_proj", form=WeightForm.LINEAR, target=True),
        SimpleNamespace(name="mlp.gate", form=WeightForm.LINEAR, target=False),
        SimpleNamespace(name="mlp.experts", form=WeightForm.EXPERTS, target=True),
    ]
    probe: Any = SimpleNamespace(digest="d", blocks=[SimpleNamespace(weights=weights)])
    questions: list[tuple[Any, ...]] = []
    monkeypatch.setattr(named_targets.library_child, "ask", lambda *question: questions.append(question))
    monkeypatch.setattr(named_targets, "_accepted", set())
    for _ in range(2):
        named_targets.check_in_child(Path("m"), build({"lora.target_modules": names}), probe)
    assert questions == [("studio.catalogue.named_targets", Path("m"), "lora", *asked)][: bool(asked)]


def test_vision_layers_are_no_targets() -> None:
    found = lora_targets(small("gemma3"))
    assert found.modules and all(name.startswith("model.language_model.") for name in found.modules)


@pytest.mark.parametrize(
    ("kind", "silent"),
    [
        ("mamba", "mixer.dt_proj"),
        ("hy_v4", "self_attn.indexer.wk"),
        ("llama4_text", "feed_forward.router"),
        ("deepseek_v4", "self_attn.o_a_proj"),  # multiplies groups of its inputs: the update of peft's would be wider than what it gives
    ],
)
def test_what_no_gradient_reaches_is_no_target(kind: str, silent: str, tmp_path: Path) -> None:
    # red when a LoRA is put where its second matrix would stay zero
    import torch

    path = families.build(kind, tmp_path / kind)
    model, _ = text_models.load(path, dtype=torch.float32)
    before = torch.get_rng_state()
    found = lora_targets(model, learning=learning_layers(model))
    assert silent in found.bypassed and silent not in names(found.modules)
    assert torch.equal(before, torch.get_rng_state()) and not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["falcon_mamba", "jamba"])
def test_a_layer_that_only_a_quantised_model_calls_is_no_target(kind: str, tmp_path: Path) -> None:
    # red when what was learned in 4 bits changes nothing in 16
    model, _ = text_models.load(families.build(kind, tmp_path / kind))
    model.config._is_quantized = True
    found = lora_targets(model, learning=learning_layers(model))
    assert found.modules and not any(name.endswith("dt_proj") for name in found.modules)
    assert model.config._is_quantized


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        ("nemotron_h", ["lm_head", "model.layers.0.mixer.out_proj"]),
        ("llama", None),
        ("xlstm", None),  # reads the weight of its embeddings, which nothing quantises
    ],
)
def test_layers_whose_weights_the_family_reads_by_itself_stay_whole_in_4_bits(kind: str, whole: list[str] | None) -> None:
    assert quantising.kept_whole(small(kind).config) == whole


def test_peft_is_prepared_once_however_many_adapters_are_attached() -> None:
    # red when every adapter of a long-lived engine wraps peft's functions once more, until Python refuses to go so deep
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import transformers_weight_conversion as conversion

    def prepared() -> list[Any]:
        fused.prepare_peft()
        return [
            *(conversion.convert_peft_config_for_transformers, conversion.convert_peft_adapter_state_dict_for_transformers),
            *(BaseTuner._inject_parameters, ParamWrapper._activate_lora, ParamWrapper._remove_parametrizations),
        ]

    assert prepared() == prepared()


def test_saved_targets_are_such_that_peft_alone_finds_them() -> None:
    from peft import LoraConfig, get_peft_model

    fused.prepare_peft()
    model = small("deepseek_v3")
    trained = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora_targets(model).options()))
    values = trained.peft_config["default"].to_dict()
    saved = fused.for_any_peft({**values, "target_modules": sorted(values["target_modules"])}, trained)
    assert any(name.endswith("shared_experts.gate_proj.weight") for name in saved["target_parameters"])
    assert not any(name.endswith("o_proj.weight") for name in saved["target_parameters"])
    assert not any(name.endswith("gate_proj") for name in saved["target_modules"])
    assert any(name.endswith("o_proj") for name in saved["target_modules"])


def probed(kind: str) -> Any:
    from studio.catalogue import probing

    return probing.probe(json.loads(families.small_config(kind, {}).to_json_string(use_diff=False)), kind)


def test_a_configuration_that_fails_on_any_text_is_refused() -> None:
    # red when what a pass without weights could have told ends a training instead
    with pytest.raises(ModelError, match="can't read a text: ValueError: Input language unknown"):
        probed("xmod")
    with pytest.raises(ModelError, match="XLNetLMHeadModel, which reads in both directions"):
        probed("xlnet")  # whose layers nothing can stand in for
    assert probed("modernbert-decoder").targets.share == 1  # which calls its head the decoder


def test_a_factor_on_the_logits_shows_before_anything_is_learned() -> None:
    # red when the losses' mean alone is compared: of a model that has learned nothing it is the same for every factor
    import torch

    from jobs.trainers import own_logits

    own = 8.3 + 0.01 * torch.linspace(-1, 1, 30)
    assert own_logits._agree(own + 1e-4, own)
    assert not own_logits._agree(8.3 + 24 * (own - 8.3), own)


@pytest.mark.parametrize(("cap", "is_cast"), [(None, False), (None, True), (30.0, False)])
def test_a_cap_that_small_logits_do_not_reach_shows_too(cap: float | None, is_cast: bool) -> None:
    # red when xLSTM learns for other answers than it gives as soon as it is sure, and where autocast still shows the weight that it cast before
    import torch
    from trl.trainer.utils import add_fused_lm_head

    from jobs.trainers import own_logits

    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(families.small_config("llama", {}))
    before, plain = model.lm_head.weight.clone(), model.forward

    def capped(*args: Any, **options: Any) -> Any:
        found = plain(*args, **options)
        found.logits = cap * torch.tanh(found.logits / cap) if cap else found.logits
        return found

    model.forward = capped
    add_fused_lm_head(model)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=is_cast)
    assert own_logits.use_where_needed(model, autocast) == bool(cap)
    assert torch.equal(model.lm_head.weight, before)


def test_a_weight_that_is_no_number_leaves_the_others_as_they_are() -> None:
    # red when the check for caps multiplies the output layer by what is no number, before training can say that the loss is none
    import contextlib

    import torch
    from trl.trainer.utils import add_fused_lm_head

    from jobs.trainers import own_logits

    model = transformers.AutoModelForCausalLM.from_config(families.small_config("llama", {}))
    model.model.norm.weight.data[0] = float("nan")
    add_fused_lm_head(model)
    with torch.no_grad(), own_logits._raised(model, model(torch.arange(1, 9)[None]).logits):
        pass
    own_logits.use_where_needed(model, contextlib.nullcontext())
    assert torch.isfinite(model.lm_head.weight).all()


def test_own_logits_give_the_loss_and_the_figures_that_trl_would_log() -> None:
    import torch
    from torch.nn import functional

    from jobs.trainers import own_logits

    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(families.small_config("llama", {})).eval()
    ids = torch.randint(3, 60, (2, 7))
    labels = ids.clone()
    labels[0, :4] = labels[1, 5:] = -100
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
        own_logits._replace(model)
        plain = model(ids, labels=labels)
        found = model(ids, labels=labels, fused_lm_head=True)
        shifted = model(ids[:, :-1], shift_labels=labels[:, 1:], fused_lm_head=True)
        shared = model(ids, labels=labels, fused_lm_head=True, num_items_in_batch=torch.tensor(16))
    mask = labels[:, 1:] != -100
    nats = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none").view(2, 6)
    expected = nats[mask].mean()
    assert mask.sum() == 7
    for one in (plain.loss, found.loss, shifted.loss, shared.loss * 16 / 7):
        assert torch.allclose(one, expected, atol=1e-5)
    shares = logits.softmax(-1)
    figures = {
        "log_probs": -nats,
        "entropy": -(shares * shares.log()).sum(-1),
        "log_sum_sq_probs": shares.square().sum(-1).log(),
        "mean_logits": logits.mean(-1),
        "is_top1": (logits.argmax(-1) == labels[:, 1:]).float(),
    }
    for name, figure in figures.items():
        assert torch.allclose(getattr(found, name), torch.where(mask, figure, 0), atol=1e-4), name
    assert torch.equal(found.label_mask, mask)


def said(probe: Any, **options: Any) -> list[str]:
    return [
        str(conflict)
        for conflict in suitability.conflicts(build({"lora.r": 4}, {k.replace("__", "."): v for k, v in options.items()}), probe)
    ]


def test_what_fused_experts_do_not_take_is_refused_by_name() -> None:
    probe = probed("mixtral")
    (refused,) = said(probe, lora__lora_dropout=0.1, lora__use_dora=True)
    assert "lora_dropout, use_dora" in refused and 'lora.target_modules=["k_proj"' in refused
    assert said(probe, lora__lora_dropout=0.1, lora__target_modules=["q_proj"]) == []
    (packed,) = said(probed("mamba"), packing=True)
    assert "state" in packed and "packing=false" in packed
    (attention,) = said(probed("gpt_oss"), attn_implementation="sdpa")
    assert "attn_implementation=auto" in attention


def test_the_share_left_untrained_is_a_notice() -> None:
    config = build({"lora.r": 4})
    assert suitability.notices(config, probed("llama")) == []
    (notice,) = suitability.notices(config, probed("mixtral"))
    assert "left out: routers" in notice
    assert suitability.notices(build({}, {"quantization.load_in_8bit": True}), probed("llama")) == []
    assert any("16 bits" in one for one in suitability.notices(build({}, {"quantization.load_in_8bit": True}), probed("mixtral")))
