"""A base whose folder lacks a weight that its architecture needs is refused, by name; a whole one never is."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import GPT2Config, LlamaConfig, MixtralConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from studio.catalogue import keys, probes
from studio.catalogue.models import inspect_folder
from studio.errors import ModelError
from studio.services import Studio
from studio.settings import STATIC, Settings

STARTER = STATIC / "starter"
SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, PreTrainedConfig] = {
    "tied": LlamaConfig(**SMALL, tie_word_embeddings=True),
    "untied": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "experts": MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2),  # stored one by one, loaded as one tensor
    "fused": GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=32),
}
SHARDED = "sharded"


def saved(name: str, place: Path) -> Path:
    torch.manual_seed(0)
    config = CONFIGS["untied" if name == SHARDED else name]
    model: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    model.save_pretrained(place / name, max_shard_size="8KB" if name == SHARDED else "1GB")
    few_words(64).save(str(place / name / "tokenizer.json"))
    return place / name


def few_words(count: int) -> Tokenizer:
    return Tokenizer(models.WordLevel({f"w{number}": number for number in range(count)}, "w0"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {name: saved(name, place) for name in (*CONFIGS, SHARDED)}


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    opened = Studio.open(settings)
    yield opened
    opened.db.dispose()


def change(folder: Path, target: Path, *gone: str, **more: torch.Tensor) -> Path:
    """A copy whose file lacks some tensors and holds others."""
    shutil.copytree(folder, target)
    weights = load_file(folder / "model.safetensors")
    for name in gone:
        del weights[name]
    save_file({**weights, **{name.replace("__", "."): tensor for name, tensor in more.items()}}, target / "model.safetensors")
    return target


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("name", [*CONFIGS, SHARDED, "starter"])
def test_a_whole_base_has_all_its_weights_and_no_others(bases: dict[str, Path], name: str) -> None:
    found = keys.compare(bases.get(name, STARTER))
    found.check(name)
    assert found.expected > 0 and found.note() == ""


@pytest.mark.parametrize("name", CONFIGS)
def test_every_single_tensor_is_missed(bases: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = keys.tensors
    stored = [tensor for tensor, _, _ in usual(bases[name] / "model.safetensors")]
    for gone in stored:
        monkeypatch.setattr(keys, "tensors", lambda file, gone=gone: (one for one in usual(file) if one[0] != gone))
        with pytest.raises(ModelError, match="lacks"):
            keys.compare(bases[name]).check(name)


def test_the_missing_tensor_is_named_with_the_number_of_all(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = change(bases["tied"], tmp_path / "tied", "model.embed_tokens.weight", "model.norm.weight")
    with pytest.raises(ModelError) as refusal:
        keys.compare(folder).check("mine")
    assert refusal.value.message == "mine lacks 2 of its 21 weights; the first is model.embed_tokens.weight."


def test_a_base_that_lacks_its_head_is_not_added(studio: Studio, bases: dict[str, Path], tmp_path: Path) -> None:
    folder = change(bases["untied"], tmp_path / "headless", "lm_head.weight")
    with pytest.raises(ModelError, match=r"lacks 1 of its 21 weights; the first is lm_head\.weight") as refusal:
        studio.models.add(folder)
    assert "Download the model again" in refusal.value.fix
    assert [model.name for model in studio.models.list()] == ["starter"]


def test_a_base_that_lacks_a_shard_is_refused_also_where_its_index_does_not_name_it(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases[SHARDED], tmp_path / "short")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    last = sorted(set(index["weight_map"].values()))[-1]
    gone = sorted(name for name, file in index["weight_map"].items() if file == last)
    (folder / last).unlink()
    assert last in inspect_folder(folder).reason
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != last}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert inspect_folder(folder).loadable
    assert sorted(keys.compare(folder).missing) == gone


def test_what_is_stored_and_not_used_is_named_when_the_base_is_added(studio: Studio, bases: dict[str, Path], tmp_path: Path) -> None:
    folder = change(bases["tied"], tmp_path / "more", vision__patch=torch.zeros(2), vision__bias=torch.zeros(2))
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    (here, files) = studio.models.add(folder).warnings
    assert here == "The model has no place for 2 stored weights, which are ignored: vision.bias, vision.patch."
    assert files == "1 safetensors files are no part of the model and are ignored: consolidated.safetensors."


def test_layers_that_the_config_does_not_count_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["untied"], tmp_path / "longer")
    change_config(folder, num_hidden_layers=1, layer_types=None)
    with pytest.raises(ModelError, match=r"holds 9 weights of layers .* the first is model\.layers\.1\."):
        keys.compare(folder).check("longer")


def test_weights_of_another_shape_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["untied"], tmp_path / "wider")
    change_config(folder, vocab_size=70)
    with pytest.raises(ModelError, match=r"holds 2 weights of another shape .*lm_head\.weight, 64 x 16 instead of 70 x 16"):
        keys.compare(folder).check("wider")


def test_a_config_with_more_layers_than_weights_starts_no_process(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(bases["untied"], tmp_path / "endless")
    change_config(folder, num_hidden_layers=10**9)
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ModelError, match="1,000,000,000 layers"):
        probes.of_folder(folder)


def test_a_config_that_can_not_be_built_is_refused_in_one_line(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["untied"], tmp_path / "odd")
    change_config(folder, hidden_size="wide")
    with pytest.raises(ModelError, match="describes a model that can't be built") as refusal:
        probes.of_folder(folder)
    assert "\n" not in str(refusal.value)


LIES = {
    "fewer layers": ({"num_hidden_layers": 1, "layer_types": None}, r"weights of layers that config\.json does not count"),
    "wider": ({"hidden_size": 32}, r"of another shape than config\.json asks for"),
    "more words": ({"vocab_size": 4096}, r"of another shape than config\.json asks for"),
    "absurd context": ({"max_position_embeddings": 10**30}, "context of 1e"),
    "absurd width": ({"intermediate_size": 10**30}, "can't be built"),
    "unknown kind": (
        {"model_type": "brandnew", "architectures": ["BrandNewForCausalLM"]},
        "BrandNewForCausalLM is no causal language model",
    ),
    "remote code alone": ({"model_type": "brandnew", "auto_map": {"AutoModelForCausalLM": "m.M"}}, "auto_map"),
}


# the others are told by the same comparison or the same child, which takes some seconds each time
QUICK_LIES = ("fewer layers", "wider", "unknown kind", "remote code alone")


@pytest.mark.parametrize("lie", [lie if lie in QUICK_LIES else pytest.param(lie, marks=pytest.mark.long) for lie in LIES])
def test_a_config_that_lies_is_refused_in_one_line(studio: Studio, bases: dict[str, Path], tmp_path: Path, lie: str) -> None:
    # red when a base of which config.json says something else gets a row, or the reason takes more than a line
    folder = shutil.copytree(bases["untied"], tmp_path / "lying")
    values, said = LIES[lie]
    change_config(folder, **values)
    with pytest.raises(ModelError, match=said) as refusal:
        studio.models.add(folder)
    assert "\n" not in str(refusal.value) and refusal.value.fix
    assert [model.name for model in studio.models.list()] == ["starter"]


def test_a_long_context_is_no_lie(studio: Studio, bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases["untied"], tmp_path / "long")
    change_config(folder, max_position_embeddings=10_485_760)  # Llama 4 Scout's
    assert studio.models.add(folder).context == 10_485_760


@pytest.mark.parametrize(("words", "said"), [(65, "1 tokens beyond the 64"), (20, "20 tokens for a model of 64")])
def test_a_tokenizer_of_another_model_is_refused(studio: Studio, bases: dict[str, Path], tmp_path: Path, words: int, said: str) -> None:
    # red when a token would have no embedding, or most outputs no token
    folder = shutil.copytree(bases["untied"], tmp_path / "foreign")
    few_words(words).save(str(folder / "tokenizer.json"))
    with pytest.raises(ModelError, match=said):
        studio.models.add(folder)
    few_words(60).save(str(folder / "tokenizer.json"))  # rounded up, as published models are
    assert studio.models.add(folder).loadable


@pytest.mark.parametrize("beside", [True, False])
def test_a_leftover_adapter_is_refused_before_transformers_attaches_it(bases: dict[str, Path], tmp_path: Path, beside: bool) -> None:
    folder = shutil.copytree(bases["tied"], tmp_path / "merged")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if beside:
        save_file({"x": torch.zeros(1)}, folder / "adapter_model.safetensors")
    facts = inspect_folder(folder)
    assert not facts.loadable and "adapter_config.json" in facts.reason and "Remove adapter_config.json" in facts.fix


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("model__layers__0__mlp__up_proj__qweight", "GPTQ or AWQ"),
        ("model__layers__0__mlp__up_proj__SCB", "bitsandbytes, 8 bit"),
        ("model__layers__0__mlp__up_proj__weight_scale_inv", "FP8"),
    ],
)
def test_an_old_quantised_folder_that_does_not_say_so_is_refused(bases: dict[str, Path], tmp_path: Path, tensor: str, said: str) -> None:
    folder = change(bases["tied"], tmp_path / "old", **{tensor: torch.zeros(2, 2, dtype=torch.int32)})
    facts = inspect_folder(folder)
    assert not facts.loadable and said in facts.reason and tensor.replace("__", ".") in facts.reason and "16-bit" in facts.fix


def test_integers_stored_as_weights_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = change(bases["tied"], tmp_path / "int", name, **{name.replace(".", "__"): torch.zeros(32, 16, dtype=torch.int8)})
    assert "(I8)" in inspect_folder(folder).reason


def test_the_file_that_transformers_loads_is_the_one_that_is_read(bases: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(bases[SHARDED], tmp_path / "both")
    change(bases["untied"], tmp_path / "single", "lm_head.weight")
    shutil.copy(tmp_path / "single" / "model.safetensors", folder)
    assert keys.compare(folder).missing == ["lm_head.weight"]
    (folder / "model.safetensors").unlink()
    change_config(folder, transformers_weights="other.safetensors")
    assert "other.safetensors" in inspect_folder(folder).reason
