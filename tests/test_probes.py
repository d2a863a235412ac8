"""Probes: the same numbers as scikit-learn, one by one as all together, and nothing leaks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_limits

import interp
from interp.methods.probes import (
    LinearProbe,
    LinearProbeRegressor,
    controls,
    fitting,
    held_out_predictions,
    probe_sweep,
    random_copy,
    solver,
    splits,
)
from interp.methods.probes.fitting import PENALTIES


@pytest.fixture(autouse=True)
def _one_thread():
    """Two pools of threads that wait for each other cost minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def data(n=300, d=12, classes=2, seed=0, spread=3.0):
    """Correlated features with a mean, and labels that they foretell in part."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 3
    y = (X[:, :classes] - X[:, :classes].mean(0) + spread * rng.normal(size=(n, classes))).argmax(1)
    return X, y


def apart(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# One probe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weight", [None, "balanced", {0: 3.0, 1: 0.5}])
@pytest.mark.parametrize("C", [0.01, 1.0, 30.0])
def test_logistic_is_that_of_scikit_learn(classes, weight, C):
    X, y = data(classes=classes)
    ours = LinearProbe(C=C, class_weight=weight, tol=1e-8).fit(X, y)
    # Newton's method gets nearer to the optimum than lbfgs, whose loss stops falling at 1e-5.
    theirs = LogisticRegression(
        C=C, class_weight=weight, tol=1e-12, max_iter=5000, solver="newton-cholesky"
    ).fit(X, y)
    assert apart(ours.coef_, theirs.coef_) < 1e-6
    # Softmax intercepts mean the same up to a constant.
    shift = (ours.intercept_ - theirs.intercept_).mean() if classes > 2 else 0
    assert np.abs(ours.intercept_ - theirs.intercept_ - shift).max() < 1e-5
    assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    assert (ours.predict(X) == theirs.predict(X)).all()
    lbfgs = LogisticRegression(C=C, class_weight=weight, tol=1e-10, max_iter=20000).fit(X, y)
    assert apart(ours.coef_, lbfgs.coef_) < 1e-3


def test_float32_is_within_a_thousandth_on_badly_scaled_features():
    X, y = data(n=400, d=60)
    X = X * np.geomspace(0.1, 1000, 60)
    best = LinearProbe(tol=1e-9).fit(X, y)
    assert apart(LinearProbe(tol=5e-5).fit(X.astype(np.float32), y).coef_, best.coef_) < 1e-3


def test_a_separable_problem_and_one_without_a_solution_at_zero_end():
    X = np.concatenate([np.full((20, 1), -1.0), np.full((20, 1), 1.0)])
    y = np.arange(40) // 20
    ours, theirs = (m.fit(X, y) for m in (LinearProbe(tol=1e-8), LogisticRegression(tol=1e-12)))
    assert apart(ours.coef_, theirs.coef_) < 1e-5
    blind = LinearProbe().fit(np.tile([[1.0], [-1.0]], (20, 1)), np.arange(40) // 2 % 2)
    assert np.abs(blind.coef_).max() < 1e-6


@pytest.mark.parametrize("classes", [2, 4])
def test_lda_is_that_of_scikit_learn(classes):
    X, y = data(classes=classes)
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(X, y)
    ours = LinearProbe(kind="lda").fit(X, y)
    assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-9)
    assert np.allclose(_centred(ours.coef_), _centred(theirs.coef_), atol=1e-8)
    if classes == 2:
        assert np.allclose(ours.intercept_, theirs.intercept_)
    even = LinearProbe(kind="lda", class_weight="balanced").fit(X, y)
    priors = np.bincount(y) / len(y)
    logs = np.log(ours.predict_proba(X) / priors)
    odds = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    assert np.allclose(even.predict_proba(X), odds, atol=1e-9)


def _centred(coef):
    """Coefficients of several classes mean the same up to a common vector."""
    return coef if len(coef) == 1 else coef - coef.mean(0)


def test_mean_difference_by_hand():
    X, y = data()
    ours = LinearProbe(kind="mean_difference").fit(X, y)
    one, other = X[y == 0].mean(0), X[y == 1].mean(0)
    assert np.allclose(ours.coef_[0], other - one)
    assert np.allclose(ours.intercept_, -(other - one) @ (other + one) / 2)
    assert not hasattr(ours, "predict_proba")
    X, y = data(classes=4)
    ours = LinearProbe(kind="mean_difference").fit(X, y)
    assert (ours.predict(X) == NearestCentroid().fit(X, y).predict(X)).all()


@pytest.mark.parametrize("shape", [(300, 12), (40, 90)])
@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_ridge_is_that_of_scikit_learn(shape, C):
    X = data(*shape)[0]
    y = X[:, 0] + np.random.default_rng(1).normal(size=len(X)) + 5
    ours, theirs = LinearProbeRegressor(C=C).fit(X, y), Ridge(alpha=1 / C).fit(X, y)
    assert apart(ours.coef_, theirs.coef_) < 1e-6
    assert ours.intercept_ == pytest.approx(theirs.intercept_, rel=1e-6)
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y))


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_more_features_than_examples(classes, standardise):
    X, y = data(n=30, d=50, classes=classes)
    scaler = [StandardScaler()] if standardise else []
    model = LogisticRegression(tol=1e-12, max_iter=20000, solver="newton-cholesky")
    theirs = make_pipeline(*scaler, model).fit(X, y)
    ours = LinearProbe(standardise=standardise, tol=1e-8).fit(X, y)
    assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-5)
    if not standardise:
        assert apart(ours.coef_, model.coef_) < 1e-5


def test_standardise_learns_as_a_pipeline_does():
    X, y = data()
    X = X * np.geomspace(0.01, 100, X.shape[1])
    theirs = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-12, max_iter=5000))
    ours = LinearProbe(standardise=True, tol=1e-8).fit(X, y)
    assert np.allclose(ours.predict_proba(X), theirs.fit(X, y).predict_proba(X), atol=1e-4)


CHECKS = [
    (LinearProbe(), {}),
    (LinearProbe(kind="lda"), {}),
    (
        LinearProbe(kind="mean_difference"),
        {"check_class_weight_classifiers": "its classes weigh alike; an option it has no use for"},
    ),
    (LinearProbe(standardise=True, class_weight="balanced"), {}),
    (LinearProbeRegressor(), {}),
]


@pytest.mark.parametrize(("estimator", "refused"), CHECKS, ids=lambda x: repr(x)[:40])
def test_they_are_scikit_learn_estimators(estimator, refused, unchecked):
    check_estimator(estimator, expected_failed_checks=refused, on_skip=None)


def test_tensors_in_tensors_out():
    X, y = data(classes=3)
    array = LinearProbe().fit(X, y)
    tensor = LinearProbe().fit(torch.from_numpy(X), torch.from_numpy(y))
    for name in ("coef_", "intercept_", "classes_"):
        assert isinstance(getattr(array, name), np.ndarray)
        assert isinstance(getattr(tensor, name), torch.Tensor)
        assert np.array_equal(getattr(array, name), getattr(tensor, name).numpy())
    assert isinstance(tensor.predict(torch.from_numpy(X)), torch.Tensor)
    assert isinstance(tensor.predict_proba(X), np.ndarray)
    assert (tensor.predict(torch.from_numpy(X)).numpy() == array.predict(X)).all()
    words = LinearProbe(class_weight={"b": 2.0}).fit(X, np.array(["a", "b", "c"])[y])
    assert set(words.predict(X)) <= {"a", "b", "c"}
    half = LinearProbe().fit(torch.from_numpy(X).bfloat16(), torch.from_numpy(y))
    assert half.coef_.dtype == torch.float32
    numbers = LinearProbeRegressor().fit(torch.from_numpy(X), torch.from_numpy(y))
    assert isinstance(numbers.coef_, torch.Tensor)


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu():
    X, y = (torch.from_numpy(a) for a in data(classes=3))
    there = LinearProbe(tol=1e-8).fit(X.cuda(), y.cuda())
    assert there.coef_.is_cuda
    assert there.predict(X.cuda()).is_cuda
    here = LinearProbe(tol=1e-8).fit(X, y)
    assert apart(there.coef_.cpu().numpy(), here.coef_.numpy()) < 1e-6
    frames = [probe_sweep(x[None], y, n_shuffles=9, progress=False) for x in (X, X.cuda())]
    pd.testing.assert_frame_equal(*frames)


def test_constant_features_have_weight_zero():
    X, y = data()
    X = np.concatenate([X, np.full((len(X), 1), 0.1), np.zeros((len(X), 1))], 1)
    for probe in (LinearProbe(), LinearProbe(kind="lda"), LinearProbe(kind="mean_difference"),
                  LinearProbe(standardise=True), LinearProbeRegressor()):  # fmt: skip
        coef = np.atleast_2d(probe.fit(X, y).coef_)
        assert (np.abs(coef[:, -2:]) < 1e-12).all(), probe
        assert (coef[:, :-2] != 0).all()
    with pytest.raises(ValueError, match="no feature varies"):
        LinearProbe().fit(np.full((10, 3), 0.1), np.arange(10) % 2)


def _fit(**options):
    X, y = data(40, 3)
    return lambda: LinearProbe(**options).fit(X, y)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_fit(kind="svm"), "kind='svm': expected one of 'logistic', 'lda', 'mean_difference'"),
        (_fit(C=0.0), "C=0.0: expected a positive number"),
        (_fit(kind="lda", C=2.0), "C=2.0 is of kind='logistic'"),
        (_fit(kind="mean_difference", class_weight="balanced"), "leave out class_weight"),
        (_fit(class_weight="heavy"), "class_weight='heavy'"),
        (_fit(class_weight={7: 1.0}), "names 7; the classes are"),
        (lambda: LinearProbe().fit(np.eye(4), np.ones(4)), "one class only"),
        (lambda: LinearProbe().fit(torch.eye(4), torch.ones(4)), "one class only"),
        (lambda: LinearProbe().fit(torch.eye(4), torch.ones(3)), r"y has shape \[3\] for 4 rows"),
        (lambda: LinearProbe().fit(torch.eye(4) / 0, torch.arange(4)), "NaN or infinite"),
        (lambda: LinearProbe(kind="lda").fit(np.eye(6), np.arange(6) % 2), "no solution"),
    ],
)
def test_bad_input_to_a_probe_is_named(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_probe_that_was_stopped_short_says_so():
    X, y = data()
    with pytest.warns(UserWarning, match="stopped after 2 steps"):
        LinearProbe(max_iter=2).fit(X, y)


# The sweep ---------------------------------------------------------------------------------------


def test_all_together_as_one_by_one():
    """Every place, fold and labelling against scikit-learn's own pipeline on that fold."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=120)
    X = rng.normal(size=(3, 120, 6)) * np.geomspace(0.01, 100, 6) + y[:, None] * [
        0.01,
        0,
        0,
        0,
        50,
        9,
    ]
    X[1] += 7
    split = rng.permutation(120) % 4
    frame = probe_sweep(X, y, split=split, n_shuffles=19, tol=1e-7, progress=False)
    pipe = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=5000))
    for i, one in enumerate(X):
        p = cross_val_predict(pipe, one, y, cv=PredefinedSplit(split), method="decision_function")
        row = frame.iloc[i]
        assert row.accuracy == pytest.approx(((p > 0) == y).mean())
        assert row.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, p > 0))
        each = [roc_auc_score(y[split == f], p[split == f]) for f in range(4)]
        pairs = [np.prod(np.bincount(y[split == f])) for f in range(4)]
        assert row.auroc == pytest.approx(np.average(each, weights=pairs))
        alone = probe_sweep(X[i : i + 1], y, split=split, n_shuffles=19, tol=1e-7, progress=False)
        columns = ["accuracy", "auroc", "bits", "p", "null_mean"]
        assert row[columns].tolist() == pytest.approx(alone.iloc[0][columns].tolist(), rel=1e-6)
    assert frame.layer.tolist() == [0, 1, 2]


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("width", [5, 90])
@pytest.mark.parametrize(
    ("kind", "weight"),
    [("logistic", None), ("logistic", "balanced"), ("ridge", None), ("mean_difference", None)],
)
def test_each_fold_learns_from_its_training_part_alone(classes, width, kind, weight):
    """Coefficients equal those of a probe that was never given the other rows.

    The other rows lie far off and on another scale: a scaler that saw them would differ.
    """
    X, y = data(n=60, d=width, classes=classes)
    train = np.arange(60) % 3 != np.arange(3)[:, None]
    X[~train[1]] = 50 * X[~train[1]] + 1000  # asked by fold 1, learned from by the others
    x = torch.from_numpy(np.stack([X, X[:, ::-1]]))
    labels = np.stack([y, np.roll(y, 7)])
    target = torch.from_numpy(labels if kind != "ridge" else labels.astype(float))
    prepared = fitting.prepare(x, torch.from_numpy(train))
    options = {} if kind == "ridge" else {"n_classes": classes, "class_weight": weight}
    found = fitting.fit(prepared, target, kind=kind, tol=1e-9, **options)
    for b, one in enumerate(x.numpy()):
        for label, own in enumerate(labels):
            rows = train[1]
            mean, deviation = one[rows].mean(0), one[rows].std(0)
            scaled = (one - mean) / deviation
            alone = (
                LinearProbeRegressor().fit(scaled[rows], own[rows])
                if kind == "ridge"
                else LinearProbe(kind=kind, tol=1e-9, class_weight=weight).fit(
                    scaled[rows], own[rows]
                )
            )
            scores = alone.predict if kind == "ridge" else alone.decision_function
            z = prepared.decide(found.coef, 1, torch.arange(60))[b, label].numpy()
            expected = scores(scaled)
            expected = expected[None] if expected.ndim == 1 else expected.T
            if kind == "mean_difference" and classes > 2:  # the same for all classes
                z, expected = z - z.mean(0), expected - expected.mean(0)
            assert apart(z[:, rows], expected[:, rows]) < 1e-5
            assert apart(z, expected) < 1e-4
    # The mutant: scaled on all rows.
    seen = (x[0].numpy() - x[0].numpy().mean(0)) / x[0].numpy().std(0)
    if kind == "logistic":
        leaky = LinearProbe(tol=1e-9, class_weight=weight).fit(seen[train[1]], y[train[1]])
        z = prepared.decide(found.coef, 1, torch.arange(60))[0, 0].numpy()
        other = leaky.decision_function(seen)
        other = other[None] if other.ndim == 1 else other.T
        assert apart(other, z) > 0.05


def test_lda_over_folds_and_labellings():
    X, y = data(n=90, classes=3)
    train = np.arange(90) % 3 != np.arange(3)[:, None]
    labels = np.stack([y, np.roll(y, 7)])
    prepared = fitting.prepare(torch.from_numpy(X[None]), torch.from_numpy(train))
    found = fitting.fit(prepared, torch.from_numpy(labels), kind="lda", n_classes=3)
    for i, rows in enumerate(train):
        for label, own in enumerate(labels):
            theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(X[rows], own[rows])
            z = prepared.decide(found.coef, i, torch.arange(90))[0, label]
            assert np.allclose(z.softmax(0).numpy().T, theirs.predict_proba(X), atol=1e-9)


@pytest.mark.parametrize("width", [6, 100])
def test_in_parts_as_all_at_once(width, monkeypatch):
    """Labellings and places that the memory, or the cache, does not hold together."""
    X, y = data(n=80, d=width, classes=3)
    x = torch.from_numpy(np.stack([X, X[::-1], X + 1]))
    prepared = fitting.prepare(x, torch.arange(80) % 4 != torch.arange(4)[:, None])
    y[:40] %= 2
    labels = torch.from_numpy(np.stack([np.roll(y, 11 * i) for i in range(5)]))
    options = {"n_classes": 3, "tol": 1e-9, "class_weight": "balanced", "C": 0.01}
    whole = fitting.fit(prepared, labels, **options)
    monkeypatch.setattr(fitting, "NUMBERS", 2000)
    monkeypatch.setattr(solver, "CACHED", 2)
    parts = fitting.fit(prepared, labels, **options)
    assert apart(parts.coef.numpy(), whole.coef.numpy()) < 1e-6
    assert parts.coef.shape == (3, 4, 5, 3, prepared.x.shape[2])


def test_a_class_that_a_labelling_never_shows_gets_no_probability():
    X, y = data(n=90, classes=3)
    y = np.where(y == 2, 0, y)
    prepared = fitting.prepare(torch.from_numpy(X[None]), torch.ones(1, 90, dtype=torch.bool))
    found = fitting.fit(prepared, torch.from_numpy(y[None]), n_classes=3, tol=1e-9)
    z = prepared.decide(found.coef, 0, torch.arange(90))[0, 0]
    assert z.softmax(0)[2].max() == 0
    # Softmax over two classes penalises both halves of the difference: twice the C of one.
    two = LinearProbe(C=2.0, standardise=True, tol=1e-9).fit(X, y)
    assert apart((z[1] - z[0]).numpy(), two.decision_function(X)) < 1e-5


def test_C_is_chosen_within_the_training_part():
    X, y = data(n=150, d=40, spread=6)
    options = {"n_shuffles": 9, "seed": 3, "progress": False}
    grid = [0.0001, 0.01, 1.0]
    path = probe_sweep(X[None], y, C=grid, path=True, **options)
    assert path.C.tolist() == grid
    for C, row in zip(grid, path.itertuples(), strict=True):
        alone = probe_sweep(X[None], y, C=C, **options).iloc[0]
        assert row.accuracy == pytest.approx(alone.accuracy, abs=0.01)  # warm or cold start
    chosen = probe_sweep(X[None], y, C=grid, **options).iloc[0]
    assert chosen.C in grid
    # By hand: the fold's choice is that of the best log-likelihood on its held-out fifth.
    examples = splits.Examples(y, np.array([0, 1]), None, None)
    made = splits.folds(examples, 5, seed=3)
    (held,) = splits.inner(examples, made, 3)
    picks = []
    for f, (train, out) in enumerate(zip(made.train, held, strict=True)):
        assert not out[~train].any()
        assert 0 < out.sum() < 0.4 * train.sum()
        fitted = [
            LinearProbe(C=C, standardise=True).fit(X[train & ~out], y[train & ~out]) for C in grid
        ]
        goods = [
            np.log(m.predict_proba(X[out])[np.arange(out.sum()), y[out]]).sum() for m in fitted
        ]
        picks.append((grid[int(np.argmax(goods))], f))
    assert sorted(C for C, _ in picks)[2] == chosen.C
    right = sum(
        (LinearProbe(C=C, standardise=True).fit(X[made.train[f]], y[made.train[f]])
         .predict(X[made.of == f]) == y[made.of == f]).sum()
        for C, f in picks
    )  # fmt: skip
    assert chosen.accuracy == pytest.approx(right / 150, abs=0.011)


def test_the_online_code_by_hand():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 9))
    y = np.where(X[:, 0] > 0, np.where(X[:, 1] > 1.2, 2, 1), 0)
    frame = probe_sweep(X[None], y, n_shuffles=0, C=0.5, tol=1e-8, seed=5, progress=False)
    examples = splits.Examples(y, np.arange(3), None, None)
    order, sizes = controls.blocks(examples, 5)
    assert sorted(order) == list(range(200))
    assert sizes == [2, 3, 6, 12, 25, 50, 100, 200]
    bits, unseen_met = sizes[0] * np.log2(3), False
    for before, after in pairwise(sizes):
        old, new = order[:before], order[before:after]
        seen = np.unique(y[old])
        if len(seen) > 1:
            varies = X[old].std(0) > 0
            probe = LinearProbe(C=0.5, standardise=True, tol=1e-9).fit(X[old][:, varies], y[old])
            p = probe.predict_proba(X[new][:, varies])
        else:
            p = np.ones((len(new), 1))
        left = 1 - (3 - len(seen)) / (before + 3)
        for i, label in enumerate(y[new]):
            if label in seen:
                bits -= np.log2(left * p[i, list(seen).index(label)])
            else:
                unseen_met = True
                bits -= np.log2(1 / (before + 3))
    assert unseen_met
    assert frame.bits.iloc[0] == pytest.approx(bits, rel=1e-5)
    assert frame.compression.iloc[0] == pytest.approx(200 * np.log2(3) / bits, rel=1e-5)


def test_the_online_code_never_parts_a_group():
    groups = np.repeat(np.arange(30), 7)
    examples = splits.Examples(np.arange(210) % 2, np.arange(2), groups, None)
    order, sizes = controls.blocks(examples, 0)
    assert sizes[-1] == 210
    for size in sizes:
        assert not set(groups[order[:size]]) & set(groups[order[size:]])


def test_control_tasks_keep_a_label_per_type():
    rng = np.random.default_rng(0)
    types, y = rng.integers(20, size=300), rng.integers(3, size=300)
    made = splits.folds(splits.Examples(y, np.arange(3), None, None), 5)
    drawn = controls.control_labels(y, types, 50, made, rng)
    for labels in drawn:
        assert all(len(set(labels[types == kind])) == 1 for kind in range(20))
    assert len({tuple(row) for row in drawn}) == 50
    shares = [np.bincount(y)[c] / 300 - (drawn == c).mean() for c in range(3)]
    assert np.abs(shares).max() < 0.1


@pytest.mark.parametrize("how", ["examples", "groups", "within"])
def test_shuffles_stay_where_they_should(how):
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    y = np.repeat(rng.integers(2, size=40), 5) if how == "groups" else np.arange(200) % 5 % 2
    examples = splits.Examples(y, np.arange(2), None if how == "examples" else groups, None)
    made = splits.folds(examples, 4)
    drawn, said = splits.permuted(examples, made.of, 30, "auto", rng)
    assert said == how
    assert len({tuple(row) for row in drawn}) > 25
    for row in drawn:
        for fold in range(4):
            assert row[made.of == fold].sum() == y[made.of == fold].sum()
        if how == "groups":
            assert all(len(set(row[groups == g])) == 1 for g in range(40))
        if how == "within":
            assert all(row[groups == g].sum() == y[groups == g].sum() for g in range(40))


def test_where_activations_may_come_from():
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    options = {"control": False, "progress": False}
    named = {
        "blocks.1.attn.hook_z": torch.from_numpy(rng.normal(size=(40, 3, 2, 4))).bfloat16(),
        ("resid_post", 0): rng.normal(size=(40, 5)),
        ("resid_post", 1, 7): rng.normal(size=(40, 6)).astype(np.float32),
        "hook_embed": rng.normal(size=(40, 3, 5)),
    }
    frame = probe_sweep(named, y, positions=[0, -1], **options)
    z = frame[frame.site == "attn.hook_z"]
    assert z[["layer", "pos", "head"]].values.tolist() == [
        [1, 0, 0], [1, 0, 1], [1, 2, 0], [1, 2, 1],
    ]  # fmt: skip
    assert frame.site.tolist()[4:] == ["resid_post"] * 2 + ["hook_embed"] * 2
    assert frame[frame.site == "resid_post"].pos.tolist() == [pd.NA, 7]
    assert frame.n_features.tolist() == [4] * 4 + [5, 6, 5, 5]
    some = probe_sweep(named, y, sites=["z", ("resid_post", 1)], **options)
    assert set(some.site) == {"attn.hook_z", "resid_post"}
    assert len(some) == 7
    other = probe_sweep(
        named, y, sites="embed", baselines={"noise": rng.normal(size=(2, 40, 9))}, **options
    )
    assert other.source.tolist() == ["model"] * 3 + ["noise"] * 2
    model = interp.HookedTransformer(interp.TransformerConfig(
        n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=11, n_ctx=6, d_mlp=16,
    ))  # fmt: skip
    _, cache = model.run_with_cache(torch.randint(11, (40, 6)), ["z", "resid_post"])
    cached = probe_sweep(cache, y, positions=[5], **options)
    assert cached["head"].tolist() == [0, 1, pd.NA] * 2
    with pytest.raises(ValueError, match="no features by position"):
        probe_sweep(model.run_with_cache(torch.randint(11, (40, 6)), "pattern")[1], y, **options)


def test_a_random_copy_is_another_model_of_the_same_make():
    cfg = interp.TransformerConfig(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=11, n_ctx=6, d_mlp=16
    )
    model = interp.HookedTransformer(cfg, seed=0)
    copies = [random_copy(model, seed) for seed in (1, 1, 2)]
    assert torch.equal(copies[0].W_E, copies[1].W_E)
    assert not torch.equal(copies[0].W_E, copies[2].W_E)
    assert not torch.equal(copies[0].W_E, model.W_E)
    assert copies[0].sites.names == model.sites.names
    hooked = model.with_hooks([("z", lambda z, hook: torch.zeros_like(z))])
    tokens = torch.randint(11, (2, 6))
    _, cache = random_copy(hooked, 1).run_with_cache(tokens, "z")
    assert (cache["z", 0] == 0).all()


def test_regression_scores_by_hand():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 4))
    y = X @ [1, 2, 0, 0] + rng.normal(size=150)
    types = rng.integers(15, size=150)
    split = np.arange(150) % 5
    frame = probe_sweep(
        X[None], y, kind="ridge", C=0.1, split=split, types=types, n_shuffles=19, progress=False
    )
    pipe = make_pipeline(StandardScaler(), Ridge(alpha=10))
    p = cross_val_predict(pipe, X, y, cv=PredefinedSplit(split))
    (row,) = frame.itertuples()
    assert row.r2 == pytest.approx(1 - ((p - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    assert row.mae == pytest.approx(np.abs(p - y).mean())
    assert row.spearman == pytest.approx(pd.Series(p).corr(pd.Series(y), method="spearman"))
    assert row.low < row.r2 < row.high
    assert row.constant < 0 and row.random_features < 0.1
    assert row.selectivity == pytest.approx(row.r2 - row.control_r2)
    assert row.p == 0.05
    assert not frame.drop(columns=["layer", "pos", "head"]).isna().any(axis=None)


def test_the_same_seed_gives_the_same_frame_and_another_does_not():
    X, y = data(100, 5)
    types = np.arange(100) % 9
    frames = [
        probe_sweep(X[None], y, types=types, n_shuffles=9, seed=seed, progress=False)
        for seed in (0, 0, 1)
    ]
    pd.testing.assert_frame_equal(frames[0], frames[1])
    assert frames[0].bits.iloc[0] != frames[2].bits.iloc[0]
    assert not frames[0].drop(columns=["layer", "pos", "head"]).isna().any(axis=None)


def test_without_types_there_is_no_control_task_and_the_frame_says_so():
    X, y = data(60, 3)
    frame = probe_sweep(X[None], y, n_shuffles=3, progress=False)
    assert "selectivity" not in frame
    assert frame.attrs["left_out"] == ["control tasks: no types given"]
    bare = probe_sweep(X[None], y, control=False, progress=False)
    assert not {"p", "constant", "random_features", "bits"} & set(bare)


def _sweep(change=None, **options):
    """A sweep over 60 examples with one thing wrong."""
    X, y = data(60, 3)
    given = {"activations": X[None].copy(), "y": y, "progress": False, "control": False} | options
    if change is not None:
        change(given)
    return lambda: probe_sweep(**given)


def _nan(given):
    given["activations"][0, 3, 1] = np.nan


REPEATED = [f"text {i % 30}" for i in range(60)]


def test_first_examples_that_are_all_alike_teach_the_code_nothing_but_the_labels_share():
    """The online code learns from few examples first, in which no feature may vary."""
    rng = np.random.default_rng(0)
    X, y = np.zeros((60, 30)), np.arange(60) % 2
    X[::6] = rng.normal(size=(10, 30))
    row = probe_sweep(X[None], y, C=0.1, control=True, n_shuffles=19, progress=False).iloc[0]
    assert 50 < row["bits"] < 90


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_sweep(_nan), r"1 activations of activations, layer 0 are NaN or infinite"),
        (_sweep(y=np.zeros(60)), r"one class only, \[0.0\]"),
        (_sweep(y=np.arange(59) % 2), r"shape \[60, 3\]; expected 59 rows"),
        (_sweep(y=np.full(60, np.nan)), "60 labels are NaN"),
        (_sweep(y=np.linspace(0, 1, 60)), "use kind='ridge'"),
        (_sweep(y=np.array(["a", "b"] * 30), kind="ridge"), "needs numbers"),
        (_sweep(activations=np.ones((2, 60, 3))), r"no feature varies .* \(at activations"),
        (_sweep(activations={}), "the mapping is empty"),
        (_sweep(activations=np.ones((60, 3))), r"got ndarray \[60, 3\]"),
        (_sweep(texts=["a"] * 59), "59 texts for 60 labels"),
        (_sweep(texts=REPEATED), "the text 'text [0-9]+' stands on both sides of fold 0"),
        (_sweep(groups=np.arange(60) // 2, split=np.arange(60) % 2), "the group 0 stands on both"),
        (_sweep(groups=np.arange(60) % 3), "3 groups are fewer than cv=5"),
        (_sweep(groups=np.maximum(np.arange(60) - 40, 0)), "the group 0 holds 41 of the 60"),
        (_sweep(y=np.arange(60) < 3), "the class True has 3 members, fewer than cv=5"),
        (
            _sweep(y=np.arange(60) < 12, groups=np.arange(60) // 3),
            "the class True has 4 groups, fewer than cv=5",
        ),
        (_sweep(cv=1), "cv=1: expected two folds"),
        (_sweep(split=["train"] * 60), "asks about no example"),
        (_sweep(split=["train"] * 59 + ["dev"]), "split holds 'dev'"),
        (_sweep(split=np.zeros(3)), r"split has shape \[3\] for 60"),
        (_sweep(y=np.arange(60) % 2, split=np.arange(60) % 2 == 1), "is not in the training part"),
        (_sweep(C=[1.0, -1.0]), "expected positive numbers"),
        (_sweep(kind="svm"), "kind='svm'"),
        (_sweep(sites="resid_mid"), "sites='resid_mid' matches none"),
        (_sweep(types=np.arange(60), control=True), "types: none stands twice"),
        (_sweep(types=[1, 2], control=True), r"types has shape \[2\]"),
        (_sweep(types=[0] * 60, control=True), "with 1 of them no control labelling"),
        (_sweep(shuffle="all", control=True), "shuffle='all': expected one of"),
        (_sweep(shuffle="within", control=True), "needs groups="),
        (
            _sweep(y=np.arange(60) // 30, groups=np.arange(60) // 2 + (np.arange(60) == 29),
                   control=True),
            "pass shuffle='examples'",
        ),
    ],
)  # fmt: skip
def test_bad_input_to_a_sweep_is_named(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_groups_and_texts_that_do_not_leak_pass():
    X, y = data(60, 3)
    groups = np.arange(60) % 30
    frame = probe_sweep(X[None], y, groups=groups, texts=REPEATED, control=False, progress=False)
    assert frame.n_groups.tolist() == [30]
    held = probe_sweep(
        X[None],
        y,
        split=np.where(np.arange(60) < 40, "train", "test"),
        n_shuffles=9,
        progress=False,
    )
    assert held.n.tolist() == [20]
    assert held.folds.tolist() == [1]


# The penalty of numbers ---------------------------------------------------------------------------


def numbers(n=90, d=60, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, X[:, :3].sum(1) + 2 * rng.normal(size=n)


def test_C_of_numbers_is_chosen_by_cross_validation_within_the_training_part():
    X, y = numbers()
    frame = probe_sweep(X[None], y, kind="ridge", C="cv", n_shuffles=0, seed=3, progress=False)
    examples = splits.Examples(y, None, None, None)
    made = splits.folds(examples, 5, seed=3)
    held = splits.inner(examples, made, 3, every=True)
    assert held.shape == (5, *made.train.shape)
    assert (held.sum(0) == made.train).all()  # every training row once, and no other
    missed, picks = 0.0, []
    for fold, train in enumerate(made.train):
        errors = []
        for C in PENALTIES:
            pipes = [(make_pipeline(StandardScaler(), Ridge(alpha=1 / C)), part[fold])
                     for part in held]  # fmt: skip
            errors.append(sum(
                ((pipe.fit(X[train & ~out], y[train & ~out]).predict(X[out]) - y[out]) ** 2).sum()
                for pipe, out in pipes
            ))  # fmt: skip
        picks.append(PENALTIES[int(np.argmin(errors))])
        pipe = make_pipeline(StandardScaler(), Ridge(alpha=1 / picks[-1])).fit(X[train], y[train])
        asked = made.of == fold
        missed += ((pipe.predict(X[asked]) - y[asked]) ** 2).sum()
    assert frame["r2"][0] == pytest.approx(1 - missed / ((y - y.mean()) ** 2).sum())
    assert frame["C"][0] == sorted(picks)[2]
    fixed = probe_sweep(X[None], y, kind="ridge", n_shuffles=0, seed=3, progress=False)
    assert frame["r2"][0] > fixed["r2"][0] + 0.1


@pytest.mark.parametrize("grouped", [False, True])
def test_what_is_asked_does_not_choose_the_penalty(grouped):
    """No leak: a fold's predictions are the same whatever its own labels are."""
    X, y = numbers()
    groups = np.arange(90) // 3 if grouped else None
    split = np.arange(90) // 3 % 5
    before = held_out_predictions(X, y, kind="ridge", C="cv", split=split, groups=groups)
    changed = np.where(split == 2, 100 * np.random.default_rng(1).normal(size=90), y)
    after = held_out_predictions(X, changed, kind="ridge", C="cv", split=split, groups=groups)
    own = before["fold"] == 2
    assert np.allclose(before["predicted"][own], after["predicted"][own])
    assert not np.allclose(before["predicted"][~own], after["predicted"][~own])
    if grouped:
        examples = splits.Examples(y, None, groups, None)
        for part in splits.inner(examples, splits.folds(examples, 5, split), 0, every=True):
            for train, out in zip(splits.folds(examples, 5, split).train, part, strict=True):
                assert not set(groups[out]) & set(groups[train & ~out])


@pytest.mark.parametrize("given", ["cv", (1e-5, 1e-2, 10.0), (0.5,), 0.5])
@pytest.mark.parametrize("of", [np.asarray, torch.tensor])
def test_one_regressor_chooses_its_penalty(given, of):
    X, y = numbers(seed=4)
    probe = LinearProbeRegressor(C=given, standardise=True).fit(of(X), of(y))
    path = PENALTIES if given == "cv" else np.atleast_1d(given).tolist()
    assert given == probe.C and probe.C_ in path
    part = np.random.default_rng(0).permutation(np.arange(90) % 5)
    errors = [
        -cross_val_score(
            make_pipeline(StandardScaler(), Ridge(alpha=1 / C)), X, y, cv=PredefinedSplit(part),
            scoring=lambda m, X, y: -((m.predict(X) - y) ** 2).sum(),
        ).sum()
        for C in path
    ]  # fmt: skip
    assert path[int(np.argmin(errors))] == probe.C_
    pipe = make_pipeline(StandardScaler(), Ridge(alpha=1 / probe.C_)).fit(X, y)
    assert np.allclose(np.asarray(probe.predict(of(X))), pipe.predict(X))


def test_penalties_that_cannot_be_chosen_are_refused(unchecked):
    with pytest.raises(ValueError, match="2 rows are too few to choose C among 8"):
        LinearProbeRegressor(C="cv").fit(*numbers(n=2, d=3))
    X, y = numbers()
    for bad in ("best", (1.0, -1.0), ()):
        with pytest.raises(ValueError, match="expected positive numbers"):
            LinearProbeRegressor(C=bad).fit(X, y)
        with pytest.raises(ValueError, match="expected positive numbers"):
            probe_sweep(X[None], y, kind="ridge", C=bad, progress=False)


def test_the_interval_of_a_nearly_perfect_fit_stays_below_one():
    X, _ = numbers()
    y = X[:, 0] + 1e-3 * np.random.default_rng(0).normal(size=90) ** 9
    row = probe_sweep(X[None], y, kind="ridge", C=1e4, n_shuffles=0, progress=False).iloc[0]
    assert row.low < row.r2 <= row.high <= 1
