"""Folders from outside that lie, explode or never end: each is one clear refusal, and nothing else suffers from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from studio.catalogue import hub_cache, keys, library_child, models, probes, wrappers
from studio.datasets import tokenization
from studio.errors import ModelError, StudioError
from studio.services import Studio
from studio.services.vocabularies import check_vocabulary
from studio.settings import Settings
from tests.engines import change_json, copy_model, make_adapter
from tests.runs import STARTER

CONFIG = json.loads((STARTER / "config.json").read_text())
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model."""
    target = tmp_path / "model"
    target.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (target / name).write_bytes((STARTER / name).read_bytes())
    return target


def header(file: Path, entries: str, content: bytes = b"") -> None:
    file.write_bytes(len(entries).to_bytes(8, "little") + entries.encode() + content)


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [1e300], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [2], "data_offsets": [0, Infinity]}',
        '{"dtype": "F32", "shape": [1000000000000, 1000000000000], "data_offsets": [0, 8]}',
        '{"dtype": "NEW", "shape": [1000000000000, 1000000000000], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [2], "data_offsets": [-8, 8]}',
        '{"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}',
        '{"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}',
    ],
)
def test_a_header_whose_numbers_do_not_fit_its_bytes_is_damaged(folder: Path, entry: str) -> None:
    # red when a folder of some bytes counts as a model of any size, or a number raises what nobody expects
    header(folder / "model.safetensors", f'{{"x": {entry}}}', bytes(8))
    facts = models.inspect_folder(folder)
    assert not facts.loadable and "is damaged" in facts.reason and facts.parameters == 0


def test_whatever_fits_its_bytes_is_read(folder: Path) -> None:
    entries = (
        '{"__metadata__": {"format": "pt"}, "a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}, '
        '"b": {"dtype": "F4", "shape": [4], "data_offsets": [8, 10]}, "c": {"dtype": "BOOL", "shape": [], "data_offsets": [10, 11]}, '
        '"d": {"dtype": "F32", "shape": [0, 7], "data_offsets": [11, 11]}}'
    )
    header(folder / "model.safetensors", entries, bytes(11))
    found = list(models.tensors(folder / "model.safetensors"))
    assert found == [("a", "F16", [2, 2]), ("b", "F4", [4]), ("c", "BOOL", []), ("d", "F32", [0, 7])]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(CONFIG)[:-1] + ', "x": ' + '{"a": ' * 400 + "1" + "}" * 401, "can't be read as JSON"),
        (json.dumps(CONFIG)[:-1] + ', "x": ' + "[" * 400 + "]" * 400 + "}", "can't be read as JSON"),
        (json.dumps(CONFIG)[:-1] + ', "max_position_embeddings": 1' + "0" * 400 + "}", "can't be read as JSON"),
        (json.dumps(CONFIG)[:-1] + ', "layer_types": [' + '"x",' * 1_000_000 + '"x"]}', "is larger than"),
    ],
)
def test_a_config_that_is_too_deep_or_too_large_is_refused(folder: Path, text: str, said: str) -> None:
    # red when a function that looks at every part raises RecursionError, or a float can't hold the number
    (folder / "config.json").write_text(text)
    facts = models.inspect_folder(folder)
    assert not facts.loadable and said in facts.reason and len(facts.reason) < 500


def test_a_tokenizer_config_that_says_no_limit_is_read(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", model_max_length=1000000000000000019884624838656)
    assert models.inspect_folder(folder).loadable


@pytest.mark.parametrize("factor", [1e308, 10**39, "Infinity", float("nan"), -1, 0])
def test_no_factor_makes_a_context_that_no_row_holds(folder: Path, factor: Any) -> None:
    change_json(folder / "config.json", max_position_embeddings=10**39, rope_scaling={"rope_type": "dynamic", "factor": factor})
    found = models.inspect_folder(folder).context
    assert isinstance(found, int) and found == models.LARGEST_CONTEXT


@pytest.mark.parametrize(
    "changes", [{"eos_token_id": [10**30]}, {"num_labels": 10**12}, {"rope_scaling": {"rope_type": "yarn", "beta_fast": -(10**12)}}]
)
def test_a_number_that_no_model_has_is_refused_by_name(folder: Path, changes: dict[str, Any]) -> None:
    # red when a library that counts with 32 or 64 bits says so in the middle of a chat
    change_json(folder / "config.json", **changes)
    facts = models.inspect_folder(folder)
    name = "beta_fast" if "rope_scaling" in changes else next(iter(changes))
    assert not facts.loadable and f"gives {name} as" in facts.reason and facts.fix


GROWING = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 9}


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [GROWING, GROWING]}}, "its normalizer makes texts more than 64 times longer"),
        ({"normalizer": {**GROWING, "pattern": {"Regex": ""}, "content": "a" * 64}}, "its normalizer makes texts"),
        ({"decoder": {"type": "Sequence", "decoders": [GROWING, GROWING]}}, "its decoder makes texts"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 1001}}, "puts more than 1,000 characters before a text"),
        (
            {
                "post_processor": {
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 2 + [{"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                    "special_tokens": {"x": {"id": "x", "ids": [0] * 501, "tokens": ["x"] * 501}},
                }
            },
            "puts more than 1,000 tokens around a text",
        ),
    ],
)
def test_a_tokenizer_that_lengthens_texts_is_refused(folder: Path, part: dict[str, Any], said: str) -> None:
    # red when three replacements in a row take all memory of the page
    assert tokenization.load_vocabulary(folder).tokenizer.encode("a").ids
    change_json(folder / "tokenizer.json", **part)
    with pytest.raises(ModelError, match=said):
        check_vocabulary(folder, 4096)


def test_labels_of_classifiers_are_left_out() -> None:
    # red when a billion labels take all memory, though a base writes and has none
    config = {"model_type": "llama", "num_labels": 10**9, "text_config": {"id2label": {"0": "x"}, "label2id": {"x": 0}, "vocab_size": 5}}
    assert wrappers.without_code(config) == {"model_type": "llama", "text_config": {"vocab_size": 5}}


def test_a_pipe_is_no_file(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "pipe.json")
    with pytest.raises(ModelError, match="is no file"):
        models.read_json(folder / "pipe.json")


@pytest.mark.parametrize("name", ["x" * 300 + ".safetensors", "..", "pytorch_model.bin", "a\x1b[2Jb.safetensors", "\x00.safetensors"])
def test_an_index_names_safetensors_files_only(folder: Path, name: str) -> None:
    # red when a pickle that begins like a safetensors file is fetched and opened, or a name that no disk takes ends in a traceback
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / models.INDEX).write_text(json.dumps({"weight_map": {"x": name}}))
    facts = models.inspect_folder(folder)
    assert not facts.loadable and "names no safetensors files" in facts.reason


def test_values_of_a_config_are_said_on_one_short_line(folder: Path) -> None:
    long = "\x1b[2J<b>\n" + "x" * 10_000
    for changes in ({"architectures": [long]}, {"quantization_config": {"quant_method": long}}, {f"_attn_implementation{long}": "a/b"}):
        (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        facts = models.inspect_folder(folder)
        said = f"{facts.architecture} {facts.reason} {facts.fix}"
        assert not facts.loadable and len(said) < 1200 and "\x1b" not in said and "\n" not in said


@pytest.mark.skipif(os.getuid() == 0 and not os.path.exists("/proc"), reason="root may read everything")
def test_one_folder_of_the_cache_that_can_not_be_read_does_not_hide_the_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "hub"
    for name in ("good", "bad"):
        snapshot = place / f"models--org--{name}" / "snapshots" / ("0" * 40)
        snapshot.parent.mkdir(parents=True)
        copy_model(folder, snapshot)
    monkeypatch.setattr(hub_cache, "place", lambda: place)
    usual = models.read_json

    def read(file: Path) -> dict[str, Any]:
        if "bad" in str(file):
            raise PermissionError(13, "Permission denied", str(file))
        return usual(file)

    monkeypatch.setattr(models, "read_json", read)
    assert [found.repository for found in hub_cache.whole_models()] == ["org/good"]


# children


def test_a_child_that_says_too_much_or_too_late_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = {"module": "print('x' * 10_000)"}
    monkeypatch.setattr(library_child.processes, "module_command", lambda *_: ["python3", "-c", script["module"]])
    monkeypatch.setattr(library_child, "MOST_ANSWER", 1000)
    with pytest.raises(library_child.Unanswered, match="too much memory or time"):
        library_child.ask("x", tmp_path)
    monkeypatch.setattr(library_child, "PATIENCE_S", 0.5)
    script["module"] = "import time; time.sleep(600)"
    with pytest.raises(library_child.Unanswered, match="too much memory or time"):
        library_child.ask("x", tmp_path)
    monkeypatch.setattr(library_child, "PATIENCE_S", 60.0)
    script["module"] = 'print(\'{"error": null, "answer": 5}\')'
    assert library_child.ask("x", tmp_path) == 5


def test_a_child_that_was_killed_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # red when one kill for want of memory is the answer until the studio is started again
    asked: list[str] = []

    def ask(config: Any, name: str) -> Any:
        asked.append(name)
        if len(asked) == 1:
            raise library_child.Unanswered("It was killed.", "Try again.")
        raise ModelError("No.", "Another.")

    monkeypatch.setattr(probes, "_ask_child", ask)
    config = {"model_type": "llama", "of": "a test that kills"}
    for said in ("killed", "No", "No"):
        with pytest.raises(ModelError, match=said):
            probes.ask(config, "x")
    assert asked == ["x", "x"]


def test_names_of_stored_weights_are_sorted_whatever_they_are() -> None:
    found = keys.reported({"missing_keys": ["a.²", "a.1" + "0" * 5000, "a.10", "a.9"], "mismatched_keys": [], "unexpected_keys": []})
    assert found.missing.index("a.9") < found.missing.index("a.10")


# services


@pytest.fixture
def studio(settings: Settings) -> Any:
    opened = Studio.open(settings, at_terminal=True)
    yield opened
    opened.db.dispose()


@pytest.mark.parametrize(
    "source", ["~nobody-of-this-name/model", "\ud800", "x\x00y", "x" * 5000, "hub:~nobody-of-this-name/x", "hub:\ud800"]
)
def test_a_path_that_no_disk_takes_is_refused(studio: Studio, source: str) -> None:
    with pytest.raises((StudioError, OSError)) as refused:
        studio.models.add(source)
    str(refused.value).encode()  # it is written as JSON
    assert [model.name for model in studio.models.list()] == ["starter"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "\x1b[2J<b>" + "X" * 10_000}, "can't be used here"),
        ({"peft_type": "LORAX"}, "can't be used here"),
        ({"r": "8"}, "no numbers that an adapter has"),
        ({"r": 0}, "no numbers that an adapter has"),
        ({"lora_alpha": float("nan")}, "no numbers that an adapter has"),
        ({"lora_alpha": float("inf")}, "no numbers that an adapter has"),
        ({"rank_pattern": 5}, "no numbers that an adapter has"),
        ({"modules_to_save": 5}, "no list of names"),
        ({"base_model_name_or_path": "\x1b[2J" + "x" * 10_000}, "not among your base models"),
    ],
)
def test_an_adapter_config_that_lies_is_refused_in_one_line(studio: Studio, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = make_adapter(STARTER, tmp_path / "a", 1)
    change_json(folder / "adapter_config.json", **changes)
    base = None if "base_model_name_or_path" in changes else "starter"
    with pytest.raises(ModelError, match=said) as refused:
        studio.adapters.add(folder, base_model=base)
    assert len(str(refused.value)) < 800 and "\x1b" not in str(refused.value) and not studio.adapters.list()


ENDLESS = r"(([\w.])+)+!"  # tried on a name of some length it takes years
PROMPTS = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4, "token_dim": 64}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"r": 50_000}, "r is 50,000, and the weights of .* have rank 4"),
        ({"r": 2}, "r is 2, and the weights of .* have rank 4"),
        ({"r": True}, "r is 'True', no whole number"),
        ({"r": 4.5}, "no numbers that an adapter has"),
        ({"r": 10**12}, "r is 1000000000000, beyond any adapter's"),
        ({"rank_pattern": {"q_proj": 100_000}}, "rank_pattern gives q_proj rank 100,000, and the weights of .* have rank 4"),
        ({"rank_pattern": {"q_proj": "8"}}, "rank_pattern gives no ranks by name"),
        ({"r": 9, "rank_pattern": {ENDLESS: 7}}, "r is 9, and the weights of .* have rank 4"),
        ({"alpha_pattern": {ENDLESS: 4}}, "alpha_pattern holds the pattern"),
        ({"alpha_pattern": {"q_proj": "4"}}, "alpha_pattern gives no strengths"),
        ({"lora_alpha": 1e308}, "lora_alpha is 1e.308, beyond any adapter's"),
        ({"lora_dropout": "0"}, "lora_dropout is '0', no number"),
        ({"use_dora": "yes"}, "use_dora is 'yes', neither true nor false"),
        ({"modules_to_save": [ENDLESS]}, "modules_to_save holds the pattern"),
        ({"target_parameters": [ENDLESS]}, "target_parameters holds the pattern"),
        ({"target_modules": 5}, "target_modules is no list of names"),
        ({"target_modules": [5]}, "target_modules is no list of names"),
        ({"target_modules": ["x"] * 20_001}, "20,001 entries"),
        ({"layer_replication": [[0, 4]] * 300}, "layer_replication makes another model"),
        ({"trainable_token_indices": [10**9]}, "trainable_token_indices is 1000000000, beyond"),
        ({"peft_type": "IA3", "feedforward_modules": ENDLESS}, "feedforward_modules is a pattern"),
        ({"peft_type": "VERA", "r": 50_000}, "r is 50,000, and the weights are no larger than"),
        ({"peft_type": "FOURIERFT", "n_frequency": 900_000}, "n_frequency is 900,000, and the weights are no larger"),
        (PROMPTS, "holds no prompt_embeddings"),
    ],
)
def test_what_the_tensors_do_not_bear_out_is_refused_by_name(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    # red when an engine tries such a pattern for hours, or takes memory for a rank of a hundred million
    monkeypatch.setattr("studio.catalogue.adapter_trial._ask_child", lambda *_: pytest.fail("a child was asked"))
    folder = make_adapter(STARTER, tmp_path / "a", 1)
    change_json(folder / "adapter_config.json", **changes)
    with pytest.raises(ModelError, match=said):
        studio.adapters.add(folder, base_model="starter")
    assert not studio.adapters.list() and not list(studio.settings.adapters.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_virtual_tokens": 10**6}, "num_virtual_tokens is 1000000, and the weights have 4 tokens"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens is None"),
        ({"num_virtual_tokens": 2.0}, "num_virtual_tokens is '2.0', no whole number"),
        ({"token_dim": 4096}, "token_dim is 4,096, and the weights are 64 wide"),
        ({"encoder_hidden_size": 10**9}, "beyond any adapter's"),
        ({"peft_type": "PREFIX_TUNING", "num_layers": 4096}, "num_layers is 4,096 and token_dim 64, and the weights are 64 wide"),
    ],
)
def test_virtual_tokens_are_those_of_the_weights(studio: Studio, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    save_file({"prompt_embeddings": numpy.zeros((4, 64), dtype=numpy.float32)}, folder / WEIGHTS)
    (folder / "adapter_config.json").write_text(json.dumps({**PROMPTS, "task_type": "CAUSAL_LM"}))
    assert studio.adapters.add(folder, base_model="starter").method == "prompt-tuning"
    change_json(folder / "adapter_config.json", **changes)
    with pytest.raises(ModelError, match=said):
        studio.adapters.add(folder, "b", base_model="starter")


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "layers_pattern"])
def test_patterns_become_the_names_of_the_layers_that_the_weights_are_of(studio: Studio, tmp_path: Path, field: str) -> None:
    folder = make_adapter(STARTER, tmp_path / "a", 1)
    names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    change_json(folder / "adapter_config.json", **{field: ENDLESS})
    kept = json.loads((Path(studio.adapters.add(folder, base_model="starter").path) / "adapter_config.json").read_text())
    assert kept["target_modules"] == sorted(names) and not kept["exclude_modules"] and not kept.get("layers_pattern")
    state = {name: tensor for name, tensor in load_file(folder / WEIGHTS).items() if ".layers.0." in name}
    save_file(state, folder / WEIGHTS)
    kept = json.loads((Path(studio.adapters.add(folder, "b", base_model="starter").path) / "adapter_config.json").read_text())
    assert len(kept["target_modules"]) == len(state) // 2 and all(".layers.0." in name for name in kept["target_modules"])


def test_ranks_by_pattern_become_ranks_by_name(studio: Studio, tmp_path: Path) -> None:
    folder = make_adapter(STARTER, tmp_path / "a", 1)
    change_json(
        folder / "adapter_config.json", rank_pattern={r".*\.layers\.(0|1)\..*": 2, r"^model\.layers\.2\.self_attn\.q_proj$": 4, "none": 9}
    )
    state = load_file(folder / WEIGHTS)
    for name, tensor in state.items():
        if ".layers.0.self_attn.q_proj" in name:
            state[name] = numpy.ascontiguousarray(tensor[:2] if "lora_A" in name else tensor[:, :2])
    save_file(state, folder / WEIGHTS)
    kept = json.loads((Path(studio.adapters.add(folder, base_model="starter").path) / "adapter_config.json").read_text())
    assert kept["rank_pattern"] == {"model.layers.0.self_attn.q_proj": 2, "model.layers.2.self_attn.q_proj": 4}


def test_a_number_without_rows_is_no_vocabulary(studio: Studio, tmp_path: Path) -> None:
    folder = make_adapter(STARTER, tmp_path / "a", 1)
    state = load_file(folder / WEIGHTS)
    save_file(
        {**state, "base_model.model.model.embed_tokens.lora_embedding_A": numpy.array(1, dtype=numpy.float32).reshape(())}, folder / WEIGHTS
    )
    with pytest.raises(ModelError):
        studio.adapters.add(folder, base_model="starter")
