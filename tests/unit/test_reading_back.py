"""llama.cpp as a reader and as a quantizer of exports: what it is asked, and what is made of its answers. It is a stand-in here."""

from __future__ import annotations

import ctypes
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from jobs import export as exporting
from jobs.exporters import gguf_rounding
from jobs.exporters import llama_cpp_reader as reader
from jobs.exporters.config import ExportConfig, ProofPrompt
from jobs.exporters.proof import MAX_SHARE, NEW_TOKENS
from jobs.rundir import RunDir
from studio.errors import StudioError
from studio.types import Message


def config(tmp_path: Path, form: str = "gguf", outtype: str = "f16", **more: Any) -> ExportConfig:
    paths = {"adapter_path": str(tmp_path / "adapter"), "base_path": str(tmp_path / "base"), "to": str(tmp_path / "to")}
    return ExportConfig(adapter="one", base_model="base", format=form, outtype=outtype, **{**paths, **more})  # type: ignore[arg-type]


class Llama:
    """Answers with the number of the token, counted from 5; its logits at a position are that of the position."""

    def __init__(self, **options: Any) -> None:
        self.options, self.n_tokens, self.is_closed = options, 0, False
        self.seen: list[list[int]] = []

    @property
    def scores(self) -> Any:
        found = np.zeros((128, 128), dtype=np.float32)
        found[np.arange(128), (np.arange(128) + 4) % 128] = np.arange(128) + 1
        return found

    def reset(self) -> None:
        self.n_tokens = 0

    def eval(self, tokens: list[int]) -> None:
        self.n_tokens += len(tokens)
        self.seen.append(list(tokens))

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        assert special and not add_bos
        return list(text)

    def close(self) -> None:
        self.is_closed = True


def test_its_greedy_answer_ends_with_a_stop_or_after_the_tokens_of_the_proof() -> None:
    model = Llama()
    assert reader._answer(model, [9, 9], [8]) == [5, 6, 7, 8]
    assert model.seen == [[9, 9], [5], [6], [7]]
    assert len(reader._answer(model, [9, 9], [])) == NEW_TOKENS


def test_the_logits_are_those_in_front_of_each_token_of_the_answer() -> None:
    model = Llama()
    found = reader._forced(model, [9, 9], [1, 2, 3])
    assert model.seen == [[9, 9, 1, 2]]
    assert [row.argmax().item() for row in found] == [5, 6, 7] and found.dtype == torch.float32


def test_only_conversations_are_held_against_the_renderer() -> None:
    def renders(ids: bytes) -> Any:
        return SimpleNamespace(prompt=lambda messages: SimpleNamespace(text="ab", ids=tuple(ids)))

    question = ProofPrompt(messages=[Message(role="user", content="x")])
    assert [reader._cuts_alike(Llama(), renders(ids), question) for ids in (b"ab", b"ac")] == [True, False]
    assert reader._cuts_alike(Llama(), renders(b"ac"), ProofPrompt(text="x"))


def test_what_is_read_and_how_far_it_may_be_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Llama] = []

    def llama(**options: Any) -> Llama:
        opened.append(Llama(**options))
        return opened[-1]

    written: list[tuple[Any, ...]] = []
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=llama))
    monkeypatch.setattr(reader.models, "load_base", lambda base, positions: f"model of {base.name}")
    monkeypatch.setattr(reader.gguf_file, "write", lambda *arguments: written.append(arguments))
    monkeypatch.setattr(reader.Renderer, "load", lambda base: "renderer")
    renderer: Any = SimpleNamespace(stop_token_ids=[6], prompt=lambda messages: SimpleNamespace(text="ab", ids=(1,)))
    question = ProofPrompt(messages=[Message(role="user", content="x")])
    (tmp_path / "adapter").mkdir()

    behaviour, same = reader.observe(config(tmp_path), tmp_path, renderer, [[9], [9] * 60], [[1], [2, 3]], [question])
    assert (behaviour.answers[0], [len(one) for one in behaviour.logits], same) == ([4, 5, 6], [1, 2], False)
    options = opened[0].options
    assert options["model_path"] == str(tmp_path / "one-f16.gguf") and options["lora_path"] is None and opened[0].is_closed
    assert options["n_ctx"] == options["n_batch"] == 60 + NEW_TOKENS and not written

    assert reader.observe(config(tmp_path, "gguf-lora"), tmp_path, renderer, [[9]], [[1]], [question])[1], "a LoRA has no words of its own"
    options = opened[1].options
    assert options["lora_path"] == str(tmp_path / "one-lora.gguf") and options["model_path"].endswith("/base.gguf")
    assert options["n_ctx"] == options["n_batch"] == 64
    assert [(str(one[0]) == options["model_path"], one[1], one[4]) for one in written] == [(True, "model of base", "f16")]

    limits = {one: reader.max_share(config(tmp_path, *one)) for one in (("gguf", "f16"), ("gguf", "q8_0"), ("gguf-lora", "q8_0"))}
    assert list(limits.values()) == [MAX_SHARE, math.inf, MAX_SHARE]


@pytest.mark.parametrize(("refused", "is_written"), [(0, True), (0, False), (1, True)])
def test_the_quantizer_is_given_the_importance_of_each_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int, is_written: bool
) -> None:
    class Entry(ctypes.Structure):
        _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t))

    class Options(ctypes.Structure):
        _fields_ = (("ftype", ctypes.c_int), ("imatrix", ctypes.POINTER(Entry)))

    seen: list[Any] = []

    def quantize(source: bytes, target: bytes, options: Any) -> int:
        given = options._obj
        seen.append((source, given.ftype, bool(given.imatrix)))
        for number in range(3 * bool(given.imatrix)):
            entry = given.imatrix[number]
            seen.append((entry.name, entry.name and [entry.data[at] for at in range(entry.size)]))
        if is_written:
            Path(target.decode()).touch()
        return refused

    library = SimpleNamespace(
        llama_model_quantize_default_params=Options, llama_model_imatrix_data=Entry, llama_model_quantize=quantize
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    importance = {"a": np.array([1.0, 2.0]), "b": np.array([3.0])}
    source, target = tmp_path / "in", tmp_path / "out"
    if refused or not is_written:
        with pytest.raises(StudioError, match="could not make q4_k_m"):
            gguf_rounding.quantize(source, target, "q4_k_m", importance)
        return
    gguf_rounding.quantize(source, target, "q4_k_m", importance)
    kind = int(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    assert seen == [(str(source).encode(), kind, True), (b"a", [1.0, 2.0]), (b"b", [3.0]), (None, None)]
    gguf_rounding.quantize(source, target, "q4_k_m", {})
    assert seen[4:] == [(str(source).encode(), kind, False)]


def test_how_far_a_type_of_tensor_may_be_off() -> None:
    kinds = gguf.GGMLQuantizationType
    limits = [gguf_rounding._most(kind) for kind in (kinds.BF16, kinds.F16, kinds.Q8_0, kinds.Q4_K, kinds.Q6_K)]
    assert limits == [2**-8, 2**-8, 4 * 2**-8, 4 * 2**-4, 4 * 2**-6]


def test_the_rows_of_a_k_quant_are_read_line_by_line(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    seen: list[Any] = []

    def example(row: Any) -> Any:
        seen.append(row)
        return SimpleNamespace(ids=(1, 2))

    renderer: Any = SimpleNamespace(example=example)
    rounded = config(tmp_path, outtype="q4_k_m")
    assert exporting._calibration(run, rounded, renderer) == []
    line = '{"messages": [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c"}]}\n'
    (tmp_path / exporting.CALIBRATION).write_text(2 * line, encoding="utf-8")
    assert exporting._calibration(run, rounded, renderer) == [[1, 2], [1, 2]]
    assert seen[0].messages[0].content == "a\u2028b"
    for other in (config(tmp_path), config(tmp_path, outtype="q4_k_m", importance=False)):
        assert exporting._calibration(run, other, renderer) == []
    made = exporting._importance(rounded, None, tmp_path, [])
    assert made == ({}, ["q4_k_m was rounded without an importance matrix: the rows that the adapter was trained on are not here."])
    assert exporting._importance(config(tmp_path), None, tmp_path, []) == ({}, [])


@pytest.mark.parametrize(("passed", "status", "code"), [(True, "succeeded", 0), (None, "succeeded", 0), (False, "failed", 1)])
def test_an_export_whose_proof_failed_is_a_failure_and_one_without_a_proof_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passed: bool | None, status: str, code: int
) -> None:
    run = RunDir(tmp_path)
    monkeypatch.setattr(exporting.RunDir, "read_config", lambda self: config(tmp_path).model_dump(mode="json"))
    verified = SimpleNamespace(passed=passed, reason="It differs.")
    made = SimpleNamespace(verified=verified, path="/to", as_json=lambda: {"bytes": 1})
    monkeypatch.setattr(exporting, "export", lambda *_: made)
    attempt = run.attempt(1)
    attempt.events.parent.mkdir(parents=True, exist_ok=True)
    assert exporting._attempt(run, attempt) == code
    result = json.loads(attempt.result.read_text())
    assert (result["status"], result["metrics"]) == (status, {"bytes": 1})
    if code:
        assert result["reason"] == "The export is written, and its proof failed: It differs." and result["cause"] == "unproved"


def test_an_export_that_broke_is_a_failure_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path)
    monkeypatch.setattr(exporting.RunDir, "read_config", lambda self: {})
    attempt = run.attempt(run.next_attempt())
    attempt.events.parent.mkdir(parents=True, exist_ok=True)
    assert exporting._attempt(run, attempt) == 1
    assert json.loads(attempt.result.read_text())["status"] == "failed"
