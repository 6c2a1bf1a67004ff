"""Copies of bases in 4 bits: the same model bit for bit, never one of another base, and never at the cost of a training."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, LlamaConfig, MixtralConfig, PreTrainedModel, Qwen2Config
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from jobs import config as job_config
from jobs.trainers import base
from jobs.trainers.base import ComputeDevice
from studio.catalogue import ready_copy, text_models
from studio.services.storage import YOUNG_S, StorageService
from studio.settings import COPIES, Settings

SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SMALL, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=1, tie_word_embeddings=True),  # with biases
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=32),
    "gpt2": GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=2, n_positions=32),
    "mixtral": MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2),
}
READS, KEPT = "is read from its copy", "is kept for the next start"


def made(folder: Path, name: str, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(CONFIGS[name])](CONFIGS[name])
    model.save_pretrained(folder / name)
    return folder / name


class Loading:
    """Loadings of one base, what was said of each, and which folders were read."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place = folder, place
        self.said: list[str] = []
        self.read: list[Path] = []

    def load(self, dtype: str = "float32", **options: Any) -> Any:
        self.said.clear()
        self.read.clear()
        wanted = {"quantization.load_in_4bit": True, "base_model": "tiny", "model_name_or_path": str(self.folder), **options}
        return base.load(job_config.build(wanted), ComputeDevice("cpu", dtype), self.said.append, self.place)

    @property
    def copies(self) -> list[Path]:
        return sorted(self.place.iterdir())


@pytest.fixture
def loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Loading:
    monkeypatch.setattr(ready_copy, "LEAST_BASE_BYTES", 0)
    monkeypatch.setattr(ready_copy, "LEAST_FREE_BYTES", 0)
    (tmp_path / COPIES).mkdir()
    found = Loading(made(tmp_path, getattr(request, "param", "llama")), tmp_path / COPIES)
    load = text_models.load

    def watched(folder: Path, **options: Any) -> Any:
        found.read.append(folder)
        return load(folder, **options)

    monkeypatch.setattr(text_models, "load", watched)
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(3, 20)[None]).logits
    return found


def same(one: Any, other: Any) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loading", ["llama", "qwen2", "gemma2", "gpt2"], indirect=True)
def test_a_copy_is_the_model_bit_for_bit_and_the_base_is_not_read_again(loading: Loading) -> None:
    # red when a scale, a bias or a tied tensor is lost on the way, or the copy is not used
    first = loading.load()
    assert loading.read == [loading.folder] and KEPT in loading.said[-1] and str(loading.copies[0]) in loading.said[-1]
    second = loading.load()
    assert loading.read == loading.copies and READS in loading.said[0] and len(loading.said) == 1
    assert first.name_or_path == second.name_or_path == str(loading.folder)
    assert first.hf_quantizer.quantization_config.to_dict() == second.hf_quantizer.quantization_config.to_dict()
    assert type(first) is type(second) and same(first, second) and torch.equal(logits(first), logits(second))
    trained = [name for name, one in second.named_parameters() if one.requires_grad]
    assert trained == [name for name, one in first.named_parameters() if one.requires_grad]


def test_each_setting_has_a_copy_of_its_own_and_other_precisions_have_none(loading: Loading) -> None:
    loading.load()
    single = loading.load(**{"quantization.bnb_4bit_use_double_quant": False})
    assert len(loading.copies) == 2 and KEPT in loading.said[-1]
    assert same(single, loading.load(**{"quantization.bnb_4bit_use_double_quant": False})) and READS in loading.said[0]
    loading.load("bfloat16")
    assert len(loading.copies) == 3
    loading.load(**{"quantization.load_in_4bit": False})
    assert len(loading.copies) == 3 and loading.said == []


def test_a_base_that_has_changed_is_never_answered_by_its_old_copy(loading: Loading) -> None:
    # red when size and time of a file are believed: both stay as they were here
    old = loading.load()
    weights = loading.folder / "model.safetensors"
    before = weights.stat()
    shutil.copy(made(loading.folder.parent / "other", "llama", seed=1) / weights.name, weights)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_size == before.st_size
    new = loading.load()
    assert "model.safetensors of the base has changed" in loading.said[0] and KEPT in loading.said[1]
    assert not same(old, new) and same(new, loading.load()) and READS in loading.said[0]


def test_a_base_that_was_only_moved_about_keeps_its_copy(loading: Loading) -> None:
    loading.load()
    weights = loading.folder / "model.safetensors"
    shutil.copy(weights, weights.with_suffix(".again"))
    weights.with_suffix(".again").replace(weights)
    for _ in range(2):
        loading.load()
        assert loading.read == loading.copies
    (loading.folder / "config.json").write_text((loading.folder / "config.json").read_text("utf-8") + "\n", encoding="utf-8")
    loading.load()
    assert "config.json of the base has changed" in loading.said[0]


@pytest.mark.parametrize("damage", ["byte", "cut", "lost", "card"])
def test_a_damaged_copy_is_deleted_and_the_base_read(loading: Loading, damage: str) -> None:
    whole = loading.load()
    weights, card = loading.copies[0] / "model.safetensors", loading.copies[0] / ready_copy.CARD
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    match damage:
        case "byte":
            weights.write_bytes(content)
        case "cut":
            weights.write_bytes(content[:-100])
        case "lost":
            weights.unlink()
        case "card":
            card.write_text("{", encoding="utf-8")
    assert same(whole, loading.load())
    assert "was not used and is deleted" in loading.said[0] and KEPT in loading.said[1]
    loading.load()
    assert READS in loading.said[0]


def test_where_the_disk_is_short_or_nothing_is_gained_none_is_kept(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready_copy, "LEAST_FREE_BYTES", 10**18)
    loading.load()
    assert loading.copies == [] and "GB are free" in loading.said[0] and len(loading.said) == 1
    monkeypatch.setattr(ready_copy, "LEAST_BASE_BYTES", 10**9)
    loading.load()
    assert loading.copies == [] and loading.said == []  # it is quantised in a moment
    loading.place.rmdir()
    loading.load()
    assert not loading.place.exists()


@pytest.mark.parametrize("loading", ["mixtral"], indirect=True)
def test_experts_that_are_one_tensor_have_no_copy_and_a_person_is_told(loading: Loading) -> None:
    loading.load()
    assert loading.copies == [] and "experts" in loading.said[0]


def test_a_disk_that_fills_up_costs_no_training(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, folder: Path, **options: Any) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    assert loading.load() is not None
    assert loading.copies == [] and "No space left on device" in loading.said[0]


def test_a_base_that_changes_while_it_is_read_has_no_copy(loading: Loading, monkeypatch: pytest.MonkeyPatch) -> None:
    load = text_models.load

    def slow(folder: Path, **options: Any) -> Any:
        found = load(folder, **options)
        os.utime(folder / "config.json")
        return found

    monkeypatch.setattr(text_models, "load", slow)
    loading.load()
    assert loading.copies == [] and "has changed since it was loaded" in loading.said[0]


def test_copies_are_counted_and_can_be_deleted(loading: Loading, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from studio.services import Studio

    studio = Studio.open(settings)
    loading.place = settings.copies
    loading.load()
    storage: StorageService = studio.storage
    (use,) = [one for one in storage.show().nouns if one.noun == COPIES]
    assert use.bytes > 0 and use.unused_bytes == 0 and storage.clean().deleted == []  # a training may be reading it
    later = time.time() + 2 * YOUNG_S
    monkeypatch.setattr("studio.services.storage.time.time", lambda: later)
    (unused,) = [one for one in storage.show().unused if one.noun == COPIES]
    assert unused.path == str(loading.copies[0]) and "next training" in unused.why
    assert [one.path for one in storage.clean().deleted] == [unused.path] and loading.copies == []
    loading.load()
    assert KEPT in loading.said[-1]
    studio.db.dispose()
