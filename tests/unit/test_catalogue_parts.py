"""What the catalogue reads from files alone: whether an adapter fits a base, what a config hides, which layers stay whole."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from studio import processes
from studio.catalogue import adapter_fit, anatomy, keys, library_child, nvml, probing, wrappers
from studio.engine import loading
from studio.errors import ModelError

BASE = {
    "model.embed_tokens.weight": torch.arange(32.0).reshape(8, 4),
    "model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4),
    "model.norm.weight": torch.ones(4),
}
HEAD = "base_model.model.lm_head.weight"
EMBEDDINGS = "base_model.model.model.embed_tokens.weight"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(BASE, folder / "model.safetensors")
    return folder


def check(base: Path, tensors: dict[str, torch.Tensor], **config: Any) -> None:
    weights = base.parent / "mine" / "adapter_model.safetensors"
    weights.parent.mkdir(exist_ok=True)
    save_file(tensors, weights)
    adapter_fit.check(weights, {"peft_type": "LORA", **config}, base, "the base")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("base_model.model.model.layers.3.mlp.up_proj.weight", "layers.3.mlp.up_proj.weight"),
        ("transformer.h.11.attn.c_attn.bias", "h.11.attn.c_attn.bias"),
        ("model.embed_tokens.weight", "embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_a_tensor_is_placed_by_its_block_or_its_last_two_names(name: str, place: str) -> None:
    assert adapter_fit.place(name) == place


def test_whole_layers_are_those_of_the_base_in_its_size(base: Path) -> None:
    check(base, {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 4)})
    check(base, {EMBEDDINGS: BASE["model.embed_tokens.weight"].clone()})  # the same: nothing to lose
    check(base, {HEAD: torch.zeros(8, 4)}, modules_to_save=["lm_head"])  # tied to the embeddings
    wrapped = "base_model.model.model.embed_tokens.modules_to_save.default.weight"
    check(base, {wrapped: torch.zeros(8, 4)}, modules_to_save=["embed_tokens"])
    for name in (EMBEDDINGS, HEAD):
        with pytest.raises(ModelError, match=r"another vocabulary: its .* has 9 rows, and the base has 8"):
            check(base, {name: torch.zeros(9, 4)}, modules_to_save=["embed_tokens", "lm_head"])
        with pytest.raises(ModelError, match="is 9 x 5, and 8 x 4 there"):
            check(base, {name: torch.zeros(9, 5)}, modules_to_save=["embed_tokens", "lm_head"])
    with pytest.raises(ModelError, match="is 5 x 4, and 4 x 4 there"):  # no vocabulary
        check(base, {"base_model.model.model.layers.0.self_attn.q_proj.weight": torch.zeros(5, 4)}, modules_to_save=["q_proj"])
    with pytest.raises(ModelError, match="does not exist there"):
        check(base, {"base_model.model.model.layers.1.self_attn.q_proj.weight": torch.zeros(4, 4)}, modules_to_save=["q_proj"])


def test_a_whole_layer_that_is_not_named_would_change_the_base(base: Path) -> None:
    changed = BASE["model.embed_tokens.weight"] + 1
    with pytest.raises(ModelError, match="modules_to_save does not name"):
        check(base, {EMBEDDINGS: changed})
    check(base, {EMBEDDINGS: changed}, modules_to_save=["embed_tokens"])
    check(base, {EMBEDDINGS: changed}, modules_to_save=["model.embed_tokens"])
    check(base, {EMBEDDINGS: changed}, peft_type="IA3")
    check(base, {EMBEDDINGS: changed.to(torch.float64)}, peft_type="PREFIX_TUNING", modules_to_save="no list")
    with pytest.raises(ModelError, match="is no list of names"):
        check(base, {EMBEDDINGS: changed}, modules_to_save="embed_tokens")
    rounded = (BASE["model.embed_tokens.weight"] * 1.001).to(torch.bfloat16)
    check(base, {EMBEDDINGS: rounded})  # equal but for bfloat16's rounding
    check(base, {EMBEDDINGS: BASE["model.embed_tokens.weight"].half()})
    with pytest.raises(ModelError, match="does not name"):
        check(base, {EMBEDDINGS: (BASE["model.embed_tokens.weight"] * 1.02).to(torch.bfloat16)})
    with pytest.raises(ModelError, match="does not name"):
        check(base, {EMBEDDINGS: BASE["model.embed_tokens.weight"].double()})  # nobody reads it to compare


def test_rows_of_an_adapted_embedding_are_those_of_the_vocabulary(base: Path) -> None:
    name = "base_model.model.model.embed_tokens.lora_embedding_A"
    check(base, {name: torch.zeros(2, 8)})
    with pytest.raises(ModelError, match="has 9 rows, and the base has 8"):
        check(base, {name: torch.zeros(2, 9)})


# configs


def test_keys_that_choose_code_are_found_at_any_depth() -> None:
    config = {
        "auto_map": {"AutoModel": "x.py"}, "model_type": "llama", "custom_pipelines": {}, "_attn_implementation": None,
        "text_config": {"__attn_implementation": "kernels/x", "experts_implementation_2": "", "list": [{"auto_map": "y"}, 3]},
    }  # fmt: skip
    found = list(wrappers.code_keys(config))
    assert found == [("auto_map", {"AutoModel": "x.py"}), ("__attn_implementation", "kernels/x"), ("auto_map", "y")]
    assert wrappers.without_code(config) == {"model_type": "llama", "text_config": {"list": [{}, 3]}}
    assert wrappers.ignored_code(config) == ["auto_map"]
    assert wrappers.ignored_code({**config, "model_type": "nobody-knows"}) == []


def test_a_context_is_the_text_models_before_the_whole_files() -> None:
    keys = ("max_position_embeddings", "n_positions")
    assert wrappers.context({"text_config": {"n_positions": 7}, "max_position_embeddings": 9}, keys) == 7
    assert wrappers.context({"max_position_embeddings": 9, "n_positions": 7}, keys) == 9
    assert wrappers.context({"max_position_embeddings": 0, "n_positions": 7}, keys) == 7
    assert wrappers.context({"max_position_embeddings": "many", "model_type": "nobody-knows"}, keys) == 0
    assert wrappers.context({"model_type": "gpt2"}, keys) == 1024  # its class's default
    assert wrappers.text_part({"text_config": "x"}) == {} and wrappers.architecture({"architectures": []}) == ""


# what is missing, and what fits


def test_the_first_weight_that_does_not_fit_is_named() -> None:
    def said(**values: Any) -> str:
        with pytest.raises(ModelError) as caught:
            keys.WeightKeys(**values).check("The base")
        return caught.value.message

    assert said(expected=9, missing=["a", "b"]) == "The base lacks 2 of its 9 weights; the first is a."
    assert said(missing=["a", "b"]).startswith("The base lacks 2 of its 2 weights")
    assert said(unjoined=["a", "b"]) == "The base lacks parts of 2 weights that are stored in parts; the first is a."
    assert said(mismatched=[("a", [2, 3], [3]), ("b", [], [])]).endswith("the first is a, 2 x 3 instead of 3.")
    assert "2 weights of layers" in said(extra_layers=["a", "b"]) and said(extra_layers=["a", "b"]).endswith("the first is a.")
    keys.WeightKeys(expected=3, unexpected=["a"]).check("The base")
    assert keys.WeightKeys().note() == "" and keys.WeightKeys(unexpected=list("abc")).note().endswith("ignored: a, b, c.")
    assert keys.WeightKeys(unexpected=list("abcde")).note().endswith("5 stored weights, which are ignored: a, b, c and 2 more.")


def test_a_driver_that_is_not_there_is_told_from_one_that_is_not_loaded() -> None:
    """nvml.h: NVML_ERROR_DRIVER_NOT_LOADED is 9, NVML_ERROR_LIBRARY_NOT_FOUND 12."""
    assert nvml.STATES == {12: nvml.DriverState.ABSENT, 9: nvml.DriverState.NOT_LOADED}


@pytest.mark.parametrize(("avx", "amx", "free", "dtype"), [
    (True, False, 10**12, torch.bfloat16), (False, True, 10**12, torch.bfloat16), (False, False, 80 * 10**9 + 9, torch.float32),
    (False, False, 80 * 10**9, torch.bfloat16),
])  # fmt: skip
def test_a_large_base_on_a_processor_is_in_bfloat16_where_that_is_fast_or_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch, avx: bool, amx: bool, free: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(loading.hardware, "memory", lambda: SimpleNamespace(free_bytes=free))
    assert loading.choose_dtype(torch.float16, 10 * 10**9, torch.device("cpu")) == dtype  # 40 GB in float32 take half of 80


# what weights are


def test_weights_outside_of_the_blocks_are_told_by_place_and_class() -> None:
    class RotaryEmbedding(torch.nn.Module):
        pass

    linear, norm, positions = torch.nn.Linear(1, 1), torch.nn.LayerNorm(1), RotaryEmbedding()

    def kind(name: str, module: torch.nn.Module, prefix: str = "") -> str:
        return str(probing._elsewhere(name, module, "model.layers", prefix))

    assert kind("model.audio_tower.x", linear, "model.language_model") == "audio"
    assert kind("model.tower.x", linear, "model.language_model") == "vision"
    assert kind("model.language_model.norm", norm, "model.language_model") == "norm"
    assert kind("model.norm", norm) == "norm"
    assert kind("model.positions", positions) == "embeddings"
    assert kind("model.layers.0.positions", positions) == "other"
    assert kind("model.layersize", positions) == "embeddings" and kind("model.other", linear) == "other"


def test_blocks_with_the_same_weights_are_one_kind() -> None:
    def block(width: int, activation: type[torch.nn.Module] = torch.nn.ReLU) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(2, width), activation())

    blocks = [block(3), block(4), block(3), block(3, torch.nn.Tanh), block(4)]
    assert probing._groups(blocks) == [[0, 2], [1, 4], [3]]


# children that build models


def test_two_children_build_models_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each may take twelve GiB: more of them would take the whole machine."""
    running, most, lock = [0], [0], threading.Lock()

    def output_of(*_: object) -> str:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.05)
        with lock:
            running[0] -= 1
        return 'a library talks\n{"error": null, "answer": 7}'

    monkeypatch.setattr(processes, "output_of", output_of)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(library_child.ask("m", tmp_path))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 6 and most == [2]


@pytest.mark.parametrize("printed", ["", "half an ans", "[" * 100_000])
def test_a_child_that_did_not_answer_was_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, printed: str) -> None:
    monkeypatch.setattr(processes, "output_of", lambda *_: printed)
    with pytest.raises(library_child.Unanswered, match="killed for taking too much") as caught:
        library_child.ask("m", tmp_path, cause="adapter_config.json")
    assert caught.value.fix == "Check its adapter_config.json."
    monkeypatch.setattr(processes, "output_of", lambda *_: json.dumps({"error": {"message": "No.", "fix": "Do."}}))
    with pytest.raises(ModelError, match=r"^No") as refused:
        library_child.ask("m", tmp_path)
    assert (refused.value.message, refused.value.fix) == ("No.", "Do.")


def test_the_blocks_of_a_model_are_the_list_that_holds_most() -> None:
    # red when a list inside a block, which may hold as much as the block itself, is taken for the blocks
    block, decoder, model = torch.nn.Module(), torch.nn.Module(), torch.nn.Module()
    block.mixers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    decoder.norms = torch.nn.ModuleList([torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)])
    decoder.layers = torch.nn.ModuleList([block])
    decoder.heads = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    model.text, model.get_decoder = decoder, lambda: decoder
    assert anatomy.blocks_of(model) == ("text.layers", [block])
    model.get_decoder, model.base_model = (lambda: block.mixers[0]), block.mixers[0]
    assert anatomy.blocks_of(model) == ("", [])


def test_a_weight_of_another_shape_is_told_from_tensors_that_could_not_be_joined() -> None:
    # a stored name may have another prefix than the model's
    wrong = [("model.layers.0.mlp.up_proj.weight", (2, 3), (4, 3)), ("model.layers.0.mlp.experts.gate_up_proj", (1, 2), (3, 2))]
    found = keys.reported({"mismatched_keys": wrong, "missing_keys": []}, stored=["h.0.feed_forward.up_proj.weight", "h.0.x.w1.weight"])
    assert [name for name, *_ in found.mismatched] == [wrong[0][0]]
    assert [one.split()[0] for one in found.unjoined] == [wrong[1][0]]
    unknown = keys.reported({"mismatched_keys": wrong})  # of what is stored nothing is known
    assert len(unknown.mismatched) == 2 and unknown.unjoined == []
