"""Whether words fall into groups, and into those that somebody names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.cluster import AgglomerativeClustering, KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_samples

from ..axes import middle

METHODS = ("kmeans", "agglomerative")


class Clusters(NamedTuple):
    """A clustering of some rows and what the same code finds where there is nothing."""

    cluster: np.ndarray
    """[n], numbered from 0 by first appearance."""
    silhouette: np.ndarray
    """[n], −1 … 1: how much nearer a row is to its own cluster than to the next one."""
    control: tuple[float, float]
    """The middle 95 % of the mean silhouette, each dimension shuffled over the rows."""
    rand: float | None
    """Adjusted Rand index with the labels: 1 the same groups, 0 what chance gives."""
    rand_control: tuple[float, float] | None
    """The middle 95 % of it with the labels shuffled over the rows."""


def clusters(
    unit: np.ndarray, k: int, method: str, labels: Sequence[str] | None, seed: int, draws: int
) -> Clusters:
    """`k` clusters of the rows, Euclidean on what are unit vectors; see `Embedding.clusters`."""
    _check(unit, k, method, labels, draws)
    rng = np.random.default_rng(seed)
    found = _cluster(unit, k, method, seed)
    mixed = (rng.permuted(unit, axis=0) for _ in range(draws))
    control = middle([float(silhouette_samples(one, _cluster(one, k, method, seed)).mean())
                      for one in mixed])  # fmt: skip
    rand = rand_control = None
    if labels is not None:
        rand = float(adjusted_rand_score(labels, found))
        rand_control = middle(
            [adjusted_rand_score(rng.permutation(np.asarray(labels)), found) for _ in range(draws)]
        )
    return Clusters(found, silhouette_samples(unit, found), control, rand, rand_control)


def _cluster(unit: np.ndarray, k: int, method: str, seed: int) -> np.ndarray:
    if method == "kmeans":
        found = KMeans(k, n_init=5, random_state=seed).fit_predict(unit)
    else:
        found = AgglomerativeClustering(k, linkage="average").fit_predict(unit)
    order = {one: number for number, one in enumerate(dict.fromkeys(found.tolist()))}
    return np.array([order[one] for one in found.tolist()])


def _check(unit: np.ndarray, k: int, method: str, labels: Sequence[str] | None, draws: int) -> None:
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    distinct = len(np.unique(unit, axis=0))
    if not 2 <= k < len(unit) or k > distinct:
        raise ValueError(
            f"k={k}: {len(unit)} words with {distinct} different vectors make 2 … "
            f"{min(len(unit) - 1, distinct)} clusters"
        )
    if labels is not None and len(labels) != len(unit):
        raise ValueError(f"{len(labels)} labels for {len(unit)} words: expected one per word")
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least 1")
