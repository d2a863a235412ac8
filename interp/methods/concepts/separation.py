"""How a concept's directions separate texts that they were not found on, beside chance."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from torch import Tensor

from ..stats import Z, wilson
from .finding import METHODS, Directions, Method, find
from .texts import Halves

SEPARATION = (
    *("layer", "method", "n", "auroc", "auroc_low", "auroc_high"),
    *("accuracy", "accuracy_low", "accuracy_high"),
    *("random", "shuffled", "p_random", "p_shuffled"),
)
EVEN = 0.95
"""What is said of controls: the size that this share of them stays below."""


def separation(found: Directions, n_null: int, seed: int) -> pd.DataFrame:
    """How each direction separates the held-out half: `SEPARATION`, one row per layer and method.

    auroc: of the projections, with an interval (`auroc_interval`). accuracy: cut halfway between
    the means of the fitted half, Wilson interval. random, shuffled: the AUROC that 95 % of
    `n_null` random directions (turned on the fitted half) and of directions of shuffled labels stay
    below; p: by rank among them, this one counted.
    """
    concept, halves = found.concept, found.halves
    y = concept.labels.numpy()
    rows = []
    for layer in found.layers:
        x = found.x[layer].numpy()
        rng = np.random.default_rng([seed, layer])
        drawn = rng.normal(size=(n_null, x.shape[1]))
        drawn *= np.where(_apart(x, y, halves.fit, drawn) < 0, -1, 1)[:, None]
        random = auroc(x[halves.held] @ drawn.T, y[halves.held])
        labels = [concept.shuffled(rng) for _ in range(n_null)]
        for method in found.methods(layer):
            unit = found.directions[layer, method].unit.numpy()
            value, hits = _scored(x, y, halves, unit)
            null = _shuffled(found, layer, method, labels)
            ones = int((y[halves.held] == 1).sum())
            low, high = auroc_interval(value, ones, len(halves.held) - ones)
            n = len(halves.held)
            (first,), (last,) = wilson(np.array([hits]), np.array([n]))
            accuracy = (hits / n, first, last)
            controls = (np.quantile(random, EVEN), np.quantile(null, EVEN))
            ranks = (_rank(value, random), _rank(value, null))
            rows.append((layer, METHODS[method], n, value, low, high, *accuracy, *controls, *ranks))
    return pd.DataFrame(rows, columns=list(SEPARATION))


def auroc(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each column of scores [n k] for labels y [n]: P(a row of 1 lies above one of 0)."""
    ones = int((y == 1).sum())
    ranks = rankdata(scores, axis=0)[y == 1].sum(0)
    return (ranks - ones * (ones + 1) / 2) / (ones * (len(y) - ones))


def auroc_interval(value: float, ones: int, zeros: int) -> tuple[float, float]:
    """95 %: the values whose own standard error (Hanley & McNeil 1982) reaches as far as this one,
    which holds at 1, too (Newcombe 2006)."""

    def error(a: np.ndarray) -> np.ndarray:
        first, second = a / (2 - a), 2 * a * a / (1 + a)
        spread = a * (1 - a) + (ones - 1) * (first - a * a) + (zeros - 1) * (second - a * a)
        return np.sqrt(spread.clip(0) / (ones * zeros))

    grid = np.linspace(0, 1, 20_001)
    inside = grid[np.abs(grid - value) <= Z * error(grid)]
    return min(inside.min(initial=value), value), max(inside.max(initial=value), value)


def _scored(x: np.ndarray, y: np.ndarray, halves: Halves, unit: np.ndarray) -> tuple[float, int]:
    """AUROC on the held-out half, and how many lie on their side of the middle."""
    along = x @ unit
    cut = np.mean([along[halves.fit][y[halves.fit] == one].mean() for one in (0, 1)])
    held = along[halves.held]
    hits = int(((held > cut) == (y[halves.held] == 1)).sum())
    return float(auroc(held[:, None], y[halves.held])[0]), hits


def _apart(x: np.ndarray, y: np.ndarray, rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    fitted, labels = x[rows], y[rows]
    return drawn @ (fitted[labels == 1].mean(0) - fitted[labels == 0].mean(0))


def _shuffled(found: Directions, layer: int, method: Method, labels: list[Tensor]) -> np.ndarray:
    """The AUROC of directions of labels dealt out anew, for these labels; ½ where there is none."""
    held, x = found.halves.held, found.x[layer]
    values = []
    for dealt in labels:
        y = dealt.numpy()
        try:
            direction = find(
                method, x, found.concept, found.halves.fit, found.sites[layer], "", dealt
            )
            values.append(auroc((x[held] @ direction.unit)[:, None].numpy(), y[held])[0])
        except ValueError:  # such as one class only in a half
            values.append(0.5)
    return np.nan_to_num(np.array(values), nan=0.5)


def _rank(value: float, null: np.ndarray) -> float:
    return (1 + int((null >= value - 1e-12).sum())) / (1 + len(null))
