"""How the vectors of a table fill their space: spectrum, effective dimension, anisotropy.

Nothing is sampled: a mean over all pairs of rows follows from two sums, Σ u and Σ u uᵀ over the
unit vectors u. Every measure stands beside the same measure of Gaussian vectors of the same shape,
since a few vectors in many dimensions never look round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

BLOCK = 4096
"""Rows that are held in float64 at once."""
SHARE = 0.9
"""Of the variance, for the number of components that hold it."""


class Axes(NamedTuple):
    """Principal components of some rows about their mean."""

    mean: np.ndarray
    """[d]"""
    variances: np.ndarray
    """[k], along each component, falling; their sum is the mean squared distance from the mean."""
    directions: np.ndarray
    """[k, d], of length one."""


def blocks(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """The rows in float64, some at a time."""
    for start in range(0, len(vectors), BLOCK):
        yield vectors[start : start + BLOCK].astype(np.float64)


def principal_axes(vectors: np.ndarray) -> Axes:
    """All principal components. Raises ValueError where the rows do not differ."""
    n, d = vectors.shape
    mean = vectors.mean(axis=0, dtype=np.float64)
    if n > d:
        moment = sum((rows - mean).T @ (rows - mean) for rows in blocks(vectors))
        variances, directions = np.linalg.eigh(moment / n)
        variances, directions = variances[::-1].clip(0), directions[:, ::-1].T
    else:
        _, sizes, directions = np.linalg.svd(vectors - mean, full_matrices=False)
        variances = sizes**2 / n
    scale = max(float(np.square(mean).sum()), float(variances.sum()))
    if variances.sum() <= 1e-20 * scale:
        raise ValueError(f"the {n} vectors do not differ, so they have no spectrum")
    return Axes(mean, variances, directions)


def gaussian_like(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Gaussian vectors about zero of the same shape, dtype and mean squared length."""
    size = sum(float(np.square(rows).sum()) for rows in blocks(vectors)) / vectors.size
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal(vectors.shape, dtype=vectors.dtype.type)
    return drawn * vectors.dtype.type(np.sqrt(size))


def spectrum(vectors: np.ndarray, seed: int) -> pd.DataFrame:
    """component variance share cumulative control_cumulative."""
    own, other = (principal_axes(one).variances for one in (vectors, gaussian_like(vectors, seed)))
    share = own / own.sum()
    return pd.DataFrame(
        {
            "component": np.arange(1, len(own) + 1),
            "variance": own,
            "share": share,
            "cumulative": share.cumsum().clip(max=1.0),
            "control_cumulative": (other / other.sum()).cumsum().clip(max=1.0),
        }
    )


def participation(variances: np.ndarray) -> float:
    """(Σ λ)² / Σ λ²: k for k equal variances and nothing else."""
    return float(variances.sum() ** 2 / np.square(variances).sum())


def entropy_rank(variances: np.ndarray) -> float:
    """exp of the entropy of the shares of variance (Roy & Vetterli 2007, on variances)."""
    share = variances[variances > 0] / variances.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def components_for(variances: np.ndarray, share: float = SHARE) -> int:
    """How few components hold this share of the variance."""
    return int(np.searchsorted(variances.cumsum(), share * variances.sum() * (1 - 1e-12))) + 1


def dimension(vectors: np.ndarray, seed: int) -> pd.DataFrame:
    """measure value control; the measures are named in `Embedding.dimension`."""
    columns = {}
    for name, rows in (("value", vectors), ("control", gaussian_like(vectors, seed))):
        variances = principal_axes(rows).variances
        norms = np.concatenate([np.linalg.norm(some, axis=1) for some in blocks(rows)])
        columns[name] = {
            "participation ratio": participation(variances),
            f"components for {SHARE:.0%} of variance": float(components_for(variances)),
            "entropy rank": entropy_rank(variances),
            "mean norm": float(norms.mean()),
            "standard deviation of norms": float(norms.std()),
        }
    return pd.DataFrame(columns).rename_axis("measure").reset_index()


def anisotropy(vectors: np.ndarray, removed: Sequence[int], seed: int) -> pd.DataFrame:
    """treatment removed mean_cosine deviation control control_deviation."""
    columns = [
        [_pairs(rows, change) for change in _treatments(rows, removed)]
        for rows in (vectors, gaussian_like(vectors, seed))
    ]
    names = ["as they are", *(_treatment(count) for count in (0, *removed))]
    rows = [
        (name, count, *own, *other)
        for name, count, own, other in zip(names, (0, 0, *removed), *columns, strict=True)
    ]
    measured = ["mean_cosine", "deviation", "control", "control_deviation"]
    return pd.DataFrame(rows, columns=["treatment", "removed", *measured])


def check_removed(removed: Sequence[int], shape: tuple[int, ...]) -> None:
    """Raises ValueError unless something is left when these many components are gone."""
    n, d = shape
    if n < 2:
        raise ValueError(f"pairs of rows need two rows or more, got {n}")
    if any(count < 1 or count >= min(n - 1, d) for count in removed):
        raise ValueError(
            f"removed={tuple(removed)}: {n} vectors in {d} dimensions have components 1 … "
            f"{min(n - 1, d)}, and one at least must be left"
        )


def _treatment(removed: int) -> str:
    if not removed:
        return "centred"
    return f"{removed} component{'s' * (removed > 1)} removed"


Change = Callable[[np.ndarray], np.ndarray]


def _treatments(vectors: np.ndarray, removed: Sequence[int]) -> list[Change]:
    mean, _, directions = principal_axes(vectors)

    def without(count: int) -> Change:
        top = directions[:count]
        return lambda rows: (rows - mean) - ((rows - mean) @ top.T) @ top

    return [lambda rows: rows, *(without(count) for count in (0, *removed))]


def _pairs(vectors: np.ndarray, change: Change) -> tuple[float, float]:
    """Mean and standard deviation of the cosine over all pairs of two rows. A vector of length zero
    has the cosine 0 with anything."""
    n, d = vectors.shape
    total, moment, own = np.zeros(d), np.zeros((d, d)), np.zeros(2)
    for rows in blocks(vectors):
        rows = change(rows)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = rows / np.where(length == 0, 1, length)
        square = np.square(unit).sum(axis=1)
        total += unit.sum(axis=0)
        moment += unit.T @ unit
        own += square.sum(), np.square(square).sum()
    pairs = n * (n - 1)
    mean = (total @ total - own[0]) / pairs
    squared = (np.square(moment).sum() - own[1]) / pairs
    return float(mean), float(np.sqrt(max(squared - mean * mean, 0.0)))
