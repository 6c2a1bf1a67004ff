"""Base and adapters in one message on models whose rows can't all share a batch: each says what transformers' and peft's generate say."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from studio.engine import adapting, local
from studio.engine.protocol import AdapterRef, ModelFolder
from studio.engine.stepping import BY_ROW, ON_OWN_STATES, ON_STATES, TOGETHER, WHOLE, Way
from studio.errors import ModelError
from tests.serving_stages import generated, write

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),  # peft asks transformers by the old name
    pytest.mark.filterwarnings("ignore:Could not find a config file.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match any targeted module.*:RuntimeWarning"),  # peft's own patterns
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False.*:UserWarning"),
]
VOCABULARY = 128
PROMPTS = ([5, 6, 7, 8, 9, 10, 11], [40, 41], list(range(60, 80)))
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**SMALL, "intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 256}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


class Family(NamedTuple):
    """A configuration, how it is read, and the targets of two LoRAs on it."""

    config: str
    values: dict[str, Any]
    way: Way
    targets: tuple[Any, Any]
    batches: int  # of a message to the base and the two adapters


FAMILIES = {
    "llama": Family("LlamaConfig", LLAMA, TOGETHER, ("all-linear", ["q_proj"]), 1),
    # these flatten rows and columns before a layer
    "opt": Family("OPTConfig", {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 256}, TOGETHER,
                  ("all-linear", ["fc1"]), 1),
    "qwen2_moe": Family("Qwen2MoeConfig", {**LLAMA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32}, TOGETHER,
                        ("all-linear", ["up_proj"]), 1),
    "mpt": Family("MptConfig", {"vocab_size": VOCABULARY, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}, TOGETHER,
                  ("all-linear", ["Wqkv"]), 1),
    # peft turns the names of experts into fused parameters, which take one adapter at a time
    "mixtral": Family("MixtralConfig", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}, TOGETHER,
                      ("all-linear", ["q_proj", "w1", "w2", "w3"]), 3),
    "lfm2": Family("Lfm2Config", {**LLAMA, "layer_types": ["conv", "full_attention"]}, ON_STATES, ("all-linear", ["q_proj"]), 3),
    "mamba": Family("MambaConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}, ON_STATES,
                    (["in_proj"], ["x_proj"]), 3),
    # a cache of a class of its own; without it, texts longer than a chunk can't be read in 16 bits
    "xlstm": Family("xLSTMConfig", {"vocab_size": VOCABULARY, "hidden_size": 128, "num_blocks": 2, "num_heads": 2, "chunk_size": 16},
                    ON_OWN_STATES, ("all-linear", ["q"]), 3),
    # keeps what it read in its own modules, so that two texts at a time would disturb each other
    "recurrent_gemma": Family("RecurrentGemmaConfig", {**SMALL, "intermediate_size": 64, "num_hidden_layers": 3, "lru_width": 32,
                              "attention_window_size": 16}, WHOLE, ("all-linear", ["q_proj"]), 3),
    "gpt": Family("OpenAIGPTConfig", {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}, WHOLE,
                  ("all-linear", ["c_fc", "c_proj"]), 3),
}  # fmt: skip


def build(family: Family) -> Any:
    torch.manual_seed(7)
    config = getattr(transformers, family.config)(**family.values, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)  # so that a wrong step shows
    return model.requires_grad_(False)


def loaded(name: str, model: Any, folder: Path) -> local.LocalModel:
    model.config.save_pretrained(folder)
    return local.LocalModel(ModelFolder(name, folder), model, (), 10**9)


def adapter(family: Family, targets: Any, target: Path, seed: int) -> Any:
    """A LoRA as peft saves it, random and strong, and peft's own model of it."""
    made = peft.get_peft_model(build(family), peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in (weight for weight in made.parameters() if weight.requires_grad):
            weight.add_(torch.randn(weight.shape, generator=random) * 0.2)
    made.save_pretrained(target)
    return made.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_base_and_two_adapters_say_together_what_each_says_alone(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = loaded(name, build(family), tmp_path)
    assert model._steps.way == family.way
    theirs = [build(family), *(adapter(family, targets, tmp_path / f"a{n}", n) for n, targets in enumerate(family.targets))]
    expected = [[generated(each, ids) for ids in PROMPTS] for each in theirs]
    assert write(model, [(ids, None) for ids in PROMPTS], one_by_one=True)[0] == expected[0]
    attached = [model.attach(AdapterRef(f"a{n}", tmp_path / f"a{n}")) for n in range(2)]
    keys = [None, *(each.key for each in attached)]
    said, _ = write(model, [(ids, key) for key in keys for ids in PROMPTS])
    assert said == [ids for each in expected for ids in each] and len({tuple(one) for one in said[:: len(PROMPTS)]}) == 3
    assert write(model, [(PROMPTS[0], key) for key in keys])[1] == family.batches
    assert write(model, [(PROMPTS[0], None)])[0] == [expected[0][0]]  # the base is what it was
    assert all(model._base.get_parameter(n) is p for n, p in model._base.named_parameters())
    told = [*model.notes, *(note for each in attached for note in each.notes)]
    assert (family.batches > 1) == any("pass of its own" in note or "whole text" in note for note in told)
    shared = {id(weight) for weight in model._base.parameters()}
    trees = [each.tree for each in attached if each.tree] or [model._peft]
    for tree in trees:  # one copy of the base, whatever hangs on it
        own = [weight for name, weight in tree.named_parameters() if "lora_" not in name]
        assert own and all(id(weight) in shared for weight in own)


def test_a_model_that_padding_disturbs_is_read_row_by_row(tmp_path: Path) -> None:
    # red when padded rows are not asked about: the answers of such a model would silently be others
    inner = build(FAMILIES["llama"])
    usual = inner.forward

    @functools.wraps(usual)  # whose arguments are asked for
    def disturbed(*args: Any, attention_mask: Any = None, **more: Any) -> Any:
        found = usual(*args, attention_mask=attention_mask, **more)
        if attention_mask is not None:
            found.logits[..., 3] += 10 * (attention_mask == 0).sum()
        return found

    inner.forward = disturbed
    model = loaded("m", inner, tmp_path)
    assert model._steps.way == BY_ROW and "can't be padded" in model.notes[0]
    assert write(model, [(ids, None) for ids in PROMPTS]) == ([generated(build(FAMILIES["llama"]), ids) for ids in PROMPTS], 3)


def test_an_adapter_that_peft_cannot_run_is_refused_in_one_line(tmp_path: Path) -> None:
    family = Family("PhimoeConfig", {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}, TOGETHER, ("all-linear", []), 1)
    adapter(family, "all-linear", tmp_path / "a", 1)
    model = loaded("phi", build(family), tmp_path)
    with pytest.raises(ModelError, match="peft can't run adapter a on phi"):
        model.attach(AdapterRef("a", tmp_path / "a"))
    assert model.attached == {} and write(model, [(PROMPTS[0], None)])[0] == [generated(build(family), PROMPTS[0])]


def test_weights_that_the_file_lacks_are_counted(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    family = FAMILIES["llama"]
    adapter(family, ["q_proj", "up_proj"], tmp_path / "a", 1)
    state = load_file(tmp_path / "a" / "adapter_model.safetensors")
    save_file({name: tensor for name, tensor in state.items() if "up_proj" not in name}, tmp_path / "a" / adapting.WEIGHTS)
    attached = loaded("m", build(family), tmp_path).attach(AdapterRef("a", tmp_path / "a"))
    assert attached.idle == 4 and "lacks 4 of the tensors" in attached.notes[0]
