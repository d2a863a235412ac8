"""Whether a direction causes what it is said to: ablated, added, and compared with chance.

Everything is measured through `sweep`. A random direction also moves an output if it is long
enough, and one along which the data vary moves it more: both kinds of control are of equal norm,
and a p-value is a rank among them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core import chance
from interp.core.sites import SiteName
from interp.data.activations import node_at, vectors_at
from interp.sweeps import edits
from interp.sweeps.edits import Edit
from interp.sweeps.engine import sweep
from interp.sweeps.metrics import Metric, Where

OFF = ("value", "baseline", "effect", "size")
"""What is told of the metric that should not move."""


class Part(NamedTuple):
    """A vector that is added, and what it is part of."""

    arm: str
    draw: int
    unit: Float[Tensor, " d"]


def causal_check(
    model: Any,
    tokens: Any,
    direction: Any,
    metric: Metric,
    *,
    off_target: Metric | None = None,
    factors: Sequence[float] = (-2.0, -1.0, 1.0, 2.0),
    n_random: int = 20,
    site: SiteName | None = None,
    pos: Where | Literal["all"] = "all",
    step: float | None = None,
    seed: int = 0,
    journal: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Ablate a `Direction` and add it, by every factor, beside `n_random` directions of each kind.

    Columns: arm draw action factor step | value baseline effect stderr size n (of `metric`; effect
    is the mean change over examples, size the mean of its absolute value; stderr is NaN for one
    example) | off_value off_baseline off_effect off_size (of `off_target`, such as
    `metrics.loss()`: what else is broken; there if it is given) | p_random p_covariance.

    arm: "found"; "random", uniform on the sphere; "covariance", drawn as the data vary, the harder
    control. action: "ablate" (projected out; factor 0) or "steer" (factor · step · unit added).
    step: by default the standard deviation of the activations along the direction, on the real
    tokens read at `pos`; controls are moved by the same length. p: the share of a kind's draws,
    this row counted once, whose size is as large; of a draw it is among the others, so that draws
    show what chance looks like. It is never below 1 / (n_random + 1). Ranked are sizes because
    effects of ablation cancel: without gender, "she" falls in half of the examples and rises in the
    others.

    journal: a file from which a killed call goes on; that of `off_target` is beside it (".off").
    Random: the draws, by `seed`. Raises ValueError where the activations do not vary along the
    direction (steering would then have no unit: give step=), and at another width.
    """
    name = direction.check(model, site)
    if n_random < 1 or not factors or 0 in factors:
        raise ValueError(
            f"n_random={n_random}, factors={tuple(factors)}: expected one random direction or more "
            "and factors other than 0"
        )
    acting, node = node_at(model, tokens, name, pos)
    x = vectors_at(model, acting, name, pos).double()
    largest = float(x.abs().max())
    x = x - x.mean(0)
    if not float(x.abs().max()) > 1e-9 * largest:  # rounding
        raise ValueError(
            f"the activations at {name!r} do not vary over these tokens, so that no control can be "
            "drawn as they vary: give more of them"
        )
    unit = direction.unit.cpu()
    size = _checked_step(step, x, unit, name)
    rows: list[dict[str, Any]] = []
    acts: list[Edit] = []
    for part in _arms(unit, x, n_random, seed):
        for action, factor, edit in _edits(part.unit, factors, size):
            rows.append({"arm": part.arm, "draw": part.draw, "action": action, "factor": factor,
                         "step": factor * size})  # fmt: skip
            acts.append(edit)
    measures = {"": metric} if off_target is None else {"": metric, "off_": off_target}
    for mark, measure in measures.items():
        kept_in = f"{os.fspath(journal)}{'.off' if mark else ''}" if journal else None
        found = _measured(model, acting, node, acts, measure, progress, kept_in)
        for row, line in zip(rows, found, strict=True):
            kept = line if not mark else {name: line[name] for name in OFF}
            row |= {f"{mark}{name}": value for name, value in kept.items()}
    frame = pd.DataFrame(rows)
    for kind in ("random", "covariance"):
        frame[f"p_{kind}"] = _p(frame, kind)
    return frame


def _checked_step(step: float | None, x: Tensor, unit: Tensor, name: str) -> float:
    """By default the standard deviation along the direction, which must not be zero."""
    size = float((x @ unit).std()) if step is None else step
    if not size > 1e-9 * float(x.std()):
        raise ValueError(
            f"the activations at {name!r} do not vary along the direction (standard deviation "
            f"{size:.2g}), so that it has no unit; see `dormancy`, or give step="
        )
    return size


def _measured(
    model: Any,
    tokens: Any,
    node: pd.DataFrame,
    acts: Sequence[Edit],
    metric: Metric,
    progress: bool,
    journal: str | None = None,
) -> list[dict[str, float]]:
    """What every edit of one node does, by one sweep."""
    nodes = pd.concat([node.assign(row=i) for i in range(len(acts))], ignore_index=True)
    # An ablated direction may truly be absent: no effect is then the answer.
    each = sweep(
        model, tokens, nodes, edit=edits.each(dict(enumerate(acts)), "directions"), metric=metric,
        reduce="none", allow_noop=True, journal=journal, progress=progress,
    )  # fmt: skip
    found = []
    for _, own in each.groupby("row", sort=True):
        effect = own["effect"]
        found.append({
            "value": own["value"].mean(), "baseline": own["baseline"].mean(),
            "effect": effect.mean(), "stderr": effect.sem(), "size": effect.abs().mean(),
            "n": len(own),
        })  # fmt: skip
    return found


def _arms(unit: Tensor, x: Tensor, n_random: int, seed: int) -> Iterator[Part]:
    yield Part("found", 0, unit)
    for draw in range(n_random):
        generator = chance.seeded(1_000_003 * seed + draw)
        even = chance.normal(len(unit), generator=generator)
        yield Part("random", draw, even / even.norm())
        own = chance.normal(len(x), generator=generator) @ x
        yield Part("covariance", draw, own / own.norm())


def _edits(
    unit: Tensor, factors: Sequence[float], step: float
) -> Iterator[tuple[str, float, Edit]]:
    yield "ablate", 0.0, edits.project_out(unit)
    for factor in factors:
        yield "steer", float(factor), edits.add(unit, factor * step)


def _p(frame: pd.DataFrame, kind: str) -> pd.Series:
    """By rank of size among the draws of a kind, at the same action and factor."""
    found = pd.Series(1.0, index=frame.index)
    for _, some in frame.groupby(["action", "factor"], sort=False):
        size = some["size"]
        draws = size[some["arm"] == kind]
        for i in some.index:
            others = draws.drop(index=i, errors="ignore")
            found[i] = (1 + int((others >= size[i]).sum())) / (1 + len(others))
    return found


def dormancy(
    model: Any,
    tokens: Any,
    direction: Any,
    metric: Metric,
    *,
    explained: float = 0.999,
    site: SiteName | None = None,
    pos: Where | Literal["all"] = "all",
    step: float | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Whether a direction acts by a part along which the data never vary: part share expected sd
    effect stderr.

    The direction is cut into what lies in the principal directions that explain `explained` of the
    activations' variance ("varies") and the rest ("dormant"). share: of its squared length;
    expected: of a random direction. sd: of the activations along the part. effect: what adding the
    part, out of `step` · unit, changes of the metric. step: by default the activations' standard
    deviation along the direction, or their mean one where that is zero. Parts that act against each
    other, or a "dormant" one that does most of it, mean an illusion (Makelov et al. 2023):
    `attrs["dormant_effect"]` is |dormant| / (|varies| + |dormant|), 0 if nothing acts.
    """
    if not 0 < explained <= 1:
        raise ValueError(f"explained={explained}: expected a share above 0")
    name = direction.check(model, site)
    acting, node = node_at(model, tokens, name, pos)
    x = vectors_at(model, acting, name, pos).double()
    x = x - x.mean(0)
    basis = _principal(x, explained)
    unit = direction.unit.cpu()
    varies = basis @ (basis.T @ unit)
    parts = {"whole": unit, "varies": varies, "dormant": unit - varies}
    # What rounding leaves of a part that is not there must not count as one that acts.
    parts = {name: one * (one.norm() > 1e-6) for name, one in parts.items()}
    size = step or float((x @ unit).std())
    if not size > 1e-9 * float(x.std()):
        size = float(x.std())
    acts = [edits.add(vector, size) for vector in parts.values()]
    rows = []
    for (what, vector), one in zip(
        parts.items(), _measured(model, acting, node, acts, metric, progress), strict=True
    ):
        share = float(vector.square().sum())
        spread = float((x @ vector / share**0.5).std()) if share > 0 else 0.0
        rows.append({
            "part": what, "share": share, "expected": _expected(what, basis), "sd": spread,
            "effect": one["effect"], "stderr": one["stderr"],
        })  # fmt: skip
    frame = pd.DataFrame(rows)
    _, varied, dormant = (abs(float(row["effect"])) for row in rows)
    total = varied + dormant
    frame.attrs["dormant_effect"] = dormant / total if total > 0 else 0.0
    frame.attrs["step"] = size
    return frame


def _principal(x: Float[Tensor, "n d"], explained: float) -> Float[Tensor, "d r"]:
    """The fewest principal directions that explain a share of the variance."""
    if len(x) < 2 or not bool(x.any()):
        raise ValueError("the activations do not vary over these tokens: give more of them")
    _, sizes, directions = torch.linalg.svd(x, full_matrices=False)
    shares = sizes.square().cumsum(0) / sizes.square().sum()
    rank = min(int((shares < explained - 1e-12).sum()) + 1, len(sizes))
    return directions[:rank].T


def _expected(part: str, basis: Tensor) -> float:
    varies = basis.shape[1] / basis.shape[0]
    return {"whole": 1.0, "varies": varies, "dormant": 1 - varies}[part]
