"""How sure a number is: intervals of shares, of their differences, of means and of ratios of means;
what a test can reach at all; and below which size an effect is rounding."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from scipy.stats import t

Z = 1.959963984540054
"""Half the width of a 95 % interval, in standard errors."""


ROUNDINGS = 16.0
"""Roundings of the largest logit that a single run of a model may be off by: between two ways to
compute the same effect 7 were measured at most, over 2 to 12 layers in four precisions."""


Numbers: TypeAlias = np.ndarray | np.number | float | int
"""A number, or an array of them."""


class Estimate(NamedTuple):
    """A number with its standard error and 95 % interval; arrays of one shape."""

    value: np.ndarray
    stderr: np.ndarray
    low: np.ndarray
    high: np.ndarray


def wilson(successes: Numbers, n: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """The 95 % score interval of a share (Wilson 1927)."""
    successes, n = np.asarray(successes), np.asarray(n)
    share = successes / n
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * np.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    # The bounds enclose the share; at 0 and 1 rounding would leave it a hair outside.
    low, high = np.minimum(middle - half, share), np.maximum(middle + half, share)
    return np.asarray(low.clip(0)), np.asarray(high.clip(None, 1))


def difference_of_shares(
    first: Numbers, n_first: Numbers, second: Numbers, n_second: Numbers
) -> Estimate:
    """The share of `first` in `n_first` less that of `second` in `n_second`, other examples.

    95 % interval by the hybrid of both score intervals (Newcombe 1998, Statistics in Medicine 17,
    873–890, method 10): it stays within ±1, and has a width where both shares are 0 or 1. stderr is
    that of two binomials.
    """
    a, b = (np.asarray(part) / whole for part, whole in ((first, n_first), (second, n_second)))
    (a_low, a_high), (b_low, b_high) = wilson(first, n_first), wilson(second, n_second)
    low = a - b - np.hypot(a - a_low, b_high - b)
    high = a - b + np.hypot(a_high - a, b - b_low)
    stderr = np.sqrt(a * (1 - a) / n_first + b * (1 - b) / n_second)
    return Estimate(*(np.asarray(one) for one in (a - b, stderr, low, high)))


def paired_difference_of_shares(
    first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None
) -> Estimate:
    """The share of True in `first` less that in `second`, two answers about the same examples [n].

    95 % interval by the hybrid of both score intervals with the correlation of the answers
    (Newcombe 1998, Statistics in Medicine 17, 2635–2650, method 10): it stays within ±1, and has a
    width where no example tells the two apart. groups [n]: examples of a group are not independent;
    n is then divided by the design effect (Rao & Scott 1992), and is the number of groups where no
    example tells the two apart. stderr is that of the mean difference, of groups where there are
    some. Raises ValueError where the lengths differ, and on no example.
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(
            f"answers of shape {list(first.shape)} and {list(second.shape)}: expected two of one "
            "length, about the same examples"
        )
    apart, n = first.astype(float) - second, len(first)
    stderr, weight = _clustered(apart, np.arange(n) if groups is None else np.asarray(groups))
    both, neither = float((first & second).sum()), float((~first & ~second).sum())
    alone, other = float((first & ~second).sum()), float((~first & second).sum())
    margins = (both + alone) * (other + neither) * (both + other) * (alone + neither)
    excess = both * neither - alone * other
    if excess > 0:  # corrected for continuity
        excess = max(excess - n / 2, 0.0)
    correlation = excess / math.sqrt(margins) if margins else 0.0
    a, b = float(first.mean()), float(second.mean())
    (a_low, a_high), (b_low, b_high) = (
        map(float, wilson(share * weight, weight)) for share in (a, b)
    )

    def apart_by(one: float, two: float) -> float:
        return math.sqrt(max(one * one - 2 * correlation * one * two + two * two, 0.0))

    value = a - b
    low, high = value - apart_by(a - a_low, b_high - b), value + apart_by(a_high - a, b - b_low)
    return Estimate(*(np.asarray(one) for one in (value, stderr, low, high)))


def clustered_mean(values: np.ndarray, groups: np.ndarray) -> Estimate:
    """The mean of values [n] whose groups are drawn as wholes, with a normal 95 % interval."""
    values = np.asarray(values, float)
    stderr, _ = _clustered(values, np.asarray(groups))
    return _around(np.asarray(values.mean()), np.asarray(stderr))


def _clustered(values: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """The standard error of a mean whose groups are drawn as wholes, and how many independent
    values would have it."""
    n, off = len(values), values - values.mean()
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, off)
    if len(sums) == 1:
        return math.nan, 1.0
    stderr = math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / n
    alone = math.sqrt((off**2).sum() / (n - 1) / n)
    if not alone:  # nothing says how alike the members of a group are
        return stderr, float(len(sums))
    return stderr, n / max(1.0, (stderr / alone) ** 2)


class Reach(NamedTuple):
    """What a test by draws (shuffles, random directions, random sets) can reach."""

    alone: float
    """The smallest corrected p of a single test among all, when no draw reaches it."""
    at_best: float
    """The same when all tests have the smallest p at once; by "holm" no smaller than `alone`."""
    needed: int
    """Draws from which on a single test can pass."""


def reach(
    draws: int,
    tests: int = 1,
    *,
    alpha: float = 0.05,
    correction: Literal["holm", "bonferroni", "bh", "none"] = "holm",
) -> Reach:
    """The smallest p-value that a rank among `draws` draws can have, 1 / (1 + draws) (Phipson &
    Smyth 2010), corrected for `tests`, and the draws that it takes to pass `alpha`.

    A test whose `alone` lies above alpha cannot find a single thing, however large it is, and one
    whose `at_best` does can find nothing: silence then says nothing. Raises ValueError on fewer
    than one draw or test, and alpha outside 0 to 1.
    """
    if draws < 1 or tests < 1 or not 0 < alpha < 1:
        raise ValueError(
            f"draws={draws}, tests={tests}, alpha={alpha}: expected 1 or more, and 0 < alpha < 1"
        )
    if correction not in ("holm", "bonferroni", "bh", "none"):
        raise ValueError(
            f"correction={correction!r}: expected 'holm', 'bonferroni', 'bh' or 'none'"
        )
    counted = 1 if correction == "none" else tests
    smallest = 1 / (1 + draws)
    alone = min(1.0, counted * smallest)
    needed = math.ceil(counted / alpha - 1e-9) - 1
    return Reach(alone, smallest if correction == "bh" else alone, needed)


def errors_needed(n: int, tests: int = 1, alpha: float = 0.05) -> float:
    """How many standard errors from zero the mean of n values must lie for a two-sided t test to
    pass alpha after Bonferroni's (or the first step of Holm's) correction for `tests`; infinite for
    one value, which no test can pass."""
    return float(t.ppf(1 - alpha / (2 * tests), n - 1)) if n > 1 else math.inf


def rounding(scale: float, eps: float, n: int = 1) -> float:
    """The size up to which a mean effect over n examples may be nothing but rounding.

    scale: the size of the largest logit that is read of the unedited run; eps: of the precision
    that the model computes in (`torch.finfo(dtype).eps`). The bound is `ROUNDINGS` roundings of
    that logit in a single example, and falls with √n as independent errors do.
    """
    return ROUNDINGS * eps * scale / math.sqrt(n)


def mean(values: np.ndarray, within: tuple[float, float] | None = None) -> Estimate:
    """The mean over the last axis, with a normal interval; of one example the bounds are NaN.

    within: what a mean can be at all, such as (−1, 1) for differences of probabilities: the
    interval is cut there.
    """
    values = np.asarray(values, dtype=float)
    n = values.shape[-1]
    spread = values.std(-1, ddof=1) if n > 1 else np.full(values.shape[:-1], np.nan)
    found = _around(values.mean(-1), spread / np.sqrt(n))
    if within is None:
        return found
    low, high = (np.asarray(bound.clip(*within)) for bound in (found.low, found.high))
    return found._replace(low=low, high=high)


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
