"""Sums of adapters: exact where they claim to be, and what can't be added is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from studio.catalogue import arithmetic
from studio.errors import ModelError

LAYER = "base_model.model.model.layers.{}.self_attn.q_proj"


def adapter(folder: Path, *, r: int = 4, layers: tuple[int, ...] = (0, 1), seed: int = 0, **config: Any) -> arithmetic.AdapterPart:
    folder.mkdir()
    generator = np.random.default_rng(seed)
    tensors = {}
    for layer in layers:
        tensors[LAYER.format(layer) + ".lora_A.weight"] = generator.normal(size=(r, 12)).astype(np.float32)
        tensors[LAYER.format(layer) + ".lora_B.weight"] = generator.normal(size=(8, r)).astype(np.float32)
    save_file(tensors, folder / arithmetic.WEIGHTS)
    (folder / arithmetic.CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": r, "lora_alpha": 8, **config}))
    return arithmetic.read(folder, folder.name)


def update(part: arithmetic.AdapterPart, layer: int) -> Any:
    a, b = part.pair(LAYER.format(layer), like=[part])
    return part.scaling * (b @ a)


def written(folder: Path, factors: Any) -> arithmetic.AdapterPart:
    folder.mkdir()
    arithmetic.write(folder, factors, {"peft_type": "LORA"})
    return arithmetic.read(folder, folder.name)


@pytest.mark.parametrize("method", ["linear", "dare"])
def test_a_sum_is_the_sum_of_the_updates_whatever_their_ranks_and_scalings(tmp_path: Path, method: str) -> None:
    """Mixing factors instead of updates would leave products of one adapter's A with the other's B."""
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two", r=2, seed=1, use_rslora=True)
    both = written(tmp_path / "both", arithmetic.combine([one, two], [0.7, -0.3], method, 1.0))
    for layer in (0, 1):
        np.testing.assert_allclose(update(both, layer), 0.7 * update(one, layer) - 0.3 * update(two, layer), atol=1e-5)


def test_a_layer_that_only_one_adapter_has_keeps_its_share(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one", layers=(0,)), adapter(tmp_path / "two", layers=(1,), seed=1)
    both = written(tmp_path / "both", arithmetic.combine([one, two], [0.5, 0.25], "linear", 1.0))
    np.testing.assert_allclose(update(both, 1), 0.25 * update(two, 1), atol=1e-5)


def test_ties_drops_what_is_small_and_what_disagrees(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one", r=1, layers=(0,)), adapter(tmp_path / "two", r=1, layers=(0,), seed=1)
    a, _ = arithmetic.combine([one, two], [1.0, 1.0], "ties", 0.5)[LAYER.format(0)]
    # the paper's three steps, one number at a time
    halves = [part.factors[LAYER.format(0)][0].reshape(-1) * np.sqrt(part.scaling) for part in (one, two)]
    kept = [np.where(np.abs(values) >= np.sort(np.abs(values))[-6], values, 0) for values in halves]
    for place, found in enumerate(a.reshape(-1)):
        values = [values[place] for values in kept]
        agreeing = [value for value in values if value * sum(values) > 0]
        assert found == pytest.approx(np.mean(agreeing) if agreeing else 0.0, abs=1e-5)


def test_ties_keeps_the_positive_value_where_signs_balance() -> None:
    """As peft's calculate_majority_sign_mask, which counts a sum of 0 as positive."""
    layer = LAYER.format(0)
    parts = [arithmetic.AdapterPart({layer: (np.full((1, 4), value, np.float32),) * 2}, 1.0, 1) for value in (2.0, -2.0)]
    down, up = arithmetic.combine(parts, [1.0, 1.0], "ties", 1.0)[layer]
    assert (down == 2.0).all() and (up == 2.0).all()


def test_dare_drops_its_share_and_keeps_the_expectation_and_is_the_same_every_time(tmp_path: Path) -> None:
    part = adapter(tmp_path / "one", r=64)
    a, _ = arithmetic.combine([part], [1.0], "dare", 0.25)[LAYER.format(0)]
    original = part.factors[LAYER.format(0)][0]
    assert np.mean(a == 0) == pytest.approx(0.75, abs=0.05)
    np.testing.assert_allclose(a[a != 0], 4 * original[a != 0], rtol=1e-6)
    again, _ = arithmetic.combine([part], [1.0], "dare", 0.25)[LAYER.format(0)]
    assert (a == again).all()


@pytest.mark.parametrize(("config", "word"), [({"peft_type": "IA3"}, "IA3"), ({"use_dora": True}, "use_dora"), ({"bias": "all"}, "bias")])
def test_other_kinds_are_refused(tmp_path: Path, config: dict[str, Any], word: str) -> None:
    with pytest.raises(ModelError, match=word):
        adapter(tmp_path / "one", **config)


def test_ties_of_different_ranks_and_sums_of_different_bases_are_refused(tmp_path: Path) -> None:
    one, two = adapter(tmp_path / "one"), adapter(tmp_path / "two", r=2)
    with pytest.raises(ModelError, match="ranks 4, 2"):
        arithmetic.combine([one, two], [0.5, 0.5], "ties", 0.5)
    wide = arithmetic.AdapterPart({LAYER.format(0): (np.zeros((4, 16), np.float32), np.zeros((8, 4), np.float32))}, 1.0, 4)
    with pytest.raises(ModelError, match="different sizes"):
        arithmetic.combine([one, wide], [0.5, 0.5], "linear", 0.5)
