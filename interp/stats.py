"""Intervals: how sure a share, a mean or a ratio of means is, from the examples measured."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Z = 1.959963984540054
"""Half the width of a 95 % interval, in standard errors."""


class Estimate(NamedTuple):
    """A number with its standard error and 95 % interval; arrays of one shape."""

    value: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray


def wilson(successes: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % score interval of a share (Wilson 1927)."""
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    # The bounds enclose the share; at 0 and 1 rounding would leave it a hair outside.
    return np.minimum(middle - half, share).clip(0), np.maximum(middle + half, share).clip(None, 1)


def mean(values: np.ndarray) -> Estimate:
    """The mean over the last axis, with a normal interval; of one example the bounds are NaN."""
    values = np.asarray(values, dtype=float)
    n = values.shape[-1]
    spread = values.std(-1, ddof=1) if n > 1 else np.full(values.shape[:-1], np.nan)
    return _around(values.mean(-1), spread / np.sqrt(n))


def ratio_of_means(over: np.ndarray, under: np.ndarray) -> Estimate:
    """mean(over) / mean(under) over the last axis, by the delta method; `under` is broadcast.

    The way to normalise an effect by the clean–corrupted gap: a mean of ratios explodes where one
    example's gap is small. Raises ValueError where the mean of `under` lies within two standard
    errors of zero, since the ratio is then unbounded (Fieller 1954).
    """
    over, under = np.broadcast_arrays(np.asarray(over, float), under)
    below = mean(under)
    if bool((np.abs(below.value) <= 2 * np.nan_to_num(below.stderr)).any()):
        raise ValueError(
            f"the mean of what is divided by is {below.value.flat[0]:.3g} ± "
            f"{below.stderr.flat[0]:.2g} (standard error): a share of it means nothing"
        )
    value = over.mean(-1) / below.value
    return _around(value, mean(over - value[..., None] * under).stderr / np.abs(below.value))


def _around(value: np.ndarray | np.floating, stderr: np.ndarray | np.floating) -> Estimate:
    value, stderr = np.asarray(value), np.asarray(stderr)
    return Estimate(value, stderr, value - Z * stderr, value + Z * stderr)
