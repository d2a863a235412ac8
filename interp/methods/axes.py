"""Axes through word vectors: the plane of a few words, and the direction that pairs share.

A few words always lie near some plane, and any direction finds some words: each number here stands
beside the same number for random words, or for random directions of equal norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def principal(vectors: np.ndarray, centre: bool) -> tuple[np.ndarray, np.ndarray]:
    """The principal directions [k, d] of the rows and the share of variance along each [k].

    centre=False: about zero. The sign is fixed: each direction's largest component is positive.
    """
    rows = vectors.astype(np.float64)
    if centre:
        rows = rows - rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    total = (sizes**2).sum()
    if total == 0:
        raise ValueError("the vectors do not differ: they span no axis")
    return directions * np.sign(largest), sizes**2 / total


def plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in the plane of their first two principal components: places [n, 2], the share of
    variance along both axes [2], and the share of each row's squared distance from the middle that
    the plane shows [n]."""
    directions, shares = principal(vectors, centre=True)
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    places = centred @ directions[:2].T
    lengths = (centred**2).sum(axis=1)
    shown = (places**2).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    return places, shares[:2], np.minimum(shown, 1.0)


def direction(differences: np.ndarray, method: str) -> np.ndarray:
    """The unit vector that the rows share: their mean, or their first principal component about
    zero (the rows of Bolukbasi et al. 2016), turned to agree with the mean."""
    found = differences.mean(axis=0, dtype=np.float64)
    if method == "pca":
        component = np.linalg.svd(differences, full_matrices=False)[2][0]
        found = -component if component @ found < 0 else component
    length = np.linalg.norm(found)
    if length == 0:
        raise ValueError("the pairs cancel: their mean difference is zero")
    return (found / length).astype(differences.dtype)


def held_out(differences: np.ndarray, method: str) -> np.ndarray:
    """The cosine of each row with the direction that all other rows share."""
    others = (np.delete(differences, i, axis=0) for i in range(len(differences)))
    return np.array([cosines(row[None], direction(rest, method))[0]
                     for row, rest in zip(differences, others, strict=True)])  # fmt: skip


def cosines(vectors: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Of each row with one vector; 0 for a vector of length zero."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(towards)
    return (vectors @ towards) / np.where(lengths == 0, 1, lengths)


def random_like(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random directions, each of the norm of its row."""
    drawn = rng.normal(size=vectors.shape)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return drawn * (lengths / np.linalg.norm(drawn, axis=1, keepdims=True))


def middle(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The bounds of the middle 95 %."""
    low, high = np.quantile(np.asarray(values), [0.025, 0.975])
    return float(low), float(high)
