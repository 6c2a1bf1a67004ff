"""What a training repeats of an earlier one, and widths and losses where there is nothing to speak of."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs.config import build
from jobs.rundir import RunDir
from studio.catalogue import compatibility
from studio.compress import llmlingua, methods
from studio.db.models import JobRow
from studio.engine import reading
from studio.errors import StudioError
from studio.records import WeightKind
from studio.services import Studio, cloning
from studio.services.cloning import Cloner


@pytest.mark.parametrize("has_template", [True, False])
def test_rows_and_template_of_another_run_are_taken_over(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_template: bool
) -> None:
    source = RunDir(tmp_path / "old")
    source.path.mkdir()
    source.train.write_text("1\n2\n3\n")
    source.eval.write_text("4\n")
    if has_template:
        source.chat_template.write_text("t")
    seen: list[Any] = []

    def training(run: RunDir, recipe: str, config: Any, dataset: Any, rows: int, created_at: float) -> JobRow:
        seen.extend([(run.train.read_text(), run.eval.read_text()), rows])
        return JobRow(kind="train", name="new", run_dir=str(run.path))

    monkeypatch.setattr(cloning.Renderer, "load", lambda folder, template, options: seen.append(template))
    monkeypatch.setattr(cloning, "write_run", lambda *_: None)
    monkeypatch.setattr(cloning, "training", training)
    cloner = Cloner(studio.settings, studio.db, SimpleNamespace(check_disk=seen.append))  # type: ignore[arg-type]
    config = build({"chat_template": "chatml"})
    job = cloner.launch_files(source, config, "lora-sft", "new", is_given=True, note={"from": "old"})
    template = str(source.chat_template) if has_template else "chatml"
    assert seen == [[config], template, ("1\n2\n3\n", "4\n"), 3]
    assert studio.jobs.show(job).events[-1].kind == "cloned"

    def fails(*_: Any) -> None:
        raise StudioError("No.", "")

    before = sorted(studio.settings.runs.iterdir())
    monkeypatch.setattr(cloning, "write_run", fails)
    with pytest.raises(StudioError):
        cloner.launch_files(source, config, "lora-sft", "newer", is_given=True, note={})
    assert sorted(studio.settings.runs.iterdir()) == before, "nothing is left half behind"


@pytest.mark.parametrize("method", ["ia3", "full", "prompt-tuning", "bottleneck"])
def test_only_a_lora_has_a_narrowest_layer(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    linear = SimpleNamespace(name="a.q_proj", rows=8, columns=4, kind="attention")
    router = SimpleNamespace(name="a.gate", rows=8, columns=2, kind=WeightKind.ROUTER)
    wide = SimpleNamespace(name="a.up", rows=5, columns=9, kind="mlp")
    monkeypatch.setattr(compatibility, "trained", lambda shape, config: SimpleNamespace(linears=lambda block: block))
    shape: Any = SimpleNamespace(blocks=[[wide, router], [linear]])
    assert compatibility._narrowest(build({"method": method}), shape) is None
    assert compatibility._narrowest(build({}), shape) == compatibility.NarrowestLayer("q_proj", 4)
    assert compatibility._narrowest(build({}), SimpleNamespace(blocks=[])) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokens", "place", "is_number"), [(4, 0, True), (4, 2, True), (4, 3, False), (4, 4, False), (4, 9, False), (1, 0, False)]
)
def test_a_text_that_ends_before_its_place_has_no_loss(tokens: int, place: int, is_number: bool) -> None:
    class Model:
        def last_logits(self, ids: Any, count: int) -> Any:
            assert 2 <= count <= ids.shape[1], "asked only where there is something to read"
            return torch.zeros(count, 5)

    owner: Any = SimpleNamespace(
        tokenizer=lambda text, return_tensors: {"input_ids": torch.zeros(1, len(text), dtype=torch.long)},
        device="cpu", max_position_embeddings=4, model=Model(),
    )  # fmt: skip
    loss = float(llmlingua.Backend._rank_loss(owner, "x" * (tokens + 3 * (tokens == 4)), place))
    assert math.isnan(loss) is not is_number
    if is_number:
        assert loss == pytest.approx(math.log(5))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank_method": "bm25"}, "needs the package rank_bm25"),
        ({"rank_method": "openai"}, "needs a service"),
        ({"iterative_size": 0}, "is no whole number"),
        ({"iterative_size": 1_000_001}, "is no whole number"),
        ({"iterative_size": 1.5}, "is no whole number"),
        ({"context_budget": "+1;x"}, "is not"),
        ({"nothing": 1}, "has no option"),
        ({"question": {}}, "has no option|can't be"),
        ({"keep_split": None}, "can't be None"),
    ],
)
def test_options_that_the_library_would_not_survive(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str) -> None:
    pytest.importorskip("llmlingua")
    monkeypatch.setattr(methods.importlib.util, "find_spec", lambda name: None)
    chosen = next(one for one in methods.METHODS.values() if one.call == "compress_prompt")
    with pytest.raises(StudioError, match=said):
        methods.check_options(chosen, options)
    for allowed in ({"iterative_size": 1}, {"iterative_size": 1_000_000}, {"context_budget": "*1.5"}, {"force_context_ids": None}):
        methods.check_options(chosen, allowed)
    monkeypatch.setattr(methods.importlib.util, "find_spec", lambda name: object())
    methods.check_options(chosen, {"rank_method": "bm25"})


def test_scores_of_the_tokens_that_follow() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    first, second = reading.scores(logits, [0, 2], 2)
    total = math.log(math.exp(1) + math.exp(2) + math.exp(3))
    assert [(token, round(value, 5)) for token, value in first] == [
        (0, round(1 - total, 5)),
        (2, round(3 - total, 5)),
        (1, round(2 - total, 5)),
    ]
    assert second[0] == (2, pytest.approx(-math.log(3))) and len(second) == 3
    assert [len(row) for row in reading.scores(logits, [0, 1], 0)] == [1, 1] and len(reading.scores(logits, [0, 1], 9)[0]) == 4


@pytest.mark.parametrize(("over", "finite", "ends"), [(False, True, "repeated"), (True, True, ""), (False, False, "failed")])
def test_an_echo_ends_with_its_answer(monkeypatch: pytest.MonkeyPatch, over: bool, finite: bool, ends: str) -> None:
    done: list[str] = []
    logits = torch.zeros(1, 3)
    if not finite:
        logits[0, 1] = float("nan")
    monkeypatch.setattr(reading, "_pieces", lambda *_: iter([(logits, [1])]))
    monkeypatch.setattr(reading, "broken_logits", lambda answer: "broken")
    answer: Any = SimpleNamespace(
        is_over=over, top_logprobs=1, repeat=lambda found: done.append("repeated"), fail=lambda error: done.append("failed")
    )  # fmt: skip
    reading._echo(answer, None, None, 1)  # type: ignore[arg-type]
    assert "".join(done) == ends
