"""A report that gives way to trainings, its examples and figures, and what speaks against a judge; the keys of a GGUF file."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs import judge, measures, report
from jobs.bottleneck import tuner
from jobs.exporters import gguf_keys
from studio.db import queue_order
from studio.db.models import JobRow
from studio.errors import StudioError
from studio.services import Studio
from tests.stores import add


def context(studio: Studio, priority: int, stopped: bool = False) -> tuple[Any, list[Any]]:
    told: list[Any] = []
    [job] = add(studio, JobRow(kind="report", name=f"r{priority}", priority=priority))
    made = SimpleNamespace(db=studio.db, job_id=job, stop_requested=lambda: stopped, progress=lambda *step: told.append(step), config={})
    return made, told


@pytest.mark.parametrize(("priority", "free", "gives_way"), [(-1, False, True), (-1, True, False), (0, False, False)])
def test_a_report_nobody_asked_for_gives_way_to_a_training(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, priority: int, free: bool, gives_way: bool
) -> None:
    looks: list[int] = []
    now = [10.0]
    state = {"free": free}

    def is_free(session: Any) -> bool:
        looks.append(1)
        return state["free"]

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(queue_order, "device_is_free", is_free)
    made, _ = context(studio, priority)
    yielding = report.Yielding(made)
    assert yielding.is_stopping() is gives_way and len(looks) == (priority < 0)
    state["free"] = not free
    assert yielding.is_stopping() is gives_way, "it looks once a second"
    now[0] += 1
    assert yielding.is_wanted() is (priority < 0 and free)
    state["free"] = free
    assert yielding.is_wanted(at_once=True) is gives_way
    assert report.Yielding(context(studio, 5, stopped=True)[0]).is_stopping()


def test_a_report_is_two_halves(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    made, told = context(studio, 0)
    monkeypatch.setattr(report, "replace", lambda context, **values: SimpleNamespace(**values))
    yielding = report.Yielding(made)
    yielding.part(0).progress(1, 4)
    yielding.part(1).progress(1, 4)
    assert told == [(1, 8), (5, 8)]


@pytest.mark.parametrize(
    ("with_judge", "wanted", "raised"), [(False, False, None), (True, False, None), (True, True, "stopped"), (True, False, "refused")]
)
def test_an_engine_that_was_unloaded_for_a_training_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, with_judge: bool, wanted: bool, raised: str | None
) -> None:
    done: list[Any] = []

    def judged(part: Any) -> None:
        done.append(("judge", part))
        if raised:
            raise StudioError("No.", "")

    monkeypatch.setattr(
        report, "Yielding", lambda context: SimpleNamespace(part=lambda number: number, is_wanted=lambda at_once: at_once and wanted)
    )
    monkeypatch.setattr(report.compare, "run", lambda part: done.append(("compare", part)))
    monkeypatch.setattr(report.judge, "run", judged)
    monkeypatch.setattr(report, "_figures", lambda part: {"part": part})
    config = {"judgement": "j"} if with_judge else {}
    if raised:
        with pytest.raises(report.LightJobStopped if raised == "stopped" else StudioError):
            report.run(SimpleNamespace(config=config))  # type: ignore[arg-type]
    else:
        assert report.run(SimpleNamespace(config=config)) == {"part": 1}  # type: ignore[arg-type]
    assert done == [("compare", 0), *([("judge", 1)] if with_judge else [])]


def test_wins_losses_and_ties_and_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [
        {"id": str(n), "turns": [[{"content": "first"}], [{"content": "q" * 599 + str(n) + "xx"}]], "reference": "r" * 700}
        for n in range(8)
    ]
    scores = {"0": 1.0, "1": 0.0, "2": 0.5, "3": 0.75, "4": 0.25, "5": 1.0, "6": 1.0}
    games = [SimpleNamespace(prompt_id=key, score=score, a="tuned") for key, score in scores.items()]
    games[1] = SimpleNamespace(prompt_id="1", score=1.0, a="base")
    monkeypatch.setattr(report.verdicts, "games", lambda lines: games)
    comparison: Any = SimpleNamespace(contestants=["base", "tuned"], prompts=prompts)
    answers: Any = [SimpleNamespace(prompt_id="0", contestant=who, text=who * 300) for who in ("base", "tuned")]
    found = report._examples(comparison, answers, [])
    assert found["counts"] == {"wins": 4, "losses": 2, "ties": 1}
    assert [one["prompt_id"] for one in found["wins"]] == ["0", "3", "5"] and [one["prompt_id"] for one in found["losses"]] == ["1", "4"]
    first = found["wins"][0]
    assert (first["prompt"], first["reference"]) == ("q" * 597 + "0xx", "r" * 600) and first["base"] == "base" * 150
    assert first["tuned"] == ("tuned" * 300)[:600] and found["losses"][0]["base"] == ""


@pytest.mark.parametrize(
    ("parameters", "measured", "reason"),
    [
        (300_000_000, {"perplexity": 2.0}, None),
        (300_000_001, None, "the base has 0.3 billion parameters, too many to read the references on the processor by itself"),
        (None, None, "It is gone."),
    ],
)
def test_perplexity_of_small_bases_only(monkeypatch: pytest.MonkeyPatch, parameters: int | None, measured: Any, reason: str | None) -> None:
    def count(folder: Any) -> int:
        if parameters is None:
            raise StudioError("It is gone.", "")
        return parameters

    monkeypatch.setattr(report, "count_parameters", count)
    monkeypatch.setattr(measures, "perplexity", lambda *_: {"perplexity": 2.0})
    figures: dict[str, Any] = {}
    contestant = {"name": "a", "studio": {"base": {"path": "/b"}}}
    report._add_perplexity(SimpleNamespace(settings=None, stop_if_asked=None), None, contestant, figures)  # type: ignore[arg-type]
    assert figures["perplexity"] == (measured and 2.0)
    if reason:
        assert reason in figures["reasons"]["perplexity"]


@pytest.mark.parametrize(
    ("able", "invalid", "said"),
    [(True, 0, 0), (None, 0, 0), (False, 0, 1), (True, 2, 1), (False, 1, 2)],
)
def test_what_speaks_against_a_judge(able: bool | None, invalid: int, said: int) -> None:
    assert len(judge._against({"able": able, "invalid": invalid, "reference_agreement": {"agreement": 0.5}})) == said
    told: list[Any] = []
    judge._part(SimpleNamespace(progress=lambda *step: told.append(step)), 2, 3)(1, 4)  # type: ignore[arg-type]
    assert told == [(9, 12)]


class Writer:
    """Keeps what it is told, by name."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return lambda value: self.found.__setitem__(name.removeprefix("add_"), value)


SHAPE = {
    "num_attention_heads": 4, "max_position_embeddings": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 9,
}  # fmt: skip


def keys(monkeypatch: pytest.MonkeyPatch, name: str, windows: bool = True, **more: Any) -> dict[str, Any]:
    monkeypatch.setattr(gguf_keys.gguf_rope, "add_keys", lambda writer, config: None)
    writer = Writer()
    gguf_keys.add_shape(writer, SimpleNamespace(name=name, windows=windows), {**SHAPE, **more})  # type: ignore[arg-type]
    return writer.found


def test_keys_of_a_plain_model(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = keys(monkeypatch, "llama")
    assert plain == {
        "context_length": 64, "embedding_length": 32, "block_count": 2, "feed_forward_length": 48, "head_count": 4, "head_count_kv": 4,
        "vocab_size": 9, "key_length": 8, "value_length": 8,
    }  # fmt: skip
    assert keys(monkeypatch, "llama", num_key_value_heads=2)["head_count_kv"] == 2


@pytest.mark.parametrize(
    ("name", "more", "added"),
    [
        ("llama", {"rms_norm_eps": 1e-6}, {"layer_norm_rms_eps": 1e-6}),
        ("starcoder2", {"norm_epsilon": 1e-5}, {"layer_norm_eps": 1e-5}),
        ("olmo", {}, {"layer_norm_eps": 1e-5}),
        ("olmo", {"clip_qkv": 8}, {"layer_norm_eps": 1e-5, "clamp_kqv": 8.0}),
        ("mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2}, {"expert_count": 8, "expert_used_count": 2}),
        (
            "qwen2_moe",
            {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 5, "shared_expert_intermediate_size": 6},
            {"expert_count": 4, "expert_used_count": 1, "expert_feed_forward_length": 5, "expert_shared_feed_forward_length": 6},
        ),
        ("phi3", {"sliding_window": None}, {"sliding_window": 0}),
        (
            "gemma2",
            {"sliding_window": 16, "layer_types": ["sliding_attention", "full"]},
            {"sliding_window": 16, "sliding_window_pattern": [True, False]},
        ),
        ("gemma2", {"sliding_window": 16, "layer_types": ["full"]}, {}),
        ("gemma2", {"sliding_window": 0, "layer_types": ["sliding_attention"]}, {}),
        (
            "gemma2",
            {"attn_logit_softcapping": 50, "final_logit_softcapping": 30},
            {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        ),
        (
            "granite",
            {"attention_multiplier": 1, "embedding_multiplier": 2, "residual_multiplier": 3, "logits_scaling": 4},
            {"attention_scale": 1.0, "embedding_scale": 2.0, "residual_scale": 3.0, "logit_scale": 4.0},
        ),
    ],
)
def test_keys_that_only_some_models_have(monkeypatch: pytest.MonkeyPatch, name: str, more: dict[str, Any], added: dict[str, Any]) -> None:
    plain = keys(monkeypatch, "llama")
    found = keys(monkeypatch, name, **more)
    assert {key: value for key, value in found.items() if key not in plain} == added


def test_windows_that_llama_cpp_does_not_compute_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "sliding_window" not in keys(monkeypatch, "llama", windows=False, sliding_window=16, layer_types=["sliding_attention"])


@pytest.mark.parametrize(("width", "factor", "narrow"), [(16, 4, 4), (16, 3, 5), (2, 8, 1)])
def test_a_bottleneck_begins_as_the_identity(width: int, factor: int, narrow: int) -> None:
    torch.manual_seed(0)
    config = tuner.BottleneckConfig(reduction_factor=factor)
    layer = tuner.BottleneckLayer(torch.nn.Linear(3, width), "default", config)
    x = torch.randn(2, 3)
    assert layer.bottleneck_down["default"].out_features == narrow and torch.equal(layer(x), layer.base_layer(x))
    torch.nn.init.ones_(layer.bottleneck_up["default"].weight)
    torch.nn.init.constant_(layer.bottleneck_down["default"].bias, 9.0)
    assert not torch.equal(layer(x), layer.base_layer(x))
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))
    with pytest.raises(ValueError, match="can't be merged"):
        layer.merge()
