"""LoRAs side by side in one pass: every row says what peft says with its adapter alone, in as many operations whatever their number."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from studio.engine import local
from studio.engine.decoding import Batch, Passes
from studio.engine.protocol import AdapterRef, ModelFolder
from studio.engine.slots import Slots
from tests.serving_stages import answer, write

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft asks transformers by the old name
    pytest.mark.filterwarnings("ignore:Could not find a config file.*:UserWarning"),
    pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning"),  # of biases that can't be merged
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings=True.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False.*:UserWarning"),
]
BATCHES = int(os.environ.get("STUDIO_BATCHES", "30"))  # `make chaos`: a thousand
SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
LLAMA = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
ENDLESS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**LLAMA, "tie_word_embeddings": False}),
    "tied": ("LlamaConfig", {**LLAMA, "tie_word_embeddings": True}),
    "gpt2": ("GPT2Config", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),  # Conv1D
    "phi3": ("Phi3Config", LLAMA),  # fused projections
    "gemma3": ("Gemma3TextConfig", {**LLAMA, "head_dim": 8}),  # scaled embeddings
}
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "head and embeddings": ("llama", [{"target_modules": ["lm_head", "embed_tokens"], "r": 3}, {"target_modules": ["embed_tokens"], "r": 8}]),
    "tied head": ("tied", [{"target_modules": ["lm_head", "q_proj"], "r": 4}, {"target_modules": EVERY, "r": 2}]),
    "Conv1D": ("gpt2", [{"target_modules": ["c_attn"], "r": 4, "fan_in_fan_out": True}, {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 9}]),
    "fused": ("phi3", [{"target_modules": ["qkv_proj", "gate_up_proj"], "r": 4}, {"target_modules": "all-linear", "r": 2}]),
    "scaled embeddings": ("gemma3", [{"target_modules": ["embed_tokens", "v_proj"], "r": 4}, {"target_modules": EVERY, "r": 4}]),
    "bias": ("llama", [{"target_modules": EVERY, "r": 4, "lora_bias": True}, {"target_modules": ["q_proj"], "r": 5}]),
    "scalings": ("llama", [{"target_modules": EVERY, "r": 4, "use_rslora": True, "lora_alpha": 7},
                           {"target_modules": EVERY, "r": 4, "rank_pattern": {"q_proj": 11}, "alpha_pattern": {"up_proj": 3}}]),
}  # fmt: skip


def build(family: str) -> Any:
    torch.manual_seed(7)
    name, values = FAMILIES[family]
    model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**values, **ENDLESS)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)  # so that a wrong step shows
    return model.requires_grad_(False)


def adapter(family: str, target: Path, seed: int, **options: Any) -> Any:
    """An adapter as peft saves it, random and strong, and peft's own model of it."""
    made = peft.get_peft_model(build(family), peft.LoraConfig(task_type="CAUSAL_LM", **options))
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (weight for weight in made.parameters() if weight.requires_grad):
            weight.add_(torch.randn(weight.shape, generator=chance) * 0.3 / weight.shape[-1] ** 0.5)
    made.save_pretrained(target, save_embedding_layers=False)
    return made.eval()


def loaded(family: str, folder: Path, dtype: torch.dtype = torch.float32) -> local.LocalModel:
    model = build(family).to(dtype)
    model.config.save_pretrained(folder)
    return local.LocalModel(ModelFolder(family, folder), model, (), 10**9)


@pytest.mark.parametrize("case", CASES)
def test_rows_of_two_adapters_and_the_base_have_pefts_own_logits(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    theirs = [adapter(family, tmp_path / f"a{n}", n, **each) for n, each in enumerate(options)]
    model = loaded(family, tmp_path)
    attached = [model.attach(AdapterRef(f"a{n}", tmp_path / f"a{n}")) for n in range(2)]
    assert all(each.is_mixable and each.effect > 0.01 and not each.idle for each in attached)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [40, 41, 42, 43, 44, 45], [3, 60, 61, 62, 63, 64], [1, 9, 17, 25, 33, 41]])
    first, second = (each.key for each in attached)
    expected = [each(ids).logits for each in (build(family), *theirs)]
    for which in ([2, 0, 1, 2], [1] * 4, [0, 2, 0, 0], [1, 2, 0, 1] * 3):  # some of them with a block for each row, some with one for all
        keys = [[None, first, second][number] for number in which]
        rows = ids.repeat(len(which) // 4, 1)
        mask = torch.ones_like(rows)
        found = model.forward(rows, mask, mask.cumsum(1) - 1, model.new_cache(), keys, ids.shape[1])
        wanted = torch.stack([expected[number][row % 4] for row, number in enumerate(which)])
        assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


def test_layers_that_are_not_computed_here_go_pefts_own_way() -> None:
    class Toy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.line = torch.nn.Conv1d(4, 4, 3, padding=1), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.line(self.conv(x.mT).mT)

    torch.manual_seed(1)
    model = peft.get_peft_model(Toy(), peft.LoraConfig(target_modules=["conv", "line"], init_lora_weights=False), adapter_name="first")
    model.add_adapter("second", peft.LoraConfig(target_modules=["conv"], init_lora_weights=False))
    model.add_adapter("third", peft.LoraConfig(target_modules=["line"], init_lora_weights=False, use_dora=True))
    x = torch.randn(4, 5, 4)
    names = ["second", "__base__", "first", "second"]
    with torch.inference_mode():
        mixed = model.eval()(x, adapter_names=names)
        model.set_adapter("third")
        alone = model(x)
        slots = Slots()
        for key in ("first", "second", "third"):
            slots.take(model, key, torch.float32)
        slots.compose(["second", None, "first", "second"], 5)
        assert torch.allclose(model.get_base_model()(x), mixed, atol=1e-5)
        slots.compose(["third"] * 4, 5)
        assert torch.allclose(model.get_base_model()(x), alone, atol=1e-5)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> tuple[local.LocalModel, list[str | None]]:
    """The base, eight LoRAs of ranks 1 to 64, and a DoRA, with their keys."""
    folder = tmp_path_factory.mktemp("crowd")
    model, keys = loaded("llama", folder), list[str | None]([None])
    for seed, rank in enumerate((1, 2, 4, 8, 16, 33, 48, 64, 4)):
        targets: Sequence[str] = EVERY[: 2 + seed]
        adapter("llama", folder / f"a{seed}", seed, r=rank, target_modules=targets, use_dora=seed == 8)
        attached = model.attach(AdapterRef(f"a{seed}", folder / f"a{seed}"))
        assert attached.is_mixable is (seed < 8)
        keys.append(attached.key)
    return model, keys


def test_random_mixed_batches_say_what_each_row_says_alone(crowd: tuple[local.LocalModel, list[str | None]]) -> None:
    model, keys = crowd
    chance = random.Random(11)
    pool = [tuple(chance.randrange(96) for _ in range(chance.randrange(1, 40))) for _ in range(3 + BATCHES // 40)]
    alone: dict[Any, list[int]] = {}
    for number in range(BATCHES):
        rows = [(chance.choice(pool), chance.choice(keys)) for _ in range(chance.randrange(2, 9))]
        passes, made = Passes(model), [answer(ids) for ids, _ in rows]
        waiting = list(range(len(rows)))
        while waiting or passes.answers:
            some = [waiting.pop(0) for _ in range(min(len(waiting), chance.choice((0, 1, 4))))]
            if some:
                passes.join([made[row] for row in some], [rows[row][1] for row in some])
            passes.step()
        for row, said in zip(rows, made, strict=True):
            if row not in alone:
                alone[row] = write(model, [row])[0][0]
            assert said.ids == alone[row], f"batch {number}: {row}"
    assert len({tuple(said) for said in alone.values()}) > len(alone) / 2


def test_an_adapter_that_comes_or_goes_changes_nothing_for_rows_in_the_making(
    crowd: tuple[local.LocalModel, list[str | None]], tmp_path: Path
) -> None:
    model, keys = crowd
    rows = [(list(range(5, 20)), keys[1]), ([7, 8], keys[8]), ([3, 1, 4, 1, 5], None)]
    expected = write(model, rows)[0]
    batch, made = Batch(model), [answer(ids) for ids, _ in rows]
    batch.join(made, [key for _, key in rows])
    batch.step()
    adapter("llama", tmp_path / "new", 99, r=5, target_modules=["lm_head", "q_proj"])
    new = model.attach(AdapterRef("new", tmp_path / "new"), in_use=[str(key) for key in keys[1:]])
    batch.step()
    model.attached.pop(next(identity for identity, each in model.attached.items() if each is new))
    model._forget(new)
    while batch.answers:
        batch.step()
    assert [each.ids for each in made] == expected


class Count(TorchDispatchMode):
    """Operations that compute or copy."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_with_many_adapters_takes_hardly_more_operations_than_the_base(dtype: torch.dtype, tmp_path: Path) -> None:
    model = loaded("llama", tmp_path, dtype)
    keys = []
    for seed in range(8):
        adapter("llama", tmp_path / f"a{seed}", seed, r=4, target_modules=EVERY)
        keys.append(model.attach(AdapterRef(f"a{seed}", tmp_path / f"a{seed}")).key)
    assert model.adapter_bytes == 8 * sum(p.numel() for n, p in model._peft.named_parameters() if f".{keys[0]}." in n) * dtype.itemsize
    assert {p.dtype for n, p in model._peft.named_parameters() if "lora_" in n} == {dtype}
    taken = {}
    for name, adapters in {"base": [None] * 8, "one": keys[:1] * 8, "two": [*keys[:2]] * 4, "eight": keys}.items():
        batch = Batch(model)
        batch.join([answer([5, 6, 7]) for _ in adapters], adapters)
        batch.step()
        with Count() as count:
            batch.step()
        taken[name] = count.operations
    assert taken["one"] <= taken["eight"] <= taken["two"] <= 1.6 * taken["base"], taken
