"""Who is meant by a contestant's name, and that nothing that is needed can be removed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import load_file, save_file

from studio.db.models import JobRow
from studio.errors import ModelError, NotFoundError, StudioError
from studio.services import Studio
from studio.settings import Settings


@pytest.fixture
def studio(settings: Settings, stories260k: Path, tmp_path: Path) -> Iterator[Studio]:
    """The starter, stories260K and its copy `twin`, and an adapter `tuned` of stories260K."""
    opened = Studio.open(settings)
    opened.models.add(stories260k)
    opened.models.add(shutil.copytree(stories260k, tmp_path / "twin"))
    opened.adapters.add(adapter_folder(tmp_path / "tuned"), base_model="stories260K")
    yield opened
    opened.db.dispose()


def adapter_folder(folder: Path, **config: object) -> Path:
    folder.mkdir()
    layer = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    tensors = {layer.format("A"): numpy.ones((4, 64), numpy.float32), layer.format("B"): numpy.ones((64, 4), numpy.float32)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], **config}))
    return folder


@pytest.mark.parametrize(
    ("contestant", "base_model", "base", "adapter"),
    [
        ("starter", None, "starter", None),
        ("stories260K", None, "stories260K", None),
        ("stories260K", "starter", "stories260K", None),
        ("base", "stories260K", "stories260K", None),
        ("stories260K:tuned", None, "stories260K", "tuned"),
        ("tuned", "stories260K", "stories260K", "tuned"),
        ("tuned", None, "stories260K", "tuned"),
    ],
)
def test_a_name_means_one_contestant(studio: Studio, contestant: str, base_model: str | None, base: str, adapter: str | None) -> None:
    found = studio.adapters.resolve(contestant, base_model)
    assert found.name == contestant and found.base is not None and found.base.name == base
    assert (found.adapter and found.adapter.name) == adapter
    assert found.adapter is None or len(found.adapter.sha256) == 64


@pytest.mark.parametrize(
    ("contestant", "near"),
    [
        ("stories260k", "stories260K"),
        ("stories260K:tunde", "stories260K:tuned"),
        ("storys:tuned", "tuned"),
        ("tune", "tuned"),
        ("", "starter"),
    ],
)
def test_an_unknown_name_is_told_with_near_ones(studio: Studio, contestant: str, near: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        studio.adapters.resolve(contestant)
    assert repr(contestant) in caught.value.message and near in caught.value.fix


def test_an_adapter_does_not_answer_on_another_base(studio: Studio) -> None:
    with pytest.raises(StudioError, match="trained on stories260K"):
        studio.adapters.resolve("starter:tuned")
    with pytest.raises(StudioError, match="trained on stories260K"):
        studio.adapters.resolve("tuned", "twin")


def test_base_alone_needs_a_base_model(studio: Studio) -> None:
    with pytest.raises(StudioError, match="was not named"):
        studio.adapters.resolve("base")


def test_a_folder_is_a_name_at_the_terminal_only(studio: Studio, settings: Settings, stories260k: Path) -> None:
    with pytest.raises(NotFoundError):
        studio.adapters.resolve("base", str(stories260k))
    at_terminal = Studio.open(settings, at_terminal=True)
    assert at_terminal.adapters.resolve("base", str(stories260k)).base == at_terminal.models.resolve(str(stories260k))
    # the same folder by its path and by its name is the same base
    assert at_terminal.adapters.resolve("tuned", str(stories260k)).adapter is not None


def test_strangers_can_not_name_addresses(studio: Studio, settings: Settings) -> None:
    other = "http://127.0.0.1:8000/v1#qwen"
    found = studio.adapters.resolve(other)
    assert (found.url, found.model, found.studio_field()) == ("http://127.0.0.1:8000/v1", "qwen", None)
    with pytest.raises(StudioError, match="names no model"):
        studio.adapters.resolve("http://127.0.0.1:8000/v1")
    guarded = Studio.open(dataclasses.replace(settings, token="x"))
    with pytest.raises(StudioError, match="can't be named here"):
        guarded.adapters.resolve(other)


def test_what_is_gone_from_the_disk_is_told(studio: Studio, tmp_path: Path) -> None:
    shutil.rmtree(studio.adapters.show("tuned").path)
    with pytest.raises(ModelError, match="are gone"):
        studio.adapters.resolve("stories260K:tuned")
    shutil.rmtree(tmp_path / "twin")
    assert studio.models.show("twin").loadable is False and "twin" not in studio.adapters.available()
    with pytest.raises(ModelError, match="is not there"):
        studio.adapters.resolve("twin")


def test_a_base_stays_while_an_adapter_needs_it(studio: Studio, stories260k: Path) -> None:
    with pytest.raises(StudioError, match="base of tuned"):
        studio.models.remove("stories260K")
    studio.adapters.delete("tuned")
    studio.models.remove("stories260K")
    assert stories260k.is_dir()


def test_an_adapter_stays_while_a_job_needs_it(studio: Studio) -> None:
    path = studio.adapters.show("tuned").path
    with studio.db.write() as session:
        session.add(JobRow(kind="compare", name="asking", status="RUNNING", config={"contestants": [{"adapter": {"path": path}}]}))
    with pytest.raises(StudioError, match="needed by asking"):
        studio.adapters.delete("tuned")
    assert Path(path).is_dir()


def test_deleting_an_import_removes_the_copy_and_never_the_original(studio: Studio, tmp_path: Path) -> None:
    path = Path(studio.adapters.show("tuned").path)
    studio.adapters.delete("tuned")
    assert not path.exists() and (tmp_path / "tuned").is_dir()


def test_an_import_keeps_only_what_an_adapter_is(studio: Studio, tmp_path: Path) -> None:
    source = adapter_folder(tmp_path / "more", auto_mapping={"parent_library": "evil"}, base_model_name_or_path="org/stories260K")
    (source / "evil.py").write_text("raise SystemExit")
    (source / "optimizer.pt").write_bytes(b"pickle")
    added = studio.adapters.add(source)
    kept = Path(added.path)
    assert added.base_model == "stories260K"  # known by the last part of its name on the hub
    assert {file.name for file in kept.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert "evil" not in (kept / "adapter_config.json").read_text()


def zip_file(path: Path, *folders: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("__MACOSX/tuned/adapter_config.json", "what macOS leaves")
        for folder in folders:
            for file in folder.iterdir():
                packed.write(file, f"{prefix}{folder.name}/{file.name}")
    return path


def test_an_uploaded_zip_file_is_the_folder_it_holds(studio: Studio, tmp_path: Path) -> None:
    # red when the folder inside is not found, the name is that of a temporary folder, or anything but an adapter is kept
    source = adapter_folder(tmp_path / "saved")
    (source / "evil.py").write_text("raise SystemExit")
    added = studio.adapters.add_files([zip_file(tmp_path / "my voice.zip", source, prefix="out/")], base_model="stories260K")
    assert added.name == "my-voice"
    assert {file.name for file in Path(added.path).iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    files = sorted(source.iterdir())
    assert studio.adapters.add_files(files, base_model="stories260K").name == "adapter"
    assert studio.adapters.add(tmp_path / "my voice.zip", "named", base_model="stories260K").name == "named"


def test_files_that_are_no_adapter_are_refused_without_a_path_of_ours(studio: Studio, tmp_path: Path) -> None:
    one, other = adapter_folder(tmp_path / "one"), adapter_folder(tmp_path / "other")
    (tmp_path / "text.zip").write_text("no zip file")
    (pickled := tmp_path / "pickled").mkdir()
    (pickled / "adapter_config.json").write_text((one / "adapter_config.json").read_text())
    (pickled / "adapter_model.bin").write_bytes(b"pickle")
    with zipfile.ZipFile(tmp_path / "outside.zip", "w") as packed:
        packed.write(one / "adapter_config.json", "../adapter_config.json")
    for upload, words in (
        (zip_file(tmp_path / "two.zip", one, other), "two.zip holds 2 adapters (one, other)"),
        (zip_file(tmp_path / "none.zip"), "none.zip holds no adapter_config.json"),
        (tmp_path / "text.zip", "text.zip can't be used: it is no zip file"),
        (tmp_path / "outside.zip", "outside.zip can't be used"),
        (zip_file(tmp_path / "old.zip", pickled), "old holds no adapter_model.safetensors, only adapter_model.bin"),
        (one / "adapter_model.safetensors", "There is no adapter_config.json among the files"),
    ):
        with pytest.raises(ModelError) as refused:
            studio.adapters.add_files([upload], base_model="stories260K")
        assert refused.value.message.startswith(words) and str(studio.settings.cache) not in str(refused.value)
    assert [adapter.name for adapter in studio.adapters.list()] == ["tuned"]


def test_an_import_never_takes_a_name_that_a_job_will_need(studio: Studio, tmp_path: Path) -> None:
    with studio.db.write() as session:
        session.add(JobRow(kind="train", name="soon"))
    assert studio.adapters.add(adapter_folder(tmp_path / "soon"), base_model="stories260K").name == "soon-2"


@pytest.mark.parametrize(
    ("tensor", "shape", "said"),
    [
        ("base_model.model.model.embed_tokens.weight", [520, 64], "embed_tokens.weight has 520 rows, and stories260K has 512"),
        ("base_model.model.lm_head.weight", [520, 64], "lm_head.weight has 520 rows"),  # tied there
        ("base_model.model.model.norm.weight", [32], "model.norm.weight is 32, and 64 there"),
        ("base_model.model.model.wpe.weight", [8, 64], "that layer does not exist there"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", [4, 520], "has 520 rows"),
        ("base_model.model.model.norm.weight", [64], "modules_to_save does not name"),
    ],
)
def test_layers_that_an_adapter_saves_are_compared_with_the_base(
    studio: Studio, tmp_path: Path, tensor: str, shape: list[int], said: str
) -> None:
    folder = adapter_folder(tmp_path / "whole")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({**weights, tensor: numpy.full(shape, 7, numpy.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError) as refusal:
        studio.adapters.add(folder, base_model="stories260K")
    assert said in refusal.value.message and refusal.value.fix


def test_a_whole_layer_that_is_named_or_equals_the_base_is_taken(studio: Studio, tmp_path: Path, stories260k: Path) -> None:
    own = load_file(stories260k / "model.safetensors")["model.norm.weight"].astype(numpy.float32)
    for name, values, config in (("equal", own, {}), ("named", own + 1, {"modules_to_save": ["norm"]})):
        folder = adapter_folder(tmp_path / name)
        weights = load_file(folder / "adapter_model.safetensors")
        save_file({**weights, "base_model.model.model.norm.weight": values}, folder / "adapter_model.safetensors")
        options = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**options, **config}))
        assert studio.adapters.add(folder, base_model="stories260K").name == name
