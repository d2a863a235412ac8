"""Whether the effects of many parts are there at all, and larger than a share of the whole."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control, t

from .. import stats


def significance(
    effects: Float[np.ndarray, "node n"],
    baseline: Float[np.ndarray, " n"],
    *,
    least: float = 0.0,
    correction: Literal["holm", "bh"] = "holm",
) -> pd.DataFrame:
    """A paired test per node over examples: effect stderr low high p p_corrected.

    Null hypothesis: |mean effect| ≤ least × |mean baseline|, by two one-sided t tests of
    ±effect − least × baseline, of which the smaller p counts twice; with least=0 that is the
    paired t test. Over nodes p is corrected by Holm (1979: no false name among all nodes with
    probability 1 − α) or Benjamini and Hochberg (1995: a share α of false names). With one example
    stderr, bounds and p are NaN. Raises ValueError on shapes that do not fit, and least < 0.
    """
    effects, baseline = np.asarray(effects, float), np.asarray(baseline, float)
    if effects.ndim != 2 or baseline.shape != effects.shape[1:]:
        raise ValueError(
            f"effects of shape {list(effects.shape)} and a baseline of {list(baseline.shape)}: "
            "expected [node, n] and [n]"
        )
    if not least >= 0:
        raise ValueError(f"least={least}: expected a share of the baseline, 0 or more")
    if correction not in ("holm", "bh"):
        raise ValueError(f"correction={correction!r}: expected 'holm' or 'bh'")
    bar = least * baseline * (np.sign(baseline.mean()) or 1.0)
    p = np.minimum(1, 2 * np.minimum(_one_sided(effects - bar), _one_sided(-effects - bar)))
    found = stats.mean(effects)
    return pd.DataFrame(
        {
            "effect": found.value,
            "stderr": found.stderr,
            "low": found.low,
            "high": found.high,
            "p": p,
            "p_corrected": _holm(p) if correction == "holm" else _benjamini_hochberg(p),
        }
    )


def _one_sided(contrast: Float[np.ndarray, "node n"]) -> Float[np.ndarray, " node"]:
    """p of a mean of at most zero; NaN for one example."""
    n = contrast.shape[1]
    if n < 2:
        return np.full(len(contrast), np.nan)
    mean, stderr = contrast.mean(1), contrast.std(1, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(mean == 0, 0.0, mean / stderr)  # the same on all examples: ± infinity
    return t.sf(ratio, n - 1)


def _holm(p: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(None, 1)
    corrected = np.empty_like(p)
    corrected[order] = steps
    return corrected


def _benjamini_hochberg(p: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    return p if np.isnan(p).any() else false_discovery_control(p)
