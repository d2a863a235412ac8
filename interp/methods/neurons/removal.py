"""What a task loses without some neurons: one by one, all of a layer, and sets against random ones.

Effects are changes of logit(answer) − logit(wrong) at "end" when neurons are set to zero, or to
their mean over all tokens of the clean and corrupted prompts; below zero the task needs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.core.indices import Indices
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods import stats
from interp.methods.attribution import logit_attribution
from interp.methods.baseline import metric_of
from interp.model import HookedTransformer
from interp.sweeps import edits
from interp.sweeps.engine import ablate, sweep
from interp.sweeps.metrics import Metric

from .firing import SITE, NeuronId, neuron_nodes

SIZES = (1, 5, 10, 20, 50)
"""How many neurons are removed together."""
RANDOM_SETS = 10
"""Random sets of each size."""
LEAST = 4
"""Prompts that can be halved: on one half neurons are ranked, on the other their sets measured."""
INTERVAL = ("stderr?", "low?", "high?")
LAYERS = ("layer", "n", "effect", *INTERVAL)
RANKING = ("layer", "neuron", "n", "effect", *INTERVAL, "attribution?", "rank", "by_attribution?")
SETS = ("removed", "size", "sets", "n", "effect", "low?", "high?")
"""The columns of `layer_effects`, `Ranking.table`, `sets_against_random`; ? may be blank."""
Kind = Literal["zero", "mean"]


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
        """Neurons by how much their removal takes on all prompts, the most first."""
        return _costliest(self.effects)

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
    def beyond_chance(self) -> pd.Series:
        """Of each row of the table, whether its interval leaves zero out even when widened for as
        many neurons as were looked at (Bonferroni); of one prompt, none."""
        n, tests = int(self.table["n"].iloc[0]), len(self.table)
        if n < 2:
            return pd.Series(False, index=self.table.index)
        limit = stats.errors_needed(n, tests) * self.table["stderr"]
        return self.table["effect"].abs() > np.maximum(limit, self.noise)


def layer_effects(
    model: HookedTransformer, pairs: Pairs, kind: Kind = "zero", *, journal: Path | None = None
) -> pd.DataFrame:
    """What the task loses when all neurons of a layer are removed together: layer n effect stderr
    low high, over the clean prompts; blank intervals where there is one."""
    frame = ablate(
        model,
        pairs.clean,
        SITE,
        by=("layer",),
        kind=kind,
        reference=pairs.both,
        metric=metric_of(pairs),
        reduce="none",
        allow_noop=True,
        journal=journal,
    )
    rows = [
        {"layer": int(str(layer)), **over_prompts(of_layer["effect"].to_numpy())}
        for layer, of_layer in frame.groupby("layer", sort=True)
    ]
    return pd.DataFrame(rows)


def rank_neurons(
    model: HookedTransformer,
    pairs: Pairs,
    layers: Indices | None = None,
    kind: Kind = "zero",
    *,
    noise: float = 0.0,
    journal: Path | None = None,
) -> Ranking:
    """Every neuron of these layers (by default all) removed alone, and beside it what it writes to
    the logits itself; effects up to `noise` are rounding (`Baseline.noise`)."""
    frame = ablate(
        model,
        pairs.clean,
        SITE,
        by=("layer", "neuron"),
        layers=layers,
        kind=kind,
        reference=pairs.both,
        metric=metric_of(pairs),
        reduce="none",
        allow_noop=True,
        journal=journal,
    )
    n = len(pairs)
    keys = frame[["layer", "neuron"]].to_numpy(int)[::n]
    index = pd.MultiIndex.from_arrays(keys.T, names=["layer", "neuron"])
    effects = pd.DataFrame(frame["effect"].to_numpy().reshape(-1, n), index=index)
    estimate = stats.mean(effects.to_numpy())
    columns = dict(zip(("effect", "stderr", "low", "high"), estimate, strict=True))
    table = pd.DataFrame({"n": n, **columns}, index=index)
    table["attribution"] = _attribution(model, pairs, sorted(set(keys[:, 0].tolist()))).reindex(
        index
    )
    for name, value in (("rank", "effect"), ("by_attribution", "attribution")):
        table[name] = table[value].abs().rank(ascending=False, method="first")
    table = table.reset_index().sort_values("rank", ignore_index=True).astype({"rank": int})
    return Ranking(table[[name.removesuffix("?") for name in RANKING]], effects, noise)


def sets_against_random(
    model: HookedTransformer,
    pairs: Pairs,
    ranking: Ranking,
    kind: Kind = "zero",
    *,
    seed: int = 0,
    journal: Path | None = None,
) -> pd.DataFrame | None:
    """Ranked on one half of the prompts, removed together on the other, beside random sets of the
    same layers: removed size sets n effect low high.

    Of the costliest, low and high are a 95 % interval over prompts; of the random sets (drawn from
    `seed`) the least and the most of them. None with fewer than `LEAST` prompts.
    """
    if len(pairs) < LEAST:
        return None
    rows = np.arange(len(pairs))
    fit, held = rows[::2], pairs[rows[1::2].tolist()]
    order = _costliest(ranking.effects[fit])
    rng = np.random.default_rng(seed)
    sizes = [size for size in SIZES if 2 * size <= len(order)] or [1]
    sets: list[list[NeuronId]] = []
    for size in sizes:
        sets.append(order[:size])
        for _ in range(RANDOM_SETS):
            drawn = rng.choice(len(order), size, replace=False)
            sets.append([order[i] for i in drawn])
    effects = set_effects(
        model, held, sets, kind, metric_of(held), reference=pairs.both, journal=journal
    )
    lines = []
    for size, of_size in zip(sizes, effects.reshape(len(sizes), -1, len(held)), strict=True):
        top, random = over_prompts(of_size[0]), of_size[1:].mean(axis=1)
        lines.append(("costliest", size, 1, len(held), top["effect"], top["low"], top["high"]))
        spread = (random.mean(), random.min(), random.max())
        lines.append(("random", size, len(random), len(held), *map(float, spread)))
    return pd.DataFrame(lines, columns=[name.removesuffix("?") for name in SETS])


def set_effects(
    model: HookedTransformer,
    pairs: Pairs | Tokens,
    sets: Sequence[Sequence[NeuronId]],
    kind: Kind,
    metric: Metric,
    *,
    reference: Tokens | None = None,
    journal: Path | None = None,
) -> Float[np.ndarray, "set example"]:
    """What a metric changes by on every example when the neurons of each set are removed together.
    The mean of kind "mean" is over `reference`, by default both sides of the pairs, or the tokens.
    """
    tokens, usual = (pairs.clean, pairs.both) if isinstance(pairs, Pairs) else (pairs, pairs)
    reference = usual if reference is None else reference
    edit = edits.zero() if kind == "zero" else edits.mean(reference)
    frame = sweep(
        model,
        tokens,
        neuron_nodes(model, sets),
        edit=edit,
        metric=metric,
        reduce="none",
        allow_noop=True,
        journal=journal,
    )
    frame = frame[~frame.duplicated(["row", "example"])]  # a set has a line per neuron
    return frame["effect"].to_numpy().reshape(-1, len(tokens))


def over_prompts(values: Float[np.ndarray, " n"]) -> dict[str, int | float]:
    """n effect stderr low high, over prompts."""
    estimate = stats.mean(values)
    names = ("effect", "stderr", "low", "high")
    return {"n": len(values)} | dict(zip(names, map(float, estimate), strict=True))


def _costliest(effects: pd.DataFrame) -> list[NeuronId]:
    order = effects.mean(axis=1).sort_values(kind="stable")
    return [(int(layer), int(neuron)) for layer, neuron in np.array(order.index.to_list())]


def _attribution(model: HookedTransformer, pairs: Pairs, layers: Sequence[int]) -> pd.Series:
    """What each neuron writes towards answer − wrong at "end", over the prompts; empty where there
    is no such sum."""
    try:
        frame = logit_attribution(
            model, pairs.clean, pairs.answer, pairs.wrong, pos="end", by="neuron", layers=layers
        )
    except ValueError:
        return pd.Series(dtype=float, index=pd.MultiIndex.from_arrays([[], []]))
    of_neurons = frame[frame["neuron"] >= 0]
    return of_neurons.groupby(["layer", "neuron"])["value"].mean()
