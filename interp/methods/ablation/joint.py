"""Removal: what single parts of a model, pairs of them and growing sets cost when they are gone.

The effect of one removal is a lower bound of what a part does: others may take over (backup heads,
Wang et al. 2022; the Hydra effect, McGrath et al. 2023). A second removal, given the first, shows
who did. Everything here is one sweep over joint nodes: lines that share `row` go together.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.core.indices import Indices, check_once, listed, whole_number
from interp.sweeps.edits import Edit
from interp.sweeps.engine import Nodes, sweep
from interp.sweeps.metrics import Metric
from interp.sweeps.nodes import as_frame

from .. import stats
from .significance import significance

EVERY = 12
"""Counts at either end of a cumulative curve that are all measured."""
STEPS = 9
"""Counts from none to all, evenly spaced, that are measured besides, and of random orders."""


def second_removals(
    model: Any,
    tokens: Any,
    nodes: Nodes,
    firsts: Indices,
    *,
    edit: Edit,
    metric: Metric,
    least: float = 0.0,
    engine: Literal["rerun", "naive"] | None = None,
    journal: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Every node removed once more, given that another is gone: one row per first and second.

    firsts: the `row`s of the nodes that go first. Columns: first second | first_alone alone given
    given_stderr given_p_corrected interaction stderr low high p p_corrected n. alone and given are
    the effects of removing the second, from the whole model and from the one without the first;
    interaction = given − alone = joint − sum of singles, with its standard error, 95 % interval and
    `significance` (Holm over all pairs, each counted once, since the interaction of a pair is the
    same either way round); given is tested likewise, over all firsts and seconds.
    Effects are value − baseline: of a metric that falls with damage a backup has an interaction
    below zero, and parts in series, or of one kind, above. Raises ValueError on a first that is not
    among the nodes, and where there is no pair.
    """
    frame = as_frame(nodes)
    rows = frame["row"].drop_duplicates().astype(int).tolist()
    firsts = [whole_number(row, "firsts") for row in listed(firsts, "firsts")]
    check_once(firsts, "firsts")
    absent = [row for row in firsts if row not in rows]
    if absent:
        raise ValueError(f"firsts={absent}: the nodes have the rows {rows[0]} to {rows[-1]}")
    pairs = list(dict.fromkeys(
        (min(a, b), max(a, b)) for a in firsts for b in rows if a != b
    ))  # fmt: skip
    if not pairs:
        raise ValueError(f"{len(rows)} node and {len(firsts)} firsts make no pair")
    sets = [(row,) for row in rows] + pairs
    effects, baseline, cost = _measured(
        model, tokens, frame, sets, edit, metric, engine=engine, journal=journal, progress=progress
    )
    at = {one: i for i, one in enumerate(sets)}
    single = {row: effects[at[row,]] for row in rows}
    between = np.stack([effects[at[a, b]] - single[a] - single[b] for a, b in pairs])
    tested = significance(between, baseline, least=least)
    ordered = [(a, b) for a in dict.fromkeys(firsts) for b in rows if a != b]
    given = np.stack([effects[at[min(one), max(one)]] - single[one[0]] for one in ordered])
    costs = significance(given, baseline, least=least)
    number = {pair: i for i, pair in enumerate(pairs)}
    lines = [
        {
            "first": first,
            "second": second,
            "first_alone": single[first].mean(),
            "alone": single[second].mean(),
            "given": costs["effect"][i],
            "given_stderr": costs["stderr"][i],
            "given_p_corrected": costs["p_corrected"][i],
            **tested.loc[number[min(first, second), max(first, second)]]
            .rename({"effect": "interaction"})
            .to_dict(),
            "n": len(baseline),
        }
        for i, (first, second) in enumerate(ordered)
    ]
    result = pd.DataFrame(lines)
    result.attrs |= cost
    return result


def cumulative_ablation(
    model: Any,
    tokens: Any,
    nodes: Nodes,
    *,
    edit: Edit,
    metric: Metric,
    counts: Sequence[int] | None = None,
    random_counts: Sequence[int] | None = None,
    orders: int = 20,
    seed: int = 0,
    engine: Literal["rerun", "naive"] | None = None,
    journal: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """More and more nodes removed together: one row per order and number of nodes removed.

    nodes: the most important first. Columns: order draw removed overlap | value baseline effect
    stderr n share low high. order is "most" (the most important goes first), "least", or "random"
    with its `draw` (−1 elsewhere), of which there are `orders`, drawn from `seed`; the first k of a
    random order are a random set of k nodes. overlap: how many of those removed are among as many
    of the most important. counts: how many nodes are removed, by default `default_counts`;
    random_counts: the same for random orders, by default nine evenly spaced. share = mean value /
    mean baseline with its 95 % interval; NaN where the baseline is not away from zero. Choose the
    order on other examples than these: on the same ones chance alone makes the first look
    important. Raises ValueError on counts outside 0 … nodes, and where nothing is removed.
    """
    frame = as_frame(nodes)
    ranked = frame["row"].drop_duplicates().astype(int).tolist()
    n = len(ranked)
    counts = sorted({*(default_counts(n) if counts is None else counts)})
    rarer = sorted({*(default_counts(n, ends=0) if random_counts is None else random_counts)})
    for some in (counts, rarer):
        if not some or some[0] < 0 or some[-1] > n:
            raise ValueError(f"counts {some}: expected numbers from 0 to {n}")
    if orders < 0:
        raise ValueError(f"orders={orders}: expected 0 (no random order) or more")
    rng = np.random.default_rng(seed)
    named = {("most", -1): (ranked, counts), ("least", -1): (ranked[::-1], counts)}
    named |= {("random", i): (rng.permutation(ranked).tolist(), rarer) for i in range(orders)}
    taken = {
        (*name, k): tuple(sorted(order[:k])) for name, (order, some) in named.items() for k in some
    }
    sets = [one for one in dict.fromkeys(taken.values()) if one]
    if not sets:
        raise ValueError(f"counts={list(counts)}: nothing is ever removed")
    effects, baseline, cost = _measured(
        model, tokens, frame, sets, edit, metric, engine=engine, journal=journal, progress=progress
    )
    at = {one: i for i, one in enumerate(sets)}
    nothing = np.zeros_like(baseline)
    chosen = np.stack([effects[at[one]] if one else nothing for one in taken.values()])
    effect, value = stats.mean(chosen), baseline + chosen
    share = _share(value, baseline)
    overlap = [len({*ranked[: len(one)]} & {*one}) for one in taken.values()]
    result = pd.DataFrame(list(taken), columns=["order", "draw", "removed"]).assign(
        overlap=overlap,
        value=value.mean(-1), baseline=baseline.mean(), effect=effect.value, stderr=effect.stderr,
        n=len(baseline), share=share.value, low=share.low, high=share.high,
    )  # fmt: skip
    result.attrs |= cost
    return result


def default_counts(n: int, ends: int = EVERY) -> list[int]:
    """How many of n nodes are removed: every number up to `ends` and within `ends` of all, and nine
    evenly spaced."""
    near = range(min(ends, n) + 1)
    spaced = np.linspace(0, n, STEPS).round().astype(int).tolist()
    return sorted({*near, *(n - k for k in near), *spaced})


def _measured(
    model: Any,
    tokens: Any,
    frame: pd.DataFrame,
    sets: Sequence[tuple[int, ...]],
    edit: Edit,
    metric: Metric,
    **options: Any,
) -> tuple[Float[np.ndarray, "set n"], Float[np.ndarray, " n"], dict[str, Any]]:
    """The effect on every example of removing each set of nodes together, the baseline, and what
    the sweep cost."""
    lines = {row: np.flatnonzero(frame["row"] == row) for row in {*itertools.chain(*sets)}}
    chosen = [np.concatenate([lines[row] for row in one]) for one in sets]
    sizes = [len(one) for one in chosen]
    joint = frame.iloc[np.concatenate(chosen)].assign(row=np.repeat(np.arange(len(sets)), sizes))
    long = sweep(model, tokens, joint, edit=edit, metric=metric, reduce="none", **options)
    # A node of several lines has each of its numbers once per line.
    first = np.cumsum([0, *sizes[:-1]])
    effect, baseline = (
        long[name].to_numpy(float).reshape(len(joint), -1) for name in ("effect", "baseline")
    )
    return effect[first], baseline[0], dict(long.attrs)


def _share(value: Float[np.ndarray, "set n"], baseline: Float[np.ndarray, " n"]) -> stats.Estimate:
    try:
        return stats.ratio_of_means(value, baseline)
    except ValueError:  # the baseline is not away from zero
        return stats.Estimate(*[np.full(len(value), np.nan)] * 4)
