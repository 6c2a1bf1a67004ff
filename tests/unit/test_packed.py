"""Packed rows attend each to itself: the numbers and the gradients are those of the rows alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from jobs.trainers import packed
from studio.catalogue.architecture import sees_whole_rows

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"}
ROWS = [torch.arange(3, 3 + length) % 50 for length in (7, 1, 12, 5)]


@pytest.fixture(params=[(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    kind, config = request.param
    made = kind(config(**SIZES, **HEADS)).eval()
    packed.use(made)
    assert made.config._attn_implementation == packed.NAME
    return made


def batch() -> dict[str, Any]:
    bounds = torch.tensor([0, *torch.tensor([len(row) for row in ROWS]).cumsum(0)], dtype=torch.int32)
    positions = torch.cat([torch.arange(len(row)) for row in ROWS])[None]
    lengths = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 12, "max_length_k": 12}
    return {"input_ids": torch.cat(ROWS)[None], "position_ids": positions, "use_cache": False, **lengths}


def first_gradient(model: Any, logits: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    logits.square().sum().backward()
    gradient: torch.Tensor = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
    return gradient


@pytest.mark.parametrize("recomputes", [False, True])
def test_packed_rows_give_what_each_gives_alone(model: Any, recomputes: bool) -> None:
    if recomputes:
        model.train()
        model.activation_checkpointing_enable()
    inputs = batch()
    with packed.rows_of(inputs):
        together = model(**inputs).logits[0]
        gradient = first_gradient(model, together)  # within: what is recomputed has to meet the same bounds
    alone = torch.cat([model(input_ids=row[None], use_cache=False).logits[0] for row in ROWS])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(gradient, first_gradient(model, alone))


def test_nothing_is_masked_or_computed_beyond_the_rows(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, Any]] = []
    plain = packed.sdpa_attention_forward

    def watched(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((query.shape[2], mask))
        return plain(module, query, key, value, mask, *args, **kwargs)

    monkeypatch.setattr(packed, "sdpa_attention_forward", watched)
    inputs = batch()
    with packed.rows_of(inputs):
        model(**inputs)
    assert seen == [(len(row), None) for row in ROWS] * 2


def test_without_bounds_it_is_plain_attention(model: Any) -> None:
    inputs = batch()
    masked = model(**inputs).logits  # transformers' own way for packed rows: by their positions
    with packed.rows_of(inputs):
        torch.testing.assert_close(model(**inputs).logits, masked)
    padded, hides = torch.tensor([[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    logits = model(input_ids=padded, attention_mask=hides).logits
    torch.testing.assert_close(logits[0, :3], model(input_ids=padded[:1, :3]).logits[0])


@pytest.mark.parametrize(
    ("config", "whole"),
    [
        ({}, True),
        ({"sliding_window": 4096}, True),
        ({"sliding_window": 512}, False),
        ({"sliding_window": 512, "use_sliding_window": False}, True),
        ({"sliding_window": 512, "layer_types": ["full_attention"]}, True),
        ({"sliding_window": 512, "layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"layer_types": ["full_attention", "linear_attention"]}, False),
        ({"text_config": {"sliding_window": 512}}, False),
    ],
)
def test_a_window_narrower_than_a_row_keeps_its_mask(config: dict[str, Any], whole: bool) -> None:
    assert sees_whole_rows(config, 1024) is whole
