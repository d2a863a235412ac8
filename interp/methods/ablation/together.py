"""Heads removed together, the strongest first, beside random sets of as many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from interp.data.tasks import Pairs
from interp.methods.baseline import metric_of
from interp.model import HookedTransformer
from interp.sweeps import edits
from interp.sweeps.edits import Edit

from .joint import cumulative_ablation, default_counts
from .options import Options, Removals

KEPT = 0.9
"""Share of the logit difference that the heads which carry the task must keep."""
SPLIT = 4
"""With fewer prompts heads are chosen and removed together on the same ones."""


def remove_together(
    model: HookedTransformer,
    pairs: Pairs,
    heads: Removals,
    made: Mapping[str, Edit],
    options: Options,
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[int, int]]:
    """Heads removed together, ranked on one half of the prompts and removed on the other."""
    n = len(pairs)
    order = np.random.default_rng(options.seed).permutation(n)
    rank, remove = (order, order) if n < SPLIT else (order[: n // 2], order[n // 2 :])
    held = pairs[sorted(remove.tolist())]
    curves, sets = [], []
    if options.own_donor and "resample" in made:  # that edit counts in rows of its prompts
        made = {**made, "resample": edits.patch(held.corrupted)}
    for kind, edit in made.items():
        size = np.abs(heads.effects[kind][:, rank].mean(1))
        ranked = heads.nodes.iloc[np.argsort(-size, kind="stable")]
        found = int(heads.of(kind)["named"].sum()) or min(options.top, len(ranked))
        frame = cumulative_ablation(
            model,
            held.clean,
            ranked,
            edit=edit,
            metric=metric_of(held),
            counts=[*default_counts(len(ranked)), found],
            random_counts=[*default_counts(len(ranked), ends=0), found],
            orders=options.random_sets,
            seed=options.seed,
            journal=options.kept(f"together-{kind}"),
        )
        frame.insert(0, "kind", kind)
        curves.append(frame)
        names = [
            f"L{row['layer']:.0f} H{row['head']:.0f}" for _, row in ranked.head(found).iterrows()
        ]
        sets.append({"kind": kind, "heads": ", ".join(names)} | _against_chance(frame, found))
    return pd.concat(curves, ignore_index=True), pd.DataFrame(sets), (len(rank), len(remove))


def _against_chance(frame: pd.DataFrame, k: int) -> dict[str, Any]:
    """The k strongest heads gone together, beside random sets of k heads; p: the share of sets,
    this one counted, whose removal changes as much."""
    at = frame[frame["removed"] == k]
    found = at[at["order"] == "most"].iloc[0]
    drawn = at[at["order"] == "random"]
    effects = drawn["effect"].to_numpy(float)
    as_much, holding = np.abs(effects) >= abs(found["effect"]), drawn["overlap"] > 0
    low, high = np.quantile(effects, [0.025, 0.975])
    return {
        "k": k,
        "effect": found["effect"],
        "stderr": found["stderr"],
        "random_mean": effects.mean(),
        "random_low": low,
        "random_high": high,
        "random_sets": len(drawn),
        "as_much": int(as_much.sum()),
        "as_much_without": int((as_much & ~holding).sum()),
        "without": int((~holding).sum()),
        "p": (1 + int(as_much.sum())) / (1 + len(drawn)),
    }


def carriers(curve: pd.DataFrame, kind: str) -> tuple[int, pd.Series] | None:
    """The smallest measured number of heads, from the strongest, with which alone and with all
    larger numbers at least `KEPT` of the logit difference is there; and that row of the curve.
    None where shares mean nothing."""
    own = curve[(curve["kind"] == kind) & (curve["order"] == "least")]
    if bool(own["share"].isna().any()):
        return None
    own = own.assign(kept=own["removed"].max() - own["removed"]).sort_values("kept")
    # All heads there, the share is 1: the last row is always enough.
    enough = np.minimum.accumulate((own["share"] >= KEPT).to_numpy()[::-1])
    best = own.iloc[len(own) - int(enough.sum())]
    return int(best["kept"]), best
