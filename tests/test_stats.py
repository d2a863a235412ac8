"""Intervals against scipy and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, sem

from interp import stats


def test_wilson_is_scipys():
    for k, n in ((0, 5), (3, 7), (20, 20), (151, 266)):
        low, high = stats.wilson(np.array([k]), np.array([n]))
        theirs = binomtest(k, n).proportion_ci(method="wilson")
        assert (low[0], high[0]) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_the_interval_of_a_mean_covers_it():
    values = np.random.default_rng(0).normal(1.0, 2.0, (4000, 50))
    found = stats.mean(values)
    covered = ((found.low < 1) & (found.high > 1)).mean()
    assert covered == pytest.approx(0.945, abs=0.01)


def test_one_example_has_a_mean_and_no_interval():
    found = stats.mean(np.array([[3.0]]))
    assert found.value == 3 and np.isnan(found.stderr) and np.isnan(found.low)


def test_the_interval_of_a_ratio_of_means_covers_it():
    rng = np.random.default_rng(1)
    under = rng.normal(2.0, 0.5, (4000, 60))
    over = 0.3 * under + rng.normal(0.0, 0.4, (4000, 60))
    found = stats.ratio_of_means(over, under)
    covered = ((found.low < 0.3) & (found.high > 0.3)).mean()
    assert covered == pytest.approx(0.945, abs=0.012)
    per_example = stats.mean(over / under).value
    assert found.value.std() < per_example.std()


def test_a_ratio_to_nothing_is_refused():
    under = np.array([1.0, -1.0, 0.5, -0.6])
    with pytest.raises(ValueError, match="means nothing"):
        stats.ratio_of_means(np.ones(4), under)


@pytest.mark.parametrize("n", [1, 2, 3, 16, 27, 38, 40])  # at some, rounding would step outside
def test_wilson_stays_within_a_share_and_encloses_it(n):
    k = np.arange(n + 1)
    low, high = stats.wilson(k, np.full(n + 1, n))
    assert low[0] == 0 and high[-1] == 1  # exactly, not by a rounding error more or less
    assert ((low >= 0) & (low <= k / n) & (k / n <= high) & (high <= 1)).all()


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_mean_has_scipys_standard_error_row_by_row(n):
    values = np.random.default_rng(n).normal(size=(4, 3, n))
    estimate = stats.mean(values)
    np.testing.assert_allclose(estimate.value, values.mean(-1), rtol=1e-12)
    np.testing.assert_allclose(estimate.stderr, sem(values, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(estimate.high - estimate.low, 2 * stats.Z * estimate.stderr)


@pytest.mark.parametrize("shape", [(1,), (2, 1), (4, 3, 1)])
def test_one_example_per_row_keeps_the_shape_of_the_rows(shape):
    with np.errstate(all="raise"):
        estimate = stats.mean(np.ones(shape))
    assert all(array.shape == shape[:-1] for array in estimate)
    assert np.isnan(estimate.stderr).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int64, bool, object])
def test_intervals_are_computed_in_double_precision(dtype):
    values = np.array([[1, 0, 1, 1, 0], [1, 1, 1, 1, 0]]).astype(dtype)
    estimate = stats.mean(values)
    assert {array.dtype for array in estimate} == {np.dtype(float)}
    assert estimate.value.tolist() == [0.6, 0.8]
    ratio = stats.ratio_of_means(values[:1], values[1])
    assert {array.dtype for array in ratio} == {np.dtype(float)}
    assert ratio.value == pytest.approx(0.75, abs=1e-15)
    grouped, doubled = (
        stats.clustered_mean(given[0], np.array([0, 0, 1, 1, 2]))
        for given in (values, values.astype(float))
    )
    assert grouped == doubled and {array.dtype for array in grouped} == {np.dtype(float)}


def test_a_ratio_of_means_is_taken_row_by_row():
    over, under = np.array([[1.0, 2, 6], [4, 5, 9], [0, 1, 2]]), np.array([2.0, 3, 4])
    ratio = stats.ratio_of_means(over, under)
    np.testing.assert_allclose(ratio.value, [1, 2, 1 / 3])
    spread = over - ratio.value[:, None] * under
    np.testing.assert_allclose(ratio.stderr, sem(spread, axis=-1) / 3)


@pytest.mark.parametrize(("errors", "refused"), [(0.0, True), (1.9, True), (2.0, True),
                                                 (2.1, False), (2.9, False)])  # fmt: skip
def test_a_ratio_is_refused_up_to_two_standard_errors_from_zero(errors, refused):
    spread = np.array([-1.0, 0.0, 1.0]) * 3**0.5  # its standard error is one
    under = spread + errors
    if errors == 2.0:
        under = np.array([1.0, 3.0])  # mean 2, standard error 1, both without rounding
    if refused:
        with pytest.raises(ValueError, match=f"{errors:.3g} ± 1 .*means nothing"):
            stats.ratio_of_means(np.ones(len(under)), under)
    else:
        value = stats.ratio_of_means(np.ones(len(under)), under).value
        assert value == pytest.approx(1 / errors)


@pytest.mark.parametrize(("groups", "members"), [(2, 3), (5, 4), (7, 1), (3, 10)])
def test_a_mean_of_groups_has_the_standard_error_of_their_means(groups, members):
    """Where they are of one size; in any order."""
    rng = np.random.default_rng(groups)
    values = rng.normal(size=(groups, members)) + rng.normal(size=(groups, 1))
    label, order = np.repeat(np.arange(groups) * 3 - 4, members), rng.permutation(values.size)
    found = stats.clustered_mean(values.flatten()[order], label[order])
    stderr = sem(values.mean(1))
    assert found.value == pytest.approx(values.mean()) and found.stderr == pytest.approx(stderr)
    assert found.low == pytest.approx(values.mean() - stats.Z * stderr)
    assert found.high == pytest.approx(values.mean() + stats.Z * stderr)


def test_a_mean_of_unequal_groups_is_over_all_values():
    """Against the formula of Cochran (1977, 9.1), written out: groups of 1, 2 and 3."""
    values, groups = np.array([5.0, 1, 2, 7, 3, 0]), np.array(list("abbccc"))
    mean = 3.0
    sums = np.array([5 - mean, 1 + 2 - 2 * mean, 7 + 3 + 0 - 3 * mean])
    found = stats.clustered_mean(values, groups)
    assert found.value == mean
    assert found.stderr == pytest.approx(np.sqrt(3 / 2 * (sums**2).sum()) / 6)
    alone = stats.clustered_mean(values, np.zeros(6))
    assert (
        alone.value == mean and np.isnan(alone.stderr) and np.isnan([alone.low, alone.high]).all()
    )
