"""Erasers: LEACE does what its theorem says, and the controls do what nothing does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from concept_erasure import LeaceEraser as Published
from concept_erasure import LeaceFitter
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import interp
from interp import metrics
from interp.data.moments import Moments
from interp.methods.erasure import amnesic_check, fit_eraser, random_eraser
from interp.zoo import planted

from .strategies import random_model, small_config

N, D = 400, 12


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Tiny products on several threads mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)


def labelled(classes=3, seed=0, dtype=torch.float64, apart=1.5):
    """Correlated features around one middle per class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (N,), generator=generator)
    middles = apart * torch.randn(classes, D, generator=generator, dtype=torch.float64)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) + middles[y]
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return (x @ mix + 3).to(dtype), y


def closed_form(x, y):
    """Theorem 4.3 of the paper, written plainly, as (P, bias)."""
    z = torch.nn.functional.one_hot(y).double()
    xc, zc = x - x.mean(0), z - z.mean(0)
    xx, xz = xc.T @ xc / (len(x) - 1), xc.T @ zc / (len(x) - 1)
    inverse = torch.linalg.pinv(xx, hermitian=True)
    P = torch.eye(x.shape[1], dtype=torch.float64)
    P = P - xz @ torch.linalg.pinv(xz.T @ inverse @ xz, rtol=1e-9) @ xz.T @ inverse
    return P, x.mean(0) - P @ x.mean(0)


def accuracy(x, y):
    return LogisticRegression(max_iter=2000).fit(x.numpy(), y.numpy()).score(x.numpy(), y.numpy())


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_theorem_holds(classes, seed):
    x, y = labelled(classes, seed)
    eraser = fit_eraser(x, y)
    after = eraser(x)
    means = torch.stack([after[y == c].mean(0) for c in range(classes)])
    assert (means - means[0]).abs().max() < 1e-8
    assert Moments.of(after, y).cross_covariance.abs().max() < 1e-10
    assert eraser.rank <= classes - 1
    commonest = float(torch.bincount(y).max()) / N
    assert accuracy(x, y) > 0.9 > accuracy(after, y)
    assert accuracy(after, y) <= commonest + 1e-9  # the best linear probe is the constant one
    P = eraser.matrix
    assert torch.allclose(P @ P, P, atol=1e-10) and torch.allclose(eraser(after), after, atol=1e-9)
    assert torch.allclose(after, x @ P.T + eraser.bias, atol=1e-9)
    assert torch.allclose(after.mean(0), x.mean(0), atol=1e-9)
    by_hand, bias = closed_form(x, y)
    assert torch.allclose(P, by_hand, atol=1e-9) and torch.allclose(eraser.bias, bias, atol=1e-8)


def test_no_other_eraser_moves_less():
    x, y = labelled()
    leace, other = fit_eraser(x, y), fit_eraser(x, y, method="mean_difference")
    assert Moments.of(other(x), y).cross_covariance.abs().max() < 1e-10  # it erases as well
    moved = [(e(x) - x).square().sum() for e in (leace, other)]
    assert moved[0] < 0.9 * moved[1]
    # Least in every norm that comes from an inner product, not in the plain one alone.
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        root = torch.randn(D, D, generator=generator, dtype=torch.float64)
        moved = [((e(x) - x) @ root).square().sum() for e in (leace, other)]
        assert moved[0] < moved[1]
    # Any other map that erases: LEACE behind some affine map of its own.
    for _ in range(5):
        step = 0.1 * torch.randn(D, D, generator=generator, dtype=torch.float64)
        worse = leace(x) + (leace(x) - x.mean(0)) @ step
        assert Moments.of(worse, y).cross_covariance.abs().max() < 1e-9
        assert (worse - x).square().sum() > (leace(x) - x).square().sum()


def test_it_goes_along_with_any_change_of_basis():
    x, y = labelled()
    generator = torch.Generator().manual_seed(2)
    A = torch.randn(D, D, generator=generator, dtype=torch.float64)
    b = torch.randn(D, generator=generator, dtype=torch.float64)
    moved = x @ A.T + b
    assert torch.allclose(fit_eraser(moved, y)(moved), fit_eraser(x, y)(x) @ A.T + b, atol=1e-8)
    plain = fit_eraser(x, y, method="mean_difference")(x) @ A.T + b
    other = fit_eraser(moved, y, method="mean_difference")(moved)
    assert not torch.allclose(other, plain, atol=0.1)  # a right angle is one in one basis only


def test_a_stream_and_the_packages_own_fitter_give_the_same():
    x, y = labelled()
    moments = Moments(D, classes=3)
    fitter = LeaceFitter(D, 3, shrinkage=False, svd_tol=1e-6, dtype=torch.float64)
    for a in range(0, N, 37):
        moments.add(x[a : a + 37], y[a : a + 37])
        fitter.update(x[a : a + 37], torch.nn.functional.one_hot(y[a : a + 37], 3))
    stream = fit_eraser(moments)
    assert torch.allclose(stream.matrix, fit_eraser(x, y).matrix, atol=1e-10)
    assert torch.allclose(stream.matrix, fitter.eraser.P, atol=1e-8)
    assert torch.allclose(stream(x), fitter.eraser(x), atol=1e-7)


def test_the_packages_defaults_would_leave_small_numbers_in():
    """The mutant: whatever has a standard deviation below .01 lies below their tolerance."""
    x, _ = labelled()
    target = x[:, :1] * 1e-3 / x[:, 0].std()
    theirs = Published.fit(x, target)(x)
    left = [Moments.of(after, target).cross_covariance.abs().max()
            for after in (fit_eraser(x, target)(x), theirs)]  # fmt: skip
    assert left[0] < 1e-12 and left[1] > 1e-4


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_numbers_are_erased_whatever_their_scale(scale):
    x, _ = labelled()
    targets = torch.stack([x[:, 0] - x[:, 1] * 2, x[:, 2].sin()], dim=1) * scale
    eraser = fit_eraser(x, targets)
    assert eraser.rank == 2
    left = Moments.of(eraser(x), targets).ridge(0.0).weight
    assert left.abs().max() < 1e-8 * scale
    assert fit_eraser(x, targets[:, 0]).rank == 1
    small = fit_eraser(x * scale, targets[:, 0])
    assert torch.allclose(small.matrix, fit_eraser(x, targets[:, 0]).matrix, atol=1e-8)


@pytest.mark.parametrize("method", ["leace", "mean_difference"])
def test_constant_and_repeated_features_are_no_trouble(method):
    x, y = labelled()
    singular = torch.cat([x, torch.full((N, 2), 5.0, dtype=torch.float64), x[:, :1]], dim=1)
    eraser = fit_eraser(singular, y, method=method)
    after = eraser(singular)
    assert after.isfinite().all()
    assert torch.allclose(after[:, D : D + 2], singular[:, D : D + 2], atol=1e-9)
    assert Moments.of(after, y).cross_covariance.abs().max() < 1e-9


def test_rounding_in_a_constant_direction_is_not_blown_up():
    """Centred float32 rows sum to zero but for rounding, of which a plain inverse makes 1e7."""
    x, y = labelled(dtype=torch.float32)
    x = x - x.mean(1, keepdim=True)
    eraser = fit_eraser(x, y)
    assert eraser.right.abs().max() < 100
    coarse = x.bfloat16()
    assert (eraser(coarse).float() - eraser(x)).abs().max() < 0.2


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 0.05)]
)
def test_every_dtype_keeps_its_own(dtype, tolerance):
    x, y = labelled(dtype=dtype)
    after = fit_eraser(x, y)(x)
    assert after.dtype == dtype
    means = torch.stack([after[y == c].double().mean(0) for c in range(3)])
    assert (means - means[0]).abs().max() < tolerance


def test_random_erasers_take_as_much_and_leave_the_concept():
    x, y = labelled()
    moments, leace = Moments.of(x, y), fit_eraser(x, y)
    for method in ("leace", "mean_difference"):
        own = random_eraser(moments, leace.rank, seed=0, method=method)
        assert own.rank == leace.rank and torch.allclose(own(own(x)), own(x), atol=1e-8)
        assert torch.linalg.matrix_rank(own(x) - x) == own.rank
        assert accuracy(own(x), y) > 0.85
        again = random_eraser(moments, leace.rank, seed=0, method=method)
        assert torch.equal(own.matrix, again.matrix)
        assert not torch.allclose(own.matrix, random_eraser(moments, 2, seed=1).matrix)
    white = torch.linalg.inv(torch.linalg.cholesky(moments.covariance))
    kept = torch.cov((random_eraser(moments, 2, seed=0)(x) @ white.T).T).trace()
    assert float(kept) == pytest.approx(D - 2)  # of D units of whitened variance


@pytest.fixture(scope="module")
def known():
    return planted.lookup(seed=0)


def looked_up(known, inputs):
    """The answer of the table, against that of the next a, whose bit is the other one."""
    other, row = inputs.tokens.ids.clone(), torch.arange(len(inputs.tokens))
    where = inputs.tokens.roles["a"]
    other[row, where] = 1 + other[row, where] % 4
    answer, wrong = (known.model(ids)[:, -1].argmax(-1) for ids in (inputs.tokens, other))
    assert (answer != wrong).all()
    return metrics.logit_diff(answer, wrong, pos=-1)


def in_lookup(known, feature, metric, n=128, n_random=9):
    inputs = known.labelled(n)
    return amnesic_check(
        known.model, inputs.tokens, inputs.labels[feature], inputs.site, metric, pos=-1,
        n_random=n_random, progress=False,
    )  # fmt: skip


def test_what_the_model_uses_shows_and_what_it_does_not_use_does_not(known):
    """Planted: the table is looked up by a, and the bag of fillers has no part in it."""
    inputs = known.labelled(128)
    metric = looked_up(known, inputs)
    frame = in_lookup(known, "a", metric).set_index(["erased", "draw"])
    assert frame.loc[("none", 0), "accuracy"] > 0.99
    assert frame.loc[("leace", 0), "low"] < 0.5 < frame.loc[("leace", 0), "high"] + 0.06
    assert (frame.loc["random", "accuracy"] > 0.95).all()
    assert frame.loc[("leace", 0), "effect"] < 3 * frame.loc["random", "effect"].min() < 0
    assert frame.loc[("leace", 0), "p"] == pytest.approx(0.1)
    assert (frame.loc["random", "rank"] == frame.loc[("leace", 0), "rank"]).all()

    filler = inputs.tokens.ids[:, 1:-1]
    half = (filler >= 13).logical_and(filler < 25).sum(1)
    bag = (half > half.median()).long()  # which half of the fillers was drawn more often
    unused = amnesic_check(known.model, inputs.tokens, bag, inputs.site, metric, pos=-1,
                           n_random=9, progress=False).set_index(["erased", "draw"])  # fmt: skip
    assert unused.loc[("none", 0), "accuracy"] > 0.8
    assert unused.loc[("leace", 0), "p"] > 0.1


def test_a_concept_that_is_not_there_stays_not_there(known):
    """The null control: nothing to find before, nothing lost by erasing what noise there is."""
    metric = looked_up(known, known.labelled(128))
    frame = in_lookup(known, "c", metric).set_index(["erased", "draw"])
    before = frame.loc[("none", 0)]
    assert before["low"] < before["chance"] + 0.05
    assert frame.loc[("leace", 0), "p"] > 0.1


def test_the_edit_is_the_eraser_and_refuses_another_site():
    model = random_model(small_config(n_layers=2, d_model=16))
    ids = torch.randint(29, (40, 5), generator=torch.Generator().manual_seed(0))
    labels = ids[:, -1] % 2
    _, cache = model.run_with_cache(ids, ("resid_post", 0))
    site = "blocks.0.hook_resid_post"
    eraser = fit_eraser(cache[site][:, -1], labels, site=site)
    nodes = interp.nodes(model, "resid_post", layers=[0])
    metric = metrics.logit_diff(labels, 1 - labels)
    frame = interp.sweep(model, ids, nodes, edit=eraser.edit(), metric=metric, progress=False)
    logits = model.with_hooks(eraser.hooks())(ids)[:, -1]
    row = torch.arange(40)
    by_hand = (logits[row, labels] - logits[row, 1 - labels]).mean()
    assert frame["value"].item() == pytest.approx(float(by_hand), rel=1e-9)
    assert frame["effect"].abs().item() > 1e-3
    other = interp.nodes(model, "resid_post", layers=[1])
    with pytest.raises(ValueError, match=r"fitted at 'blocks.0.hook_resid_post' and is used at"):
        interp.sweep(model, ids, other, edit=eraser.edit(), metric=metric, progress=False)
    with pytest.raises(ValueError, match="16 numbers cannot be used on 8"):
        eraser(torch.zeros(3, 8))
    with pytest.raises(ValueError, match="has no site"):
        fit_eraser(cache[site][:, -1], labels).hooks()


def test_padding_and_positions_are_read_where_they_stand():
    model = random_model(small_config(n_layers=1, d_model=16))
    drawn = np.random.default_rng(0)
    rows = [drawn.integers(1, 29, drawn.integers(2, 7)).tolist() for _ in range(40)]
    labels = torch.tensor([row[-1] % 2 for row in rows])
    frames = [
        amnesic_check(
            model, interp.Tokens.from_rows(rows, side=side), labels, ("resid_pre", 0),
            metrics.logit_diff(labels, 1 - labels), n_random=2, progress=False,
        )
        for side in ("left", "right")
    ]  # fmt: skip
    assert frames[0]["accuracy"].equals(frames[1]["accuracy"])
    assert np.allclose(frames[0]["effect"], frames[1]["effect"], atol=1e-9)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (torch.randn(9, 3), torch.zeros(9, dtype=torch.long), {}, "have the same label"),
        (torch.ones(9, 3), torch.arange(9) % 2, {}, "do not vary"),
        (torch.randn(9, 3), torch.arange(9) % 2, {"method": "inlp"}, "method='inlp'"),
        (torch.randn(9, 3), None, {}, "there is no concept"),
        (torch.tensor([[1.0], [-1], [1], [-1]]), torch.tensor([0, 0, 1, 1]), {}, "not correlated"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_erased_is_an_error(x, y, options, message):
    with pytest.raises(ValueError, match=message):
        fit_eraser(x, y, **options)


@pytest.mark.usefixtures("unchecked")
def test_labels_that_do_not_fit_are_refused(known):
    inputs = known.labelled(16)
    metric = metrics.log_prob(torch.zeros(16, dtype=torch.long), pos=-1)
    for labels, message in (
        (torch.zeros(5, dtype=torch.long), "one class per example"),
        (torch.arange(16) == 3, "four examples or more"),
    ):
        with pytest.raises(ValueError, match=message):
            amnesic_check(known.model, inputs.tokens, labels, inputs.site, metric)
    with pytest.raises(ValueError, match="one vector per position"):
        amnesic_check(known.model, inputs.tokens, inputs.labels["a"], "pattern", metric)
