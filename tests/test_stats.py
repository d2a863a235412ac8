"""Intervals against scipy and against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

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
