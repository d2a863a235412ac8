"""Which heads a patch names: the strongest, and those that surely carry a share of the answer."""

from __future__ import annotations

import numpy as np
import pandas as pd

from interp.methods.paths import Head

from .effects import WAYS, Effects, Study


def strongest_heads(heads: Effects, top: int) -> pd.DataFrame:
    """The heads whose z has the largest mean effect, either way: layer head."""
    own = heads.of((heads.nodes["site"] == "z").to_numpy())
    size = np.max([np.abs(one.mean(1)) for one in own.ways.values()], axis=0)
    order = np.argsort(-size, kind="stable")[:top]
    return own.nodes.iloc[order][["layer", "head"]].reset_index(drop=True)


def named_heads(study: Study, heads: Effects, least: float, level: float | None) -> list[Head]:
    """Heads whose z restores, or loses, at least so large a share, away from zero and past what
    unrelated words show; the strongest first. None where the model does not do the task."""
    if not (study.baseline.able and study.baseline.normal):
        return []
    table = study.table(heads).query("site == 'z'")
    size = np.zeros(len(table))
    for way in WAYS:
        share, low, high = (table[f"{way}_{what}"] for what in ("share", "low", "high"))
        sure = (share.abs() >= least) & ~((low <= 0) & (high >= 0))
        sure &= table[way].abs() > max(level or 0.0, study.baseline.noise)
        size = np.maximum(size, np.where(sure, share.abs(), 0))
    order = [i for i in np.argsort(-size, kind="stable") if size[i] > 0]
    return [(int(table["layer"].iloc[i]), int(table["head"].iloc[i])) for i in order]
