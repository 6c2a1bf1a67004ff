"""Scores of predictions against references. Definitions are named; nothing is normalised behind the reader's back.

METRICS is the registry: one entry per metric, which `measure`, the page, the commands and the reports read.
ROUGE is google-research's rouge-score, BLEU and chrF are sacrebleu's; both are imported on first use.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import orjson

from studio.errors import DatasetError, StudioError
from studio.evaluation import intervals
from studio.evaluation.verdicts import json_lines, raise_problems

ROUGE = ("rouge1", "rouge2", "rougeL")
# a sign counts unless something is in front that it might join; a currency sign may stand on either side of it
_NUMBER = re.compile(
    r"(?:(?<![\w.)])([-−+])\s?)?(?:[$€£¥₹]\s?([-−+])?)?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE]([-+]?\d+))?"
)
_MARK = re.compile(r"####|(?<![A-Za-z])A:")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
Pair = tuple[str, list[str]]


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Verbatim equality after trimming white space at both ends, with any of the references."""
    return prediction.strip() in {reference.strip() for reference in references}


def exact_match_ignoring_case(prediction: str, references: Sequence[str]) -> bool:
    """As exact_match, letters' case aside and runs of white space as one space."""
    return _folded(prediction) in {_folded(reference) for reference in references}


def exact_match_normalized(prediction: str, references: Sequence[str]) -> bool:
    """SQuAD's: case, ASCII punctuation, the articles a, an, the and surplus white space aside (Rajpurkar et al. 2016, evaluate-v1.1)."""
    return _normalized(prediction) in {_normalized(reference) for reference in references}


def contains(prediction: str, references: Sequence[str]) -> bool:
    """A reference stands in the prediction, word for word, both normalised as in exact_match_normalized; an empty one in none."""
    text = f" {_normalized(prediction)} "
    return any(wanted and f" {wanted} " in text for wanted in map(_normalized, references))


def number_match(prediction: str, references: Sequence[str]) -> bool:
    """The answer's number equals that of a reference: after the last `####` or `A:` where there is one, else the last of the text."""
    found = number(prediction)
    return found is not None and any(found == number(reference) for reference in references)


def number(text: str) -> Decimal | None:
    """The number that `text` gives as its answer; None without one. Thousands separators and currency signs are dropped."""
    marks = list(_MARK.finditer(text))
    found = list(_NUMBER.finditer(text, *(mark.end() for mark in marks[-1:])))
    if not found:
        return None
    answer = found[0] if marks else found[-1]
    before, inside, digits, exponent = answer.groups()
    text = digits.replace(",", "")
    if (before or inside or "+") in "-−":
        text = f"-{text}"
    if exponent and len(exponent) < 5:
        text += f"e{exponent}"
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """SQuAD's F1 over the words of the normalised texts, the best of the references."""
    return max(_word_f1(_normalized(prediction).split(), _normalized(reference).split()) for reference in references)


def rouge(prediction: str, references: Sequence[str], kinds: Sequence[str] = ROUGE, *, stemmer: bool = False) -> dict[str, float]:
    """F of each kind, 0-1, the best of the references, as rouge-score computes it."""
    scores = rouge_scorer(tuple(kinds), stemmer).score_multi(list(references), prediction)
    return {kind: float(score.fmeasure) for kind, score in scores.items()}


@lru_cache(maxsize=8)
def rouge_scorer(kinds: tuple[str, ...], stemmer: bool = False) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), use_stemmer=stemmer)


def is_json(prediction: str) -> bool:
    """The whole text is one JSON value."""
    try:
        orjson.loads(prediction)
    except orjson.JSONDecodeError:
        return False
    return True


def schema_check(schema: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether a text is JSON that fits `schema`. Raises StudioError for what is no JSON schema."""
    from jsonschema import SchemaError
    from jsonschema.validators import validator_for

    kind = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as exc:
        raise StudioError(f"The JSON schema can't be used: {exc.message}.", "Correct the schema at that place.") from None
    validator = kind(schema)
    return lambda text: is_json(text) and bool(validator.is_valid(orjson.loads(text)))


def pattern_check(pattern: str) -> Callable[[str], bool]:
    """Whether a text holds `pattern`. Raises StudioError for what is no regular expression."""
    import regex  # with a time limit, unlike re: patterns come from outside

    try:
        compiled = regex.compile(pattern)
    except regex.error as exc:
        raise StudioError(f"The pattern {pattern!r} can't be used: {exc}.", "Correct the pattern at that place.") from None
    return lambda text: compiled.search(text, timeout=2.0) is not None


# the registry


class Display(StrEnum):
    """Where a metric is shown to people. `--json` and HTTP give all of them."""

    PAGE = "page"  # the table of figures under Compare and in the report that follows a training
    COMMAND = "command"  # the columns of `studio metrics`
    REPORT = "report"  # the columns of `studio jobs report`
    CURVE = "curve"  # what a compression sweep can measure answers by


@dataclass(frozen=True)
class MeasureOptions:
    """What a caller may ask of metrics: `stemmer` is ROUGE's; `schema` and `pattern` switch their metrics on."""

    stemmer: bool = False
    schema: Mapping[str, Any] | None = None
    pattern: str | None = None


RowScore = Callable[[str, Sequence[str], MeasureOptions], float]
CorpusScore = Callable[[Sequence[Pair]], float]
TextCheck = Callable[[MeasureOptions], Callable[[str], bool] | None]


@dataclass(frozen=True)
class Metric:
    """One metric: how it is computed, by exactly one of `row`, `corpus`, `check` and `by_model`, and how it is shown."""

    name: str  # its key in every JSON
    title: str  # what people read
    scale: Literal[1, 100] | None  # it goes from 0 to this; None: it has no upper end
    shown: frozenset[Display] = field(default_factory=frozenset)
    higher_is_better: bool = True
    hides_zero: bool = False  # not on the page where nobody has any: it fits some tasks only
    row: RowScore | None = None  # a score per (prediction, references); the mean is the figure, with an interval
    corpus: CorpusScore | None = None  # one score of all pairs together
    check: TextCheck | None = None  # a check of a text without references; the share that passes is the figure
    by_model: bool = False  # measured by running the model, in jobs.measures


def _plain(score: Callable[[str, Sequence[str]], float]) -> RowScore:
    return lambda text, references, _options: float(score(text, references))


def _rouge(kind: str) -> RowScore:
    return lambda text, references, options: _all_rouge(text, tuple(references), options.stemmer)[kind]


@lru_cache(maxsize=4)  # a row's three kinds are asked for one after the other
def _all_rouge(text: str, references: tuple[str, ...], stemmer: bool) -> dict[str, float]:
    return rouge(text, references, stemmer=stemmer)


def _bleu(pairs: Sequence[Pair]) -> float:
    from sacrebleu.metrics import BLEU

    return float(BLEU().corpus_score(*_columns(pairs)).score)


def _chrf(pairs: Sequence[Pair]) -> float:
    from sacrebleu.metrics import CHRF

    return float(CHRF().corpus_score(*_columns(pairs)).score)


def _columns(pairs: Sequence[Pair]) -> Any:
    """Predictions, and references column by column as sacrebleu takes them: None where a row has fewer."""
    most = max(len(references) for _, references in pairs)
    padded = [[*references, *[None] * (most - len(references))] for _, references in pairs]
    return [text for text, _ in pairs], [list(column) for column in zip(*padded, strict=True)]


def _json_check(_options: MeasureOptions) -> Callable[[str], bool]:
    return is_json


def _schema_check(options: MeasureOptions) -> Callable[[str], bool] | None:
    return None if options.schema is None else schema_check(options.schema)


def _pattern_check(options: MeasureOptions) -> Callable[[str], bool] | None:
    return None if options.pattern is None else pattern_check(options.pattern)


PAGE, COMMAND, REPORT = frozenset({Display.PAGE}), frozenset({Display.COMMAND}), frozenset({Display.REPORT})
CURVE = frozenset({Display.CURVE})
LISTED = PAGE | COMMAND | REPORT
METRICS: tuple[Metric, ...] = (
    Metric("exact_match", "exact match", 1, LISTED | CURVE, row=_plain(exact_match)),
    Metric("exact_match_ignoring_case", "exact match, case aside", 1, row=_plain(exact_match_ignoring_case)),
    Metric(
        "exact_match_normalized",
        "exact match, case and punctuation aside",
        1,
        PAGE,
        row=_plain(exact_match_normalized),
    ),
    Metric("contains", "the reference stands in the answer", 1, LISTED, row=_plain(contains)),
    Metric("number_match", "same number", 1, LISTED | CURVE, hides_zero=True, row=_plain(number_match)),
    Metric("token_f1", "words in common (F1)", 1, PAGE | COMMAND, row=_plain(token_f1)),
    Metric("rouge1", "ROUGE-1", 1, PAGE, row=_rouge("rouge1")),
    Metric("rouge2", "ROUGE-2", 1, row=_rouge("rouge2")),
    Metric("rougeL", "ROUGE-L", 1, LISTED | CURVE, row=_rouge("rougeL")),
    Metric("bleu", "BLEU", 100, LISTED, corpus=_bleu),
    Metric("chrf", "chrF", 100, LISTED, corpus=_chrf),
    Metric("perplexity", "perplexity on the references", None, LISTED, higher_is_better=False, by_model=True),
    Metric("json_valid", "valid JSON", 1, PAGE | COMMAND, hides_zero=True, check=_json_check),
    Metric("schema_match", "fits the JSON schema", 1, PAGE | COMMAND, check=_schema_check),
    Metric("pattern_match", "holds the pattern", 1, PAGE | COMMAND, check=_pattern_check),
)


def shown_on(display: Display) -> list[Metric]:
    """The metrics of one display, in the order of the registry."""
    return [metric for metric in METRICS if display in metric.shown]


def measure(
    pairs: Sequence[Pair],
    *,
    stemmer: bool = False,
    schema: Mapping[str, Any] | None = None,
    pattern: str | None = None,
    with_intervals: bool = False,
) -> dict[str, Any]:
    """Every metric over (prediction, references) by name, on its own scale, and `n`.

    `with_intervals`: also `ci95`, the bootstrap interval of each mean.
    """
    options = MeasureOptions(stemmer, schema, pattern)
    by_row = {metric.name: metric.row for metric in METRICS if metric.row}
    rows = [{name: score(text, references, options) for name, score in by_row.items()} for text, references in pairs]
    scores = {name: [row[name] for row in rows] for name in by_row}
    found: dict[str, Any] = {name: sum(values) / len(pairs) for name, values in scores.items()}
    found |= {metric.name: metric.corpus(pairs) for metric in METRICS if metric.corpus}
    found |= checked([text for text, _ in pairs], schema, pattern)
    if with_intervals:
        found["ci95"] = {name: intervals.of_mean(values) for name, values in scores.items()}
    return {**found, "n": len(pairs)}


def mean(metric: Metric, pairs: Sequence[Pair]) -> float:
    """One metric that has a score per row, over all rows."""
    assert metric.row is not None, f"{metric.name} has no score per row"
    return sum(metric.row(text, references, MeasureOptions()) for text, references in pairs) / len(pairs)


def checked(texts: Sequence[str], schema: Mapping[str, Any] | None = None, pattern: str | None = None) -> dict[str, float]:
    """Shares of `texts` that are JSON, fit the schema, and hold the pattern; what needs no reference."""
    options = MeasureOptions(schema=schema, pattern=pattern)
    made = {metric.name: metric.check(options) for metric in METRICS if metric.check}
    return {name: sum(map(check, texts)) / len(texts) for name, check in made.items() if check}


# files of predictions


def read(path: Path) -> list[Pair]:
    """Lines `{"prediction", "reference" | "references"}`. Raises DatasetError with every bad line."""
    pairs, problems = [], []
    for line, row in json_lines(path):
        problem = _problem(row)
        if problem:
            problems.append({"line": line, "problem": problem, "fix": 'Write {"prediction": "…", "reference": "…"} or "references": […].'})
        else:
            pairs.append((row["prediction"], _references(row)))
    raise_problems(path, problems)
    if not pairs:
        raise DatasetError(f"{path.name} holds no predictions.", 'Write one JSON object a line: {"prediction", "reference"}.')
    return pairs


def _problem(row: Any) -> str:
    if not isinstance(row, dict):
        return "not a JSON object"
    if not isinstance(row.get("prediction"), str):
        return "prediction is missing or no text"
    references = _references(row)
    if references and all(isinstance(text, str) for text in references):
        return ""
    return "reference is missing or no text"


def _references(row: Mapping[str, Any]) -> list[Any]:
    given = row.get("references", row.get("reference"))
    if isinstance(given, list):
        return list(given)
    return [text for text in (given,) if text is not None]


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _normalized(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(words: Iterable[str], wanted: Sequence[str]) -> float:
    own = list(words)
    if not own or not wanted:
        return float(own == list(wanted))
    shared = sum((Counter(own) & Counter(wanted)).values())
    return 2 * shared / (len(own) + len(wanted))
