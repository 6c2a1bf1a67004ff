"""One entry makes a metric: whoever lists metrics reads the registry, and an entry that lacks something is refused here."""

from __future__ import annotations

import pytest

from studio.evaluation import metrics
from studio.evaluation.__main__ import contestant
from studio.evaluation.metrics import METRICS, Display, Metric
from studio.records import AnswerFigures
from studio.services.compression import METRICS as CURVE_METRICS
from studio.ui import compress_shown, measured

PAIRS = [("the cat sat on 5 mats", ["the cat sat on 5 mats"]), ("{}", ["B", "no"])]
NARROW = {"choice_match", "tool_call_match", "tool_name_match"}  # which say nothing of PAIRS
OTHER_FIGURES = {"answers", "errors", "empty", "seconds", "tokens", "n", "ci95", "reasons", "counted", "tokenizers"}
GIVEN = {"texts": [text for text, _ in PAIRS], "pairs": PAIRS, "errors": 0, "seconds": [1.0, 3.0], "tokens": [2, 4]}


def test_every_entry_is_whole() -> None:
    assert len({metric.name for metric in METRICS}) == len({metric.title for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        computed = [metric.row, metric.corpus, metric.check, metric.by_model or None]
        assert sum(way is not None for way in computed) == 1, f"{metric.name}: one of row, corpus, check, by_model"
        assert metric.name.isidentifier() and metric.title.strip(), metric.name
        assert metric.scale in (1, 100) or metric.by_model, f"{metric.name}: no scale"
        assert metric.scale == 1 or not (metric.row or metric.check), f"{metric.name}: intervals and shares are on 0-1"
        assert Display.CURVE not in metric.shown or metric.row, f"{metric.name}: a sweep scores row by row"
        assert metric.higher_is_better or "lower" in measured.label(metric)


def test_every_entry_is_measured_on_its_scale() -> None:
    found = contestant(GIVEN, schema={"type": "object"}, pattern="cat")
    names = [metric.name for metric in METRICS if not metric.by_model]
    assert [name for name in found if name not in OTHER_FIGURES] == names, "measure() gives what the registry has"
    best = metrics.measure([PAIRS[0]])
    for metric in METRICS:
        if metric.name in best["reasons"]:
            assert best[metric.name] is None and metric.name in NARROW
        elif metric.name in best and metric.name != "json_valid":
            assert abs(best[metric.name] - metric.scale) < 1e-9 or metric.check, f"{metric.name}: the scale of a perfect answer"
    assert set(found["ci95"]) == {metric.name for metric in METRICS if metric.row and metric.name not in found["reasons"]}
    assert (found["json_valid"], found["schema_match"], found["pattern_match"]) == (0.5, 0.5, 0.5)


def test_every_display_lists_the_entries_that_name_it() -> None:
    found = {"x": AnswerFigures(**contestant(GIVEN, schema={"type": "object"}, pattern="cat"), perplexity=3.5, mauve=0.9)}
    labels = [label for label, _ in measured.measures(found)["measures"]]
    page = [measured.label(metric) for metric in METRICS if Display.PAGE in metric.shown and metric.name not in NARROW]
    assert labels == [*page, "tokens of an answer", "time of an answer"]
    curve = [metric.name for metric in METRICS if Display.CURVE in metric.shown]
    assert list(CURVE_METRICS) == list(compress_shown.METRICS) == [*curve, "judge"] and len(curve) == 3


def test_a_metric_that_nobody_scores_in_is_hidden_where_it_says_so() -> None:
    shown = dict(measured.measures({"x": AnswerFigures(n=2, number_match=0.0, exact_match=0.0, json_valid=0.0)})["measures"])
    assert shown == {"exact match": ["0 %"]}
    hidden = {metric.name for metric in METRICS if metric.hides_zero}
    assert hidden == {"number_match", "json_valid", *NARROW}


def test_what_a_metric_cannot_say_stands_in_its_place_with_the_reason() -> None:
    """One answer of one word beside a reference without a number: no four tokens, no pair of words, no number."""
    pairs = [("Lima", ["Lima"]), ("...", ["..."])]
    given = {"texts": [text for text, _ in pairs], "pairs": pairs, "errors": 0, "seconds": [1.0, 1.0], "tokens": [1, 1]}
    figures = AnswerFigures(**contestant(given))
    assert (figures.metric("exact_match"), figures.metric("rougeL"), figures.counted["rougeL"]) == (1.0, 1.0, 1)
    unsaid = {metric.name for metric in METRICS if metric.name in figures.reasons}
    assert unsaid == {"bleu", "rouge2", "number_match", *NARROW}
    assert all(figures.metric(name) is None for name in unsaid)
    shown = measured.measures({"x": figures, "y": figures})
    assert dict(shown["measures"])["BLEU, 0-100"] == ["can't say", "can't say"]
    bleu = [note for note in shown["notes"] if note.startswith("BLEU")]
    assert len(bleu) == 1 and "runs of 4 tokens" in bleu[0], "once, for it holds for both"
    assert "ROUGE-L speaks of 1 of 2 answers: to the others it can't say anything." in shown["notes"]
    assert not any("number" in note for note in shown["notes"]), "a metric for some tasks only says nothing on the page of others"


def test_figures_are_shown_as_their_scale_says() -> None:
    row = AnswerFigures(exact_match=0.75, ci95={"exact_match": [0.5, 0.9]}, bleu=41.26, perplexity=1234.5, tokens=12.0, seconds=0.5)
    shown = dict(measured.measures({"x": row})["measures"])
    assert shown == {
        "exact match": ["75 % (50 % to 90 %)"],
        "BLEU, 0-100": ["41.3"],
        "perplexity on the references, lower is better": ["1,234"],
        "tokens of an answer": ["12.0"],
        "time of an answer": ["0.5 s"],
    }


def test_a_new_entry_is_measured_and_shown_without_another_change(monkeypatch: pytest.MonkeyPatch) -> None:
    length = Metric("short", "short answers", 1, metrics.PAGE, row=lambda text, references, options: float(len(text) < 3))
    monkeypatch.setattr(metrics, "METRICS", (*METRICS, length))
    found = contestant(GIVEN)
    assert found["short"] == 0.5 and "short" in found["ci95"]
    assert any(label == "short answers" for label, _ in measured.measures({"x": AnswerFigures(**found)})["measures"])
