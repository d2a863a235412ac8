"""Many penalised logistic regressions at once, each solved to its optimum.

C Σᵢ sᵢ ℓ(xᵢ·w + b, yᵢ) + ½ Σⱼ pⱼ wⱼ², with ℓ the logistic loss of two classes or the softmax loss
of more, and b free: the objective of scikit-learn's LogisticRegression where p = 1. Problems that
share features (folds, control labellings) are rows of one matrix product.

L-BFGS (Nocedal 1980) whose first inverse Hessian is that of the penalised Gram matrix, by Cholesky:
one factor per set of features. Since the loss is a function of x·w, a line search costs no product
with x: it follows the exact derivative along the direction.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MEMORY = 8
"""Steps that L-BFGS remembers."""
SEARCHES = 20
"""Most steps of one line search."""
SLOPE = 0.1
"""A line search ends where the slope is this part of what it was."""
CACHED = 2**20
"""Numbers of x that a CPU works on at a time."""
NEVER = -1e4
"""The intercept of a class that a problem has never seen."""
PATIENCE = 30
"""Steps without a shorter one, after which a problem is given up."""
NEAR, SOON = 20.0, 8
"""Within NEAR × tol it takes only so many: there it has met the rounding of its dtype."""


class Solution(NamedTuple):
    """Where the descent ended."""

    coef: Float[Tensor, "b t k d"]
    """The last of d is the intercept. Of two classes k is 1, of more their number."""
    iterations: Int[Tensor, "b t"]
    converged: Bool[Tensor, "b t"]


class Task(NamedTuple):
    """What is to be learned, and from which rows."""

    target: Float[Tensor, "t k n"]
    """1 where the class is k; of two classes one row, that of the second."""
    weights: Float[Tensor, "w t one n"]
    """0: the row is not learned from. w is b, or 1 for all alike."""
    absent: Bool[Tensor, "w t k one"] | None
    """Which of more than two classes a problem never sees: they get no probability."""


def task(y: Int[Tensor, "t n"], weights: Float[Tensor, "w t n"], n_classes: int) -> Task:
    """Labels 0 … n_classes − 1 under weights, in the dtype of the weights."""
    s = weights[:, :, None]
    if n_classes == 2:
        return Task(y[:, None].to(s.dtype), s, None)
    target = torch.nn.functional.one_hot(y, n_classes).mT.to(s.dtype).contiguous()
    absent = (target * s).sum(-1, keepdim=True) == 0
    return Task(target, s, absent if bool(absent.any()) else None)


def factor(
    x: Float[Tensor, "b n d"], penalty: Float[Tensor, "b d"], scale: float, n_classes: int
) -> Float[Tensor, "b d d"]:
    """The inverse of the Hessian at w = 0: scale p (1 − p) xᵀx + penalty, with p = 1 / n_classes.

    scale: C × the mean weight of a row.
    """
    hessian = _gram(x).mul_(scale / n_classes * (1 - 1 / n_classes))
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    diagonal += penalty
    jitter = torch.finfo(x.dtype).eps * diagonal.amax(1)
    for _ in range(12):  # the factor only says which way to go, so a jitter costs no accuracy
        root, failed = torch.linalg.cholesky_ex(hessian)
        if not bool(failed.any()):
            return torch.cholesky_inverse(root)
        diagonal += jitter[:, None]
        jitter *= 10
    raise ValueError("the Gram matrix of the features has no Cholesky factor: are they finite?")


def _gram(x: Float[Tensor, "b n d"], parts: int = 4) -> Float[Tensor, "b d d"]:
    """xᵀx, of which Cholesky reads the lower triangle only; above it some blocks stay zero."""
    d = x.shape[2]
    ends = [d * i // parts for i in range(parts + 1)]
    gram = x.new_zeros(len(x), d, d)
    for start, end in pairwise(ends):
        gram[:, start:end, :end] = x[..., start:end].mT @ x[..., :end]
    return gram


def solve(x: Float[Tensor, "b n d"], given: Task, penalty: Tensor, C: float,
          inverse: Float[Tensor, "b d d"], *, start: Float[Tensor, "b t k d"] | None = None,
          **options: Any) -> Solution:  # fmt: skip
    """Every problem (b, t) to its optimum; the last column of x is ones, and its penalty 0.

    On a CPU as many b at once as its cache holds, each of them until it is done: large ones gain
    nothing from each other. `options`: tol and max_iter of `_solve`.
    """
    size = max(1, CACHED // x[0].numel()) if x.device.type == "cpu" else len(x)
    parts = []
    for i in range(0, len(x), size):
        own = slice(i, i + size)
        absent = None if given.absent is None else _own(given.absent, own, len(x))
        part = Task(given.target, _own(given.weights, own, len(x)), absent)
        begin = None if start is None else start[own]
        pull = _own(penalty, own, len(x))
        parts.append(_solve(x[own], part, pull, C, inverse[own], start=begin, **options))
    return Solution(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _own(each: Tensor, own: slice, b: int) -> Tensor:
    """Of some problems, unless it is the same for all."""
    return each[own] if len(each) == b else each


def _solve(
    x: Float[Tensor, "b n d"],
    given: Task,
    penalty: Float[Tensor, "p t one d"],
    C: float,
    inverse: Float[Tensor, "b d d"],
    *,
    start: Float[Tensor, "b t k d"] | None = None,
    tol: float = 1e-5,
    max_iter: int = 500,
) -> Solution:
    """All at once.

    A problem has converged when two quasi-Newton steps in a row, estimates of the way to the
    optimum, are shorter than tol × its coefficients, or where those within 20 × tol of it get no
    shorter for rounding. tol is raised to 20 roundings of the dtype.
    """
    tol = max(tol, 20 * torch.finfo(x.dtype).eps)
    slopes = _Slopes(x, given, penalty, C)
    (b, _, d), (t, k, _) = x.shape, given.target.shape
    w = x.new_zeros(b, t, k, d) if start is None else start.clone()
    z = _times(w, x.mT)
    p = slopes.probabilities(z)
    g = slopes.gradient(w, p)
    solved = _times(g, inverse)
    memory, first = _Memory(), _length(solved)
    short = converged = done = torch.zeros(b, t, dtype=torch.bool, device=x.device)
    iterations = torch.zeros(b, t, dtype=torch.long, device=x.device)
    shortest, since = torch.full_like(first, torch.inf), torch.zeros_like(iterations)
    for _ in range(max_iter):
        way = memory.direction(g, solved)
        length = _length(way)
        size = torch.maximum(_length(w), 1e-3 * first)
        before, short = short, length <= tol * size
        since = torch.where(length < shortest, 0, since + 1)
        shortest = torch.minimum(length, shortest)
        rounded = (since >= SOON) & (shortest <= NEAR * tol * size)
        converged = converged | (before & short) | (length == 0) | rounded
        done = done | converged | (since >= PATIENCE)
        if bool(done.all()):
            break
        iterations += ~done
        way *= ~done[:, :, None, None]
        along = _times(way, x.mT)
        step, p, z = slopes.search(z, p, along, w, way)
        way *= step
        w = w + way
        new = slopes.gradient(w, p)
        new_solved = _times(new, inverse)
        memory.add(way, new - g, new_solved - solved)
        g, solved = new, new_solved
    if given.absent is not None:
        w[..., -1:] = w[..., -1:].masked_fill(given.absent, NEVER)
    return Solution(w, iterations, converged)


class _Slopes:
    """The objective's derivatives."""

    def __init__(self, x: Tensor, given: Task, penalty: Tensor, C: float) -> None:
        self.x, self.given, self.penalty = x, given, penalty
        self.weights = C * given.weights

    def probabilities(self, z: Float[Tensor, "b t k n"]) -> Float[Tensor, "b t k n"]:
        return probabilities(z, self.given.absent)

    def gradient(self, w: Tensor, p: Tensor) -> Float[Tensor, "b t k d"]:
        return _times((p - self.given.target) * self.weights, self.x) + self.penalty * w

    def search(
        self, z: Tensor, p: Tensor, along: Tensor, w: Tensor, way: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step, probabilities and x·w where the slope along `way` has all but vanished.

        Newton's method on the slope, within a bracket: the objective is convex, so the slope grows.
        """
        pulled = self.penalty * way
        bend, rest = _dot(pulled, way), _dot(pulled, w)
        force = along * self.weights
        step = torch.zeros_like(bend)
        low, high = step, torch.full_like(step, torch.inf)
        start = now = _dot(force, p - self.given.target) + rest
        to = z
        for _ in range(SEARCHES):
            newton = step - now / (self._bend(p, along, force) + bend).clamp_min(1e-30)
            low, high = torch.where(now < 0, step, low), torch.where(now > 0, step, high)
            between = torch.where(high.isinf(), 2 * step + 1, (low + high) / 2)
            following = torch.where((newton > low) & (newton < high), newton, between)
            step = torch.where(now.abs() > SLOPE * start.abs(), following, step)
            to = torch.addcmul(z, step, along)
            p = self.probabilities(to)
            now = _dot(force, p - self.given.target) + rest + step * bend
            if bool((now.abs() <= SLOPE * start.abs()).all()):
                break
        return step, p, to

    def _bend(self, p: Tensor, along: Tensor, force: Tensor) -> Tensor:
        """The second derivative of the summed loss along a direction."""
        pulled = p * along
        mean = pulled if p.shape[2] == 1 else pulled.sum(2, keepdim=True)
        return _dot(force, pulled - p * mean)


class _Memory:
    """The last steps, and what they say about the Hessian beyond its first estimate."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.scale: Tensor | None = None

    def add(self, step: Tensor, change: Tensor, solved: Tensor) -> None:
        """A step, the change of the gradient along it, and M⁻¹ times that change."""
        bend, length = _dot(step, change), _dot(change, solved)
        good = (bend > 0) & (length > 0)  # neither is where a problem stands still
        inverse = torch.where(good, 1 / bend, 0)
        own = torch.where(good, bend / length, 1 if self.scale is None else self.scale)
        self.scale = own
        self.steps = [*self.steps[1 - MEMORY :], (step, change, solved, inverse)]

    def direction(self, gradient: Tensor, solved: Tensor) -> Tensor:
        """Minus the inverse Hessian times the gradient; `solved` is M⁻¹ times the gradient."""
        if self.scale is None:
            return -solved
        parts, left, out = [], gradient, solved
        for step, change, undone, inverse in reversed(self.steps):
            part = -inverse * _dot(step, left)
            left, out = torch.addcmul(left, part, change), torch.addcmul(out, part, undone)
            parts.append(part)
        out = -self.scale * out
        for (step, change, _, inverse), part in zip(self.steps, reversed(parts), strict=True):
            out = torch.addcmul(out, part - inverse * _dot(change, out), step)
        return out


def probabilities(
    z: Float[Tensor, "b t k n"], absent: Bool[Tensor, "w t k one"] | None = None
) -> Float[Tensor, "b t k n"]:
    """Of the classes; of two classes that of the second alone."""
    if z.shape[2] == 1:
        return z.sigmoid()
    return (z if absent is None else z.masked_fill(absent, -torch.inf)).softmax(2)


def _times(w: Float[Tensor, "b t k m"], x: Float[Tensor, "b m o"]) -> Float[Tensor, "b t k o"]:
    return (w.flatten(1, 2) @ x).unflatten(1, w.shape[1:3])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Of each problem: [b t 1 1]."""
    return (a * b).sum((2, 3), keepdim=True)


def _length(w: Float[Tensor, "b t k d"]) -> Float[Tensor, "b t"]:
    """Of the coefficients, without the intercepts."""
    return w[..., :-1].square().sum((2, 3)).sqrt()
