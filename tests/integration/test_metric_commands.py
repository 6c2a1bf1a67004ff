"""`studio metrics` says what it measured, what it can't say and why; MAUVE reads the texts with a base model in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from studio import cli
from studio.evaluation import features, mauve
from studio.services.models import STARTER_FOLDER as FOLDER
from studio.settings import Settings

Run = Callable[..., tuple[int, str]]
ANSWERS = [
    f"{name} has {n} {thing}." for n in range(5) for name in ("Tom", "Ann", "Sue", "Max") for thing in ("red", "old", "big", "cats", "")
]


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["studio", "metrics", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        said = capfd.readouterr()
        return int(left.value.code or 0), said.out + said.err

    return call


def written(folder: Path, pairs: list[tuple[str, str]]) -> str:
    file = folder / "predictions.jsonl"
    file.write_text("".join(json.dumps({"prediction": text, "reference": reference}) + "\n" for text, reference in pairs))
    return str(file)


def test_a_file_is_measured_with_reasons(run: Run, tmp_path: Path) -> None:
    file = written(tmp_path, [("東京です", "東京"), ("大阪", "大阪")])
    code, out = run("--predictions", file, "--json")
    found = json.loads(out)
    assert code == 0 and (found["contains"], found["exact_match"], found["n"]) == (1.0, 0.5, 2)
    assert found["bleu"] is None and found["mauve"] is None and found["number_match"] is None
    assert {"bleu", "mauve", "number_match", "choice_match"} <= set(found["reasons"]) and all(found["reasons"].values())
    code, text = run("--predictions", file)
    assert code == 0 and "contains: 1" in text and "BLEU can't say anything: it compares runs of 4 tokens" in text


def test_mauve_needs_texts_enough_and_a_model_that_is_there(run: Run, tmp_path: Path) -> None:
    file = written(tmp_path, [("a", "b")] * (mauve.MIN_TEXTS - 1))
    code, out = run("--predictions", file, "--mauve-model", "starter", "--json")
    found = json.loads(out)
    assert code == 0 and found["mauve"] is None and "needs 100 texts" in found["reasons"]["mauve"]
    assert found["mauve_details"]["answers"] == 99 and found["mauve_details"]["model"] == "starter"
    code, out = run("--predictions", file, "--mauve-model", "startr")
    assert code != 0 and "There is no base model 'startr'" in out and "starter" in out


@pytest.mark.long
def test_mauve_of_a_file_is_that_of_its_texts(run: Run, tmp_path: Path) -> None:
    pairs = [(text, text.replace("has", "likes")) for text in ANSWERS]
    code, out = run("--predictions", written(tmp_path, [*pairs, ("", "one more")]), "--mauve-model", "starter", "--json")
    found = json.loads(out)
    assert code == 0 and 0 < found["mauve"] < 1 and "mauve" not in found["reasons"]
    details = found["mauve_details"]
    assert (details["answers"], details["references"], details["empty"], details["cut"], details["clusters"]) == (100, 101, 1, 0, 10)
    code, out = run("--predictions", written(tmp_path, [(text, text) for text in ANSWERS]), "--mauve-model", "starter", "--json")
    assert json.loads(out)["mauve"] == pytest.approx(1.0)


def test_a_feature_is_the_last_hidden_state_of_the_last_token() -> None:
    taken: dict[str, Any] = {}

    def measured(p: Any, q: Any) -> float:
        taken.update(p=p, q=q)
        return 0.5

    texts = [*ANSWERS, "word " * 3000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features.mauve, "of_features", measured)
        groups = {"one": {"texts": texts, "references": ANSWERS[::-1]}}
        found = features.work({"base": str(FOLDER), "groups": groups}, lambda *_: None)["one"]
    assert found["mauve"] == 0.5 and found["cut"] == 1 and found["max_tokens"] <= 1024
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for number in (0, 17, 100):
        ids = tokenizer(texts[number], return_tensors="pt", truncation=True, max_length=found["max_tokens"]).input_ids
        with torch.inference_mode():
            wanted = model(ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy()
        assert np.abs(taken["p"][number] - wanted).max() < 1e-3
    assert taken["q"].shape == (100, taken["p"].shape[1])
