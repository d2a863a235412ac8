"""Whether the senses of a word lie apart: leave-one-out, against shuffled senses.

Vectors of one word in texts, labelled with its sense there. Each is given to the nearest centroid
of the others. With few examples that is below chance where there is nothing to find (a vector that
is left out pulls its own centroid away from itself), so the level to compare with is that of
shuffled labels, and not 1/k.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from ..stats import wilson

NEEDED = ("word", "sense")
MEASURED = ("correct", "accuracy", "low", "high", "null", "null_low", "null_high", "p")
BY_WORD = ("word", "layer", "n", "senses", *MEASURED, "within", "between", "gap")
POOLED = ("layer", "words", "n", *MEASURED, "within", "between", "gap")


class Senses(NamedTuple):
    """How far senses lie apart, per layer."""

    by_word: pd.DataFrame
    """The columns `BY_WORD`."""
    pooled: pd.DataFrame
    """Over all words: the columns `POOLED`."""


class Word(NamedTuple):
    """The places of one word."""

    name: str
    rows: np.ndarray
    sense: np.ndarray
    """[n], as numbers."""
    group: np.ndarray
    """[n], as numbers."""


def separable(table: pd.DataFrame) -> tuple[list[Word], pd.DataFrame]:
    """The words of a table (word sense, and perhaps group) whose senses can be compared, and the
    others with the reason: word reason. Two senses are needed, each in two groups."""
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; there are: {list(table.columns)}")
    kept, left = [], []
    table = table.reset_index(drop=True)
    for name, some in table.groupby("word", sort=False):
        group = some["group"] if "group" in some else pd.Series(some.index, some.index)
        counts = pd.DataFrame({"sense": some["sense"], "group": group}).drop_duplicates()
        few = counts["sense"].value_counts()
        if len(few) < 2:
            left.append((name, f"it has the one sense {few.index[0]!r}"))
        elif few.min() < 2:
            what = "group of texts" if "group" in some else "text"
            left.append((name, f"its sense {few.idxmin()!r} has the one {what}"))
        else:
            numbers = (pd.factorize(one)[0] for one in (some["sense"], group))
            kept.append(Word(str(name), some.index.to_numpy(), *numbers))
    return kept, pd.DataFrame(left, columns=["word", "reason"])


def disambiguation(
    layers: dict[int, np.ndarray], table: pd.DataFrame, seed: int = 0, draws: int = 200
) -> Senses:
    """How well the senses of each word are told apart in each layer.

    `layers`: from a number to vectors [n, d]; `table` has the columns word and sense, n rows. With
    a column `group`, all rows of a group (of one cue word, of one source) are left out together:
    then an answer cannot come from a vector that stands in the same company.

    correct: given to their own sense by the nearest centroid (Euclidean) of the rows that are not
    left out; of a tie, its share. accuracy low high: of them all, 95 % Wilson interval. null,
    null_low, null_high: mean and middle 95 % of the accuracy over `draws` shuffles of the senses
    within a word (of whole groups, where no group has two senses), drawn with `seed`. p: the share
    of shuffles that do as well, the true senses counted among them; three groups a sense can be
    dealt out in 10 ways only, so of one such word p is never small. within, between: mean cosine of
    two vectors of one sense (and different groups), and of two senses; gap: their difference.

    Raises ValueError where no word has two senses with two groups each.
    """
    words, left = separable(table)
    if not words:
        raise ValueError(
            f"none of {len(left)} words can be used: {left.word.iloc[0]!r}: "
            f"{left.reason.iloc[0]}; a word needs two senses, each in two texts or groups"
        )
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least 1")
    wrong = [key for key, one in layers.items() if len(one) != len(table)]
    if wrong:
        raise ValueError(f"layer {wrong[0]} has {len(layers[wrong[0]])} rows for {len(table)}")
    rng = np.random.default_rng(seed)
    shuffles = [_shuffled(word, draws, rng) for word in words]
    by_word, pooled = [], []
    for layer, vectors in layers.items():
        right, apart = [], []
        for word, senses in zip(words, shuffles, strict=True):
            own = vectors[word.rows].astype(np.float64)
            right.append(nearest_centroid(own, senses, word.group).sum(axis=1))
            apart.append(_apart(own, word))
            n = len(word.rows)
            by_word.append((word.name, layer, n, int(word.sense.max()) + 1,
                            *_measured(right[-1], n), *_means([apart[-1]])))  # fmt: skip
        n = sum(len(word.rows) for word in words)
        pooled.append((layer, len(words), n, *_measured(np.sum(right, axis=0), n), *_means(apart)))
    return Senses(
        pd.DataFrame(by_word, columns=list(BY_WORD)), pd.DataFrame(pooled, columns=list(POOLED))
    )


def nearest_centroid(vectors: np.ndarray, senses: np.ndarray, group: np.ndarray) -> np.ndarray:
    """[draw, n]: 1 where the nearest centroid, of the rows of other groups, is that of the row's
    own sense; 1/k where k centroids are equally near and it is one of them. `senses` [draw, n]."""
    centred = vectors - vectors.mean(axis=0)
    products = centred @ centred.T
    onehot = (senses[..., None] == np.arange(senses.max() + 1)).astype(float)  # [draw n sense]
    sums = products @ onehot  # of a row with all rows of a sense
    counts, towards, norms = np.empty_like(sums), np.empty_like(sums), np.empty_like(sums)
    for one in np.unique(group):
        out = np.flatnonzero(group == one)
        own = onehot[:, out]
        inside = products[np.ix_(out, out)] @ own
        counts[:, out] = (onehot.sum(axis=1) - own.sum(axis=1))[:, None]
        towards[:, out] = sums[:, out] - inside
        # |Σ of the others|² from |Σ of all|², so that a group costs its own size only.
        rest = (onehot * sums).sum(axis=1) - (own * (2 * sums[:, out] - inside)).sum(axis=1)
        norms[:, out] = rest[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = norms / counts**2 - 2 * towards / counts
    distance[counts == 0] = np.inf
    slack = 1e-9 * max(float(np.abs(products).max()), 1e-300)
    near = distance <= distance.min(axis=2, keepdims=True) + slack
    own = np.take_along_axis(near, senses[..., None], axis=2)[..., 0]
    return own / near.sum(axis=2)


def _shuffled(word: Word, draws: int, rng: np.random.Generator) -> np.ndarray:
    """The senses [1 + draws, n]: first the true ones."""
    _, first = np.unique(word.group, return_index=True)
    nested = bool((word.sense[first][word.group] == word.sense).all())
    if nested:
        found = [rng.permutation(word.sense[first])[word.group] for _ in range(draws)]
    else:
        found = [rng.permutation(word.sense) for _ in range(draws)]
    return np.stack([word.sense, *found])


def _measured(right: np.ndarray, n: int) -> tuple:
    """The columns `MEASURED`, from the right answers of the true and of the shuffled senses."""
    own, null = float(right[0]), right[1:] / n
    (low,), (high,) = wilson(np.array([own]), np.array([n]))
    bottom, top = np.quantile(null, [0.025, 0.975])
    p = (1 + (right[1:] >= own - 1e-9).sum()) / len(right)
    numbers = (own, own / n, low, high, null.mean(), bottom, top, p)
    return tuple(float(number) for number in numbers)


def _apart(vectors: np.ndarray, word: Word) -> np.ndarray:
    """Sums and numbers of cosines: within, pairs, between, pairs."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length == 0, 1, length)
    cosine = unit @ unit.T
    same = word.sense[:, None] == word.sense
    within = same & (word.group[:, None] != word.group)
    return np.array([cosine[within].sum(), within.sum(), cosine[~same].sum(), (~same).sum()])


def _means(apart: list[np.ndarray]) -> tuple[float, float, float]:
    within, pairs, between, others = np.sum(apart, axis=0)
    found = float(within / pairs), float(between / others)
    return *found, found[0] - found[1]
