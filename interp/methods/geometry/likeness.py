"""Whether two layers, or two models, hold the same geometry: CKA and orthogonal Procrustes.

Linear CKA (Kornblith et al. 2019) compares the two matrices of inner products between examples;
neither rotating a space nor scaling it changes them. Its usual estimate grows towards 1 where there
are fewer examples than dimensions, so the default takes the unbiased estimate of HSIC instead (Song
et al. 2012, Nguyen et al. 2021): 0 on average for unrelated vectors, and it may fall below.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

BUDGET = 64 << 20
"""Bytes of inner products that are held at once."""


def cka(x: np.ndarray, y: np.ndarray, debiased: bool = True) -> float:
    """Linear CKA of x [n, d] and y [n, e], whose rows are the same examples.

    Raises ValueError where the rows are not as many, fewer than four, or do not differ.
    """
    return float(cka_matrix([x], [y], debiased)[0, 0])


def cka_matrix(
    left: Sequence[np.ndarray], right: Sequence[np.ndarray], debiased: bool = True
) -> np.ndarray:
    """CKA of each of `left` with each of `right`: [left, right]."""
    every = [*left, *right]
    for one in every:
        if one.ndim != 2 or len(one) != len(every[0]) or len(one) < 4:
            raise ValueError(
                f"got vectors of shape {list(one.shape)} beside {list(every[0].shape)}: expected "
                "[n, d] and [n, e] of the same n examples, four or more"
            )
    for number, one in enumerate(every):
        spread = np.square(one - one.mean(axis=0, dtype=np.float64)).sum()
        if spread <= 1e-12 * np.square(one, dtype=np.float64).sum():
            raise ValueError(
                f"vectors number {number} of {len(every)} do not differ between the {len(one)} "
                "examples, so they are like nothing"
            )
    shared = hsic(every, debiased)
    scale = np.sqrt(np.diag(shared))
    return (shared / scale[:, None] / scale)[: len(left), len(left) :]


def hsic(every: Sequence[np.ndarray], debiased: bool) -> np.ndarray:
    """Σ over pairs of examples of the products of their centred inner products, for each two of
    `every`: HSIC but for a factor that is the same for all.

    Debiased: diagonals left out and the matrices U-centred (Székely & Rizzo 2014). The n × n
    matrices are made some rows at a time, so memory grows with n and not with its square.
    """
    n = len(every[0])
    step = max(1, BUDGET // (8 * n * len(every)))
    means = [one.mean(axis=0, dtype=np.float64) for one in every]
    norms = [np.square(one - mean).sum(axis=1) for one, mean in zip(every, means, strict=True)]
    total = np.zeros((len(every), len(every)))
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        held = np.empty((len(every), len(rows), n))
        for i, (one, mean) in enumerate(zip(every, means, strict=True)):
            held[i] = (one[rows] - mean) @ (one - mean).T
            if debiased:
                # About its mean a row's products sum to zero, so without the diagonal to −|x|².
                held[i] += (norms[i][rows, None] + norms[i]) / (n - 2)
                held[i] -= norms[i].sum() / ((n - 1) * (n - 2))
                held[i][np.arange(len(rows)), rows] = 0.0
        flat = held.reshape(len(every), -1)
        total += flat @ flat.T
    return total


def procrustes(x: np.ndarray, y: np.ndarray, folds: int = 5, seed: int = 0) -> float:
    """How well one rotation (with reflection) carries x [n, d] to y [n, e] on examples that it was
    not made from: the cosine of the rotated with the true ones, about their means.

    The rotation is the orthogonal Procrustes solution (Schönemann 1966) of the other folds, which
    are drawn with `seed`. 1 for a rotated, scaled or shifted copy where each fold leaves more
    examples than d; about 0 for unrelated vectors. Where e < d the rest of x counts against it.
    """
    n = len(x)
    if len(y) != n or not 2 <= folds <= n // 2:
        raise ValueError(
            f"{n} and {len(y)} examples in {folds} folds: expected as many of both, and 2 … n/2 "
            "folds"
        )
    order = np.random.default_rng(seed).permutation(n)
    agree = own = other = 0.0
    for held in np.array_split(order, folds):
        kept = np.setdiff1d(order, held)
        middle = [one[kept].mean(axis=0, dtype=np.float64) for one in (x, y)]
        a, b = x[kept] - middle[0], y[kept] - middle[1]
        u, sizes, vt = np.linalg.svd(a.T @ b, full_matrices=False)
        seen = sizes > 1e-10 * max(sizes[0], 1e-300)  # elsewhere any rotation is as good
        turn = u[:, seen] @ vt[seen]
        a, b = x[held] - middle[0], y[held] - middle[1]
        agree += float(((a @ turn) * b).sum())
        own, other = own + float(np.square(a).sum()), other + float(np.square(b).sum())
    if own * other == 0:
        raise ValueError(f"the {n} examples do not differ, so no rotation can be told from another")
    return agree / float(np.sqrt(own * other))


def alignment(
    left: Mapping[int, np.ndarray],
    right: Mapping[int, np.ndarray] | None = None,
    *,
    debiased: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """CKA of each layer of `left` with each of `right`, by default of `left` itself: layer other
    cka control.

    Layers are maps from a number to vectors [n, d] of the same n examples. control: the same after
    the examples of `right` were shuffled, which leaves each geometry and undoes what they share.
    """
    other = left if right is None else right
    size = len(next(iter(other.values())))
    order = np.random.default_rng(seed).permutation(size)
    found = cka_matrix([*left.values()], [*other.values()], debiased)
    control = cka_matrix([*left.values()], [one[order] for one in other.values()], debiased)
    rows = [
        (one, two, float(found[i, j]), float(control[i, j]))
        for i, one in enumerate(left)
        for j, two in enumerate(other)
    ]
    return pd.DataFrame(rows, columns=["layer", "other", "cka", "control"])
