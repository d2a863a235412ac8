"""Differences of shares against published examples and simulation; what tests by draws can reach;
the size of rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, ttest_1samp

from interp import stats

# Differences of shares ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_the_difference_of_shares_is_newcombes(first, second, low, high):
    found = stats.difference_of_shares(*map(np.array, (*first, *second)))
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def table(both, alone, other, neither):
    """Answers [n] of two that agree and disagree so often."""
    first = np.repeat([True, True, False, False], [both, alone, other, neither])
    second = np.repeat([True, False, True, False], [both, alone, other, neither])
    return first, second


def newcombe(e, f, g, h, counted):
    """Method 10 of Newcombe 1998 (paired), the formula written out for one table; with bounds as
    of `counted` examples."""
    n = e + f + g + h
    p1, p2 = (e + f) / n, (e + g) / n
    (l1, l2), (u1, u2) = stats.wilson(np.array([p1, p2]) * counted, counted)
    a = (e + f) * (g + h) * (e + g) * (f + h)
    b = e * h - f * g
    b = b - n / 2 if b > n / 2 else 0 if b >= 0 else b
    phi = b / math.sqrt(a) if a else 0
    low = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    high = (p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2
    return p1 - p2 - math.sqrt(low), p1 - p2 + math.sqrt(high)


TABLES = [(36, 12, 2, 0), (20, 12, 2, 16), (5, 3, 2, 4), (4, 4, 4, 5), (1, 9, 8, 2), (0, 6, 0, 5),
          (9, 0, 0, 1), (30, 0, 0, 30), (0, 7, 0, 0), (53, 0, 1, 0), (2, 2, 2, 2),
          (2, 1, 1, 1)]  # fmt: skip
"""Answers that go together, that avoid each other, that do neither; and tables with blanks."""


@pytest.mark.parametrize("cells", TABLES)
def test_the_paired_difference_of_shares_is_newcombes(cells):
    e, f, g, h = cells
    n = sum(cells)
    found = stats.paired_difference_of_shares(*table(*cells))
    low, high = newcombe(*cells, counted=n)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.value == pytest.approx((f - g) / n)
    apart = [1] * f + [-1] * g + [0] * (e + h)
    assert found.stderr == pytest.approx(np.std(apart, ddof=1) / math.sqrt(n))


@pytest.mark.parametrize(
    ("members", "cells"),
    [(3, (6, 3, 0, 3)), (3, (3, 6, 3, 0)), (3, (0, 3, 6, 9)), (3, (12, 0, 0, 3)), (2, (0, 2, 2, 0)),
     (1, (6, 3, 0, 3)), (1, (1, 1, 0, 0)), (1, (12, 0, 0, 3))],
)  # fmt: skip
def test_grouped_answers_count_as_many_as_they_are_worth(cells, members):
    """Groups that share one answer, and groups of one."""
    n = sum(cells)
    groups = np.arange(n) // members
    found = stats.paired_difference_of_shares(*table(*cells), groups)
    low, high = newcombe(*cells, counted=_worth(cells, members))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    apart = np.repeat([0, 1, -1, 0], cells).reshape(-1, members).mean(1)
    assert found.stderr == pytest.approx(np.std(apart, ddof=1) / math.sqrt(len(apart)))


def _worth(cells, members):
    """n over the design effect: the square of the standard error of groups over that of single
    examples; the number of groups where all answers are alike."""
    apart, n = np.repeat([0.0, 1, -1, 0], cells), sum(cells)
    if not apart.any():
        return n / members
    grouped = apart.reshape(-1, members).mean(1).var(ddof=1) / (n / members)
    return n / max(1, grouped / (apart.var(ddof=1) / n))


def test_one_group_is_worth_one_example():
    first, second = table(1, 2, 1, 0)
    found = stats.paired_difference_of_shares(first, second, np.zeros(4))
    low, high = newcombe(1, 2, 1, 0, counted=1)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert np.isnan(found.stderr)


@pytest.mark.parametrize("dtype", [int, float, object])
def test_answers_may_be_written_as_zeros_and_ones(dtype):
    first, second = table(5, 3, 2, 4)
    numbers = stats.paired_difference_of_shares(first.astype(dtype), second.astype(dtype))
    assert numbers == stats.paired_difference_of_shares(first, second)


def test_groups_that_balance_are_worth_no_more_than_their_examples():
    first, second = table(0, 4, 4, 0)
    groups = np.tile(np.arange(4), 2)  # in each, one answer for either: their means are all 0
    alone = stats.paired_difference_of_shares(first, second)
    found = stats.paired_difference_of_shares(first, second, groups)
    assert (found.low, found.high, found.stderr) == (alone.low, alone.high, 0)


def test_the_standard_error_of_two_shares_is_that_of_two_binomials():
    found = stats.difference_of_shares(np.array([3, 5]), 10, np.array([4, 0]), np.array([8, 20]))
    expected = [math.sqrt(0.3 * 0.7 / 10 + 0.5 * 0.5 / 8), math.sqrt(0.5 * 0.5 / 10)]
    np.testing.assert_allclose(found.stderr, expected)
    np.testing.assert_allclose(found.value, [-0.2, 0.5])


@given(*[st.integers(0, 12)] * 4, st.booleans())
def test_differences_of_shares_stay_within_a_hundred_points(e, f, g, h, grouped):
    if e + f + g + h == 0:
        return
    first, second = table(e, f, g, h)
    groups = np.arange(len(first)) // 2 if grouped else None
    found = stats.paired_difference_of_shares(first, second, groups)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.01  # also where nothing tells the two apart
    turned = stats.paired_difference_of_shares(second, first, groups)
    assert (turned.low, turned.high) == (pytest.approx(-found.high), pytest.approx(-found.low))
    apart = stats.difference_of_shares(
        *map(np.array, (first.sum(), len(first), second.sum(), len(first)))
    )
    assert -1 <= apart.low <= apart.value <= apart.high <= 1


@pytest.mark.parametrize("n", [8, 20, 60])
@pytest.mark.parametrize(("p", "q", "together"), [(0.9, 0.1, 0.0), (0.98, 0.9, 0.8), (0.5, 0.5, 1)])
def test_the_intervals_of_differences_of_shares_cover_them(unchecked, n, p, q, together):
    """At the ends, where the normal interval of a mean covers 60 % and passes 100 points."""
    rng = np.random.default_rng(n)
    paired = apart = 0
    for _ in range(300):
        u, v = rng.random(n), rng.random(n)
        v = np.where(rng.random(n) < together, u, v)  # answers of one example go together
        first, second, third = u < p, v < q, rng.random(n) < q
        one = stats.paired_difference_of_shares(first, second)
        two = stats.difference_of_shares(*map(np.array, (first.sum(), n, third.sum(), n)))
        paired += bool(one.low <= p - q <= one.high)
        apart += bool(two.low <= p - q <= two.high)
    assert paired >= 0.9 * 300 and apart >= 0.9 * 300


def test_the_interval_of_grouped_answers_covers_the_difference(unchecked):
    """Groups of five that share one answer: as if there were 12 examples and not 60."""
    rng, held, narrow = np.random.default_rng(0), 0, 0
    groups = np.repeat(np.arange(12), 5)
    for _ in range(300):
        first, second = (np.repeat(rng.random(12) < p, 5) for p in (0.8, 0.4))
        found = stats.paired_difference_of_shares(first, second, groups)
        alone = stats.paired_difference_of_shares(first, second)
        held += bool(found.low <= 0.4 <= found.high)
        narrow += bool(alone.low <= 0.4 <= alone.high)
    assert held >= 0.9 * 300 > narrow


def test_groups_of_one_are_no_groups():
    first, second = table(5, 6, 1, 4)
    alone = stats.paired_difference_of_shares(first, second)
    assert stats.paired_difference_of_shares(first, second, np.arange(16)) == alone
    by_hand = (first.astype(float) - second).std(ddof=1) / 4
    assert alone.stderr == pytest.approx(by_hand)


def test_answers_about_other_examples_are_refused():
    for first, second in ((np.ones(3), np.ones(4)), (np.ones(0), np.ones(0))):
        with pytest.raises(ValueError, match="same examples"):
            stats.paired_difference_of_shares(first, second)


# What a test can reach ---------------------------------------------------------------------------


def holm(p):
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(None, 1)
    return steps[np.argsort(order)]


CORRECTIONS = {
    "none": lambda p: p,
    "bonferroni": lambda p: (p * len(p)).clip(None, 1),
    "holm": holm,
    "bh": false_discovery_control,
}


@given(st.integers(1, 300), st.integers(1, 60), st.sampled_from(sorted(CORRECTIONS)))
def test_what_draws_can_reach_is_what_the_correction_says(draws, tests, correction):
    found = stats.reach(draws, tests, correction=correction)
    smallest = 1 / (1 + draws)
    alone, all_at_once = np.ones(tests), np.full(tests, smallest)
    alone[0] = smallest
    assert found.alone == pytest.approx(CORRECTIONS[correction](alone).min())
    assert found.at_best == pytest.approx(CORRECTIONS[correction](all_at_once).min())
    assert stats.reach(found.needed, tests, correction=correction).alone <= 0.05 + 1e-12
    if found.needed > 1:
        assert stats.reach(found.needed - 1, tests, correction=correction).alone > 0.05


def test_twenty_shuffles_and_32_heads_can_never_pass(unchecked):
    found = stats.reach(20, 32)
    assert found.alone == 1 and found.at_best == 1 and found.needed == 639
    found = stats.reach(20, 32, correction="bh")
    assert found.at_best == pytest.approx(1 / 21)
    for bad in ({"draws": 0}, {"draws": 5, "tests": 0}, {"draws": 5, "alpha": 1.0},
                {"draws": 5, "alpha": 0}):  # fmt: skip
        with pytest.raises(ValueError, match="expected 1 or more"):
            stats.reach(**bad)
    with pytest.raises(ValueError, match="expected 'holm'"):
        stats.reach(5, correction="tukey")


@pytest.mark.parametrize(("n", "tests"), [(2, 1), (4, 32), (50, 144)])
def test_the_standard_errors_that_a_t_test_asks_for(n, tests):
    values = np.random.default_rng(0).normal(size=n)
    needed = stats.errors_needed(n, tests)
    for factor, passes in ((1.001, True), (0.999, False)):
        moved = values - values.mean() + factor * needed * values.std(ddof=1) / math.sqrt(n)
        assert (ttest_1samp(moved, 0).pvalue * tests < 0.05) == passes
    assert stats.errors_needed(1, tests) == math.inf


def test_a_test_is_alone_and_at_five_per_cent_unless_told():
    assert stats.reach(20) == stats.reach(20, 1, alpha=0.05, correction="holm")
    assert stats.errors_needed(9) == stats.errors_needed(9, 1, 0.05)
    assert stats.reach(20, 3, alpha=0.01).needed == 299


def test_rounding_grows_with_logits_and_falls_with_examples():
    eps = float(np.finfo(np.float32).eps)
    assert stats.rounding(20.0, eps) == pytest.approx(16 * eps * 20)
    assert stats.rounding(20.0, eps, 64) == pytest.approx(stats.rounding(20.0, eps) / 8)


def test_the_interval_of_a_mean_of_probabilities_is_cut_where_none_can_be():
    values = np.array([[0.9, 0.99, 1.0], [-0.2, 0.1, 0.0]])
    plain, cut = stats.mean(values), stats.mean(values, (-1.0, 1.0))
    turned = stats.mean(-values, (-1.0, 1.0))
    assert turned.low[0] == -1 and (turned.low == -cut.high).all()
    assert plain.high[0] > 1 == cut.high[0]
    assert (cut.low == plain.low).all() and cut.high[1] == plain.high[1]
    assert (cut.value == plain.value).all() and (cut.stderr == plain.stderr).all()
    assert np.isnan(stats.mean(np.array([0.5]), (-1.0, 1.0)).low)
