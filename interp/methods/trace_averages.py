"""A causal trace averaged: what each state brings back over prompts, with intervals, and the best.

`averaged` takes what `causal_trace` and `noise_effect` measured; `Trace` answers which state brings
back most at a place, by how much more than another, and whether that holds on other prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from . import stats

NAMES = {
    "hook_resid_post": "residual stream",
    "hook_attn_out": "attention",
    "hook_mlp_out": "MLP",
}
PARTS = ("hook_mlp_out", "hook_attn_out")
"""What writes into the residual stream."""
HALF = 0.5
"""The share of what was lost that counts as brought back."""
LEAST = 4
"""Prompts that can be halved: on one half a peak is chosen, on the other it is measured."""
WITHIN = {"prob": (-1.0, 1.0)}
"""What an effect on a metric can be at all."""
KEYS = ["metric", "site", "layer", "place"]
EFFECTS = (*KEYS, "n", "effect", "stderr?", "low?", "high?", "share?")
TOTALS = ("noise", "metric", "n", "clean", "corrupted", "effect", "stderr?", "low?", "high?")


class Cell(NamedTuple):
    """A layer and place of one kind of state, and what restoring it brings back."""

    site: str
    layer: int
    place: str
    effect: float
    low: float
    high: float
    share: float


@dataclass(frozen=True, eq=False)
class Trace:
    """A causal trace, averaged. The unit is a prompt: its draws of noise, and its tokens at one
    place, are averaged first."""

    states: pd.DataFrame
    """As `causal_trace` returns it."""
    totals: pd.DataFrame
    """`TOTALS`: what the noise costs, on the subject and elsewhere."""
    by_prompt: pd.DataFrame
    """metric site layer place example effect."""
    effects: pd.DataFrame
    """`EFFECTS`."""
    noise: float = 1e-6
    """The size up to which an effect is rounding."""

    @property
    def lost(self) -> pd.Series:
        """The total effect of noise on the subject, in probability."""
        return self.totals[self.totals["metric"] == "prob"].iloc[0]

    @property
    def traceable(self) -> bool:
        """Whether the noise on the subject costs probability beyond doubt."""
        error = np.nan_to_num(self.lost["stderr"])
        return bool(self.lost["effect"] > max(2 * error, self.noise))

    def cells(self, metric: str, site: str, place: str | None = None) -> pd.DataFrame:
        """Some of `effects`."""
        frame = self.effects
        frame = frame[(frame["metric"] == metric) & (frame["site"] == site)]
        return frame if place is None else frame[frame["place"] == place]

    def best(self, site: str, place: str | None = None) -> Cell | None:
        """The state that brings back most probability; None where there is none, or all that
        comes back is rounding."""
        frame = self.cells("prob", site, place)
        if frame.empty:
            return None
        row = frame.loc[frame["effect"].idxmax()]
        if float(frame["effect"].abs().max()) <= self.noise:
            return None
        return Cell(site, int(row["layer"]), *(row[c] for c in ("place", *Cell._fields[3:])))

    def held_out(self, site: str, place: str) -> tuple[int, stats.Estimate] | None:
        """The best layer of one half of the prompts, and its effect on the other half."""
        table = self._of(site, place)
        if len(table) < LEAST:
            return None
        layer = table.columns[int(table.iloc[::2].mean().to_numpy().argmax())]
        return int(layer), stats.mean(table[layer].iloc[1::2].to_numpy(), WITHIN["prob"])

    def difference(self, place: str) -> stats.Estimate | None:
        """What the best MLP at a place brings back less what the best attention does, paired by
        prompt; where all that one kind brings back is rounding, that is 0. None where both are
        rounding, or the model has one kind only."""
        cells = [self.best(site, place) for site in PARTS]
        if not any(cells) or any(self.cells("prob", site, place).empty for site in PARTS):
            return None
        mlp, attention = (
            self._of(cell.site, place)[cell.layer].to_numpy() if cell else 0.0 for cell in cells
        )
        return stats.mean(np.asarray(mlp - attention))

    def _of(self, site: str, place: str) -> pd.DataFrame:
        """Effects in probability [example layer]."""
        frame = self.by_prompt
        here = (frame["metric"] == "prob") & (frame["site"] == site) & (frame["place"] == place)
        return frame[here].pivot(index="example", columns="layer", values="effect")

    def agreement(self) -> float:
        """Spearman's rank correlation of the two metrics over all states that change anything."""
        wide = self.effects.pivot(index=KEYS[1:], columns="metric", values="effect")
        ranks = wide[(wide.abs() > self.noise).any(axis=1)].rank().to_numpy()
        if len(ranks) < 2 or (ranks.std(0) == 0).any():
            return float("nan")
        return float(np.corrcoef(ranks.T)[0, 1])

    def layers_over_half(self, place: str) -> list[int]:
        """Layers whose residual stream at a place brings back more than half."""
        frame = self.cells("prob", "hook_resid_post", place)
        return frame.loc[frame["share"] > HALF, "layer"].tolist()


def averaged(states: pd.DataFrame, totals: pd.DataFrame, noise: float) -> Trace:
    """A trace from what the method measured: `totals` has noise metric draw example clean corrupted
    effect. Effects up to `noise` are rounding."""
    cost = pd.DataFrame(
        [_total(key, rows) for key, rows in totals.groupby(["noise", "metric"], sort=False)]
    )
    by_prompt = states.groupby([*KEYS, "example"], sort=False)["effect"].mean().reset_index()
    on_subject = totals[totals["noise"] == "subject"]
    lost = {
        metric: rows.groupby("example")["effect"].mean()
        for metric, rows in on_subject.groupby("metric")
    }
    rows = []
    for key, own in by_prompt.groupby(KEYS, sort=False):
        metric, *_ = values = list(key) if isinstance(key, tuple) else [key]
        found = stats.mean(own["effect"].to_numpy(), WITHIN.get(metric))
        rows.append([*values, len(own), *map(float, found), _share(own, lost[metric])])
    columns = [column.removesuffix("?") for column in EFFECTS]
    return Trace(states, cost, by_prompt, pd.DataFrame(rows, columns=columns), noise)


def _total(key: Any, rows: pd.DataFrame) -> dict[str, Any]:
    grouped = rows.groupby("example")
    clean, corrupted, effect = (
        grouped[name].mean().to_numpy() for name in ("clean", "corrupted", "effect")
    )
    found = stats.mean(effect, WITHIN.get(key[1]))
    about = {"noise": key[0], "metric": key[1], "n": len(effect)}
    clean, corrupted = float(clean.mean()), float(corrupted.mean())
    return about | {"clean": clean, "corrupted": corrupted} | _numbers("effect", found)


def _numbers(name: str, found: stats.Estimate) -> dict[str, float]:
    names = (name, "stderr", "low", "high")
    return dict(zip(names, map(float, found), strict=True))


def _share(own: pd.DataFrame, lost: pd.Series) -> float:
    """Of what the same prompts lost; NaN where that is not away from zero."""
    try:
        under = lost.loc[own["example"]].to_numpy()
        return float(stats.ratio_of_means(own["effect"].to_numpy(), under).value)
    except ValueError:
        return float("nan")
