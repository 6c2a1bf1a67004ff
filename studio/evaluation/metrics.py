"""Scores of predictions against references. Definitions are named; nothing is normalised behind the reader's back.

ROUGE is google-research's rouge-score, BLEU and chrF are sacrebleu's; both are imported on first use.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Any

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
    found = list(_NUMBER.finditer(text, marks[-1].end() if marks else 0))
    if not found:
        return None
    before, inside, digits, exponent = (found[0] if marks else found[-1]).groups()
    sign = "-" if (before or inside or "+") in "-−" else ""
    try:
        return Decimal(sign + digits.replace(",", "") + (f"e{exponent}" if exponent and len(exponent) < 5 else ""))
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
        raise StudioError(f"The JSON schema can't be used: {exc.message}.") from None
    validator = kind(schema)
    return lambda text: is_json(text) and bool(validator.is_valid(orjson.loads(text)))


def pattern_check(pattern: str) -> Callable[[str], bool]:
    """Whether a text holds `pattern`. Raises StudioError for what is no regular expression."""
    import regex  # with a time limit, unlike re: patterns come from outside

    try:
        compiled = regex.compile(pattern)
    except regex.error as exc:
        raise StudioError(f"The pattern {pattern!r} can't be used: {exc}.") from None
    return lambda text: compiled.search(text, timeout=2.0) is not None


def measure(
    pairs: Sequence[Pair],
    *,
    stemmer: bool = False,
    schema: Mapping[str, Any] | None = None,
    pattern: str | None = None,
    with_intervals: bool = False,
) -> dict[str, Any]:
    """Every metric over (prediction, references): means of matches and ROUGE F in 0-1; bleu and chrf of the corpus, 0-100.

    `with_intervals`: also `ci95`, the bootstrap interval of each mean.
    """
    per_row: dict[str, Callable[[str, Sequence[str]], float]] = {
        "exact_match": exact_match,
        "exact_match_ignoring_case": exact_match_ignoring_case,
        "exact_match_normalized": exact_match_normalized,
        "contains": contains,
        "number_match": number_match,
        "token_f1": token_f1,
    }
    n = len(pairs)
    scores = {name: [float(score(text, refs)) for text, refs in pairs] for name, score in per_row.items()}
    rouges = [rouge(text, refs, stemmer=stemmer) for text, refs in pairs]
    scores |= {kind: [row[kind] for row in rouges] for kind in ROUGE}
    found: dict[str, Any] = {name: sum(values) / n for name, values in scores.items()}
    found |= _corpus(pairs)
    found |= checked([text for text, _ in pairs], schema, pattern)
    if with_intervals:
        found["ci95"] = {name: intervals.of_mean(values) for name, values in scores.items()}
    return {**found, "n": n}


def checked(texts: Sequence[str], schema: Mapping[str, Any] | None = None, pattern: str | None = None) -> dict[str, float]:
    """Shares of `texts` that are JSON, fit the schema, and hold the pattern; what needs no reference."""
    checks: dict[str, Callable[[str], bool]] = {"json_valid": is_json}
    if schema is not None:
        checks["schema_match"] = schema_check(schema)
    if pattern is not None:
        checks["pattern_match"] = pattern_check(pattern)
    return {name: sum(check(text) for text in texts) / len(texts) for name, check in checks.items()}


def _corpus(pairs: Sequence[Pair]) -> dict[str, float]:
    from sacrebleu.metrics import BLEU, CHRF

    texts = [text for text, _ in pairs]
    most = max(len(references) for _, references in pairs)
    # sacrebleu takes references column by column; None where a row has fewer
    columns: Any = [[references[n] if n < len(references) else None for _, references in pairs] for n in range(most)]
    return {"bleu": float(BLEU().corpus_score(texts, columns).score), "chrf": float(CHRF().corpus_score(texts, columns).score)}


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
    return "" if references and all(isinstance(text, str) for text in references) else "reference is missing or no text"


def _references(row: Mapping[str, Any]) -> list[Any]:
    given = row.get("references", row.get("reference"))
    return list(given) if isinstance(given, list) else [] if given is None else [given]


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _normalized(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _word_f1(words: Iterable[str], wanted: Sequence[str]) -> float:
    from collections import Counter

    own = list(words)
    if not own or not wanted:
        return float(own == list(wanted))
    shared = sum((Counter(own) & Counter(wanted)).values())
    return 2 * shared / (len(own) + len(wanted))
