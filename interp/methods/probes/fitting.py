"""Probes on many sets of features, folds and labellings at once.

All folds share one matrix of features, centred and scaled over all its rows. That is a change of
variables and leaks nothing: what a fold's own standardisation would do is said by its penalty.
½ |w|² in the fold's units is ½ Σ (τⱼ wⱼ)² in shared ones, where τⱼ is the feature's deviation over
the fold's training rows; its mean goes into the free intercept.

Folds that are not alike (a few huge examples in one of them) would share a bad first guess at the
Hessian, so each then has features of its own, in its own units. So it is with more features than
examples, where a fold's rows are written in the basis of a Cholesky factor of their own Gram
matrix, in which every penalised solution lies (Kimeldorf & Wahba 1971).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from . import closed, solver

Kind: TypeAlias = Literal["logistic", "lda", "mean_difference", "ridge"]
ALIKE = 2.0
"""Folds share their features where deviations differ by this factor at most, and means by one."""
NUMBERS = 2**26
"""How many numbers a call of the solver may keep."""
PENALTIES = tuple(10.0**power for power in range(-6, 2))
"""Values of C among which one is chosen: from a probe that says hardly more than the mean to one
that is hardly held back."""
CLASSIFIERS: tuple[Kind, ...] = ("logistic", "lda", "mean_difference")
ClassWeight: TypeAlias = Literal["balanced"] | Float[Tensor, " classes"] | None
"""Of tensors a weight for each class."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """Features as the solvers take them, and the way back."""

    x: Float[Tensor, "p n c"]
    """The last column is ones. p = b, or b × folds where each fold has features of its own."""
    train: Float[Tensor, "w f n"]
    """1: a row that the fold learns from. w = f = 1 wherever there is one fold per p."""
    penalty: Float[Tensor, "p f c"]
    folds: int
    centre: Float[Tensor, "p one d"]
    scale: Float[Tensor, "p one d"]
    basis: Float[Tensor, "p c1 d"] | None = None
    """Rows: what a coefficient of x means in scaled features; None: they are the features of x."""
    own: bool = False
    """Whether each fold has features of its own."""

    def tasks(self, y: Tensor) -> Tensor:
        """The labellings [l n] of every fold, [f l n] flattened."""
        return y.repeat(self.train.shape[1], 1)

    def shaped(self, each: Shaped[Tensor, "p t *rest"]) -> Shaped[Tensor, "b f l *rest"]:
        """Of the solvers, by problem, fold and labelling."""
        at, parts = (0, (-1, self.folds)) if self.own else (1, (self.folds, -1))
        return each.unflatten(at, parts)

    def decide(
        self, coef: Float[Tensor, "b f l k c"], fold: int, rows: Int[Tensor, " m"]
    ) -> Float[Tensor, "b l k m"]:
        """x·w + b of some rows under the probes of a fold."""
        own = coef[:, fold]
        x = (self.x[fold :: self.folds] if self.own else self.x)[:, rows]
        return (own.flatten(1, 2) @ x.mT).unflatten(1, own.shape[1:3])

    def original(
        self, coef: Float[Tensor, "b f l k c"]
    ) -> tuple[Float[Tensor, "b f l k d"], Float[Tensor, "b f l k"]]:
        """Coefficients and intercepts for the features as they were given."""
        by_fold = (-1, self.folds) if self.own else (-1, 1)
        slopes = coef[..., :-1]
        if self.basis is not None:
            basis = self.basis.unflatten(0, by_fold)
            slopes = (slopes.flatten(2, 3) @ basis).unflatten(2, slopes.shape[2:4])
        slopes = slopes / self.scale.unflatten(0, by_fold)[:, :, None]
        offset = (slopes * self.centre.unflatten(0, by_fold)[:, :, None]).sum(-1)
        return slopes, coef[..., -1] - offset


class Fitted(NamedTuple):
    """What was learned."""

    coef: Float[Tensor, "b f l k c"]
    """In prepared features. k: 1 for two classes and for regression."""
    iterations: Int[Tensor, "b f l"]
    converged: Bool[Tensor, "b f l"]


def prepare(
    x: Float[Tensor, "b n d"],
    train: Bool[Tensor, "f n"],
    standardise: bool = True,
    *,
    by_rows: bool | None = None,
    strict: bool = True,
) -> Prepared:
    """Features for the folds whose training rows are given.

    by_rows: in the basis of each fold's rows; by default where there are more features than rows.
    strict: raise ValueError where no feature varies over the training rows of a fold; otherwise
    only the intercept learns there.
    """
    if x.shape[2] > x.shape[1] if by_rows is None else by_rows:
        return _prepared_by_fold(x, train, standardise, strict, _by_rows)
    rows = train.to(x.dtype)
    wide = x.new_ones(len(x), x.shape[1], x.shape[2] + 1)
    scaled = wide[..., :-1]
    share = torch.full_like(rows[:1], 1 / x.shape[1])
    centre = share @ x
    torch.sub(x, centre, out=scaled)
    deviation = _without_rounding((share @ scaled.square()).sqrt(), centre, x.dtype)
    _check_varies(deviation, strict)
    scale = _units(deviation)
    scaled /= scale
    units = torch.ones_like(scale)
    if not bool(train.all()):
        share = rows / rows.sum(1, keepdim=True)
        means = share @ scaled
        units = (share @ scaled.square() - means.square()).clamp_min(0).sqrt()
        units = units.masked_fill(deviation == 0, 1)
        alike = (means.abs() <= 1) & (units <= ALIKE) & (units >= 1 / ALIKE)
        if not bool(alike.all()):
            return _prepared_by_fold(x, train, standardise, strict, _by_features)
    penalty = units.square() if standardise else (scale**-2).expand_as(units)
    penalty = penalty.expand(-1, len(train), -1)
    return Prepared(wide, rows[None], _and_ones(penalty, 0), len(train), centre, scale)


def _and_ones(x: Float[Tensor, "b n d"], fill: int = 1) -> Float[Tensor, "b n d1"]:
    """A column for the intercept."""
    return torch.nn.functional.pad(x, (0, 1), value=fill)


def moments(
    x: Float[Tensor, "b n d"], rows: Float[Tensor, "one n"]
) -> tuple[Float[Tensor, "b one d"], Float[Tensor, "b one d"]]:
    """Mean and deviation of each feature over the rows of weight 1.

    A deviation that is rounding, next to the mean, is 0.
    """
    share = rows / rows.sum()
    centre = share @ x
    deviation = (share @ (x - centre).square()).sqrt()
    return centre, _without_rounding(deviation, centre, x.dtype)


def _without_rounding(deviation: Tensor, centre: Tensor, dtype: torch.dtype) -> Tensor:
    return deviation.masked_fill(deviation <= 10 * torch.finfo(dtype).eps * centre.abs(), 0)


def _units(deviation: Tensor) -> Tensor:
    """What a feature is divided by: a constant one by 1, as scikit-learn's StandardScaler does."""
    return torch.where(deviation == 0, 1, deviation)


def _check_varies(deviation: Float[Tensor, "b one d"], strict: bool) -> None:
    if strict and bool((deviation == 0).all(-1).any()):
        raise ValueError(
            "no feature varies over the training examples: there is nothing to learn from"
        )


class _Fold(NamedTuple):
    """One fold of one problem in features of its own; each [1 …]."""

    x: Tensor
    penalty: Tensor
    centre: Tensor
    scale: Tensor
    basis: Tensor | None


def _prepared_by_fold(
    x: Tensor,
    train: Bool[Tensor, "f n"],
    standardise: bool,
    strict: bool,
    one_fold: Callable[..., _Fold],
) -> Prepared:
    most = int(train.sum(1).max())
    parts = [one_fold(one[None], row, most, standardise, strict) for one in x for row in train]
    features, penalty, centre, scale = (
        torch.cat(each) for each in zip(*(part[:4] for part in parts), strict=True)
    )
    bases = [part.basis for part in parts if part.basis is not None]
    basis = torch.cat(bases) if bases else None
    rows = train.to(x.dtype).repeat(len(x), 1)[:, None]
    return Prepared(
        _and_ones(features), rows, _and_ones(penalty, 0), len(train), centre, scale, basis, own=True
    )


def _in_own_units(
    x: Tensor, row: Bool[Tensor, " n"], standardise: bool, strict: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centred features, and their penalty: those of the training rows have deviation 1."""
    centre, deviation = moments(x, row[None].to(x.dtype))
    _check_varies(deviation, strict)
    scale = _units(deviation)
    penalty = torch.ones_like(scale) if standardise else scale**-2
    return (x - centre) / scale, penalty, centre, scale


def _by_features(x: Tensor, row: Tensor, most: int, standardise: bool, strict: bool) -> _Fold:
    return _Fold(*_in_own_units(x, row, standardise, strict), None)


def _by_rows(x: Tensor, row: Tensor, most: int, standardise: bool, strict: bool) -> _Fold:
    """Features [1 n most] and basis [1 most d]; columns past the fold's rows are zero."""
    scaled, penalty, centre, scale = _in_own_units(x, row, standardise, strict)
    scaled, scale = scaled / penalty.sqrt(), scale * penalty.sqrt()
    kernel = scaled @ scaled[:, row].mT
    root = _root(kernel[:, row].double())
    features, basis = (
        torch.nn.functional.pad(
            torch.linalg.solve_triangular(root, one.double(), upper=False),
            (0, 0, 0, most - root.shape[-1]),
        ).to(x.dtype)
        for one in (kernel.mT, scaled[:, row])
    )
    return _Fold(features.mT, torch.ones_like(features[:, None, :, 0]), centre, scale, basis)


def _root(kernel: Float[Tensor, "one m m"]) -> Float[Tensor, "one m m"]:
    """A Cholesky factor; centred rows have a Gram matrix of deficient rank, hence the jitter. Rows
    that are all alike have nothing but zeros there, and any factor will do."""
    diagonal = kernel.diagonal(dim1=1, dim2=2)
    largest = diagonal.amax(1, keepdim=True)
    jitter = 1e-12 * torch.where(largest == 0, 1, largest)
    for _ in range(12):
        diagonal += jitter
        root, failed = torch.linalg.cholesky_ex(kernel)
        if not bool(failed.any()):
            return root
        jitter *= 10
    raise ValueError("the Gram matrix of the examples has no Cholesky factor: are they finite?")


def fit(
    prepared: Prepared,
    y: Int[Tensor, "l n"] | Float[Tensor, "l n"],
    *,
    kind: Kind = "logistic",
    n_classes: int = 2,
    C: float = 1.0,
    class_weight: ClassWeight = None,
    start: Float[Tensor, "b f l k c"] | None = None,
    tol: float = 1e-5,
    max_iter: int = 500,
) -> Fitted:
    """Every problem, fold and labelling.

    y: classes 0 … n_classes − 1, for ridge numbers. The factor of the features is made once.
    """
    if kind == "ridge":
        tasks = prepared.tasks(y)
        return _at_once(
            prepared, closed.ridge(prepared.x, tasks, prepared.train, prepared.penalty, [C])[0]
        )
    if kind != "logistic":
        return _at_once(prepared, _by_means(prepared, y, kind, n_classes, class_weight))
    learned, share = prepared.x, float(prepared.train.mean())
    if prepared.own:  # what is not learned from may lie far off
        learned, share = learned * prepared.train[:, 0, :, None], 1.0
    inverse = solver.factor(learned, prepared.penalty.mean(1), C * share, n_classes)
    few = _labellings_at_once(prepared, n_classes)
    parts = [
        _logistic(
            prepared, y[i : i + few], n_classes, class_weight, C=C, inverse=inverse,
            start=None if start is None else start[:, :, i : i + few], tol=tol, max_iter=max_iter,
        )
        for i in range(0, len(y), few)
    ]  # fmt: skip
    return Fitted(*(torch.cat(each, 2) for each in zip(*parts, strict=True)))


def path(
    prepared: Prepared, y: Shaped[Tensor, "l n"], Cs: Sequence[float], *, kind: Kind, **options: Any
) -> Iterator[Fitted]:
    """`fit` for each C in turn, which begins at what the one before has found."""
    if kind == "ridge":
        tasks = prepared.tasks(y)
        for coef in closed.ridge(prepared.x, tasks, prepared.train, prepared.penalty, Cs):
            yield _at_once(prepared, coef)
        return
    start = None
    for C in Cs:
        found = fit(prepared, y, kind=kind, C=C, start=start, **options)
        start = found.coef
        yield found


def _labellings_at_once(prepared: Prepared, n_classes: int) -> int:
    """So many that what the solver keeps stays in bounds."""
    p, n, c = prepared.x.shape
    kept = 6 * n + 3 * (solver.MEMORY + 2) * c
    rows = p * prepared.train.shape[1] * (1 if n_classes == 2 else n_classes)
    return max(1, NUMBERS // (rows * kept))


def _logistic(
    prepared: Prepared,
    y: Int[Tensor, "l n"],
    n_classes: int,
    class_weight: ClassWeight,
    *,
    start: Float[Tensor, "b f l k c"] | None,
    **options: Any,
) -> Fitted:
    tasks, weights = prepared.tasks(y), prepared.train.repeat_interleave(len(y), 1)
    if class_weight is not None:
        hot = closed.one_hot(tasks, n_classes, prepared.x.dtype)
        each = _of_classes((hot * weights[:, :, None]).sum(-1), class_weight)
        weights = weights * (hot * each[..., None]).sum(2)
    penalty = prepared.penalty.repeat_interleave(len(y), 1)[:, :, None]
    if start is not None:
        start = start.flatten(0, 1) if prepared.own else start.flatten(1, 2)
    found = solver.solve(
        prepared.x, solver.task(tasks, weights, n_classes), penalty, start=start, **options
    )
    return Fitted(*(prepared.shaped(each) for each in found))


def _by_means(
    prepared: Prepared, y: Tensor, kind: Kind, n_classes: int, class_weight: ClassWeight
) -> Float[Tensor, "p t k c"]:
    train = prepared.train.repeat_interleave(len(y), 1)
    hot = closed.one_hot(prepared.tasks(y), n_classes, prepared.x.dtype)
    mean, count = closed.means(prepared.x, hot, train)
    if kind == "mean_difference":
        penalty = prepared.penalty.repeat_interleave(len(y), 1)[:, :, None]
        return closed.mean_difference(mean, penalty)
    priors = count * _of_classes(count, class_weight)
    return closed.discriminant(
        prepared.x, mean, count, prepared.train, priors / priors.sum(-1, keepdim=True)
    )


def _of_classes(count: Float[Tensor, "w t k"], class_weight: ClassWeight) -> Tensor:
    """The weight of each class; balanced: examples / (classes × examples of the class)."""
    if class_weight is None:
        return torch.ones_like(count)
    if isinstance(class_weight, Tensor):
        return class_weight.to(count).expand_as(count)
    return count.sum(-1, keepdim=True) / (count.shape[-1] * count.clamp_min(1))


def _at_once(prepared: Prepared, coef: Tensor) -> Fitted:
    shaped = prepared.shaped(coef)
    ones = torch.ones(shaped.shape[:3], dtype=torch.long, device=coef.device)
    return Fitted(shaped, ones, ones.bool())
