"""Cosines of random pairs of rows, beside those of random directions: how nearly orthogonal they
are, and how many directions could be.

In d dimensions the cosine of two random directions has mean 0 and variance 1/d, and is close to
N(0, 1/d). So thousands of directions are nearly orthogonal without anybody having put them there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

PAIRS = 8192
"""Pairs whose vectors are held at once."""


def sampled(unit: np.ndarray, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Cosines of so many random pairs of two different rows, with replacement."""
    n = len(unit)
    if n < 2:
        raise ValueError(f"pairs of rows need two rows or more, got {n}")
    one = rng.integers(n, size=pairs)
    other = (one + rng.integers(1, n, size=pairs)) % n
    parts = (slice(start, start + PAIRS) for start in range(0, pairs, PAIRS))
    return np.concatenate(
        [np.einsum("pd,pd->p", unit[one[s]], unit[other[s]], dtype=np.float64) for s in parts]
    ).clip(-1, 1)


def random_cosines(d: int, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Cosines of so many pairs of random directions in d dimensions.

    One of the two may as well be an axis: the cosine is then g₁ / |g| of a Gaussian vector g.
    """
    first = rng.standard_normal(pairs)
    rest = rng.chisquare(d - 1, pairs) if d > 1 else np.zeros(pairs)
    return first / np.sqrt(first**2 + rest)


def normal_cdf(x: np.ndarray, d: int) -> np.ndarray:
    """Of N(0, 1/d)."""
    return np.array([0.5 * math.erfc(-one * math.sqrt(d / 2)) for one in np.asarray(x, float)])


def histogram(unit: np.ndarray, bins: int, pairs: int, seed: int) -> pd.DataFrame:
    """low high share random normal."""
    own, other = both(unit, pairs, seed)
    top = max(float(np.abs(own).max()), float(np.abs(other).max()))
    edges = np.linspace(-top, top, bins + 1) if top else np.linspace(-1, 1, bins + 1)
    share, random = (np.histogram(one, edges)[0] / pairs for one in (own, other))
    normal = np.diff(normal_cdf(edges, unit.shape[1]))
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "share": share, "random": random, "normal": normal}
    )


def quantiles(unit: np.ndarray, at: Sequence[float], pairs: int, seed: int) -> pd.DataFrame:
    """quantile cosine random."""
    own, other = both(unit, pairs, seed)
    return pd.DataFrame(
        {"quantile": list(at), "cosine": np.quantile(own, at), "random": np.quantile(other, at)}
    )


def orthogonality(unit: np.ndarray, within: Sequence[float], pairs: int, seed: int) -> pd.DataFrame:
    """within share random normal could_hold."""
    d = unit.shape[1]
    own, other = both(unit, pairs, seed)
    rows = [
        (
            *(bound, float((np.abs(own) <= bound).mean()), float((np.abs(other) <= bound).mean())),
            *(math.erf(bound * math.sqrt(d / 2)), could_hold(bound, d)),
        )
        for bound in within
    ]
    return pd.DataFrame(rows, columns=["within", "share", "random", "normal", "could_hold"])


def could_hold(within: float, d: int) -> float:
    """A number of directions in d dimensions that can all lie within ±`within` of orthogonal.

    Two random directions miss it with probability ≤ 2 exp(−d within² / 2) (Ball 1997, lemma 2.2),
    so by the union bound over all pairs exp(d within² / 4) of them do not with a probability above
    zero (the argument behind Johnson & Lindenstrauss 1984); d orthogonal ones always do. It is a
    lower bound on what fits, and no count of what a table holds. Past e⁷⁰⁰ it stops growing.
    """
    return float(max(d, math.floor(math.exp(min(d * within**2 / 4, 700.0)))))


def both(unit: np.ndarray, pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sampled cosines, of rows and of random directions."""
    if pairs < 1:
        raise ValueError(f"pairs={pairs}: expected at least 1")
    rng = np.random.default_rng(seed)
    return sampled(unit, pairs, rng), random_cosines(unit.shape[1], pairs, rng)
