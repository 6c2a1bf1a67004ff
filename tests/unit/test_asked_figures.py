"""Figures of a comparison that cost a model: measured where they are asked for, with the reason where there are none; and suited methods."""

from __future__ import annotations

from typing import Any

import pytest

from jobs import measures
from jobs.config import build
from studio.catalogue import suitability
from studio.db.models import AnswerRow, ComparisonRow, JobRow
from studio.evaluation import scores
from studio.records import MauveFigure
from studio.services import Studio
from tests.probes import stored
from tests.stores import add

MAUVE: dict[str, Any] = {
    "model": "base", "answers": 1, "references": 1, "empty": 0, "cut": 0, "max_tokens": 8, "clusters": 1,
}  # fmt: skip
FIGURE = MauveFigure(mauve=0.5, reason="", **MAUVE)
NONE = MauveFigure(mauve=None, reason="too few texts", **MAUVE)


@pytest.fixture
def comparison(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> str:
    [job] = add(studio, JobRow(kind="compare", name="job", config={"contestants": [{"name": "a"}, {"name": "b"}]}))
    rows = [
        ComparisonRow(name=name, job_id=job, base_model="base", contestants=["a", "b", "silent"], prompts=[{"id": "1", "reference": "x", "turns": [[]]}])
        for name in ("one", "two")
    ]  # fmt: skip
    one, two = add(studio, *rows)
    add(studio, *(AnswerRow(comparison_id=key, prompt_id="1", contestant=who, text=key, seconds=1.0) for key in (one, two) for who in "ab"))

    def measure(settings: Any, row: Any, answers: Any, **_: Any) -> dict[str, dict[str, Any]]:
        assert {answer.text for answer in answers} == {one}, "of this comparison only"
        return {answer.contestant: {"answers": 1} for answer in answers}

    monkeypatch.setattr(measures, "measure", measure)
    monkeypatch.setattr(measures, "perplexity", lambda settings, row, contestant: {"a": {"perplexity": 3.0}}.get(contestant["name"]))
    return str(one)


def test_nothing_that_costs_a_model_is_measured_unasked(studio: Studio, comparison: str) -> None:
    found = studio.comparisons.metrics(comparison).contestants
    assert set(found) == {"a", "b"}
    for figures in found.values():
        assert (figures.mauve, figures.mauve_details, figures.reasons) == (None, None, {"mauve": scores.NO_MODEL})
        assert getattr(figures, "perplexity", None) is None


def test_what_is_asked_for_has_a_figure_or_a_reason(studio: Studio, comparison: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = studio.comparisons.metrics(comparison, perplexity=True).contestants
    assert [getattr(found[name], "perplexity", None) for name in "ab"] == [3.0, None]
    assert [found[name].reasons.get("perplexity") for name in "ab"] == [None, measures.NO_LIKELIHOOD]
    seen: list[Any] = []

    def mauve(model: str, groups: Any) -> dict[str, MauveFigure]:
        seen.append((model, groups["a"]))
        return {"a": FIGURE, "b": NONE}

    monkeypatch.setattr(studio.comparisons, "_mauve", mauve)
    found = studio.comparisons.metrics(comparison, mauve_model="base").contestants
    assert seen == [("base", {"texts": [comparison], "references": ["x"]})]
    assert [(found[name].mauve, found[name].mauve_details) for name in "ab"] == [(0.5, FIGURE), (None, NONE)]
    assert [found[name].reasons.get("mauve") for name in "ab"] == [None, "too few texts"]
    monkeypatch.setattr(studio.comparisons, "_mauve", lambda *_: {"a": FIGURE})
    found = studio.comparisons.metrics(comparison, mauve_model="base").contestants
    assert found["b"].reasons["mauve"] == "no prompt with a reference was answered"


@pytest.mark.parametrize(
    ("options", "attention", "changes"),
    [
        ({}, ["eager"], []),
        ({"packing": True}, ["eager", "sdpa"], []),
        ({"packing": True}, ["eager"], [{"packing": False}]),
        ({"attn_implementation": "sdpa"}, ["eager"], [{"attn_implementation": "auto"}]),
        ({"attn_implementation": "sdpa"}, ["eager", "sdpa"], []),
        ({"attn_implementation": "sdpa", "packing": True}, ["eager", "sdpa"], []),
    ],
)
def test_what_a_model_computes_attention_with(options: Any, attention: list[str], changes: list[Any]) -> None:
    probe = stored()["LlamaForCausalLM"].model_copy(update={"attention": attention})
    assert [conflict.change for conflict in suitability.conflicts(build(options), probe)] == changes


def test_the_way_out_is_a_method_that_the_model_takes() -> None:
    probe = stored()["LlamaForCausalLM"]
    fit, unfit = (
        {name: one.model_copy(update={"accepted": accepted}) for name, one in probe.methods.items()} for accepted in (True, False)
    )
    no_lora = probe.targets.model_copy(update={"accepted": False})

    def out(methods: Any, targets: Any) -> Any:
        return suitability._lora_or_other(probe.model_copy(update={"methods": methods, "targets": targets}))

    assert out(unfit, probe.targets) == ({"method": "lora"}, "")
    assert out(unfit, no_lora) == ({}, "Choose another base model.")
    assert out(unfit, probe.targets.model_copy(update={"share": 0.0})) == ({}, "Choose another base model.")
    found, advice = out(fit, no_lora)
    assert found["method"] in suitability.PROMPTS and advice == ""
    only = {name: one for name, one in fit.items() if name not in suitability.PROMPTS}
    assert only and out(only, no_lora) == ({}, "Choose another base model.")
