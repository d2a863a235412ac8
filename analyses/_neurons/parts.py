"""The measurements behind the report on neurons: rankings, and sets of neurons against random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

import interp
from analyses._task import TaskConfig
from interp import edits, stats
from interp.data.tasks import Pairs
from interp.methods.baseline import metric_of
from interp.methods.neurons import SITE, NeuronId, neuron_nodes
from interp.sweeps.metrics import Metric

SIZES = (1, 5, 10, 20, 50)
"""How many neurons are removed together."""
RANDOM = 10
"""Random sets of each size."""
LEAST = 4
"""Prompts that can be halved: on one half neurons are ranked, on the other their sets measured."""
INTERVAL = ("stderr?", "low?", "high?")
LAYERS = ("layer", "n", "effect", *INTERVAL)
RANKING = ("layer", "neuron", "n", "effect", *INTERVAL, "attribution?", "rank", "by_attribution?")
SETS = ("removed", "size", "sets", "n", "effect", "low?", "high?")


Kind = Literal["zero", "mean"]


def name_of(neuron: NeuronId) -> str:
    """As neurons are called: layer.neuron."""
    return f"{neuron[0]}.{neuron[1]}"


@dataclass(frozen=True, eq=False)
class Ranking:
    """Every neuron of some layers, removed alone."""

    table: pd.DataFrame
    """`RANKING`, the largest |effect| first."""
    effects: pd.DataFrame
    """[(layer, neuron), example] the change of the logit difference, answer − wrong."""
    noise: float = 0.0
    """The size up to which a mean effect is rounding."""

    @property
    def silent(self) -> bool:
        """Whether no neuron has an effect beyond rounding."""
        return bool(self.table["effect"].abs().max() <= self.noise)

    @property
    def costliest(self) -> list[NeuronId]:
        """Those whose removal takes most, on all prompts."""
        return costliest(self.effects)

    @property
    def correlation(self) -> float:
        """Spearman's of what removal takes and what the neuron writes; NaN without either, and
        where one of them is rounding throughout."""
        frame = self.table[["effect", "attribution"]].dropna()
        frame = frame.where(frame.abs() > self.noise, 0.0).rank()
        if len(frame) < 3 or frame.nunique().min() < 2:
            return float("nan")
        return float(np.corrcoef(-frame["effect"], frame["attribution"])[0, 1])

    @property
    def beyond(self) -> int:
        """Neurons whose interval, widened for as many as were looked at (Bonferroni), leaves zero
        out."""
        n, m = int(self.table["n"].iloc[0]), len(self.table)
        if n < 2:
            return 0
        limit = stats.errors_needed(n, m)
        effect, error = (self.table[name].to_numpy() for name in ("effect", "stderr"))
        return int((np.abs(effect) > np.maximum(limit * error, self.noise)).sum())


def costliest(effects: pd.DataFrame) -> list[NeuronId]:
    """Neurons by how much their removal takes from the metric, the most first."""
    order = effects.mean(axis=1).sort_values(kind="stable")
    return [(int(layer), int(neuron)) for layer, neuron in np.array(order.index.to_list())]


def whole_layers(model: Any, pairs: Pairs, kind: Kind, config: TaskConfig) -> pd.DataFrame:
    """What the task loses when all neurons of a layer are removed together: `LAYERS`."""
    frame = interp.ablate(
        model, pairs.clean, SITE, by=("layer",), kind=kind, reference=pairs.both,
        metric=metric_of(pairs),
        reduce="none", allow_noop=True, journal=config.kept("layers"),
    )  # fmt: skip
    rows = [
        {"layer": int(str(layer)), **numbers(own["effect"].to_numpy())}
        for layer, own in frame.groupby("layer", sort=True)
    ]
    return pd.DataFrame(rows)


def layers_that_fit(layers: pd.DataFrame, d_mlp: int, most: int) -> list[int]:
    """The layers that matter most, while they have at most so many neurons; at least one."""
    order = layers["effect"].abs().sort_values(ascending=False, kind="stable").index
    chosen = order[: max(1, most // d_mlp)]
    return sorted(int(layer) for layer in layers.loc[chosen, "layer"])


def ranked(
    model: Any, pairs: Pairs, layers: Sequence[int], kind: Kind, config: TaskConfig, noise: float
) -> Ranking:
    """Every neuron of these layers removed alone, and beside it direct attribution. Effects up to
    `noise` are rounding."""
    frame = interp.ablate(
        model, pairs.clean, SITE, by=("layer", "neuron"), layers=layers, kind=kind,
        reference=pairs.both,
        metric=metric_of(pairs), reduce="none", allow_noop=True, journal=config.kept("neurons"),
    )  # fmt: skip
    n = len(pairs)
    keys = frame[["layer", "neuron"]].to_numpy(int)[::n]
    index = pd.MultiIndex.from_arrays(keys.T, names=["layer", "neuron"])
    effects = pd.DataFrame(frame["effect"].to_numpy().reshape(-1, n), index=index)
    found = stats.mean(effects.to_numpy())
    columns = dict(zip(("effect", "stderr", "low", "high"), found, strict=True))
    table = pd.DataFrame({"n": n, **columns}, index=index)
    table["attribution"] = _attribution(model, pairs, layers).reindex(index)
    for name, value in (("rank", "effect"), ("by_attribution", "attribution")):
        table[name] = table[value].abs().rank(ascending=False, method="first")
    table = table.reset_index().sort_values("rank", ignore_index=True).astype({"rank": int})
    return Ranking(table[[name.removesuffix("?") for name in RANKING]], effects, noise)


def _attribution(model: Any, pairs: Pairs, layers: Sequence[int]) -> pd.Series:
    """What each neuron writes towards answer − wrong at "end", over the prompts; empty where there
    is no such sum."""
    try:
        frame = interp.logit_attribution(
            model, pairs.clean, pairs.answer, pairs.wrong, pos="end", by="neuron", layers=layers
        )
    except ValueError:
        return pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[], []]))
    own = frame[frame["neuron"] >= 0]
    return own.groupby(["layer", "neuron"])["value"].mean()


def sets_against_random(
    model: Any, pairs: Pairs, ranking: Ranking, kind: Kind, config: TaskConfig
) -> pd.DataFrame | None:
    """Ranked on one half of the prompts, removed together on the other, beside random sets of the
    same layers: `SETS`. Of the random sets low and high are the least and the most of them. None
    with too few prompts."""
    if len(pairs) < LEAST:
        return None
    rows = np.arange(len(pairs))
    fit, held = rows[::2], pairs[rows[1::2].tolist()]
    order = costliest(ranking.effects[fit])
    rng = np.random.default_rng(config.seed)
    sizes = [size for size in SIZES if 2 * size <= len(order)] or [1]
    sets: list[tuple[str, int, list[NeuronId]]] = []
    for size in sizes:
        sets.append(("costliest", size, order[:size]))
        for _ in range(RANDOM):
            drawn = rng.choice(len(order), size, replace=False)
            sets.append(("random", size, [order[i] for i in drawn]))
    nodes = neuron_nodes(model, [own for *_, own in sets])
    edit = edit_of(kind, pairs.both)
    effects = removed(model, held, nodes, edit, metric_of(held), config, "sets")
    lines = []
    for size in sizes:
        (top,) = (e for e, (kind, s, _) in zip(effects, sets, strict=True)
                  if (kind, s) == ("costliest", size))  # fmt: skip
        others = np.array([e.mean() for e, (kind, s, _) in zip(effects, sets, strict=True)
                           if (kind, s) == ("random", size)])  # fmt: skip
        own = numbers(top)
        lines.append(("costliest", size, 1, len(held), own["effect"], own["low"], own["high"]))
        spread = (others.mean(), others.min(), others.max())
        lines.append(("random", size, len(others), len(held), *map(float, spread)))
    return pd.DataFrame(lines, columns=[name.removesuffix("?") for name in SETS])


def edit_of(kind: Kind, reference: Any) -> edits.Edit:
    """Zero, or the mean over all tokens of a reference."""
    return edits.zero() if kind == "zero" else edits.mean(reference)


def removed(
    model: Any,
    pairs: Any,
    nodes: pd.DataFrame,
    edit: edits.Edit,
    metric: Metric,
    config: TaskConfig,
    name: str,
) -> np.ndarray:
    """[node example] the effect of a sweep over sets of neurons. `pairs`: pairs or tokens."""
    tokens = pairs.clean if isinstance(pairs, Pairs) else pairs
    frame = interp.sweep(
        model, tokens, nodes, edit=edit, metric=metric, reduce="none", allow_noop=True,
        journal=config.kept(name),
    )  # fmt: skip
    frame = frame[~frame.duplicated(["row", "example"])]  # a set has a line per neuron
    return frame["effect"].to_numpy().reshape(-1, len(tokens))


def numbers(values: np.ndarray) -> dict[str, float]:
    """n effect stderr low high, over prompts."""
    found = stats.mean(values)
    names = ("effect", "stderr", "low", "high")
    return {"n": len(values)} | dict(zip(names, map(float, found), strict=True))
