"""One rope section for everything that loads a base: what it makes of a config.json, what it refuses, what the library then builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import config as job_config
from jobs.sections import RopeSection
from studio.catalogue import memory, rope, rotary, text_models
from studio.catalogue.compatibility import conflicts
from studio.catalogue.models import context
from studio.errors import ModelError
from studio.services.chosen_options import fitted
from studio.settings import STATIC

SIZES = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96,
    "num_hidden_layers": 2, "vocab_size": 64,
}  # fmt: skip
PLAIN = {**SIZES, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 512, "rope_theta": 5000.0}
LLAMA_3 = {
    **PLAIN, "max_position_embeddings": 4096,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 256},
}  # fmt: skip
PHI_3 = {
    **SIZES, "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "max_position_embeddings": 2048,
    "original_max_position_embeddings": 512, "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
    "pad_token_id": 0, "sliding_window": None,
}  # fmt: skip
GEMMA_3 = {
    **SIZES, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "max_position_embeddings": 512, "rope_theta": 1e6,
    "rope_local_base_freq": 1e4, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
DEEPSEEK = {
    **SIZES, "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "max_position_embeddings": 2048,
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "mscale": 1.0, "mscale_all_dim": 0.8},
}  # fmt: skip
ALIBI = {**SIZES, "model_type": "falcon", "architectures": ["FalconForCausalLM"], "alibi": True, "max_position_embeddings": 512}
YARN = {"rope_type": "yarn", "factor": 4.0}


def section(**values: Any) -> RopeSection:
    return RopeSection.model_validate(values)


@pytest.mark.parametrize(
    ("base", "values", "parameters", "stated", "reads"),
    [
        (PLAIN, YARN, {**YARN, "original_max_position_embeddings": 512}, 2048, 2048),
        (PLAIN, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}, 1024, 1024),
        (PLAIN, {"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}, 512, 1024),
        (
            PLAIN,
            {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 3.0},
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 512},
            4096,
            4096,
        ),
        (  # Qwen3 reads more than it was trained for
            {**PLAIN, "max_position_embeddings": 640},
            {**YARN, "original_max_position_embeddings": 512},
            {**YARN, "original_max_position_embeddings": 512},
            2048,
            2048,
        ),
        (LLAMA_3, {"rope_type": "llama3", "factor": 16.0}, {**LLAMA_3["rope_scaling"], "factor": 16.0}, 8192, 8192),
        (
            PHI_3,
            {"rope_type": "longrope", "factor": 8.0, "short_factor": [1.0] * 8, "long_factor": [8.0] * 8},
            {"rope_type": "longrope", "factor": 8.0, "short_factor": [1.0] * 8, "long_factor": [8.0] * 8,
             "original_max_position_embeddings": 512},
            4096,
            4096,
        ),
    ],
)  # fmt: skip
def test_a_section_becomes_the_rope_parameters_and_the_context_of_a_base(
    base: dict[str, Any], values: dict[str, Any], parameters: dict[str, Any], stated: int, reads: int
) -> None:
    before = json.dumps(base)
    found = rope.scaled(base, section(**values))
    assert (found["rope_scaling"], found["max_position_embeddings"]) == (parameters, stated)
    assert rope.context(base, section(**values)) == rope.context(found, RopeSection()) == reads
    assert context(found) == reads  # as chat counts it, once that is a base of its own
    assert json.dumps(base) == before and found.get("rope_theta") == base.get("rope_theta")
    changes, longest = rope.scaling(base, section(**values))  # as a script of one's own sets them
    set_ = {**(base.get("rope_scaling") or {}), **changes}
    assert ({key: value for key, value in set_.items() if value is not None}, longest) == (parameters, stated)


@pytest.mark.parametrize(
    ("base", "values", "said"),
    [
        (PLAIN, {"factor": 4.0}, "rope.factor says nothing without rope.rope_type"),
        (PLAIN, {"rope_type": "yarn"}, "needs rope.factor"),
        (PLAIN, {"rope_type": "linear", "factor": 4.0, "beta_fast": 16.0}, "rope.beta_fast says nothing about linear"),
        (PLAIN, {**YARN, "original_max_position_embeddings": 1024}, "1024 contradicts the base, which was trained with a context of 512"),
        (PLAIN, {**YARN, "original_max_position_embeddings": 16}, "16 contradicts the base"),
        ({**PLAIN, "max_position_embeddings": 640}, {**YARN, "factor": 1.1, "original_max_position_embeddings": 512}, "no more than the 640"),
        (PLAIN, {"rope_type": "longrope", "factor": 4.0}, "which this base does not bring"),
        (PLAIN, {"rope_type": "longrope", "factor": 4.0, "long_factor": [1.0]}, "are given together"),
        (PLAIN, {"rope_type": "longrope", "factor": 4.0, "long_factor": [0.0], "short_factor": [1.0]}, "positive"),
        (PLAIN, {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 4.0}, "no less than rope.high_freq_factor"),
        (PLAIN, {**YARN, "beta_slow": 40.0}, "rope.beta_slow is no less"),
        (LLAMA_3, YARN, "yarn contradicts the base, whose positions are scaled by llama3 x 8 already"),
        (LLAMA_3, {"rope_type": "llama3", "factor": 8.0}, "factor=8 contradicts the base, whose positions are scaled by 8 already"),
        (LLAMA_3, {"rope_type": "llama3", "factor": 16.0, "high_freq_factor": 2.0}, "whose own is 4.0"),
        (LLAMA_3, {"rope_type": "llama3", "factor": 16.0, "original_max_position_embeddings": 512}, "whose own is 256"),
        (PHI_3, YARN, "scaled by longrope x 4 already"),
        ({**PLAIN, "rope_parameters": {"rope_type": "proportional", "factor": 2.0}}, YARN, "scaled by proportional already"),
        (ALIBI, YARN, "ALiBi"),
        ({**PLAIN, "max_position_embeddings": 1_000_000}, {**YARN, "factor": 100.0}, "100,000,000 tokens"),
    ],
)  # fmt: skip
def test_a_section_that_contradicts_the_base_is_refused_and_the_named_change_mends_it(
    base: dict[str, Any], values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        rope.scaled(base, section(**values))
    for _ in range(4):
        found = rope.problems(section(**values), base)
        values = {**values, **{key.removeprefix("rope."): value for one in found for key, value in one.change.items()}}
    assert found == []


def test_a_base_that_does_not_say_its_context_asks_for_it() -> None:
    silent = {key: value for key, value in PLAIN.items() if key not in ("max_position_embeddings", "model_type")}  # no class to ask
    (problem,) = rope.problems(section(**YARN), silent)
    assert "rope.original_max_position_embeddings" in problem.advice and not problem.change
    assert rope.scaled(silent, section(**YARN, original_max_position_embeddings=512))["max_position_embeddings"] == 2048


def test_a_launch_counts_with_the_longer_context() -> None:
    asked = {"rope.rope_type": "yarn", "rope.factor": 4.0, "max_length": 2048}
    job = job_config.build(asked)
    assert conflicts(job, "cpu", PLAIN) == []
    assert "longer than the 2048 tokens" in str(conflicts(job_config.build({**asked, "max_length": 4096}), "cpu", PLAIN)[0])
    assert conflicts(job_config.build({"max_length": 2048}), "cpu", PLAIN)[0].change == {"max_length": 512}
    unset = {key: value for key, value in asked.items() if key != "max_length"}
    chosen = fitted(job_config.build({**unset, "max_length": 4096}), unset, PLAIN, 512, "m")
    assert chosen.config.max_length == 2048 and "2048 instead of 4096" in chosen.notices[0]
    long, short = (memory.predict(PLAIN, one, device="cpu", size=4).total for one in (job, job_config.build({"max_length": 512})))
    assert long > 1.5 * short
    refused = job_config.build({**asked, "rope.factor": 1.5, "rope.original_max_position_embeddings": 4096})
    assert memory.predict(PLAIN, refused, device="cpu", size=4).total > 0 and conflicts(refused, "cpu", PLAIN)


def folder_with(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


LONGER = {
    "llama": (PLAIN, YARN), "llama3": (LLAMA_3, {"rope_type": "llama3", "factor": 16.0}), "gemma3": (GEMMA_3, YARN),
    "deepseek": (DEEPSEEK, {"rope_type": "yarn", "factor": 8.0}),
    "phi3": (PHI_3, {"rope_type": "longrope", "factor": 8.0, "short_factor": [1.0] * 8, "long_factor": [8.0] * 8}),
    "dynamic": (PLAIN, {"rope_type": "dynamic", "factor": 4.0}), "linear": (PLAIN, {"rope_type": "linear", "factor": 4.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", LONGER)
def test_a_model_in_memory_takes_the_positions_that_a_fresh_one_would_have(tmp_path: Path, name: str) -> None:
    import torch

    base, values = LONGER[name]
    folder, wanted = folder_with(tmp_path, base), section(**values)

    def build(positions: RopeSection) -> Any:
        torch.manual_seed(0)
        family, config = text_models.family_of(text_models.config_of(folder, positions))
        return family._from_config(config, dtype=torch.float32).eval()

    fresh, other = build(wanted), build(RopeSection())
    ids = torch.arange(600)[None] % 64
    with torch.no_grad():
        right, before = fresh(input_ids=ids).logits, other(input_ids=ids).logits
        rotary.rescale(other, folder, wanted)
        after = other(input_ids=ids).logits
    assert torch.equal(after, right) and not torch.equal(before, right)
    assert other.config.max_position_embeddings == fresh.config.max_position_embeddings


def test_layers_that_see_a_window_only_keep_their_positions(tmp_path: Path) -> None:
    found = text_models.config_of(folder_with(tmp_path, GEMMA_3), section(**YARN)).rope_parameters
    assert found["full_attention"]["rope_type"] == "yarn" and found["full_attention"]["rope_theta"] == 1e6
    assert found["sliding_attention"] == {"rope_type": "default", "rope_theta": 1e4}
    nested = {**GEMMA_3, "rope_parameters": {**found, "full_attention": {"rope_type": "default", "rope_theta": 1e6}}}
    again = rope.scaled({key: value for key, value in nested.items() if key != "rope_theta"}, section(**YARN))["rope_parameters"]
    assert again == found


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({"model_type": "gpt2", "n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 64}, "no rotary positions"),
        pytest.param(
            {"model_type": "bloom", "hidden_size": 64, "n_head": 4, "n_layer": 2, "seq_length": 256, "vocab_size": 64},
            "no rotary positions",
            marks=pytest.mark.long,
        ),
        ({**SIZES, "model_type": "phi3", "max_position_embeddings": 512, "pad_token_id": 0}, "longrope"),  # its class takes nothing else
    ],
)
def test_a_base_that_can_take_no_scaling_is_refused_by_what_the_library_builds(tmp_path: Path, base: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        rotary.check_in_child(folder_with(tmp_path, base), section(**YARN))


def test_what_an_adapter_was_trained_with_stands_in_its_folder(tmp_path: Path) -> None:
    assert not rope.of_adapter(tmp_path).is_set and not rope.of_adapter(None).is_set
    (tmp_path / "studio.json").write_text(json.dumps({"rope": {"rope_type": "yarn", "factor": 4}}), encoding="utf-8")
    assert rope.described(rope.of_adapter(tmp_path)) == "yarn x 4"
    assert rope.context_beside(STATIC / "starter", tmp_path, 512) == 2048 and rope.context_beside(STATIC / "starter", None, 512) == 512
    for hostile in ({"rope_type": "code"}, {"factor": float("inf")}, {"factor": 4, "auto_map": "x"}, [1]):
        (tmp_path / "studio.json").write_text(json.dumps({"rope": hostile}), encoding="utf-8")
        with pytest.raises(ModelError, match=r"studio.json describes positions that can't be read"):
            rope.of_adapter(tmp_path)
