"""Packed rows attend each to itself: the numbers and the gradients are those of the rows alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from jobs.trainers import packed, varlen
from studio.catalogue.architecture import sees_whole_rows

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"}
ROWS = [torch.arange(3, 3 + length) % 50 for length in (7, 1, 12, 5)]


said: list[str] = []


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    said.clear()


@pytest.fixture(params=[(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    kind, config = request.param
    made = kind(config(**SIZES, **HEADS)).eval()
    packed.use(made, said.append)
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


def one_pass(calls: list[int]) -> Any:
    """torch's variable-length attention as its documentation has it, on a processor, where torch has none."""

    def varlen_attn(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
        scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        assert query.shape[1] == key.shape[1] or enable_gqa
        assert cu_seq_q.dtype == torch.int32 and max_q == max_k == int(cu_seq_k.diff().max())
        calls.append(len(query))
        tokens = torch.arange(len(query))
        row = torch.bucketize(tokens, cu_seq_q[1:], right=True)
        sees = row[:, None] == row[None]
        if window_size == (-1, 0):
            sees &= tokens[:, None] >= tokens[None]
        states = (one.transpose(0, 1)[None] for one in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=sees, scale=scale, enable_gqa=enable_gqa)[0].transpose(
            0, 1
        )

    return varlen_attn


@pytest.fixture
def a_gpus_code(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    for name, found in {"lacking": "", "function": one_pass(calls), "widest_head": 256}.items():
        monkeypatch.setattr(varlen, name, lambda *_, found=found: found)
    monkeypatch.setattr(varlen, "HALVES", (torch.float32,))
    return calls


@pytest.mark.parametrize("recomputes", [False, True])
def test_a_gpu_computes_all_rows_in_one_pass_and_they_give_what_each_gives_alone(
    model: Any, recomputes: bool, a_gpus_code: list[int]
) -> None:
    # red when rows see each other, heads are grouped or scaled otherwise, or a pass is made for each row
    test_packed_rows_give_what_each_gives_alone(model, recomputes)
    assert set(a_gpus_code) == {25} and len(a_gpus_code) == 2 * (1 + recomputes)
    assert said == [packed.TOGETHER]


def test_the_job_says_which_attention_its_packed_rows_get(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = batch()
    for _ in range(2):
        with packed.rows_of(inputs):
            model(**inputs)
    assert said == [packed.ONE_BY_ONE.format(why="it is for GPUs")]
    packed.use(model, said.append, sees_whole_rows=False)
    model.set_attn_implementation("sdpa")
    packed.use(model, said.append, sees_whole_rows=False)
    assert "max_length" in said[-1] and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("capability", "hip", "why"),
    [((8, 0), None, ""), ((12, 0), None, ""), ((7, 5), None, "compute capability 8.0, and this GPU has 7.5"), ((9, 0), "6.4", "NVIDIA")],
)
def test_gpus_from_ampere_on_have_it(capability: tuple[int, int], hip: str | None, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    found = varlen.lacking.__wrapped__(torch.device("cuda", 0))
    assert why in found and bool(found) == bool(why), "the installed torch has the function"


def test_what_the_code_on_the_gpu_does_not_take_goes_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "lacking", lambda _: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
    varlen.widest_head.cache_clear()

    def why(width: int, dtype: torch.dtype = torch.bfloat16, dropout: float = 0.0, adds: Any = ()) -> str:
        states = torch.zeros(1, 2, 3, width, dtype=dtype)
        return varlen.unfit(states, states, states, dropout, adds)

    assert why(128) == why(192) == ""
    assert "float32" in why(64, torch.float32) and "256" in why(256) and "20 numbers" in why(20)
    assert why(64, dropout=0.1) and why(64, adds=["s_aux"])
    with torch.autocast("cpu", torch.bfloat16):  # it decides what is computed in
        assert why(64, torch.float32) == ""
    varlen.widest_head.cache_clear()


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
