"""One probe as a scikit-learn estimator, on arrays or on tensors of any device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from . import fitting
from .fitting import CLASSIFIERS, PENALTIES, ClassWeight
from .splits import INNER

Array = np.ndarray | Tensor


class _Linear(BaseEstimator):
    """What both probes share: data in, coefficients out, in the kind that was given."""

    coef_: Array
    intercept_: Array

    def _read(self, X: Any, **options: Any) -> Tensor:
        """X as a floating tensor; sets or checks n_features_in_."""
        if not isinstance(X, Tensor):
            return _writable(validate_data(self, X, dtype=[np.float64, np.float32], **options))
        if X.ndim != 2 or not X.is_floating_point():
            raise ValueError(
                f"X must be a floating-point tensor [n, d], got {X.dtype} {list(X.shape)}"
            )
        if options.get("reset", True):
            self.n_features_in_ = X.shape[1]
        elif X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        _check_finite(X)
        return X if X.dtype in (torch.float32, torch.float64) else X.float()

    def _fit(self, X: Tensor, y: Tensor, given: Any, C: float, **options: Any) -> None:
        if not C > 0 or not np.isfinite(C):
            raise ValueError(f"C={C!r}: expected a positive number")
        every = torch.ones(1, len(X), dtype=torch.bool, device=X.device)
        prepared = fitting.prepare(X[None], every, self.standardise)  # type: ignore[attr-defined]
        found = fitting.fit(prepared, y[None], C=float(C), **options)
        coef, intercept = (each[0, 0, 0] for each in prepared.original(found.coef))
        self.coef_, self.intercept_ = self._out(coef, given), self._out(intercept, given)
        self.n_iter_ = int(found.iterations.max())
        if not bool(found.converged.all()):
            warnings.warn(
                f"the probe stopped after {self.n_iter_} steps, short of the optimum: scale the "
                "features (standardise=True), or raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=3,
            )

    def _scores(self, X: Any) -> tuple[Tensor, bool]:
        check_is_fitted(self)
        x = self._read(X, reset=False)
        coef, intercept = (_tensor(a).to(x) for a in (self.coef_, self.intercept_))
        return x @ (coef.T if coef.ndim == 2 else coef) + intercept, isinstance(X, Tensor)

    @staticmethod
    def _out(a: Tensor, like: Any) -> Array:
        return a if isinstance(like, Tensor) else a.numpy()


class LinearProbe(ClassifierMixin, _Linear):
    """A linear classifier: w·x + b, learned in one of three ways.

    kind: "logistic" is scikit-learn's LogisticRegression (the same objective: C × the summed loss +
    ½ |w|², the intercept free, the softmax for more than two classes), solved to its optimum;
    "lda" its LinearDiscriminantAnalysis; "mean_difference" leads from mean to mean and cuts halfway
    (Marks & Tegmark 2023), the nearest mean of more than two classes. C and class_weight are those
    of scikit-learn; C is of the logistic probe alone, and weights are priors to LDA ("balanced":
    equal ones) and of no use to the means, which are refused them. standardise: learn on features
    of mean 0 and deviation 1; the coefficients are for X as it is given. tol: when to stop, as a
    part of the coefficients' length.

    Of arrays everything learned is an array; of tensors a tensor on their device, and so is what is
    predicted. coef_ [1 d] or [classes d], intercept_, classes_, n_iter_. Raises ValueError on one
    class only, on features of which none varies, and on what is not finite. Nothing is random.
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        kind: Literal["logistic", "lda", "mean_difference"] = "logistic",
        class_weight: Literal["balanced"] | Mapping[Any, float] | None = None,
        standardise: bool = False,
        tol: float = 1e-6,
        max_iter: int = 1000,
    ) -> None:
        self.C = C
        self.kind = kind
        self.class_weight = class_weight
        self.standardise = standardise
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> LinearProbe:
        """X [n d], y [n] of two classes or more, of any kind that can be sorted."""
        check_kind(self.kind, self.C, self.class_weight)
        if isinstance(X, Tensor):
            x = self._read(X)
            self.classes_, codes = torch.unique(_tensor(y).to(x.device), return_inverse=True)
            _check_labels(codes, x)
        else:
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
            check_classification_targets(y)
            x = _writable(X)
            self.classes_, found = np.unique(y, return_inverse=True)
            codes = torch.from_numpy(found)
        if len(self.classes_) < 2:
            raise ValueError(
                f"y has one class only, {self.classes_[0]!r}: a probe needs two classes or more"
            )
        self._fit(
            x, codes, X, self.C, kind=self.kind, n_classes=len(self.classes_), tol=self.tol,
            class_weight=class_weights(self.class_weight, self.classes_.tolist()),
            max_iter=self.max_iter,
        )  # fmt: skip
        return self

    def decision_function(self, X: Any) -> Array:
        """[n], positive for the second class, or [n classes]."""
        scores, tensor = self._scores(X)
        scores = scores[:, 0] if scores.shape[1] == 1 else scores
        return scores if tensor else scores.numpy()

    def predict(self, X: Any) -> Array:
        """The class of each row."""
        scores, tensor = self._scores(X)
        code = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
        return self.classes_[code] if tensor else np.asarray(self.classes_)[code.numpy()]

    @available_if(lambda self: self.kind != "mean_difference")
    def predict_proba(self, X: Any) -> Array:
        """[n classes]; the difference of means gives no probabilities."""
        scores, tensor = self._scores(X)
        if scores.shape[1] == 1:
            scores = torch.cat([torch.zeros_like(scores), scores], 1)
        p = scores.softmax(1)
        return p if tensor else p.numpy()


class LinearProbeRegressor(RegressorMixin, _Linear):
    """Ridge regression with alpha = 1 / C: C × the summed squares + |w|², the intercept free.

    As scikit-learn's Ridge; arrays, tensors and `standardise` as in `LinearProbe`. C: a number, or
    several ("cv": those of `PENALTIES`), of which the one with the least squared error in a
    five-fold cross-validation of the rows given to `fit` is kept in C_; rows are taken as
    independent there, so that groups of them need `probe_sweep`. coef_ [d], intercept_ (a number;
    of tensors a tensor). Raises ValueError as there, and where rows are too few to choose.
    """

    def __init__(
        self, C: float | Sequence[float] | Literal["cv"] = 1.0, *, standardise: bool = False
    ) -> None:
        self.C = C
        self.standardise = standardise

    def fit(self, X: Any, y: Any) -> LinearProbeRegressor:
        """X [n d], y [n] of numbers."""
        if isinstance(X, Tensor):
            x = self._read(X)
            target = _tensor(y).to(x)
            _check_labels(target, x)
            _check_finite(target)
        else:
            X, y = validate_data(
                self, X, y, dtype=[np.float64, np.float32], y_numeric=True, ensure_min_samples=2
            )
            x = _writable(X)
            target = torch.from_numpy(np.asarray(y)).to(x)
        self.C_ = self._chosen(x, target)
        self._fit(x, target, X, self.C_, kind="ridge")
        self.coef_, self.intercept_ = self.coef_[0], self.intercept_[0]
        return self

    def predict(self, X: Any) -> Array:
        """[n]."""
        scores, tensor = self._scores(X)
        return scores if tensor else scores.numpy()

    def _chosen(self, X: Tensor, y: Tensor) -> float:
        """C, of several the best in a cross-validation."""
        Cs = checked_penalties(self.C)
        if len(Cs) == 1:
            return Cs[0]
        parts = min(INNER, len(X))
        if parts < 3:
            raise ValueError(f"{len(X)} rows are too few to choose C among {len(Cs)} of them")
        part = np.random.default_rng(0).permutation(np.arange(len(X)) % parts)
        train = torch.from_numpy(part != np.arange(parts)[:, None]).to(X.device)
        prepared = fitting.prepare(X[None], train, self.standardise, strict=False)
        errors, held = [], [(~row).nonzero().flatten() for row in train]
        for found in fitting.path(prepared, y[None], Cs, kind="ridge"):
            missed = [prepared.decide(found.coef, i, rows)[0, 0, 0] - y[rows]
                      for i, rows in enumerate(held)]  # fmt: skip
            errors.append(float(torch.cat(missed).double().square().sum()))
        return Cs[int(np.argmin(errors))]


def checked_penalties(C: Any) -> tuple[float, ...]:
    """C as a path, in order; "cv" stands for `PENALTIES`. Raises ValueError on other words, and on
    what is not positive."""
    if isinstance(C, str):
        if C != "cv":
            raise ValueError(f"C={C!r}: expected positive numbers, or 'cv' to choose one")
        return PENALTIES
    Cs = tuple(sorted(float(one) for one in np.atleast_1d(C)))
    if not Cs or not all(one > 0 and np.isfinite(one) for one in Cs):
        raise ValueError(f"C={C!r}: expected positive numbers")
    return Cs


def check_kind(kind: str, C: float, class_weight: Any) -> None:
    """Raises ValueError on a kind of classifier that is not known, or options it has no use for."""
    if kind not in CLASSIFIERS:
        raise ValueError(
            f"kind={kind!r}: expected one of {', '.join(map(repr, CLASSIFIERS))}; "
            "ridge regression is LinearProbeRegressor"
        )
    if kind != "logistic" and C != 1:
        raise ValueError(f"C={C!r} is of kind='logistic'; kind={kind!r} has nothing to penalise")
    if kind == "mean_difference" and class_weight is not None:
        raise ValueError("kind='mean_difference' weighs its classes alike: leave out class_weight")


def class_weights(given: Any, classes: list) -> ClassWeight:
    """As the solvers take it; of a mapping, classes that it does not name have weight 1."""
    if given is None or (isinstance(given, str) and given == "balanced"):
        return given
    if not isinstance(given, Mapping):
        raise ValueError(f"class_weight={given!r}: expected None, 'balanced' or class → weight")
    unknown = [name for name in given if name not in classes]
    if unknown:
        raise ValueError(f"class_weight names {unknown[0]!r}; the classes are {classes}")
    weights = [float(given.get(name, 1)) for name in classes]
    if not all(weight > 0 and np.isfinite(weight) for weight in weights):
        raise ValueError(f"class_weight={given!r}: expected positive numbers")
    return torch.tensor(weights, dtype=torch.float64)


def _writable(X: np.ndarray) -> Tensor:
    """Without a copy where torch can do without one."""
    return torch.from_numpy(np.require(X, requirements=["C", "W"]))


def _tensor(a: Any) -> Tensor:
    return a if isinstance(a, Tensor) else torch.as_tensor(np.asarray(a))


def _check_finite(a: Tensor) -> None:
    if not bool(a.isfinite().all()):
        raise ValueError(f"{int((~a.isfinite()).sum())} values are NaN or infinite")


def _check_labels(y: Tensor, x: Tensor) -> None:
    if y.shape != x.shape[:1]:
        raise ValueError(f"y has shape {list(y.shape)} for {len(x)} rows of X")
