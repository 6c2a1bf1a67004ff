"""Do raters agree? Cohen's kappa of each two with its interval, and each against the majority of those who are taken for the truth.

Verdicts in, numbers out. scikit-learn on first use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from studio.errors import DatasetError
from studio.evaluation import intervals
from studio.evaluation.verdicts import SWAPPED, VerdictLine

LABELS = ("a", "b", "tie")
Item = tuple[str, str, str, int]  # prompt, shown first, shown second, how many times before
Said = dict[Item, str]


def agreement(verdicts: Sequence[VerdictLine], truth: Sequence[str] = (), invalid: str = "tie") -> dict[str, Any]:
    """`pairs` of raters with `kappa` (None where it is undefined), and `majority` per rater, macro over a, b, tie.

    `invalid`: what a verdict that is none counts as, "tie" or nothing ("skip"). Lines of the same prompt in opposite orders are
    compared too, the label exchanged. Raises DatasetError for unknown raters.
    """
    said = _by_rater(verdicts, invalid)
    unknown = [rater for rater in truth if rater not in said]
    if unknown:
        raise DatasetError(f"No verdict is of rater {unknown[0]!r}.", f"Raters here: {', '.join(said)}.")
    pairs = [{"a": one, "b": other, **_pair(said[one], said[other])} for one, other in combinations(said, 2)]
    if not truth:
        return {"pairs": pairs, "majority": {}}
    agreed = _majority([said[rater] for rater in dict.fromkeys(truth)])
    return {"pairs": pairs, "majority": {rater: _against(agreed, own) for rater, own in said.items()}}


def _by_rater(verdicts: Sequence[VerdictLine], invalid: str) -> dict[str, Said]:
    found: dict[str, Said] = {}
    times: Counter[tuple[str, str, str, str]] = Counter()
    for prompt_id, a, b, winner, rater in verdicts:
        said = found.setdefault(rater, {})
        number = times[rater, prompt_id, a, b]
        times[rater, prompt_id, a, b] += 1
        if winner != "invalid":
            said[prompt_id, a, b, number] = winner
        elif invalid == "tie":
            said[prompt_id, a, b, number] = "tie"
    return found


def _matched(one: Mapping[Item, str], other: Mapping[Item, str]) -> list[tuple[str, str, str]]:
    """(prompt, label, label) of the same item: in the same order where both have it, else in opposite orders; each line counts once."""
    same = [item for item in one if item in other]
    used = set(same)
    matched = [(item[0], one[item], other[item]) for item in same]
    for item in one:
        swapped = (item[0], item[2], item[1], item[3])
        if item not in used and swapped in other and swapped not in used:
            used |= {item, swapped}
            matched.append((item[0], one[item], SWAPPED[other[swapped]]))
    return matched


def _pair(one: Said, other: Said) -> dict[str, Any]:
    matched = _matched(one, other)
    if not matched:
        return {"kappa": None, "agreement": None, "n": 0}
    prompts, first, second = zip(*matched, strict=True)
    share = sum(a == b for a, b in zip(first, second, strict=True)) / len(matched)
    found: dict[str, Any] = {"kappa": kappa(first, second), "agreement": share, "n": len(matched)}
    if found["kappa"] is not None:
        numbers = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        numbered = [[LABELS.index(label) for label in own] for own in (first, second)]
        found["kappa_ci95"] = intervals.of_kappa(numbered[0], numbered[1], [numbers[prompt] for prompt in prompts], len(LABELS))
    return found


def kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Cohen's kappa; None where both raters say one and the same label throughout, so that chance explains all."""
    from sklearn.metrics import cohen_kappa_score

    if len({*first, *second}) < 2:
        return None
    return float(cohen_kappa_score(first, second, labels=list(LABELS)))


def _majority(truth: Sequence[Said]) -> Said:
    """What more than half of the truth raters say where all of them speak; a tie where no label has that many."""
    agreed: Said = {}
    first, *others = truth
    for item, label in first.items():
        labels = [label, *(_label(other, item) for other in others)]
        if None not in labels:
            best, count = Counter(labels).most_common(1)[0]
            agreed[item] = str(best) if count * 2 > len(labels) else "tie"
    return agreed


def _label(said: Said, item: Item) -> str | None:
    if item in said:
        return said[item]
    swapped = said.get((item[0], item[2], item[1], item[3]))
    return swapped and SWAPPED[swapped]


def _against(truth: Said, said: Said) -> dict[str, Any]:
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    matched = _matched(truth, said)
    if not matched:
        return {"accuracy": None, "precision": None, "recall": None, "f1": None, "n": 0}
    right, own = [a for _, a, _ in matched], [b for *_, b in matched]
    precision, recall, f1, _ = precision_recall_fscore_support(right, own, labels=list(LABELS), average="macro", zero_division=0)
    accuracy = accuracy_score(right, own)
    return {"accuracy": float(accuracy), "precision": float(precision), "recall": float(recall), "f1": float(f1), "n": len(matched)}
