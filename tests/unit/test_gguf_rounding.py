"""What rounding did to a GGUF file is told from what it must not do; importance is what a layer sees; ties of routers are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

from jobs.exporters import gguf_rounding, importance, proof
from jobs.exporters.gguf_tensors import as_llama_cpp, named, rows, stored_kind, text_config
from studio.catalogue.gguf import FAMILIES
from studio.errors import ModelError
from studio.records import RoundingProof

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def written(path: Path, tensors: dict[str, np.ndarray[Any, Any]], kind: Kind = Kind.F16) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, values in tensors.items():
        stored = values.astype(np.float16) if kind is Kind.F16 else quantize(values, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def weights(seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(8, 64)).astype(np.float32)


def test_a_rounded_file_passes_and_one_with_other_tensors_does_not(tmp_path: Path) -> None:
    first, second = weights(1), weights(2)
    source = written(tmp_path / "f16.gguf", {"a": first, "b": second})
    good = gguf_rounding.compare(source, written(tmp_path / "good.gguf", {"a": first, "b": second}, Kind.Q8_0), {"a": first[0]})
    assert good.passed and good.tensors == {"Q8_0": 2} and good.importance == 1 and 0.001 < good.worst_error < 0.01
    swapped = gguf_rounding.compare(source, written(tmp_path / "swapped.gguf", {"a": first, "b": first}, Kind.Q8_0), {})
    assert not swapped.passed and swapped.worst_tensor == "b" and "b is off by" in swapped.reason and swapped.worst_error > 1
    scaled = gguf_rounding.compare(source, written(tmp_path / "scaled.gguf", {"a": first * 1.05, "b": second}, Kind.Q8_0), {})
    assert not scaled.passed and scaled.worst_tensor == "a"
    lost = gguf_rounding.compare(source, written(tmp_path / "lost.gguf", {"a": first}, Kind.Q8_0), {})
    assert not lost.passed and lost.reason == "Tensors came or went: b."


def test_types_that_a_k_quant_should_not_have_are_named() -> None:
    values: dict[str, Any] = {"worst_error": 0.1, "worst_tensor": "a", "importance": 0, "passed": True, "reason": ""}
    assert gguf_rounding.fallbacks(RoundingProof(tensors={"Q4_K": 9, "Q6_K": 3, "F32": 4}, **values), "q4_k_m") == []
    (said,) = gguf_rounding.fallbacks(RoundingProof(tensors={"Q5_0": 9, "F32": 4, "Q8_0": 1}, **values), "q4_k_m")
    assert "9 as Q5_0, 1 as Q8_0" in said and "multiple of 256" in said


def test_importance_is_the_mean_square_of_what_a_layer_sees() -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))
    seen: list[torch.Tensor] = []
    handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].detach()))
    found = importance.collect(model, FAMILIES["LlamaForCausalLM"], text_config(model), [[1, 2, 3], [4, 5], []])
    handle.remove()
    assert set(found) == {
        f"blk.0.{part}.weight" for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    expected = torch.cat(seen).square().mean(0)
    assert torch.cat(seen).shape == (5, 64)
    assert found["blk.0.ffn_down.weight"] == pytest.approx(expected.numpy(), rel=1e-5)
    assert not model.model.layers[0].mlp.down_proj._forward_pre_hooks
    assert importance.collect(model, FAMILIES["LlamaForCausalLM"], text_config(model), []) == {}


def test_importance_counts_each_expert_by_the_tokens_that_reach_it() -> None:
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=1))
    experts = model.model.layers[0].mlp.experts
    seen: list[Any] = []
    handle = experts.register_forward_pre_hook(lambda _, given: seen.append((given[0].detach(), given[1])))
    found = importance.collect(model, FAMILIES["MixtralForCausalLM"], text_config(model), [[1, 2, 3, 4]])
    handle.remove()
    ((hidden, chosen),) = seen
    for expert in range(4):
        own = hidden[(chosen == expert).any(-1)]
        expected = own.square().mean(0).numpy() if len(own) else np.ones(32)  # no token reached it: all inputs alike
        for part in ("ffn_gate_exps", "ffn_up_exps"):
            assert found[f"blk.0.{part}.weight"].reshape(4, 32)[expert] == pytest.approx(expected, rel=1e-4)
    assert found["blk.0.ffn_down_exps.weight"].shape == (4 * 64,)
    assert len(set(chosen.flatten().tolist())) < 4  # one was not reached, or the second case above is not looked at


def test_fused_experts_come_apart_and_tensors_without_a_place_are_refused() -> None:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2))
    family, config = FAMILIES["MixtralForCausalLM"], text_config(model)
    found, fused = named(model, family, config), model.model.layers[0].mlp.experts
    assert torch.equal(torch.cat([found["blk.0.ffn_gate_exps.weight"], found["blk.0.ffn_up_exps.weight"]], dim=1), fused.gate_up_proj)
    assert torch.equal(found["blk.0.ffn_down_exps.weight"], fused.down_proj)
    assert stored_kind("blk.0.ffn_gate_exps.weight", (4, 64, 32), "q8_0", set()) is Kind.Q8_0
    assert stored_kind("blk.0.ffn_gate_exps.weight", (4, 64, 33), "q8_0", set()) is Kind.F16
    assert stored_kind("blk.0.ffn_gate_inp.weight", (4, 32), "q8_0", {"blk.0.ffn_gate_inp.weight"}) is Kind.F32
    fused.gate_up_proj = torch.nn.Parameter(fused.gate_up_proj.transpose(1, 2))
    with pytest.raises(ModelError, match="another order"):
        named(model, family, config)
    with pytest.raises(ModelError, match="no place for the tensor"):
        named(model.model.layers[0].self_attn, family, config)  # names of another model


def test_rows_of_heads_are_ordered_back_and_offsets_are_added() -> None:
    family, config = FAMILIES["GraniteForCausalLM"], {"num_attention_heads": 4, "num_key_value_heads": 2}
    value = np.arange(32 * 3, dtype=np.float32).reshape(32, 3)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight"):
        turned = rows(name, value, family, config)
        assert not np.array_equal(turned, value) and np.array_equal(rows(name, turned, family, config, back=True), value)
    assert np.array_equal(rows("blk.0.attn_q.weight", value, FAMILIES["Qwen3ForCausalLM"], config), value)
    gemma = FAMILIES["Gemma2ForCausalLM"]
    assert as_llama_cpp("blk.0.attn_norm.weight", np.zeros(3, np.float32), gemma, config).tolist() == [1.0, 1.0, 1.0]
    assert as_llama_cpp("blk.0.attn_q.weight", np.zeros(3, np.float32), gemma, config).tolist() == [0.0, 0.0, 0.0]


def judged(off: list[float], ties: list[bool], behind: list[bool]) -> Any:
    logits = torch.tensor([[10.0, 0.0]] * len(off))
    known = proof.Reference(
        [[1]], proof.Behaviour([[0] * len(off)], [logits]), torch.ones(len(off)), torch.tensor(ties), torch.tensor(behind)
    )
    moved = logits + torch.tensor([[0.0, share] for share in off])
    return proof.judge(known, proof.Behaviour([[0] * len(off)], [moved]), same_ids=True)


def test_positions_near_a_tie_of_a_router_are_left_out_and_counted() -> None:
    quiet = [0.01] * 7
    near = judged([*quiet, 0.9], [False] * 7 + [True], [False] * 8)
    assert near.passed and near.router_ties == 1 and near.worst_share == pytest.approx(0.01)
    elsewhere = judged([*quiet, 0.9], [True] + [False] * 7, [False] * 8)
    assert not elsewhere.passed and elsewhere.router_ties == 0 and elsewhere.worst_share == pytest.approx(0.9)
    behind = [False] * 7 + [True]
    assert judged([*quiet, 0.15], [False] * 8, behind).router_ties == 1
    assert not judged([*quiet, 0.25], [False] * 8, behind).passed  # further off than a tie before it explains
    many = judged([0.01] * 5 + [0.9] * 3, [True] * 8, [True] * 8)
    assert not many.passed and many.router_ties == 0  # too many to be left out


def test_what_none_reads_is_neither_passed_nor_failed() -> None:
    found = proof.unproved(4, ["No reader.", ""])
    assert found.passed is None and found.reason == "No reader." and found.prompts == 4
    assert set(found.model_dump(exclude_none=True)) == {"prompts", "reason", "notes"}
