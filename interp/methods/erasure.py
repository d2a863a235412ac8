"""Erasing a concept from activations, so that no linear probe finds it there.

LEACE (Belrose et al. 2023): of all affine maps after which nothing linear is left of a concept z,
r(x) = x − Σxz (Σzx Σxx⁺ Σxz)⁺ Σzx Σxx⁺ (x − E x) moves x least, in every norm that comes from an
inner product. Erasing the mean differences projects along the same directions at a right angle: it
erases as well, and moves x further. What a model does without the concept says whether it was used
(amnesic probing: Elazar et al. 2021), if it does better without as many random directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from concept_erasure import LeaceFitter
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch import Tensor

from interp.core import chance
from interp.core.basis import random_orthonormal
from interp.core.sites import SiteName
from interp.core.tap import Hook
from interp.core.tokens import Tokens
from interp.data.activations import node_at, vector_site, vectors_at
from interp.data.moments import Moments
from interp.model import HookedTransformer
from interp.sweeps.edits import Edit, Replace, each
from interp.sweeps.engine import sweep
from interp.sweeps.metrics import Metric, Where

from .stats import wilson

Method = Literal["leace", "mean_difference"]
RTOL = 1e-12
"""Directions with less than this share of the largest variance count as constant: what float32
leaves of an exact zero lies below, and to divide by it would blow rounding up."""
CORRELATED = 1e-8
"""A correlation below this (standard deviations of x and z at one) is rounding."""


@dataclass(frozen=True, eq=False)
class Eraser:
    """x − (x − mean) rightᵀ leftᵀ: an affine map that takes `rank` directions out of x."""

    left: Float[Tensor, "d rank"]
    right: Float[Tensor, "rank d"]
    mean: Float[Tensor, " d"]
    """Of the data it was fitted on; stays where it is."""
    method: str
    site: str | None = None
    """The full name of the site whose activations it was fitted on; None: anywhere."""
    n: int = 0
    """Rows it was fitted on."""
    seed: int | None = field(default=None)
    """Of a random one."""

    @property
    def rank(self) -> int:
        """How many directions are taken out."""
        return self.left.shape[1]

    @property
    def matrix(self) -> Float[Tensor, "d d"]:
        """P of x ↦ P x + bias."""
        return torch.eye(len(self.mean), dtype=self.mean.dtype) - self.left @ self.right

    @property
    def bias(self) -> Float[Tensor, " d"]:
        """(1 − P) mean."""
        return self.left @ (self.right @ self.mean)

    def __call__(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """The erased activations, in the dtype of x (half precision is computed in float32)."""
        if x.shape[-1] != len(self.mean):
            raise ValueError(
                f"the eraser of {len(self.mean)} numbers cannot be used on {x.shape[-1]}"
            )
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        left, right, mean = (part.to(wide) for part in (self.left, self.right, self.mean))
        return (wide - ((wide - mean) @ right.T) @ left.T).to(x.dtype)

    def edit(self) -> Edit:
        """The edit of a sweep. Raises ValueError, when bound, at another site than its own."""
        return Edit(f"erase({self.method}, rank {self.rank})", "ablate", self._bind)

    def _bind(self, model: HookedTransformer, tokens: Tokens, sites: Iterable[str]) -> Replace:
        for name in sites:
            self._check(name)
        return lambda x, rows: self(x)

    def hooks(self) -> list[tuple[str, Callable[[Tensor, Hook], Tensor]]]:
        """For `model.with_hooks`: a view whose activations at its site are erased everywhere."""
        if self.site is None:
            raise ValueError("this eraser has no site: fit it with site=, or use it as a function")
        return [(self.site, lambda x, hook: self(x))]

    def _check(self, name: str) -> None:
        if self.site is not None and name != self.site:
            raise ValueError(f"the eraser was fitted at {self.site!r} and is used at {name!r}")


def fit_eraser(
    x: Float[Tensor, "n d"] | Moments,
    y: Tensor | None = None,
    *,
    method: Method = "leace",
    site: str | None = None,
    rtol: float = RTOL,
) -> Eraser:
    """Fitted on rows with classes y [n] (whole numbers) or targets y [n] or [n k], or on Moments of
    a stream.

    The rank is that of the cross-covariance: at most classes − 1, or k. Directions whose variance
    is below `rtol` of the largest count as constant and stay as they are. Raises ValueError where
    the rows hold one class only, or nothing of y is linear in x: there is nothing to erase.
    """
    moments = x if isinstance(x, Moments) else Moments.of(x, y)
    if isinstance(x, Moments) and y is not None:
        raise ValueError("y= goes with rows: the Moments hold what they were given")
    if not moments.targets:
        raise ValueError("there is no concept: make the Moments with classes= or targets=")
    if method not in ("leace", "mean_difference"):
        raise ValueError(f"method={method!r}: expected 'leace' or 'mean_difference'")
    spread = moments.target_covariance.diagonal().sqrt()
    if not bool((spread > 0).any()):
        raise ValueError(f"all {moments.n} rows have the same label: there is nothing to erase")
    basis, values = _varying(moments, rtol)
    cross = basis.T @ moments.cross_covariance[:, spread > 0] / spread[spread > 0]
    left, right = _erasing(values, cross, moments.n, method)
    if left.shape[1] == 0:
        raise ValueError(
            "the label is not correlated with any direction: there is nothing to erase"
        )
    parts = (part.cpu() for part in (basis @ left, right @ basis.T, moments.mean))
    return Eraser(*parts, method=method, site=site, n=moments.n)


def random_eraser(
    moments: Moments, rank: int, *, seed: int, method: Method = "leace", site: str | None = None
) -> Eraser:
    """The control: as many directions at random. "leace": of the whitened data, so that as much of
    their variance is likely to go as an eraser of a concept without meaning would take;
    "mean_difference": of the space itself."""
    basis, values = _varying(moments, RTOL)
    if not 1 <= rank <= len(values):
        raise ValueError(f"rank={rank}: the data vary along {len(values)} directions")
    generator = chance.seeded(seed)
    own = random_orthonormal(len(values), rank, generator=generator).to(values)
    size = values.sqrt()[:, None] if method == "leace" else torch.ones_like(values)[:, None]
    parts = (part.cpu() for part in (basis @ (size * own), (own / size).T @ basis.T, moments.mean))
    return Eraser(*parts, method=f"random {method}", site=site, n=moments.n, seed=seed)


def _varying(moments: Moments, rtol: float) -> tuple[Float[Tensor, "d r"], Float[Tensor, " r"]]:
    """The principal directions along which the data vary, and their variances."""
    values, vectors = torch.linalg.eigh(moments.covariance)
    keep = values > rtol * values[-1].clamp_min(0)
    if not bool(keep.any()):
        raise ValueError("the activations do not vary: nothing can be erased from a constant")
    return vectors[:, keep], values[keep]


def _erasing(
    values: Float[Tensor, " r"], cross: Float[Tensor, "r k"], n: int, method: Method
) -> tuple[Tensor, Tensor]:
    """Both sides of the projection, in the principal directions of the data."""
    r, k = cross.shape
    # Both tolerances of the package are absolute: give it numbers of the order of one.
    size = values.sqrt() if method == "leace" else torch.full_like(values, float(cross.norm()) or 1)
    fitter = LeaceFitter(
        r, k, "leace" if method == "leace" else "orth", shrinkage=False, svd_tol=CORRELATED,
        constrain_cov_trace=False, dtype=values.dtype, device=values.device,
    )  # fmt: skip
    fitter.n = torch.tensor(n)
    fitter.sigma_xz_ = cross / size[:, None] * (n - 1)
    if method == "leace":
        fitter.sigma_xx_ = torch.eye(r, dtype=values.dtype, device=values.device) * (n - 1)
    found = fitter.eraser
    keep = found.proj_left.norm(dim=0) > 0
    left, right = found.proj_left[:, keep], found.proj_right[keep]
    if method == "leace":
        left, right = left * size[:, None], right / size
    return left, right


def amnesic_check(
    model: HookedTransformer,
    tokens: Any,
    labels: Int[Tensor, " n"],
    site: SiteName,
    metric: Metric,
    *,
    pos: Where = None,
    everywhere: bool = False,
    n_random: int = 10,
    held_out: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """What is left of a concept, and of the model, when it is erased: one row for "none", for each
    method and for each of `n_random` random erasers of LEACE's rank.

    Columns: erased draw rank | accuracy low high chance (of a logistic probe on examples that
    neither it nor the eraser has seen, with its 95 % interval, and the share of the commonest
    class there) | moved (mean squared change of x over its variance) | value baseline effect
    stderr n (of the metric, swept over all examples with the eraser as the edit) | p (the share of
    random erasers, this one counted, whose effect is as large; of random ones among the others).

    labels: one class per example. The concept is read and erased at `pos` (default: the last real
    token), or erased at all positions with `everywhere`. Random: the split and the random erasers,
    by `seed`. An effect like that of random directions says nothing about the concept.
    """
    tokens, found = model.accept(tokens), vector_site(model, site)
    labels = torch.as_tensor(labels).cpu()
    _check_labels(labels, len(tokens), n_random)
    x = vectors_at(model, tokens, site, pos).double()
    train, test = train_test_split(
        np.arange(len(x)), test_size=held_out, random_state=seed, stratify=labels.numpy()
    )
    moments, size = Moments.of(x[train], labels[train]), _scale(x[train])
    erasers: list[tuple[str, int, Eraser | None]] = [("none", 0, None)]
    for method in ("leace", "mean_difference"):
        erasers.append((method, 0, fit_eraser(moments, method=method, site=found.name)))
    leace = erasers[1][2]
    assert leace is not None
    for draw in range(n_random):
        own = random_eraser(moments, leace.rank, seed=seed + draw, site=found.name)
        erasers.append(("random", draw, own))
    acting, node = node_at(model, tokens, site, "all" if everywhere else pos)
    acts = {i: eraser.edit() for i, (_, _, eraser) in enumerate(erasers) if eraser is not None}
    nodes = pd.concat([node.assign(row=i) for i in acts], ignore_index=True)
    swept = sweep(
        model, acting, nodes, edit=each(acts, "erase"), metric=metric, progress=progress
    ).set_index("row")
    rows = []
    for i, (name, draw, eraser) in enumerate(erasers):
        erased = x if eraser is None else eraser(x)
        line = {"erased": name, "draw": draw, "rank": 0 if eraser is None else eraser.rank}
        line |= _probed(erased * size, labels, train, test)
        line["moved"] = float((erased - x).square().sum() / (x - x.mean(0)).square().sum())
        own = swept.iloc[0] if eraser is None else swept.loc[i]
        line |= {column: own[column] for column in ("value", "baseline", "effect", "stderr", "n")}
        if eraser is None:
            line |= {"value": own["baseline"], "effect": 0.0, "stderr": 0.0}
        rows.append(line)
    frame = pd.DataFrame(rows)
    frame["p"] = _share_as_large(frame)
    return frame


def _check_labels(labels: Tensor, n: int, n_random: int) -> None:
    if labels.is_floating_point() or labels.shape != (n,):
        raise ValueError(
            f"labels are {labels.dtype} {list(labels.shape)}: expected one class per example ({n})"
        )
    if n_random < 1:
        raise ValueError(f"n_random={n_random}: without a random eraser there is no control")
    counts = labels.unique(return_counts=True)[1]
    if len(counts) < 2 or int(counts.min()) < 4:
        raise ValueError(
            f"labels have classes of {counts.tolist()} examples: expected two classes or more, of "
            "four examples or more"
        )


def _scale(x: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """What features are multiplied by for a probe: before and after erasing the same, since what
    rounding leaves of an erased feature must not be scaled up."""
    spread = x.std(0)
    return torch.where(spread > 1e-6 * spread.max(), 1 / spread, 0.0)


def _probed(x: Tensor, labels: Tensor, train: Any, test: Any) -> dict[str, float]:
    """A fresh probe of the features, scored where it was not fitted."""
    features, y = (x - x[train].mean(0)).numpy(), labels.numpy()
    probe = LogisticRegression(max_iter=1000).fit(features[train], y[train])
    right = probe.predict(features[test]) == y[test]
    (low,), (high,) = wilson(np.array([right.sum()]), np.array([len(test)]))
    chance = np.unique(y[test], return_counts=True)[1].max() / len(test)
    return {"accuracy": right.mean(), "low": low, "high": high, "chance": chance}


def _share_as_large(frame: pd.DataFrame) -> list[float]:
    """By rank among the random erasers, the row itself counted once."""
    size, random = frame["effect"].abs().to_numpy(), (frame["erased"] == "random").to_numpy()
    shares = []
    for i, own in enumerate(size):
        others = size[random & (np.arange(len(size)) != i)]
        shares.append((1 + int((others >= own).sum())) / (1 + len(others)))
    return shares
