"""Folders from outside that lie, explode or never end: each is one clear refusal, and nothing else suffers from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from studio.catalogue import hub_cache, keys, library_child, models, probes
from studio.errors import ModelError, StudioError
from studio.services import Studio
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


def test_patterns_that_never_end_and_sizes_that_no_file_bears_out_stay_in_the_child(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # red when an engine tries such a pattern for hours, or takes memory for a rank of a hundred million
    folder = make_adapter(STARTER, tmp_path / "a", 1)
    before = (folder / "adapter_config.json").read_text()
    asked: list[Path] = []
    monkeypatch.setattr("studio.catalogue.adapter_trial._ask_child", lambda base, adapter: asked.append(adapter) or "it was asked")
    for changes in (
        {"target_modules": r"(([\w.])+)+!"},
        {"exclude_modules": r"(([\w.])+)+!"},
        {"rank_pattern": {r"(([\w.])+)+!": 4}},
        {"modules_to_save": [r"(([\w.])+)+!"]},
        {"r": 100_000_000},
        {"rank_pattern": {"q_proj": 100_000_000}},
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4096, "num_layers": 4096, "token_dim": 4096},
        {"peft_type": "IA3", "feedforward_modules": r"(([\w.])+)+!"},
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**json.loads(before), **changes}))
        with pytest.raises(ModelError, match="it was asked"):
            studio.adapters.add(folder, base_model="starter")
    assert len(asked) == 8
    (folder / "adapter_config.json").write_text(before)
    assert studio.adapters.add(folder, base_model="starter").method == "lora" and len(asked) == 8


@pytest.mark.long
def test_a_pattern_that_ends_is_taken_and_one_that_does_not_is_given_up(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_adapter(STARTER, tmp_path / "a", 1)
    before = json.loads((folder / "adapter_config.json").read_text())
    names = "|".join(before["target_modules"])
    change_json(folder / "adapter_config.json", target_modules=rf".*\.({names})")
    assert studio.adapters.add(folder, base_model="starter").name == "a"
    change_json(folder / "adapter_config.json", r=100_000_000, target_modules=before["target_modules"])
    with pytest.raises(ModelError, match="another size there"):
        studio.adapters.add(folder, "b", base_model="starter")
    change_json(folder / "adapter_config.json", r=before["r"], target_modules=r"(([\w.])+)+!")
    monkeypatch.setattr(library_child, "PATIENCE_S", 8.0)
    with pytest.raises(ModelError, match="too much memory or time"):
        studio.adapters.add(folder, "b", base_model="starter")


def test_a_number_without_rows_is_no_vocabulary(studio: Studio, tmp_path: Path) -> None:
    folder = make_adapter(STARTER, tmp_path / "a", 1)
    state = load_file(folder / WEIGHTS)
    save_file(
        {**state, "base_model.model.model.embed_tokens.lora_embedding_A": numpy.array(1, dtype=numpy.float32).reshape(())}, folder / WEIGHTS
    )
    with pytest.raises(ModelError):
        studio.adapters.add(folder, base_model="starter")
