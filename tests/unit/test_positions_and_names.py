"""Rotary positions in GGUF's terms, names of a text model's layers, and the ends of logs."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
from torch import nn

from jobs import executor
from jobs.exporters import gguf_rope
from jobs.trainers import text_layers
from jobs.trainers.text_layers import TextLayers

BASE = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 4096, "rope_theta": 5000.0}
ORIGINAL = "original_max_position_embeddings"


class Writer:
    """Keeps what it is told, by name."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.found.__setitem__(name.removeprefix("add_rope_"), value)


def keys(**more: Any) -> dict[str, Any]:
    writer = Writer()
    gguf_rope.add_keys(writer, {**BASE, **more})
    return writer.found


KINDS = gguf.RopeScalingType
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 1024}


@pytest.mark.parametrize(
    ("more", "added"),
    [
        ({}, {}),
        ({"partial_rotary_factor": 0.5}, {"dimension_count": 4}),
        ({"head_dim": 16}, {"dimension_count": 16}),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, {"scaling_type": KINDS.LINEAR, "scaling_factor": 2.0}),
        ({"rope_scaling": YARN}, {"scaling_type": KINDS.YARN, "scaling_factor": 4.0, "scaling_orig_ctx_len": 1024}),
        (
            {"rope_scaling": {**YARN, "beta_fast": 32.0, "beta_slow": 2, "attention_factor": 1.0}},
            {
                "scaling_type": KINDS.YARN, "scaling_factor": 4.0, "scaling_orig_ctx_len": 1024, "scaling_yarn_beta_slow": 2.0,
                "scaling_attn_factors": 1 / (0.1 * math.log(4) + 1),
            },
        ),
        (
            {"rope_scaling": {"rope_type": "longrope", "factor": 4.0, ORIGINAL: 1024, "short_factor": [1.0], "long_factor": [2.0]}},
            {"scaling_type": KINDS.LONGROPE, "scaling_orig_ctx_len": 1024, "scaling_attn_factors": math.sqrt(1 + math.log(4) / math.log(1024))},
        ),
    ],
)  # fmt: skip
def test_positions_as_llama_cpp_reads_them(more: dict[str, Any], added: dict[str, Any]) -> None:
    assert keys(**more) == {"dimension_count": 8, "freq_base": 5000.0, **added}


def test_layers_that_see_a_window_turn_at_a_pace_of_their_own() -> None:
    kinds = {
        "full_attention": {"rope_type": "default", "rope_theta": 7.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3.0},
    }
    assert keys(rope_parameters=kinds)["freq_base_swa"] == 3.0 and "freq_base_swa" not in keys()


def test_tensors_that_scaled_positions_need() -> None:
    assert gguf_rope.tensors(BASE) == {} and gguf_rope.tensors({**BASE, "rope_scaling": YARN}) == {}
    lists = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
    found = gguf_rope.tensors({**BASE, "rope_scaling": {"rope_type": "longrope", "factor": 4.0, ORIGINAL: 1024, **lists}})
    assert {name: value.tolist() for name, value in found.items()} == {
        "rope_factors_short.weight": [1.0, 2.0], "rope_factors_long.weight": [3.0, 4.0],
    }  # fmt: skip
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, ORIGINAL: 1024}
    [(name, divisors)] = gguf_rope.tensors({**BASE, "rope_scaling": scaling}).items()
    assert (name, divisors.dtype, divisors.shape) == ("rope_freqs.weight", np.float32, (4,))
    assert divisors[0] == 1.0 and divisors[-1] == 8.0, "short waves stay, long ones are stretched"
    assert all(1.0 <= one <= 8.0 for one in divisors) and sorted(divisors) == list(divisors)
    wave = 2 * math.pi * 5000.0 ** (2 * 2 / 8)
    smooth = (1024 / wave - 1.0) / 3.0
    assert divisors[2] == pytest.approx(1 / ((1 - smooth) / 8 + smooth), rel=1e-5)


def stated(architecture: str = "llama", tensors: Any = (), **fields: Any) -> dict[str, Any]:
    own = {gguf.Keys.General.ARCHITECTURE: architecture, "llama.context_length": 4096, "llama.rope.freq_base": 5000.0}
    own |= {f"llama.rope.{key.replace('__', '.')}": value for key, value in fields.items()}
    reader = SimpleNamespace(
        fields={key: SimpleNamespace(contents=lambda value=value: value) for key, value in own.items()},
        tensors=[SimpleNamespace(name=name, data=np.array(data)) for name, data in tensors],
    )
    return gguf_rope._stated(reader)


def test_positions_are_read_back() -> None:
    assert stated() == {"rope_type": "default", "rope_theta": 5000.0}
    yarn = stated(scaling__type="yarn", scaling__factor=4.0, scaling__original_context_length=1024, scaling__yarn_beta_slow=2.0)
    assert yarn == {
        "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "beta_slow": 2.0, ORIGINAL: 1024,
        "attention_factor": pytest.approx(0.1 * math.log(4) + 1),
    }  # fmt: skip
    lists = [("rope_factors_short.weight", [1.0]), ("rope_factors_long.weight", [2.0]), ("other", [3.0])]
    long = stated(tensors=lists, scaling__type="longrope", scaling__original_context_length=1024, scaling__attn_factor=1.5)
    assert long == {
        "rope_type": "longrope", "rope_theta": 5000.0, "factor": 4.0, ORIGINAL: 1024, "attention_factor": 1.5,
        "short_factor": [1.0], "long_factor": [2.0],
    }  # fmt: skip
    llama3 = stated(tensors=[("rope_freqs.weight", [1.0, 8.0])])
    assert llama3 == {
        "rope_type": "longrope", "rope_theta": 5000.0, "factor": 1.0, ORIGINAL: 4096, "attention_factor": 1.0,
        "short_factor": [1.0, 8.0], "long_factor": [1.0, 8.0],
    }  # fmt: skip


def test_what_was_read_takes_the_place_of_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_rope, "_stated", lambda reader: {"rope_type": "linear", "factor": 2.0})
    plain = {"rope_type": "yarn", "factor": 9.0, "beta_fast": 1, "partial_rotary_factor": 0.5}
    gguf_rope.read_back(None, SimpleNamespace(rope_parameters=plain))
    assert plain == {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}
    kinds: dict[str, Any] = {"full_attention": {"rope_type": "yarn"}, "sliding_attention": {"rope_type": "default"}}
    gguf_rope.read_back(None, SimpleNamespace(rope_parameters=kinds))
    assert kinds == {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}}


class Composed(nn.Module):
    """A text model beside a vision tower, with a gate that holds a weight of its own beside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.vision = nn.Module(), nn.Module()
        for part in (self.text, self.vision):
            part.q = nn.Linear(2, 2)
        self.text.up, self.text.embed = nn.Linear(2, 2), nn.Embedding(3, 2)
        self.text.mixer = nn.Module()
        self.text.mixer.decay = nn.Parameter(nn.init.zeros_(nn.Linear(1, 1).weight.data))
        self.text.mixer.out = nn.Linear(2, 2)
        self.head = nn.Linear(2, 3)

    def get_input_embeddings(self) -> Any:
        return self.text.embed

    def get_output_embeddings(self) -> Any:
        return self.head


@pytest.mark.parametrize("prefix", ["text", ""])
def test_layers_of_the_text_alone(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setattr(text_layers.anatomy, "text_prefix", lambda model: prefix)
    found = TextLayers(Composed())
    text = ["text.q", "text.up", "text.mixer.out"]
    assert sorted(found.copied) == sorted([*text, *(["vision.q"] if not prefix else [])])
    assert found.left_out == ["text.mixer.decay"] and found.ends == ["embed", "head"]
    assert ("vision.q" in found.names) is (not prefix) and "head" in found.names
    assert found.meaning(["text.up"]) == ["up"] and found.meaning(["text.q"]) == ["text.q"]
    assert found.meaning(["text.q", "vision.q"]) == ["q"]
    assert found.ending_with(["q"]) == (["text.q"] if prefix else ["q"]) and found.ending_with(["up", "mixer.out"]) == ["mixer.out", "up"]


@pytest.mark.parametrize(
    ("text", "count", "last"),
    [
        ("", 2, ""),
        ("a", 2, "a"),
        ("a\nb\nc\n", 2, "b\nc"),
        ("a\nb\nc", 9, "a\nb\nc"),
        ("x\n" + "y" * 70_000 + "\nz\n", 2, "y" * 70_000 + "\nz"),
    ],
)
def test_the_last_lines_of_a_log(tmp_path: Path, text: str, count: int, last: str) -> None:
    (tmp_path / "log").write_text(text)
    assert executor.last_lines(tmp_path / "log", count) == last and executor.last_lines(tmp_path / "none", count) == ""


@pytest.mark.parametrize(
    ("visible", "expandable", "own", "found"),
    [(None, False, None, None), ("GPU-1", True, None, "expandable_segments:True"), (None, True, "mine", "mine")],
)
def test_the_variables_of_a_trainer(monkeypatch: pytest.MonkeyPatch, visible: Any, expandable: bool, own: Any, found: Any) -> None:
    ours = {"A": "1", **({"PYTORCH_ALLOC_CONF": own} if own else {})}
    monkeypatch.setattr(executor.processes, "child_environment", lambda for_loggers: dict(ours))
    monkeypatch.setattr(executor.hardware, "has_expandable_segments", lambda: expandable)
    made = executor.trainer_environment(3, visible)
    assert (made["A"], made["OMP_NUM_THREADS"], made["MKL_NUM_THREADS"], made.get("CUDA_VISIBLE_DEVICES")) == ("1", "3", "3", visible)
    assert made.get("PYTORCH_ALLOC_CONF") == found
