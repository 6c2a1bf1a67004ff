"""Pick few good rows of many, after LIMA: of good quality, of a fitting length, and as different from each other as can be.

`python -m studio.datasets.curation OPTIONS OUT` does it in a process of its own. The same rows, number and seed give the same
choice. Knows no database.

Each row gets a quality between 0 and 1 from what can be seen: whether the report found a fault in it, whether its answer has a
usual length for this dataset, how varied its words are, and whether its question says enough. Rows become TF-IDF vectors of words,
projected at random (seeded). Then rows are taken one by one: always the one whose quality times its distance (1 - cosine) from
the nearest row taken so far is greatest.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from studio.datasets.report import likeness
from studio.datasets.report.child import Progress, run
from studio.datasets.report.rows import answers_of, messages_of
from studio.datasets.report.table import RowTable

DIMENSIONS = 256
BUCKETS = 1 << 16  # words are counted by their hash
POOL = 20_000  # so many of the best rows are compared; more would take minutes
MILD = frozenset({"language_mix", "very_long", "one_token_answers", "near_duplicates"})  # findings that only lower the quality
LENGTH_WEIGHT, VARIETY_WEIGHT, QUESTION_WEIGHT = 0.5, 0.3, 0.2
SHORT_QUESTION = 4  # words
HOW = (
    "Rows in which the report found a fault come last. Quality is half how usual the answer's length is (best between the 50th and the "
    "95th percentile), 0.3 how varied its words are and 0.2 whether the question has at least four words. Rows were then taken one by one, "
    "each time the one with the greatest product of quality and distance (1 - cosine of TF-IDF vectors) from those taken before."
)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Signals:
    """What is known of each row, in their order."""

    answer_words: Ints
    variety: Floats
    question_words: Ints


def pick(path: Path, rows: int, seed: int, findings: Mapping[str, Sequence[int]], progress: Progress) -> dict[str, Any]:
    """The chosen rows (from 0, ascending) and how they were chosen. `findings`: check -> rows (from 1)."""
    with RowTable(path) as table:
        progress("Weighing rows", 0.0)
        signals, counts = _read(table)
        quality = scores(signals, findings)
        noise = np.random.default_rng(seed).permutation(len(table))
        pool = np.lexsort((noise, -quality))[: max(POOL, rows)]  # the seed decides between equals
        progress("Choosing rows", 0.5)
        vectors = _vectors(table, pool, counts, seed)
    chosen = farthest_first(vectors, quality[pool], rows)
    found = np.sort(pool[chosen])
    how = {
        "how": HOW,
        "compared": len(pool),
        "mean_quality": round(float(quality[found].mean()), 3),
        "mean_quality_of_all": round(float(quality.mean()), 3),
    }
    return {"rows": found.tolist(), "how": how}


def scores(signals: Signals, findings: Mapping[str, Sequence[int]]) -> Floats:
    """Quality of each row, above 0."""
    length = _usual(signals.answer_words)
    question = (signals.question_words >= SHORT_QUESTION).astype(np.float32)
    quality = LENGTH_WEIGHT * length + VARIETY_WEIGHT * signals.variety + QUESTION_WEIGHT * question
    for check, faulty in findings.items():
        quality[np.array(faulty, np.int64) - 1] *= 0.5 if check in MILD else 0.01
    return np.maximum(quality, 1e-4).astype(np.float32)


def _usual(lengths: Ints) -> Floats:
    """1 between the median and the 95th percentile; falls to 0 for the empty and for ten times the 95th."""
    middle, upper = np.percentile(lengths, [50, 95])
    low = np.clip(lengths / max(1.0, middle), 0, 1)
    high = 1 - np.log10(np.clip(lengths / max(1.0, upper), 1, 10))
    return np.minimum(low, high).astype(np.float32)


def farthest_first(vectors: Floats, quality: Floats, count: int) -> Ints:
    """Indices of `count` rows: the best first, then always the greatest quality x distance from the chosen."""
    chosen = np.zeros(count, np.int64)
    chosen[0] = int(np.argmax(quality))
    nearest = np.full(len(vectors), np.inf, np.float32)
    taken = np.zeros(len(vectors), bool)
    for step in range(count):
        if step:
            # a row that is the same as a chosen one still has a place behind all others
            worth = np.where(taken, -1.0, quality * (nearest + 1e-6))
            chosen[step] = int(np.argmax(worth))
        taken[chosen[step]] = True
        np.minimum(nearest, np.clip(1 - vectors @ vectors[chosen[step]], 0, 1), out=nearest)
    return chosen


def _read(table: RowTable) -> tuple[Signals, Ints]:
    """Signals of every row, and in how many rows each hashed word stands."""
    answer_words, variety, question_words = [], [], []
    counts = np.zeros(BUCKETS, np.int64)
    for number in range(len(table)):
        row = table.row(number)
        answers = likeness.plain(" ".join(answers_of(row)) or str(row.get("text", ""))).split()
        every = likeness.said(row).split()
        answer_words.append(len(answers))
        variety.append(_variety(answers))
        question_words.append(max(0, len(every) - len(answers)))
        counts[np.array([*{_bucket(word) for word in every}], np.int64)] += 1
    return Signals(np.array(answer_words, np.int64), np.array(variety, np.float32), np.array(question_words, np.int64)), counts


def _variety(words: Sequence[str]) -> float:
    """Share of different words; in long texts against 4 times the root of their number, as every text repeats more the longer it is."""
    return min(1.0, len(set(words)) / max(1.0, min(len(words), 4 * len(words) ** 0.5)))


def _bucket(word: str) -> int:
    return crc32(word.encode("utf-8", "surrogatepass")) % BUCKETS


def _vectors(table: RowTable, pool: Ints, counts: Ints, seed: int) -> Floats:
    """Unit vectors of the pool's rows."""
    weights = np.log((1 + len(table)) / (1 + counts)).astype(np.float32)
    directions = np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), (BUCKETS, DIMENSIONS))
    vectors = np.zeros((len(pool), DIMENSIONS), np.float32)
    for place, number in enumerate(pool.tolist()):
        words = Counter(_bucket(word) for word in likeness.plain(" ".join(messages_of(table.row(number)))).split())
        buckets = np.fromiter(words, np.int64, len(words))
        tf_idf = np.log1p(np.fromiter(words.values(), np.float32, len(words))) * weights[buckets]
        vectors[place] = tf_idf @ directions[buckets].astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths > 0, lengths, 1)
    return vectors


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], lambda given, tell: pick(Path(given["path"]), given["rows"], given["seed"], given["findings"], tell)))
