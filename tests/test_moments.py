"""Moments: a stream gives what the whole gives, however it is cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression, Ridge

from interp.data.moments import Moments

N, D = 300, 7


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(3, (N,), generator=generator)
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) @ mix
    x += torch.randn(3, D, generator=generator, dtype=torch.float64)[y] + 50.0
    return x, y


pytestmark = pytest.mark.usefixtures("one_thread")


def close(one, other, tolerance=1e-10):
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    assert one.shape == other.shape
    assert float((one - other).abs().max()) <= tolerance * float(other.abs().max().clamp_min(1.0))


def parts(moments):
    return (moments.mean, moments.covariance, moments.cross_covariance, moments.target_covariance)


def test_they_are_those_of_numpy(data):
    x, y = data
    moments = Moments.of(x, y)
    hot = np.eye(3)[y.numpy()]
    joint = np.cov(np.concatenate([x.numpy(), hot], axis=1).T)
    close(moments.mean, x.numpy().mean(0))
    close(moments.covariance, joint[:D, :D])
    close(moments.cross_covariance, joint[:D, D:])
    close(moments.target_covariance, joint[D:, D:])
    close(moments.class_means, np.stack([x[y == c].numpy().mean(0) for c in range(3)]))
    within = sum(((x[y == c] - x[y == c].mean(0)).T @ (x[y == c] - x[y == c].mean(0)))
                 for c in range(3)) / N  # fmt: skip
    close(moments.within_covariance, within)
    assert moments.class_counts.tolist() == np.bincount(y).tolist()
    close(moments.mean_difference(0, 2), x[y == 2].mean(0) - x[y == 0].mean(0))


@settings(max_examples=25)
@given(st.lists(st.integers(1, N - 1), max_size=8), st.integers(0, 5))
def test_order_and_cuts_do_not_matter(cuts, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) * 3 + 20
    y = torch.randint(2, (N,), generator=generator)
    whole = Moments.of(x, y)
    order = torch.randperm(N, generator=generator)
    sizes = sorted({0, *cuts, N})
    stream, merged = Moments(D, classes=2), Moments(D, classes=2)
    for a, b in pairwise(sizes):
        stream.add(x[order[a:b]], y[order[a:b]])
        merged = Moments(D, classes=2).add(x[order[a:b]], y[order[a:b]]).merge(merged)
    for one in (stream, merged):
        assert one.n == N
        for ours, theirs in zip(parts(one), parts(whole), strict=True):
            close(ours, theirs, 1e-12)


def test_a_mean_far_from_zero_loses_nothing():
    """Plain sums of squares would lose all digits here: the variance is 1e-18 of the square."""
    x = torch.randn(4000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moments = Moments(2)
    for part in (x + 1e9).split(100):
        moments.add(part)
    plain = ((x + 1e9) ** 2).mean(0) - (x + 1e9).mean(0) ** 2
    close(moments.covariance.diagonal(), x.var(0), 1e-5)
    assert (plain - x.var(0)).abs().max() > 1  # the mutant


@pytest.mark.parametrize("alpha", [0.0, 1.0, 300.0])
def test_ridge_is_that_of_scikit_learn(data, alpha):
    x, _ = data
    y = torch.stack([x[:, 0] * 2 - x[:, 3], x[:, 1].sin()], dim=1)
    fit = Moments(D, targets=2).add(x[:100], y[:100]).add(x[100:], y[100:]).ridge(alpha)
    reference = (Ridge(alpha, solver="cholesky") if alpha else LinearRegression()).fit(x, y)
    close(fit.weight, reference.coef_, 1e-8)
    close(fit(x), reference.predict(x), 1e-9)


def test_lda_is_that_of_scikit_learn(data):
    x, y = data
    fit = Moments(D, classes=3).add(x[:10], y[:10]).add(x[10:], y[10:]).lda()
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    close(fit.weight, reference.coef_, 1e-8)
    assert (fit(x).argmax(1).numpy() == reference.predict(x)).all()


def test_shrinkage_mixes_the_covariance_with_the_identity(data):
    moments = Moments.of(*data)
    within, one = moments.within_covariance, torch.eye(D, dtype=torch.float64)
    mixed = 0.7 * within + 0.3 * within.trace() / D * one
    close(moments.lda(0.3).weight, torch.linalg.solve(mixed, moments.class_means.T).T, 1e-8)


def test_a_constant_feature_is_no_trouble(data):
    x, y = data
    padded = torch.cat([x, torch.full((N, 1), 7.0, dtype=torch.float64)], dim=1)
    for fit in (Moments.of(padded, y).lda(), Moments.of(padded, y).ridge(0.0)):
        assert fit.weight.isfinite().all()
    close(Moments.of(padded, y).lda().weight[:, :D], Moments.of(x, y).lda().weight, 1e-8)


def test_float16_rows_are_summed_in_float64(data):
    half = torch.randn(70000, 2, generator=torch.Generator().manual_seed(0)).half() + 100
    close(Moments.of(half).mean, half.double().mean(0), 1e-12)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(3, dtype=torch.long), "expected .n, 7."),
        (torch.zeros(3, D), None, "y is missing"),
        (torch.zeros(3, D), torch.tensor([0, 1, 3]), "label 3: expected 0 to 2"),
        (torch.zeros(3, D), torch.tensor([0, -1, 0]), "label -1"),
        (torch.zeros(3, D), torch.zeros(3), "expected one class"),
        (torch.full((1, D), float("nan")), torch.tensor([0]), "not finite"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_rows_are_refused_and_nothing_is_taken_in(x, y, message):
    moments = Moments(D, classes=3)
    with pytest.raises(ValueError, match=message):
        moments.add(x, y)
    assert moments.n == 0 and not moments.scatter.any()


def test_what_is_not_there_is_said(data):
    x, y = data
    with pytest.raises(ValueError, match="two rows or more"):
        Moments(D).covariance  # noqa: B018
    with pytest.raises(ValueError, match="classes=1"):
        Moments(D, classes=1)
    with pytest.raises(ValueError, match="not made with classes"):
        Moments.of(x).class_means  # noqa: B018
    with pytest.raises(ValueError, match=r"classes \[3\] have no rows"):
        Moments.of(x, y, classes=4).class_means  # noqa: B018
    with pytest.raises(ValueError, match="nothing to predict"):
        Moments.of(x).ridge()
    with pytest.raises(ValueError, match="differ"):
        Moments(D).merge(Moments(D + 1))
