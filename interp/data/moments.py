"""Means and covariances from a stream: what linear methods need of data that is never held.

Sums are kept centred and in float64, and two sets of them merge exactly (Chan, Golub & LeVeque
1983), so that the result does not depend on how the data were cut, beyond rounding. Ridge
regression, linear discriminant analysis, differences of means and concept erasers are functions of
these numbers alone.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Linear(NamedTuple):
    """An affine readout: scores = x @ weight.T + bias."""

    weight: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]

    def __call__(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """The scores of rows, in their dtype."""
        return x @ self.weight.to(x).T + self.bias.to(x)


class Moments:
    """First and second moments of features x [n d], alone or together with something known of
    every row: `targets` numbers y [n k], or a class y [n] of 0 … `classes` − 1.

    Of classes the targets are one-hot: `target_mean` holds their shares.
    """

    def __init__(
        self,
        width: int,
        *,
        targets: int = 0,
        classes: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if width < 1 or min(targets, classes) < 0 or (targets and classes) or classes == 1:
            raise ValueError(
                f"width={width}, targets={targets}, classes={classes}: expected a width of 1 or "
                "more, and either targets or two or more classes"
            )
        self.width, self.targets, self.classes = width, targets or classes, classes
        self.n = 0
        """Rows seen."""
        wide = {"dtype": torch.float64, "device": device}
        self.mean = torch.zeros(width, **wide)
        self.target_mean = torch.zeros(self.targets, **wide)
        self.scatter = torch.zeros(width, width, **wide)
        """Σ (x − mean)(x − mean)ᵀ."""
        self.cross_scatter = torch.zeros(width, self.targets, **wide)
        """Σ (x − mean)(y − target_mean)ᵀ."""
        self.target_scatter = torch.zeros(self.targets, self.targets, **wide)

    @classmethod
    def of(cls, x: Tensor, y: Tensor | None = None, *, classes: int | None = None) -> Moments:
        """Those of data at hand. Whole numbers or booleans y [n] are classes, as many as the
        largest says unless `classes` does; any other y [n] or [n k] are targets."""
        if y is None:
            return cls(x.shape[-1], device=x.device).add(x)
        if not y.is_floating_point() and y.ndim == 1:
            found = int(y.max()) + 1 if classes is None and y.numel() else classes or 2
            return cls(x.shape[-1], classes=max(found, 2), device=x.device).add(x, y)
        if classes is not None:
            raise ValueError(f"classes={classes}: labels are whole numbers [n], got {y.dtype}")
        targets = 1 if y.ndim == 1 else y.shape[-1]
        return cls(x.shape[-1], targets=targets, device=x.device).add(x, y)

    def add(self, x: Float[Tensor, "n d"], y: Tensor | None = None) -> Moments:
        """Take in more rows; returns itself.

        Raises ValueError on other widths, numbers that are not finite, and labels out of range;
        nothing of the rows has then been taken in.
        """
        if x.ndim != 2 or x.shape[1] != self.width:
            raise ValueError(f"x has shape {list(x.shape)}, expected [n, {self.width}]")
        if (y is None) != (self.targets == 0):
            kind = "classes" if self.classes else "targets"
            raise ValueError("y is missing" if y is None else f"no {kind}= were declared for y")
        if len(x) == 0:
            return self
        x = x.to(self.mean)
        z = self._targets_of(y, len(x))
        if not bool(x.isfinite().all() & z.isfinite().all()):
            raise ValueError("the rows hold numbers that are not finite")
        mean, target_mean = x.mean(0), z.mean(0)
        x, z = x - mean, z - target_mean
        self._join(len(x), mean, target_mean, x.T @ x, x.T @ z, z.T @ z)
        return self

    def merge(self, other: Moments) -> Moments:
        """Both together, as new Moments. Raises ValueError where they are of different things."""
        ours, theirs = ((m.width, m.targets, m.classes) for m in (self, other))
        if ours != theirs:
            raise ValueError(f"(width, targets, classes) differ: {ours} and {theirs}")
        both = copy.deepcopy(self)
        both._join(
            other.n,
            *(
                part.to(both.mean)
                for part in (
                    other.mean,
                    other.target_mean,
                    other.scatter,
                    other.cross_scatter,
                    other.target_scatter,
                )
            ),
        )
        return both

    def _join(self, n: int, mean: Tensor, target_mean: Tensor, *scatters: Tensor) -> None:
        if n == 0:
            return
        whole = self.n + n
        apart, target_apart = mean - self.mean, target_mean - self.target_mean
        shrink = self.n * n / whole
        xx, xz, zz = scatters
        self.scatter += xx + shrink * torch.outer(apart, apart)
        self.cross_scatter += xz + shrink * torch.outer(apart, target_apart)
        self.target_scatter += zz + shrink * torch.outer(target_apart, target_apart)
        self.mean += apart * (n / whole)
        self.target_mean += target_apart * (n / whole)
        self.n = whole

    def _targets_of(self, y: Tensor | None, n: int) -> Float[Tensor, "n k"]:
        if y is None:
            return self.mean.new_zeros(n, 0)
        y = y.to(self.mean.device)
        if not self.classes:
            y = y[:, None] if y.ndim == 1 else y
            if y.shape != (n, self.targets):
                raise ValueError(f"y has shape {list(y.shape)}, expected [{n}, {self.targets}]")
            return y.double()
        if y.is_floating_point() or y.shape != (n,):
            raise ValueError(f"y is {y.dtype} {list(y.shape)}, expected one class for {n} rows")
        y = y.long()
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= self.classes:
            wrong = low if low < 0 else high
            raise ValueError(f"label {wrong}: expected 0 to {self.classes - 1}")
        return torch.nn.functional.one_hot(y, self.classes).double()

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Of the features, over n − 1."""
        return self.scatter / self._beyond_one()

    @property
    def cross_covariance(self) -> Float[Tensor, "d k"]:
        """Of features and targets, over n − 1."""
        return self.cross_scatter / self._beyond_one()

    @property
    def target_covariance(self) -> Float[Tensor, "k k"]:
        """Of the targets, over n − 1."""
        return self.target_scatter / self._beyond_one()

    @property
    def class_counts(self) -> Int[Tensor, " classes"]:
        """Rows of each class."""
        self._need_classes()
        return (self.target_mean * self.n).round().long()

    @property
    def class_means(self) -> Float[Tensor, "classes d"]:
        """The mean of each class. Raises ValueError where a class has no rows."""
        counts = self.class_counts
        if bool((counts == 0).any()):
            empty = (counts == 0).nonzero().flatten().tolist()
            raise ValueError(f"classes {empty} have no rows: they have no mean")
        return self.mean + (self.cross_scatter / counts).T

    @property
    def within_covariance(self) -> Float[Tensor, "d d"]:
        """Of the features around the mean of their class, over n."""
        apart = self.class_means - self.mean
        between = (apart.T * self.class_counts) @ apart
        return (self.scatter - between) / self.n

    def mean_difference(self, first: int = 0, second: int = 1) -> Float[Tensor, " d"]:
        """From the mean of one class to that of another."""
        means = self.class_means
        return means[second] - means[first]

    def ridge(self, alpha: float = 1.0) -> Linear:
        """The readout w, b that makes Σ |y − w x − b|² + alpha |w|² least (of classes, y is
        one-hot)."""
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha}: expected 0 or more")
        if not self.targets:
            raise ValueError("there is nothing to predict: make Moments with targets= or classes=")
        weight = _solve(self.scatter, alpha, self.cross_scatter).T
        return Linear(weight, self.target_mean - weight @ self.mean)

    def lda(self, shrinkage: float = 0.0) -> Linear:
        """Linear discriminant analysis (Fisher 1936; Gaussian classes of one covariance): per class
        the log-probability up to a constant.

        shrinkage: the share of a multiple of the identity, of equal trace, in the covariance.
        """
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage={shrinkage}: expected 0 to 1")
        within, means = self.within_covariance, self.class_means
        even = shrinkage * float(within.trace()) / self.width
        weight = _solve((1 - shrinkage) * within, even, means.T).T
        bias = self.target_mean.log() - 0.5 * (weight * means).sum(1)
        return Linear(weight, bias)

    def _beyond_one(self) -> int:
        if self.n < 2:
            raise ValueError(f"a covariance needs two rows or more, and {self.n} were added")
        return self.n - 1

    def _need_classes(self) -> None:
        if not self.classes:
            raise ValueError("these Moments were not made with classes=")

    def __repr__(self) -> str:
        known = f"classes={self.classes}" if self.classes else f"targets={self.targets}"
        return f"Moments(n={self.n}, width={self.width}, {known})"


def _solve(matrix: Tensor, ridge: float, right: Tensor) -> Tensor:
    """(matrix + ridge 1)⁻¹ right, of least norm where the matrix is singular."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    values = values.clamp_min(0) + ridge
    cut = values.amax() * len(values) * torch.finfo(values.dtype).eps
    inverse = torch.where(values > cut, 1 / values, 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ right))
