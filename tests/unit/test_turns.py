"""Who comes next, how often something is tried again, and what goes together: rules of queues, judges and batches."""

from __future__ import annotations

import json
import subprocess
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs import panel
from jobs.exporters import models, rounding
from jobs.exporters.gguf_rope import _longrope_attention, _yarn_attention
from jobs.trainers import failures, probing
from studio.catalogue import memory, precision
from studio.errors import EngineError, ModelError
from studio.evaluation import replies
from studio.services import hub_models
from studio.services.hub_models import note


def judge(monkeypatch: pytest.MonkeyPatch, *answers: Any, url: str = "http://j") -> tuple[Any, list[float]]:
    """A judge whose server answers so, and how long it rested."""
    left, rests = list(answers), []

    def chat(*_: Any, **__: Any) -> Any:
        said = left.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    monkeypatch.setattr(panel.random, "uniform", lambda low, high: 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: sum(rests))
    owner: Any = SimpleNamespace(
        _client=SimpleNamespace(chat=chat), contestant=SimpleNamespace(url=url), _params=None, _grammar=None, _rest=rests.append
    )
    owner._given_up = lambda exc, attempts: panel.ModelJudge._given_up(owner, exc, attempts)
    return owner, rests


def failing(status: int, code: str = "x", **details: Any) -> EngineError:
    return EngineError("no", "", status=status, code=code, **details)


@pytest.mark.parametrize(
    ("errors", "rests"),
    [
        ([], []),
        ([failing(500)], [0.5]),
        ([failing(408), failing(429)], [0.5, 1.0]),
        ([failing(503, retry_after=7), failing(503)], [7.0, 1.0]),
    ],
)
def test_a_judge_is_asked_again_while_the_trouble_may_pass(monkeypatch: pytest.MonkeyPatch, errors: list[Any], rests: list[float]) -> None:
    owner, rested = judge(monkeypatch, *errors, "answer")
    assert panel.ModelJudge._reply(owner, []) == "answer" and rested == rests


@pytest.mark.parametrize("error", [failing(400), failing(422), failing(499), failing(500, "not_openai"), failing(401, "not_openai")])
def test_what_one_question_can_not_have_is_its_reply(monkeypatch: pytest.MonkeyPatch, error: EngineError) -> None:
    owner, rested = judge(monkeypatch, error)
    assert panel.ModelJudge._reply(owner, []).text.startswith(replies.REFUSED) and rested == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_judge_that_refuses_everything_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    owner, rested = judge(monkeypatch, failing(status))
    with pytest.raises(Exception, match="gave no answer in 1 attempts"):
        panel.ModelJudge._reply(owner, [])
    assert rested == []


def test_a_judge_is_given_up_after_some_tries_or_a_quarter_of_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, rested = judge(monkeypatch, *[failing(500)] * panel.ATTEMPTS)
    with pytest.raises(Exception, match=f"in {panel.ATTEMPTS} attempts"):
        panel.ModelJudge._reply(owner, [])
    assert len(rested) == panel.ATTEMPTS - 1
    for wait, tries in ((900, 2), (901, 1)):
        owner, _ = judge(monkeypatch, failing(503, retry_after=wait), failing(503))
        with pytest.raises(Exception, match=f"in {tries} attempts"):
            panel.ModelJudge._reply(owner, [])
    owner, _ = judge(monkeypatch, failing(401), url="")
    with pytest.raises(EngineError):
        panel.ModelJudge._reply(owner, [])


@pytest.mark.parametrize(
    ("lengths", "batches"),
    [([], []), ([1024], [[1024]]), ([2000, 1], [[2000], [1]]), ([1, 1, 342], [[1, 1], [342]]),
      ([512, 512, 512], [[512, 512], [512]]), ([100, 512, 513], [[100, 512], [513]])],
)  # fmt: skip
def test_rows_are_judged_together_up_to_1024_tokens_with_their_padding(lengths: list[int], batches: list[list[int]]) -> None:
    found = probing._batches([([0] * length, []) for length in lengths])
    assert [[len(ids) for ids, _ in batch] for batch in found] == batches


@pytest.mark.parametrize(("pad", "eos", "padding"), [(3, 5, 3), (None, 5, 5), (None, None, 0), (0, 5, 0)])
def test_what_fills_a_short_row(pad: int | None, eos: int | None, padding: int) -> None:
    renderer: Any = SimpleNamespace(pad_token_id=pad, eos_token_id=eos, stop_token_ids=[9, 5])
    assert probing._padding(renderer) == padding and probing._ends(renderer) == ([9, 5] if eos is None else [5, 9])


@pytest.mark.parametrize(
    ("lines", "seen", "answer"),
    [
        (['{"total": 2, "done": 1}', "noise", "[]", '{"error": null, "folder": "/f"}'], 1, "/f"),
        (['{"error": {"message": "m", "fix": "f"}}'], 0, "m"),
        (["noise"], 0, "ended without an answer"),
    ],
)
def test_a_download_is_told_by_its_child(monkeypatch: pytest.MonkeyPatch, lines: list[str], seen: int, answer: str) -> None:
    class Child:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.stdout = iter(f"{line}\n" for line in lines)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    told: list[Any] = []
    monkeypatch.setattr(subprocess, "Popen", Child)
    monkeypatch.setattr(hub_models.Fetched, "model_validate", lambda value: value)
    if answer.startswith("/"):
        assert str(hub_models.fetch("a/b", progress=told.append)) == answer
    else:
        with pytest.raises(ModelError, match=answer):
            hub_models.fetch("a/b", progress=told.append)
    assert len(told) == seen


def test_a_folder_of_the_cache_of_the_hub_is_said_to_be_one(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for held, said in ((True, f"revision {tmp_path.name[:8]}, and"), (False, "")):
        monkeypatch.setattr(hub_models.hub_cache, "holds", lambda folder, held=held: held)
        assert said in note(tmp_path) and bool(note(tmp_path)) is held


@pytest.mark.parametrize(
    ("device", "gpu", "machine", "check", "has"),
    [
        ("cuda", True, "x86_64", False, True),
        ("cuda", False, "arm64", True, False),
        ("cpu", True, "x86_64", False, False),
        ("cpu", False, "x86_64", True, True),
        ("cpu", False, "aarch64", False, True),
    ],
)
def test_where_bfloat16_is_computed_with(
    monkeypatch: pytest.MonkeyPatch, device: str, gpu: bool, machine: str, check: bool, has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu and not including_emulation)
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: check, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    assert precision.has_bfloat16(device) is has


@pytest.mark.parametrize(
    ("dtype", "device", "size"),
    [("float32", "cuda", 4), ("bfloat16", "cpu", 2), ("float16", "cpu", 2), ("auto", "cuda", 2), ("auto", "cpu", 4)],
)
def test_bytes_of_a_number_that_a_job_computes_with(monkeypatch: pytest.MonkeyPatch, dtype: str, device: str, size: int) -> None:
    from jobs.config import build

    monkeypatch.setattr(memory.hardware, "cpu_number_bytes", lambda: 4)
    assert memory.number_bytes(device, build({"dtype": dtype})) == size
    assert memory.number_bytes(device) == {"cuda": 2, "cpu": 4}[device]


def test_attention_of_long_positions_is_as_published() -> None:
    assert (_yarn_attention(1.0), round(_yarn_attention(4.0), 6)) == (1.0, 1.138629)
    assert _longrope_attention({"attention_factor": 1.5}) == 1.5
    positions = {"factor": 32.0, "original_max_position_embeddings": 4096}
    assert _longrope_attention(positions) == pytest.approx(1.190238)
    assert _longrope_attention({**positions, "factor": 0.5}) == 1.0


@pytest.mark.parametrize(("apart", "tied"), [(True, False), (False, True)])
def test_a_head_that_was_learned_apart_is_written_apart(monkeypatch: pytest.MonkeyPatch, apart: bool, tied: bool) -> None:
    text = SimpleNamespace(tie_word_embeddings=True)
    one, other = SimpleNamespace(weight=object()), SimpleNamespace(weight=object())
    merged = SimpleNamespace(
        config=SimpleNamespace(tie_word_embeddings=True, get_text_config=lambda: text),
        get_input_embeddings=lambda: one, get_output_embeddings=lambda: other if apart else one,
    )  # fmt: skip
    monkeypatch.setattr(models, "_check_shared", lambda model: None)
    monkeypatch.setattr(models, "_keep_whole_layers", lambda model: None)
    found = models.merge(SimpleNamespace(merge_and_unload=lambda safe_merge: merged))
    assert found is merged and (text.tie_word_embeddings, merged.config.tie_word_embeddings) == (tied, tied)


def test_rounded_weights_may_differ_in_a_few_by_one_step() -> None:
    model = torch.nn.Linear(100, 100, bias=False)
    rounded = rounding.rounding_of(model, torch.bfloat16)
    model.load_state_dict({"weight": rounded["weight"].float()})
    assert rounding.is_same(model, rounded)
    assert not rounding.is_same(torch.nn.Linear(100, 99, bias=False), rounded) and not rounding.is_same(torch.nn.Linear(100, 100), rounded)
    with torch.no_grad():
        model.weight[0, 0] += 1.0
    assert not rounding.is_same(model, rounded)


@pytest.mark.parametrize(
    ("raised", "is_memory"),
    [
        (MemoryError(), True), (type("OutOfMemoryError", (Exception,), {})(), True), (OSError(12, "x"), True), (OSError(28, "x"), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True), (ValueError("not enough memory"), False),
    ],
)  # fmt: skip
def test_want_of_memory_is_told_from_other_errors(raised: BaseException, is_memory: bool) -> None:
    assert failures.is_out_of_memory(raised, str(raised)) is is_memory


@pytest.mark.parametrize(("text", "short"), [("a.", "a"), ("", "no message"), ("b" * 300, "b" * 300), ("b" * 301, "b" * 299 + "…")])
def test_an_error_is_shown_in_300_letters(text: str, short: str) -> None:
    assert failures._short(text) == short


def test_json_of_a_download_is_a_line() -> None:
    assert hub_models._read(json.dumps({"total": 1})) == {"total": 1} and hub_models._read("{") is None and hub_models._read("[1]") is None
