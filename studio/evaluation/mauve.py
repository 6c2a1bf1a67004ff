"""MAUVE: how alike the distributions of two sets of texts are, 0-1 (Pillutla et al., NeurIPS 2021), from features of the texts.

The definition is that of mauve-text: features of length 1, principal components that explain 90 % of the variance, k-means into a tenth
as many clusters as the smaller set has texts, and the area under the divergence frontier of the two histograms with scaling factor 5.
Clusters come from scikit-learn in place of faiss, and the figure is the mean over SEEDS, because one clustering moves it by some
hundredths. Knows arrays only; studio.evaluation.features makes them of texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SCALING = 5.0
WEIGHTS = np.linspace(1e-6, 1 - 1e-6, 25)
EXPLAINED = 0.9
SEEDS = range(20)
REDONE, ITERATIONS = 5, 500
# Fewer texts give no figure. Simulated on normal features, 16 pairs of samples each: the figure of two distributions far apart is
# .63 +- .17 with 50 texts, .57 +- .11 with 100, .51 +- .10 with 200, .45 +- .08 with 500; that of equal ones .97 +- .03 with 50, .96 +-
# .02 from 100 on. Below 100 a tenth of the texts makes too few clusters to tell anything apart; mauve-text advises 1,000 and more.
MIN_TEXTS = 100
Floats = NDArray[np.float64]


def of_features(p: Floats, q: Floats) -> float:
    """MAUVE of two sets of features, [texts, dimensions] each; the mean over SEEDS."""
    together = np.vstack([q, p])
    distinct = len(np.unique(together, axis=0))
    if distinct == 1:
        return 1.0  # all texts are one text
    clusters = min(number_of_clusters(len(p), len(q)), distinct)
    reduced = _reduced(together)
    found = []
    for seed in SEEDS:
        labels = _labels(reduced, clusters, seed)
        found.append(of_labels(labels[len(q) :], labels[: len(q)], clusters))
    return float(np.mean(found))


def number_of_clusters(p: int, q: int) -> int:
    return max(2, round(min(p, q) / 10))


def of_labels(p: Sequence[int] | NDArray[np.integer], q: Sequence[int] | NDArray[np.integer], clusters: int) -> float:
    """MAUVE of the numbers 0 to `clusters` - 1 of the clusters that the texts of either set fell into."""
    return of_histograms(*(np.bincount(np.asarray(labels), minlength=clusters) / len(labels) for labels in (p, q)))


def of_histograms(p: Floats, q: Floats) -> float:
    """The area under exp(-c KL) of both histograms against their mixtures, with the end points (1, 0) and (0, 1)."""
    x, y = [1.0], [0.0]
    for weight in WEIGHTS:
        mixture = weight * p + (1 - weight) * q
        x.append(float(np.exp(-SCALING * _kl(q, mixture))))
        y.append(float(np.exp(-SCALING * _kl(p, mixture))))
    # along the curve x falls; its area over x and over y is the same
    area = -np.trapezoid([*y, 1.0], [*x, 0.0])
    return float(np.clip(area, 0.0, 1.0))


def _kl(p: Floats, q: Floats) -> float:
    known = p > 0
    return max(0.0, float(np.sum(p[known] * np.log(p[known] / q[known]))))


def _reduced(features: Floats) -> NDArray[np.float32]:
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import normalize

    unit = normalize(features, norm="l2", axis=1)
    pca = PCA(random_state=SEEDS[0]).fit(unit)
    enough = int(np.argmax(np.cumsum(pca.explained_variance_ratio_) >= EXPLAINED)) + 1
    return np.asarray(pca.transform(unit)[:, :enough], dtype=np.float32)


def _labels(points: NDArray[np.float32], clusters: int, seed: int) -> NDArray[np.int32]:
    from sklearn.cluster import KMeans

    kmeans = KMeans(clusters, init="random", n_init=REDONE, max_iter=ITERATIONS, tol=0.0, random_state=seed)
    return np.asarray(kmeans.fit_predict(points))
