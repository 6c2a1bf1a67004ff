"""Model folders are read without being loaded, and what could run code or can't be loaded is refused with reason and fix."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from studio.catalogue import library, models
from studio.errors import ModelError

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 512, "tie_word_embeddings": True}
SHAPES = {"model.embed_tokens.weight": [512, 64], "model.layers.0.mlp.up_proj.weight": [172, 64], "model.norm.weight": [64]}


def write_safetensors(file: Path, shapes: dict[str, list[int]], dtype: str = "F32") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = math.prod(shape) * (4 if dtype == "F32" else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(end))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small whole model."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    write_safetensors(tmp_path / "model.safetensors", SHAPES)
    return tmp_path


def change_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def test_a_whole_model_is_loadable_with_its_exact_parameters(folder: Path) -> None:
    assert models.inspect_folder(folder) == models.ModelFacts("LlamaForCausalLM", 512 * 64 + 172 * 64 + 64, 512, True)


def test_a_tied_output_layer_that_is_stored_is_counted_once(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", {**SHAPES, "lm_head.weight": [512, 64]})
    assert models.inspect_folder(folder).parameters == 512 * 64 + 172 * 64 + 64
    change_config(folder, tie_word_embeddings=False)
    assert models.inspect_folder(folder).parameters == 2 * 512 * 64 + 172 * 64 + 64


def test_stored_masks_and_rotary_tables_are_no_parameters(folder: Path) -> None:
    extra = {"h.0.attn.bias": [1, 1, 8, 8], "h.0.attn.masked_bias": [1], "model.layers.0.self_attn.rotary_emb.inv_freq": [4]}
    write_safetensors(folder / "model.safetensors", {**SHAPES, **extra})
    assert models.inspect_folder(folder).parameters == 512 * 64 + 172 * 64 + 64


def test_shards_are_counted_together_and_a_missing_one_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    names = list(SHAPES)
    write_safetensors(folder / "a.safetensors", {names[0]: SHAPES[names[0]]})
    write_safetensors(folder / "b.safetensors", {name: SHAPES[name] for name in names[1:]})
    weight_map = {names[0]: "a.safetensors", **dict.fromkeys(names[1:], "b.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert models.inspect_folder(folder).parameters == 512 * 64 + 172 * 64 + 64
    (folder / "b.safetensors").unlink()
    assert "b.safetensors" in models.inspect_folder(folder).reason


def test_an_index_can_not_name_files_elsewhere(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    facts = models.inspect_folder(folder)
    assert not facts.loadable and facts.parameters == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}, "auto_map"),
        ({"_attn_implementation": "evil/kernel"}, "_attn_implementation"),
        ({"_attn_implementation_internal": "evil/kernel"}, "_attn_implementation_internal"),
        ({"text_config": {"attn_implementation": "evil/kernel"}}, "attn_implementation"),
        ({"architectures": ["EvilForCausalLM"]}, "EvilForCausalLM"),
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification"),
        ({"architectures": []}, "no architecture"),
        ({"architectures": None}, "no architecture"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
    ],
)
def test_a_config_that_can_not_be_loaded_is_refused_with_its_reason(folder: Path, changes: dict[str, Any], told: str) -> None:
    change_config(folder, **changes)
    facts = models.inspect_folder(folder)
    assert not facts.loadable and told in facts.reason and facts.fix


def test_code_named_by_the_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    assert "tokenizer_config.json" in models.inspect_folder(folder).reason


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    facts = models.inspect_folder(folder)
    assert not facts.loadable and "pytorch_model.bin" in facts.reason and "safetensors" in facts.fix


def test_a_model_without_tokenizer_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in models.inspect_folder(folder).reason


def test_a_tokenizer_alone_is_kept_apart_from_broken_models(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    facts = models.inspect_folder(folder)
    assert facts.is_tokenizer_only and not facts.loadable


def test_an_adapter_is_sent_to_its_own_command(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "studio adapters add" in models.inspect_folder(folder).fix


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_cut_weight_file_is_noticed(folder: Path, cut: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    assert "damaged" in models.inspect_folder(folder).reason


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 64,
        (10**12).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (31).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":1}}',
    ],
)
def test_a_hostile_weight_file_is_one_clear_refusal(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        models.count_parameters(folder)


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe", b'{"a":' * 50_000, b'{"architectures": {"a": 1}}'])
def test_a_hostile_config_is_one_clear_refusal(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    facts = models.inspect_folder(folder)
    assert not facts.loadable and facts.reason


def test_what_is_no_folder_is_told(tmp_path: Path) -> None:
    assert "is not there" in models.inspect_folder(tmp_path / "nothing").reason
    (tmp_path / "file").touch()
    assert "is a file" in models.inspect_folder(tmp_path / "file").reason
    assert "no config.json" in models.inspect_folder(tmp_path).reason


def test_known_architectures_come_from_the_installed_transformers() -> None:
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel"} <= library.classes(library.CAUSAL_LM)
    assert "BertForTokenClassification" not in library.classes(library.CAUSAL_LM)


def test_real_models_are_read_as_they_are(shared_data: Path) -> None:
    found = models.inspect_folder(shared_data / "models" / "stories260K")
    assert found == models.ModelFacts("LlamaForCausalLM", 260_032, 512, True)
    assert models.inspect_folder(shared_data / "models" / "mistral-v1-tokenizer").is_tokenizer_only
