"""How good predictions are: one number per set of features, from predictions out of fold."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from .. import stats
from .splits import Folds


class Predicted(NamedTuple):
    """Of every set of features, labelling and example that some fold was asked about."""

    value: np.ndarray
    """[b l n]: the class, or the number of a regression."""
    log_likelihood: np.ndarray
    """[b l]: of the labels, summed; of a regression minus the squared error."""
    decision: np.ndarray
    """[b n]: of the first labelling, for two classes; else empty."""
    C: np.ndarray
    """[b]: that of the first labelling; the lower median over the folds."""


def score(found: Predicted, y: np.ndarray, regression: bool) -> np.ndarray:
    """Share of right answers, or R², of every labelling: [b l]. y [l n]: the asked examples."""
    if not regression:
        return (found.value == y).mean(-1)
    spread = ((y - y.mean(-1, keepdims=True)) ** 2).sum(-1)
    return 1 - ((found.value - y) ** 2).sum(-1) / spread


def of_classes(found: Predicted, y: np.ndarray, fold: np.ndarray, n_classes: int) -> dict:
    """accuracy low high balanced_accuracy, and auroc for two classes: [b] each."""
    right = found.value[:, 0] == y
    low, high = stats.wilson(right.sum(-1), np.array(len(y)))
    present = [c for c in range(n_classes) if (y == c).any()]
    recalls = np.stack([right[:, y == c].mean(-1) for c in present])
    columns = {
        "accuracy": right.mean(-1),
        "low": low,
        "high": high,
        "balanced_accuracy": recalls.mean(0),
    }
    if n_classes == 2:
        columns["auroc"] = auroc(found.decision, y, fold)
    return columns


def of_numbers(found: Predicted, y: np.ndarray) -> dict:
    """r2 low high spearman mae: [b] each."""
    value = found.value[:, 0]
    worse = stats.ratio_of_means((value - y) ** 2, (y - y.mean()) ** 2)
    ranks, own = rankdata(value, axis=-1), rankdata(y)
    ranks, own = ranks - ranks.mean(-1, keepdims=True), own - own.mean()
    lengths = np.sqrt((ranks**2).sum(-1) * (own**2).sum())
    return {
        "r2": 1 - worse.value,
        "low": 1 - worse.high,
        "high": np.minimum(1 - worse.low, 1),  # no R² lies above 1
        "spearman": (ranks @ own) / np.where(lengths == 0, 1, lengths),
        "mae": np.abs(value - y).mean(-1),
    }


def auroc(decision: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Of the pairs of one example of each class within one fold, the share in right order: [b].

    Ties count half. Pairs across folds are left out: their probes have scales of their own. NaN
    where no fold has both classes.
    """
    right, pairs = np.zeros(len(decision)), 0
    for i in np.unique(fold):
        own = fold == i
        ranks = rankdata(decision[:, own], axis=-1)
        ones = y[own] == 1
        n = int(ones.sum())
        right += ranks[:, ones].sum(-1) - n * (n + 1) / 2
        pairs += n * int((~ones).sum())
    return right / pairs if pairs else np.full(len(decision), np.nan)


def constant(y: np.ndarray, made: Folds, regression: bool) -> float:
    """What the majority class, or the mean, of each training part scores on its test part."""
    guess = np.zeros(len(y))
    for i, row in enumerate(made.train):
        own = y[row].mean() if regression else np.bincount(y[row]).argmax()
        guess[made.of == i] = own
    asked = made.asked
    if not regression:
        return float((guess[asked] == y[asked]).mean())
    return float(1 - ((guess - y)[asked] ** 2).sum() / ((y[asked] - y[asked].mean()) ** 2).sum())


def against_null(scores: np.ndarray, log_likelihood: np.ndarray) -> dict:
    """null_mean null_low null_high p: [b] each; the first labelling against all others.

    p = (1 + how many shuffles do as well) / (1 + shuffles) (Phipson & Smyth 2010). Scores move in
    steps, so a tie is decided by the log-likelihood; without that a test on few examples would stay
    far below its level.
    """
    null = scores[:, 1:]
    tie = (null == scores[:, :1]) & (log_likelihood[:, 1:] >= log_likelihood[:, :1])
    as_good = ((null > scores[:, :1]) | tie).sum(-1)
    low, high = np.quantile(null, [0.025, 0.975], axis=-1)
    return {
        "null_mean": null.mean(-1),
        "null_low": low,
        "null_high": high,
        "p": (1 + as_good) / (1 + null.shape[1]),
    }
