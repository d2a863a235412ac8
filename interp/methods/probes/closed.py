"""The probes that have a formula: difference of means, linear discriminant analysis, ridge.

Each takes prepared features [b n d] whose last column is ones, and gives coefficients [b t k d] as
the solver does. The factor of a set of training rows serves every labelling of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor


def means(
    x: Float[Tensor, "b n d"], one_hot: Float[Tensor, "t k n"], train: Float[Tensor, "w t n"]
) -> tuple[Float[Tensor, "b t k d"], Float[Tensor, "w t k"]]:
    """The mean of each class over the training rows, and how many rows it has."""
    weights = one_hot * train[:, :, None]
    count = weights.sum(-1)
    total = (weights.expand(len(x), -1, -1, -1).flatten(1, 2) @ x).unflatten(1, weights.shape[1:3])
    return total / count[..., None].clamp_min(1), count


def mean_difference(
    mean: Float[Tensor, "b t k d"], penalty: Float[Tensor, "p t one d"]
) -> Float[Tensor, "b t k2 d"]:
    """From the middle of the first class to that of the second, cut halfway between (Marks &
    Tegmark 2023); of more classes the nearest mean."""
    mean = torch.cat([mean[..., :-1], torch.zeros_like(mean[..., :1])], -1)
    coef = mean / torch.where(penalty == 0, 1, penalty)
    coef[..., -1] = -(mean * coef).sum(-1) / 2
    return _between(coef)


def discriminant(
    x: Float[Tensor, "b n d"],
    mean: Float[Tensor, "b t k d"],
    count: Float[Tensor, "w t k"],
    train: Float[Tensor, "w f n"],
    priors: Float[Tensor, "w t k"],
) -> Float[Tensor, "b t k2 d"]:
    """Linear discriminant analysis (Fisher 1936), as scikit-learn's with its solver "lsqr".

    t counts all labellings of the first fold, then those of the next. The scatter within classes is
    that of all rows less a part of rank k − 1, so one factor per fold serves all its labellings
    (Woodbury 1950). Raises ValueError where a direction separates the training rows exactly.
    """
    t, k = mean.shape[1:3]
    f, features = train.shape[1], x[..., :-1].double()
    mean, count = mean[..., :-1].double(), count.double()
    share = count / count.sum(-1, keepdim=True)
    grand = (share[..., None] * mean).sum(2, keepdim=True)
    spread = count.sqrt()[..., None] * (mean - grand)
    undone = torch.empty_like(spread)
    centred = mean - (priors[..., None].double() * mean).sum(2, keepdim=True)
    solved = torch.empty_like(spread)
    for i in range(f):
        rows = train[:, i, :, None].double()
        about = features - (rows * features).sum(1, keepdim=True) / rows.sum(1, keepdim=True)
        inverse = torch.linalg.pinv((rows * about).mT @ about, rtol=1e-10, hermitian=True)
        own = slice(i * (t // f), (i + 1) * (t // f))
        for out, given in ((undone, spread), (solved, centred)):
            out[:, own] = (given[:, own].flatten(1, 2) @ inverse).unflatten(1, (t // f, k))
    left = torch.eye(k, dtype=torch.float64, device=x.device) - spread @ undone.mT
    if bool((torch.linalg.eigvalsh((left + left.mT) / 2) < 1e-8).any()):
        raise ValueError(
            f"the classes of {int(count.sum(-1).min())} training examples with "
            f"{features.shape[-1]} features are separated without any variance within them: linear "
            "discriminant analysis has no solution; use kind='logistic' or 'mean_difference'"
        )
    solved = solved + torch.linalg.solve(left, spread @ solved.mT).mT @ undone
    solved = count.sum(-1)[..., None, None] * solved
    middle = mean - centred / 2  # halfway between a class and the mean of all
    offset = priors.double().log() - (middle * solved).sum(-1)
    return _between(torch.cat([solved, offset[..., None]], -1).to(x.dtype))


def ridge(
    x: Float[Tensor, "b n d"],
    y: Float[Tensor, "t n"],
    train: Float[Tensor, "w f n"],
    penalty: Float[Tensor, "p f d"],
    Cs: Sequence[float],
) -> Float[Tensor, "c b t one d"]:
    """Least squares with alpha = 1 / C for each C, as scikit-learn's Ridge; t as in `discriminant`.

    The Gram matrix of the training rows is that of all rows less that of the others, so that all
    folds together cost two of them; it serves every C.
    """
    wide, folds = x.double(), train.shape[1]
    labellings, parts = y.shape[0] // folds, []
    whole = wide.mT @ wide if folds > 1 else None
    for i in range(folds):
        rows = train[:, i, :, None].double()
        given = (rows if whole is None else 1 - rows) * wide
        gram = given.mT @ wide if whole is None else whole - given.mT @ wide
        own = y[i * labellings : (i + 1) * labellings].double()
        toward, ridge_of = (rows * wide).mT @ own.T, torch.diag_embed(penalty[:, i].double())
        parts.append(
            torch.stack([
                torch.cholesky_solve(toward, torch.linalg.cholesky(gram + ridge_of / C)).mT
                for C in Cs
            ])
        )  # fmt: skip
    return torch.cat(parts, 2)[:, :, :, None].to(x.dtype)


def one_hot(y: Int[Tensor, "t n"], n_classes: int, dtype: torch.dtype) -> Float[Tensor, "t k n"]:
    """A row per class, 1 where it is."""
    return torch.nn.functional.one_hot(y, n_classes).mT.to(dtype)


def _between(coef: Float[Tensor, "b t k d"]) -> Float[Tensor, "b t k2 d"]:
    """Of two classes the difference, of more each its own."""
    return coef[:, :, 1:] - coef[:, :, :1] if coef.shape[2] == 2 else coef
