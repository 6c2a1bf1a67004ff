"""Scores of predictions against references. Definitions are named; nothing is normalised behind the reader's back.

METRICS is the registry: one entry per metric, which `measure`, the page, the commands and the reports read.
ROUGE is google-research's rouge-score over words of all scripts, BLEU and chrF are sacrebleu's; all are imported on first use.
Where a metric can't say anything about a text it gives no score but the reason: no letters, no number, an essay to be equalled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal

import orjson

from studio.errors import StudioError
from studio.evaluation import intervals, numbers, scores, tokens, tool_calls
from studio.evaluation.bleu import bleu, chrf
from studio.evaluation.scores import CantSay, CorpusScore, Pair

ROUGE = ("rouge1", "rouge2", "rougeL")


def exact_match(prediction: str, references: Sequence[str]) -> bool:
    """Verbatim equality after trimming white space at both ends, with any of the references; NFC and NFD are one text."""
    return tokens.composed(prediction) in {tokens.composed(reference) for reference in references}


def exact_match_ignoring_case(prediction: str, references: Sequence[str]) -> bool:
    """As exact_match, letters' case and Unicode's compatible forms (NFKC) aside, and runs of white space as one space."""
    return _folded(prediction) in {_folded(reference) for reference in references}


def exact_match_normalized(prediction: str, references: Sequence[str]) -> bool:
    """SQuAD's: case, punctuation, the articles a, an, the and surplus white space aside (Rajpurkar et al. 2016, evaluate-v1.1)."""
    return tokens.normalized(prediction) in [tokens.normalized(reference) for reference in references]


def contains(prediction: str, references: Sequence[str]) -> bool:
    """A reference stands in the prediction, word for word, both normalised as in exact_match_normalized; an empty one in none."""
    text = tokens.normalized(prediction)
    return any(tokens.holds(text, tokens.normalized(reference)) for reference in references)


def number_match(prediction: str, references: Sequence[str]) -> bool:
    """The number that the answer gives equals that of a reference; studio.evaluation.numbers says which number that is."""
    found = numbers.number(prediction)
    return any(numbers.equal(found, numbers.number(reference)) for reference in references)


def choice_match(prediction: str, references: Sequence[str]) -> bool:
    """The letter A-J that the answer chooses is that of a reference."""
    found = numbers.choice(prediction)
    return found is not None and any(found == numbers.choice(reference) for reference in references)


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """SQuAD's F1 over the words of the normalised texts, the best of the references."""
    words = tokens.normalized(prediction)
    return max(_word_f1(words, tokens.normalized(reference)) for reference in references)


def rouge(prediction: str, references: Sequence[str], kinds: Sequence[str] = ROUGE, *, stemmer: bool = False) -> dict[str, float]:
    """F of each kind, 0-1, the best of the references, as rouge-score computes it, over words of all scripts."""
    found = rouge_scorer(tuple(kinds), stemmer).score_multi(list(references), prediction)
    return {kind: float(score.fmeasure) for kind, score in found.items()}


@lru_cache(maxsize=8)
def rouge_scorer(kinds: tuple[str, ...], stemmer: bool = False) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(kinds), tokenizer=tokens.RougeTokenizer(stemmer=stemmer))


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
    """What a caller may ask of metrics: `stemmer` is ROUGE's; `schema` and `pattern` switch their metrics on.

    `counts_essays`: an answer equals an essay, so that verbatim equality says something of essays too.
    """

    stemmer: bool = False
    schema: Mapping[str, Any] | None = None
    pattern: str | None = None
    counts_essays: bool = False


RowScore = Callable[[str, Sequence[str], MeasureOptions], float | CantSay]
CorpusMetric = Callable[[Sequence[Pair]], CorpusScore | CantSay]
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
    corpus: CorpusMetric | None = None  # one score of all pairs together
    check: TextCheck | None = None  # a check of a text without references; the share that passes is the figure
    by_model: bool = False  # measured by running a model, in jobs.measures


def _verbatim(score: Callable[[str, Sequence[str]], bool]) -> RowScore:
    def scored(text: str, references: Sequence[str], options: MeasureOptions) -> float | CantSay:
        if not options.counts_essays and all(map(is_essay, references)):
            return CantSay(f"the references have more than {tokens.LONG_WORDS} words: no answer can be expected to equal them")
        return float(score(text, references))

    return scored


def _worded(score: Callable[[str, Sequence[str]], float]) -> RowScore:
    def scored(text: str, references: Sequence[str], _options: MeasureOptions) -> float | CantSay:
        known = [reference for reference in references if tokens.normalized(reference)]
        if not known:
            return CantSay(NO_WORDS)
        return float(score(text, known))

    return scored


def _normalized_match(text: str, references: Sequence[str], options: MeasureOptions) -> float | CantSay:
    verbatim = _verbatim(exact_match_normalized)(text, references, options)
    if isinstance(verbatim, CantSay):
        return verbatim
    return _worded(exact_match_normalized)(text, references, options)


def _contained(text: str, references: Sequence[str], options: MeasureOptions) -> float | CantSay:
    known = [reference for reference in references if not _is_letter(reference)]
    if not known:
        return CantSay("the references are single letters, which stand in most texts by chance")
    return _worded(contains)(text, known, options)


def _same_number(text: str, references: Sequence[str], _options: MeasureOptions) -> float | CantSay:
    if all(numbers.number(reference) is None for reference in references):
        return CantSay("the references give no number")
    return float(number_match(text, references))


def _same_choice(text: str, references: Sequence[str], _options: MeasureOptions) -> float | CantSay:
    known = [reference for reference in references if numbers.is_choice(reference)]
    if not known:
        return CantSay("the references are no letters of choices")
    return float(choice_match(text, known))


def _same_calls(text: str, references: Sequence[str], _options: MeasureOptions) -> float | CantSay:
    return tool_calls.same_calls(text, references)


def _same_functions(text: str, references: Sequence[str], _options: MeasureOptions) -> float | CantSay:
    return tool_calls.same_functions(text, references)


def _rouge(kind: str) -> RowScore:
    least = {"rouge2": 2}.get(kind, 1)

    def scored(text: str, references: Sequence[str], options: MeasureOptions) -> float | CantSay:
        longest = max(len(tokens.words(reference)) for reference in references)
        if longest == 0:
            return CantSay(NO_WORDS)
        if longest < least:
            return CantSay("it compares pairs of words, and the references have one word")
        return _all_rouge(text, tuple(references), options.stemmer)[kind]

    return scored


@lru_cache(maxsize=4)  # a row's three kinds are asked for one after the other
def _all_rouge(text: str, references: tuple[str, ...], stemmer: bool) -> dict[str, float]:
    return rouge(text, references, stemmer=stemmer)


def _json_check(_options: MeasureOptions) -> Callable[[str], bool]:
    return is_json


def _schema_check(options: MeasureOptions) -> Callable[[str], bool] | None:
    return None if options.schema is None else schema_check(options.schema)


def _pattern_check(options: MeasureOptions) -> Callable[[str], bool] | None:
    return None if options.pattern is None else pattern_check(options.pattern)


NO_WORDS = "the references have no letters or digits"
PAGE, COMMAND, REPORT = frozenset({Display.PAGE}), frozenset({Display.COMMAND}), frozenset({Display.REPORT})
CURVE = frozenset({Display.CURVE})
LISTED = PAGE | COMMAND | REPORT
METRICS: tuple[Metric, ...] = (
    Metric("exact_match", "exact match", 1, LISTED | CURVE, row=_verbatim(exact_match)),
    Metric("exact_match_ignoring_case", "exact match, case aside", 1, row=_verbatim(exact_match_ignoring_case)),
    Metric(
        "exact_match_normalized",
        "exact match, case and punctuation aside",
        1,
        PAGE,
        row=_normalized_match,
    ),
    Metric("contains", "the reference stands in the answer", 1, LISTED, row=_contained),
    Metric("number_match", "same number", 1, LISTED | CURVE, hides_zero=True, row=_same_number),
    Metric("choice_match", "same choice", 1, LISTED, hides_zero=True, row=_same_choice),
    Metric("tool_call_match", "same tool calls", 1, LISTED, hides_zero=True, row=_same_calls),
    Metric("tool_name_match", "same tools called", 1, PAGE | COMMAND, hides_zero=True, row=_same_functions),
    Metric("token_f1", "words in common (F1)", 1, PAGE | COMMAND, row=_worded(token_f1)),
    Metric("rouge1", "ROUGE-1", 1, PAGE, row=_rouge("rouge1")),
    Metric("rouge2", "ROUGE-2", 1, row=_rouge("rouge2")),
    Metric("rougeL", "ROUGE-L", 1, LISTED | CURVE, row=_rouge("rougeL")),
    Metric("bleu", "BLEU", 100, LISTED, corpus=bleu),
    Metric("chrf", "chrF", 100, LISTED, corpus=chrf),
    Metric("perplexity", "perplexity on the references", None, LISTED, higher_is_better=False, by_model=True),
    Metric("mauve", "MAUVE", 1, PAGE | COMMAND, by_model=True),
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

    A metric that can't say anything is None, with the reason in `reasons`. `counted`: the pairs that a metric speaks of, where these
    are not all. `tokenizers`: which one BLEU used. `with_intervals`: also `ci95`, the bootstrap interval of each mean.
    """
    options = MeasureOptions(stemmer, schema, pattern, _equals_essay(pairs))
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    counted: dict[str, int] = {}
    tokenizers: dict[str, str] = {}
    ci95: dict[str, list[float]] = {}
    for metric in METRICS:
        if metric.row is None and metric.corpus is None:
            continue
        rows = []
        if metric.row:
            rows = [metric.row(text, references, options) for text, references in pairs]
        score = metric.corpus(pairs) if metric.corpus else scores.mean(rows)
        if isinstance(score, CantSay):
            found[metric.name], reasons[metric.name] = None, score.reason
            continue
        found[metric.name] = score.value
        if score.counted < len(pairs):
            counted[metric.name] = score.counted
        if score.tokenizer:
            tokenizers[metric.name] = score.tokenizer
        if rows and with_intervals:
            ci95[metric.name] = intervals.of_mean([row for row in rows if not isinstance(row, CantSay)])
    found |= checked([text for text, _ in pairs], schema, pattern)
    found |= {"reasons": reasons, "counted": counted, "tokenizers": tokenizers}
    if with_intervals:
        found["ci95"] = ci95
    return {**found, "n": len(pairs)}


def notes(reasons: Mapping[str, str], counted: Mapping[str, int], tokenizers: Mapping[str, str], n: int) -> list[str]:
    """For people, a line each: what a metric can't say, what it speaks of only in part, and how BLEU cut the texts."""
    lines = []
    for metric in METRICS:
        name = metric.name
        if name in reasons and reasons[name] != scores.NO_MODEL:
            lines.append(f"{metric.title} can't say anything: {reasons[name]}.")
        if name in counted:
            lines.append(f"{metric.title} speaks of {counted[name]:,} of {n:,} answers: to the others it can't say anything.")
        if name in tokenizers:
            lines.append(f"{metric.title} used sacrebleu's tokenizer {tokenizers[name]}.")
    return lines


def why_unsaid(name: str, references: Sequence[str]) -> str:
    """Why the metric of this name can't say anything about answers to `references`; "" where it can."""
    metric = next(metric for metric in METRICS if metric.name == name)
    score = mean(metric, [("", [reference]) for reference in references])
    return score.reason if isinstance(score, CantSay) else ""


def mean(metric: Metric, pairs: Sequence[Pair]) -> CorpusScore | CantSay:
    """One metric that has a score per row, over the rows that it can say something about."""
    assert metric.row is not None, f"{metric.name} has no score per row"
    options = MeasureOptions(counts_essays=_equals_essay(pairs))
    return scores.mean([metric.row(text, references, options) for text, references in pairs])


def checked(texts: Sequence[str], schema: Mapping[str, Any] | None = None, pattern: str | None = None) -> dict[str, float]:
    """Shares of `texts` that are JSON, fit the schema, and hold the pattern; what needs no reference."""
    options = MeasureOptions(schema=schema, pattern=pattern)
    made = {metric.name: metric.check(options) for metric in METRICS if metric.check}
    return {name: sum(map(check, texts)) / len(texts) for name, check in made.items() if check}


def _folded(text: str) -> str:
    return " ".join(tokens.folded(text).split())


def is_essay(reference: str) -> bool:
    """Longer than an answer can be expected to equal; JSON is not: it is written by a rule."""
    return tokens.is_long(reference) and not is_json(reference)


def _equals_essay(pairs: Sequence[Pair]) -> bool:
    return any(exact_match(text, references) and all(map(is_essay, references)) for text, references in pairs)


def _is_letter(reference: str) -> bool:
    """A letter that has a case: one of a choice, where a Chinese one is a word."""
    word = "".join(tokens.normalized(reference))
    return len(word) == 1 and word.upper() != word


def _word_f1(own: Sequence[str], wanted: Sequence[str]) -> float:
    if not own or not wanted:
        return float(list(own) == list(wanted))
    shared = sum((Counter(own) & Counter(wanted)).values())
    return 2 * shared / (len(own) + len(wanted))
