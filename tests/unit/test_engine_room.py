"""How many adapters one base keeps in memory, and which of them leave first. No weights are computed with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from studio.catalogue import rope
from studio.engine import adapting, loading
from studio.engine.adapting import Attached
from studio.engine.local import LocalModel
from studio.engine.protocol import AdapterRef, ModelFolder
from studio.engine.speculation import Assistant
from studio.errors import ModelError

SHAPE = LlamaConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    tie_word_embeddings=False,
)  # fmt: skip


def model(tmp_path: Path, budget: int, dtype: torch.dtype = torch.float32, quantization: str = "") -> LocalModel:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    base = LlamaForCausalLM(SHAPE).to(dtype).eval()
    return LocalModel(ModelFolder("base", tmp_path, quantization), base, ("base",), budget)


def fill(made: LocalModel, *sizes: int) -> None:
    for size in sizes:
        number = len(made.attached)
        one = Attached(f"adapter_{number}", f"a{number}", "IA3", size)
        made.attached[one.key,] = made._by_key[one.key] = one


def test_the_oldest_adapter_that_nobody_uses_makes_room(tmp_path: Path) -> None:
    made = model(tmp_path, budget=100)
    fill(made, 40, 30, 20)
    assert (made.adapter_bytes, made.adapter_names, made.lead("adapter_0"), made.lead(None)) == (90, ["a0", "a1", "a2"], 0, 0)
    made._make_room(10, [])
    assert made.adapter_names == ["a0", "a1", "a2"], "just enough"
    made._make_room(11, ["adapter_0"])
    assert made.adapter_names == ["a0", "a2"] and "adapter_1" not in made._by_key
    made._make_room(90, ["adapter_0", "adapter_2"])
    assert made.adapter_names == ["a0", "a2"], "those in use stay, whatever is asked"
    made._make_room(1000, [])
    assert made.adapter_names == []


def test_a_base_keeps_256_adapters_however_small(tmp_path: Path) -> None:
    made = model(tmp_path, budget=10**9)
    fill(made, *[1] * 255)
    made._make_room(1, [])
    assert len(made.attached) == 255
    fill(made, 1)
    made._make_room(1, ["adapter_0"])
    assert len(made.attached) == 255 and made.adapter_names[:2] == ["a0", "a2"]


def test_a_base_is_exact_where_it_is_computed_in_float32(tmp_path: Path) -> None:
    whole, half = model(tmp_path, 1), model(tmp_path, 1, torch.bfloat16)
    assert (whole.is_exact, half.is_exact, model(tmp_path, 1, quantization="nf4").is_exact) == (True, False, False)
    ends, attention, mlp, norms = 2 * 8 * 8, 8 * 8 + 2 * 4 * 8 + 8 * 8, 3 * 8 * 8, 3 * 8
    weights = ends + attention + mlp + norms
    assert (whole.bytes, half.bytes) == (weights * 4, weights * 2)


def test_adapters_of_other_kinds_are_computed_in_the_bases_precision(tmp_path: Path) -> None:
    half = model(tmp_path, 1, torch.bfloat16)
    fill(half, 1)
    with half._casting("adapter_0"):
        assert torch.is_autocast_enabled("cpu")
    half._by_key["adapter_0"].is_shared = True
    for made, key in ((half, "adapter_0"), (half, None)):
        with made._casting(key):
            assert not torch.is_autocast_enabled("cpu")
    whole = model(tmp_path, 1)
    fill(whole, 1)
    with whole._casting("adapter_0"):
        assert not torch.is_autocast_enabled("cpu")


def test_rows_share_a_batch_where_every_adapter_can_be_told_apart(tmp_path: Path) -> None:
    made = model(tmp_path, 1)
    fill(made, 1, 1)
    made._by_key["adapter_0"].is_mixable = True
    pairs = [
        (None, None),
        ("adapter_0", None),
        (None, "adapter_0"),
        ("adapter_1", None),
        ("adapter_0", "adapter_1"),
        ("adapter_1", "adapter_1"),
    ]
    assert [made.shares_batch(*pair) for pair in pairs] == [True, True, True, False, False, True]
    made._by_key["adapter_0"].positions, made._by_key["adapter_0"].follows_length = "dynamic by 4", True
    assert not made.shares_batch("adapter_0", "adapter_0") and made.follows_length("adapter_0") and not made.follows_length(None)
    made._follows_length = True
    assert not made.shares_batch(None, None) and made.follows_length("adapter_1") and made.follows_length("adapter_0")


def test_matrices_of_another_width_are_named() -> None:
    base = torch.nn.ModuleDict({"q": torch.nn.Linear(4, 6), "norm": torch.nn.LayerNorm(4)})
    assert adapting._misfit("base_model.model.q.lora_A.weight", [2, 4], base) == ""
    assert adapting._misfit("base_model.model.q.lora_B.weight", [6, 2], base) == ""
    assert adapting._misfit("base_model.model.q.lora_A.weight", [2, 5], base) == "its lora_A of q is 5 wide, the base's layer 4"
    assert adapting._misfit("base_model.model.q.lora_B.weight", [5, 2], base) == "its lora_B of q is 5 wide, the base's layer 6"
    for name, shape in (("q.lora_A.weight", [2]), ("k.lora_A.weight", [2, 9]), ("norm.lora_A.weight", [2, 9]), ("q.weight", [9, 9])):
        assert adapting._misfit(f"base_model.model.{name}", shape, base) == ""


def test_a_smaller_model_drafts_as_many_tokens_as_are_wanted(tmp_path: Path) -> None:
    torch.manual_seed(1)
    made = model(tmp_path, 1)
    ids = [1, 2, 3]
    expected: list[int] = []
    with torch.inference_mode():
        for _ in range(4):
            logits = made._base(torch.tensor([[*ids, *expected]])).logits
            expected.append(int(logits[0, -1].argmax()))
    for limit in (1, 0, 3, 2):
        assert Assistant(made).propose(ids, limit) == expected[:limit]
    drafting = Assistant(made)
    assert drafting.propose(ids, 2) == expected[:2]
    assert drafting.propose([*ids, expected[0]], 2) == expected[1:3], "goes on from what it has read"
    assert drafting.propose(ids, 1) == expected[:1], "and forgets what was not taken"


def test_an_adapter_is_another_when_one_of_its_files_is_made_anew(tmp_path: Path) -> None:
    ref = AdapterRef("mine", tmp_path, "abc")
    config = tmp_path / "adapter_config.json"

    def identity() -> tuple[object, ...]:
        said, found = adapting.adapter_facts(ref)
        assert said == {"peft_type": "LORA"}
        return found

    with pytest.raises(ModelError, match="Adapter mine has no adapter_model"):
        adapting.adapter_facts(ref)
    (tmp_path / adapting.WEIGHTS).write_bytes(b"weights")
    for content in ("{}", '{"peft_type": 1}'):
        config.write_text(content)
        with pytest.raises(ModelError, match="names no peft_type"):
            adapting.adapter_facts(ref)
    config.write_text('{"peft_type": "LORA"}')
    seen = [identity()]
    assert identity() == seen[0]
    (tmp_path / adapting.WEIGHTS).write_bytes(b"others!!")
    seen.append(identity())
    (tmp_path / rope.CARD).write_text("{}")
    seen.append(identity())
    os.utime(config, ns=(1, 1))
    seen.append(identity())
    assert len(set(seen)) == 4


@pytest.mark.parametrize(
    ("billions", "said"),
    [
        (3, r"in 4-bit \(NF4\) or 8-bit it would fit"),
        (7, r"in 4-bit \(NF4\) it would fit"),
        (30, "at most 2.5 billion parameters in 16 bit"),
    ],
)
def test_a_model_that_does_not_fit_says_what_would(tmp_path: Path, billions: int, said: str) -> None:
    facts: Any = SimpleNamespace(parameters=billions * 10**9)
    with pytest.raises(MemoryError, match=said):
        loading.check_memory(ModelFolder("base", tmp_path), facts, torch.bfloat16, torch.device("cpu"), most=5 * 10**9)


def test_a_model_that_just_fits_is_not_refused(tmp_path: Path) -> None:
    facts: Any = SimpleNamespace(parameters=10**6)
    loading.check_memory(ModelFolder("base", tmp_path), facts, torch.bfloat16, torch.device("cpu"), most=2 * 10**6)
