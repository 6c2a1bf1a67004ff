"""A published multimodal folder is used as its text model, and code that a config.json names is never reached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto import configuration_auto, modeling_auto

from studio.catalogue import keys, library, models, text_models
from studio.catalogue import wrappers as configs
from studio.catalogue.architecture import decoder
from studio.errors import ModelError
from studio.records import WeightKind
from studio.services import Studio
from studio.settings import Settings
from tests.published import WRAPPERS, publish
from tests.runs import STARTER

# as google/gemma-3-4b-it publishes it: the text part leaves heads, vocabulary and context to its class
GEMMA_3_4B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model", "num_hidden_layers": 27},
}


@pytest.fixture(scope="module")
def wrappers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("wrappers")
    return {name: publish(name, place / name) for name in WRAPPERS}


@pytest.fixture
def studio(settings: Settings) -> Iterator[Studio]:
    opened = Studio.open(settings)
    yield opened
    opened.db.dispose()


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize("name", ["MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"])
def test_the_mappings_are_those_of_the_library(name: str) -> None:
    expected = getattr(modeling_auto, name)
    found = {kind: classes if len(classes) > 1 else classes[0] for kind, classes in library.mapping(name).items()}
    assert found == dict(expected)
    assert set(library.mapping(library.CONFIGS)) == set(configuration_auto.CONFIG_MAPPING_NAMES)


def test_defaults_are_those_of_the_configuration_classes() -> None:
    wrong = []
    for kind in library.mapping(library.CAUSAL_LM):
        usual = configuration_auto.CONFIG_MAPPING[kind]
        fields = {name: field.default for name, field in usual.__dataclass_fields__.items()}
        wrong += [(kind, key) for key, value in library.defaults(kind).items() if key in fields and fields[key] != value]
    assert wrong == []
    assert library.defaults("llama")["vocab_size"] == 32000


def test_a_config_is_completed_only_where_it_is_silent_under_every_name() -> None:
    assert library.completed({"model_type": "gpt2", "hidden_size": 16}).get("n_embd") is None
    assert library.completed({"model_type": "gpt2", "n_layer": 3})["n_layer"] == 3
    assert library.completed({"model_type": "gpt2"})["n_layer"] == 12


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_published_wrapper_has_all_the_weights_of_its_text_model(wrappers: dict[str, Path], name: str) -> None:
    found = keys.compare(wrappers[name])
    found.check(name)
    assert found.expected > 0 and models.inspect_folder(wrappers[name]).loadable


@pytest.mark.parametrize("name", ["qwen3_5", "mistral3"])
def test_a_published_wrapper_is_added_as_its_text_model(studio: Studio, wrappers: dict[str, Path], name: str) -> None:
    added = studio.models.add(wrappers[name], f"mine-{name}")
    assert added.loadable and added.context == 512 and added.architecture.endswith("ForConditionalGeneration")
    assert added.notices == studio.models.show(added.name).notices
    assert "vision_config" in added.notices[0] and "neither trained nor changed" in added.notices[0]


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_text_model_of_a_wrapper_computes_what_the_whole_one_does(wrappers: dict[str, Path], name: str) -> None:
    from transformers import AutoModelForImageTextToText

    options = {"dtype": torch.float32, "local_files_only": True}
    ids = torch.tensor([[5, 17, 99, 3]])
    ours, report = text_models.load(wrappers[name], dtype=torch.float32)
    keys.reported(report).check(name)
    whole = AutoModelForImageTextToText.from_pretrained(wrappers[name], **options)
    with torch.no_grad():
        assert torch.allclose(ours.eval()(ids).logits, whole.eval()(ids).logits, atol=1e-5)


def test_half_a_wrapper_is_refused(studio: Studio, wrappers: dict[str, Path], tmp_path: Path) -> None:
    for name in ("qwen3_5", "mistral3"):
        folder = shutil.copytree(wrappers[name], tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        del config["text_config"]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=r"vision_config and no text_config|no causal language model"):
            studio.models.add(folder)


def test_a_wrapper_around_another_kind_of_text_is_refused_by_its_name() -> None:
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": {"model_type": "qwen3_vl_text"},
    }
    with pytest.raises(ModelError, match="Qwen3VLForConditionalGeneration is multimodal, and its text part"):
        configs.text_model(config)


def test_what_a_published_text_part_leaves_out_comes_from_its_class() -> None:
    found = decoder(GEMMA_3_4B)
    text = found.parameters - found.probe.parameters_by_kind[WeightKind.VISION]
    assert (text, found.vocabulary, found.heads, found.probe.kv_heads) == (3_880_263_168, 262_208, 8, 4)
    assert models.context(GEMMA_3_4B) == 131_072
    assert configs.text_model(GEMMA_3_4B).others == ("vision_config",)


def test_code_beside_a_built_in_model_is_ignored_and_named(studio: Studio, tmp_path: Path) -> None:
    folder = shutil.copytree(STARTER, tmp_path / "coded")
    (folder / "modeling_evil.py").write_text("raise SystemExit('this ran')")
    change_config(folder, auto_map={"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"})
    added = studio.models.add(folder)
    assert added.loadable and added.notices == [
        "config.json names Python of its own (auto_map), which is ignored: transformers' own "
        f"{json.loads((folder / 'config.json').read_text())['model_type']} is used."
    ]
    model, _ = text_models.load(folder)
    assert type(model).__module__.startswith("transformers.")


@pytest.mark.parametrize("kind", ["evil", None])
def test_code_without_a_model_of_the_library_is_refused(tmp_path: Path, kind: str | None) -> None:
    folder = shutil.copytree(STARTER, tmp_path / "coded")
    change_config(folder, model_type=kind, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    facts = models.inspect_folder(folder)
    assert not facts.loadable and "code of its own (auto_map)" in facts.reason


class Decoder:
    def forward(self, input_ids: Any, position_ids: Any = None, decoder_only: Any = None) -> None: ...


class Wrapper:
    def forward(self, input_ids: Any, attention_mask: Any = None, **kwargs: Any) -> None: ...

    def get_decoder(self) -> Decoder:
        return Decoder()


class Closed(Wrapper):
    def forward(self, input_ids: Any, attention_mask: Any = None) -> None: ...


def test_positions_reach_the_text_model_of_a_wrapper_that_passes_all_on() -> None:
    # red when padded rows of a batch are read at wrong positions, as those of MOSS Transcribe were
    assert text_models.forward_names(Wrapper()) == {"input_ids", "attention_mask", "kwargs", "position_ids"}
    assert text_models.forward_names(Closed()) == {"input_ids", "attention_mask"}
