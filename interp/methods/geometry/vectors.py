"""Geometry of word vectors: neighbours, similarities, analogies and directions.

Centring subtracts the mean of the vocabulary before the vectors are normalised (Mu & Viswanath
2018). Centring, and leaving out the words of the question, both change an answer: every result
names them. The rules for analogies and their sources are in `analogies.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from .. import axes
from . import clusters as grouping
from . import cosines, spectrum
from .analogies import (
    METHODS,
    QUESTION,
    SCORES,
    SETTING,
    Method,
    check_methods,
    cosines_of,
    place,
    questions,
)


@dataclass(frozen=True, eq=False)
class Embedding:
    """A table of vectors with a name for each row.

    Unless `candidates` says otherwise every row competes for an answer: whole words, word pieces
    ("##ing"), special and unused tokens alike. Only the very rows of a, b and c can be excluded;
    their plurals or capitalised spellings stay in the race.
    """

    vectors: np.ndarray
    """[n, d], float32 or float64, finite."""
    tokens: Sequence[str]
    """The readable name of each row; names may repeat."""
    resolve: Callable[[str], int] | None = None
    """From a word to its row; None: the row whose name is exactly the word."""

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.vectors.dtype not in (np.float32, np.float64):
            raise ValueError(
                "vectors must be float32 or float64 of shape [n, d], "
                f"got {self.vectors.dtype} {list(self.vectors.shape)}"
            )
        if len(self.tokens) != len(self.vectors):
            raise ValueError(f"{len(self.tokens)} tokens for {len(self.vectors)} vectors")
        bad = np.flatnonzero(~np.isfinite(self.vectors).all(axis=1))
        if bad.size:
            raise ValueError(f"{bad.size} vectors are not finite, first row {bad[0]}")

    def __len__(self) -> int:
        return len(self.tokens)

    def row(self, word: str) -> int:
        """The row of a word; raises ValueError if it has none or is several tokens."""
        if self.resolve is not None:
            return self.resolve(word)
        try:
            return list(self.tokens).index(word)
        except ValueError:
            raise ValueError(f"{word!r} is not one of the {len(self)} tokens") from None

    def unit(self, centre: bool = True) -> np.ndarray:
        """The vectors at length one, first centred on the mean of all rows if `centre`.

        A vector of length zero stays zero, so that its cosine with anything is 0. Made once and
        kept.
        """
        return self._centred if centre else self._plain

    @cached_property
    def _centred(self) -> np.ndarray:
        mean = self.vectors.mean(axis=0, dtype=np.float64)
        return _normalised(self.vectors - mean.astype(self.vectors.dtype))

    @cached_property
    def _plain(self) -> np.ndarray:
        return _normalised(self.vectors)

    def similarity(self, a: str, b: str, centre: bool = True) -> float:
        """Cosine of two words."""
        unit = self.unit(centre)
        return float(unit[self.row(a)] @ unit[self.row(b)])

    def neighbors(self, word: str, k: int = 10, centre: bool = True) -> pd.DataFrame:
        """The k tokens of highest cosine, the word itself left out: rank token score."""
        unit, row = self.unit(centre), self.row(word)
        return self._top(unit @ unit[row], np.arange(len(self)), {row}, k)

    def analogy(
        self,
        a: str,
        b: str,
        c: str,
        k: int = 5,
        method: Method = "3cosadd",
        centre: bool = True,
        exclude_inputs: bool = True,
        candidates: Iterable[str] | np.ndarray | None = None,
    ) -> pd.DataFrame:
        """The k best answers to "a is to b as c is to ?": rank token score.

        `candidates` restricts who competes, as words or as row numbers.
        """
        check_methods([method])
        rows = [self.row(word) for word in (a, b, c)]
        unit, pool = self.unit(centre), self._pool(candidates)
        scores = SCORES[method](next(cosines_of(unit, np.array([rows]), pool)))
        return self._top(scores, pool, set(rows) if exclude_inputs else set(), k)

    def evaluate(
        self,
        analogies: pd.DataFrame,
        methods: Iterable[Method] = METHODS,
        centre: bool | Iterable[bool] = (True, False),
        exclude_inputs: bool | Iterable[bool] = (True, False),
        candidates: Iterable[str] | np.ndarray | None = None,
    ) -> pd.DataFrame:
        """Every question in every setting: one row each, in the order of the questions.

        `analogies` has the columns category a b c expected; all words must be single tokens and
        `expected` none of the inputs (`usable` sorts out those that are not). Columns: those five,
        method centre exclude_inputs, rank (of the expected answer; a tie counts against it),
        correct (rank is 1), top (the best token). Nothing is random.
        """
        rules, centres, excludes = check_methods(methods), _flags(centre), _flags(exclude_inputs)
        rows = np.array([self._question(q) for q in questions(analogies)], dtype=int).reshape(-1, 4)
        pool = self._pool(candidates)
        column = np.full(len(self), -1)
        column[pool] = np.arange(len(pool))
        if len(rows) and (column[rows[:, 3]] < 0).any():
            lost = analogies["expected"].iloc[int(np.argmax(column[rows[:, 3]] < 0))]
            raise ValueError(f"the expected answer {lost!r} is not among the candidates")
        results = []
        for i, centred in enumerate(centres):
            for number, found in enumerate(cosines_of(self.unit(centred), rows, pool)):
                *inputs, answer = column[rows[number]].tolist()
                for j, method in enumerate(rules):
                    scores = SCORES[method](found)
                    for k, excluded in enumerate(excludes):
                        rank, best = place(scores, answer, inputs if excluded else ())
                        setting = (method, centred, excluded)
                        results.append(((number, j, i, k), setting, rank, self.tokens[pool[best]]))
        results.sort(key=lambda result: result[0])
        asked = list(analogies.loc[:, list(QUESTION)].itertuples(index=False, name=None))
        return pd.DataFrame(
            [
                (*asked[key[0]], *setting, rank, rank == 1, top)
                for key, setting, rank, top in results
            ],
            columns=[*QUESTION, *SETTING, "rank", "correct", "top"],
        )

    def usable(self, analogies: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The questions that can be asked here, and the rest with a column `reason`."""
        reasons = []
        for question in questions(analogies):
            try:
                self._question(question)
                reasons.append("")
            except ValueError as error:
                reasons.append(str(error))
        reason = pd.Series(reasons, index=analogies.index, dtype=object)
        kept, rest = analogies[reason == ""], analogies.assign(reason=reason)[reason != ""]
        return kept.reset_index(drop=True), rest.reset_index(drop=True)

    def direction(
        self, pairs: Sequence[tuple[str, str]], method: Literal["mean", "pca"] = "mean"
    ) -> np.ndarray:
        """The unit vector [d] that leads from the first words of the pairs to the second.

        mean: the mean difference. pca: the first principal component of the pairs, each centred on
        its own middle (Bolukbasi et al. 2016), turned to agree with the mean difference.
        """
        return axes.direction(self._differences(pairs, method), method)

    def agreement(
        self,
        pairs: Sequence[tuple[str, str]],
        method: Literal["mean", "pca"] = "mean",
        seed: int = 0,
        draws: int = 200,
    ) -> pd.DataFrame:
        """Whether pairs share a direction: first second length cosine control.

        cosine: of the pair's difference with the direction that all the other pairs make, which
        have not seen it. control: the same after every difference is replaced by a random direction
        of equal norm. `attrs`: "explained", the share of the differences' squared length along
        their first component; "control", the middle 95 % of it over `draws` such replacements.
        """
        differences = self._differences(pairs, method)
        if len(pairs) < 2:
            raise ValueError("agreement needs at least two pairs of words")
        rng = np.random.default_rng(seed)
        replaced = axes.random_like(differences, rng)
        shares = [axes.principal(axes.random_like(differences, rng), centre=False)[1][0]
                  for _ in range(draws)]  # fmt: skip
        frame = pd.DataFrame(
            {
                "first": [a for a, _ in pairs],
                "second": [b for _, b in pairs],
                "length": np.linalg.norm(differences, axis=1).astype(float),
                "cosine": axes.held_out(differences, method).astype(float),
                "control": axes.held_out(replaced, method).astype(float),
            }
        )
        explained = float(axes.principal(differences, centre=False)[1][0])
        frame.attrs = {"explained": explained, "control": axes.middle(shares)}
        return frame

    def along(
        self, direction: np.ndarray, words: Sequence[str], seed: int = 0, draws: int = 1000
    ) -> pd.DataFrame:
        """Words along a direction, in the order given: word cosine low high.

        cosine: of the centred vector with `direction` [d]. low, high: the middle 95 % of its
        cosines with the directions from one random token to another (`draws` of them), which any
        direction that means something must leave.
        """
        if np.shape(direction) != self.vectors.shape[1:] or not np.any(direction):
            raise ValueError(
                f"direction must be a vector of {self.vectors.shape[1]} numbers, not all zero; "
                f"got shape {list(np.shape(direction))}"
            )
        unit = self.unit(True)[[self.row(word) for word in words]]
        ends = np.random.default_rng(seed).integers(len(self), size=(2, draws))
        control = [axes.cosines(unit, one) for one in self.vectors[ends[1]] - self.vectors[ends[0]]]
        low, high = np.quantile(control, [0.025, 0.975], axis=0)
        found = axes.cosines(unit, np.asarray(direction)).astype(float)
        return pd.DataFrame({"word": list(words), "cosine": found, "low": low, "high": high})

    def plane(
        self, words: Sequence[str], centre: bool = True, seed: int = 0, draws: int = 200
    ) -> pd.DataFrame:
        """Words in the plane of their first two principal components: word x y explained.

        Of the unit vectors that `analogy` uses, about the middle of these words; differences and
        sums of words stay what they are (a parallelogram stays one). explained: the share of a
        word's squared distance from the middle that the plane shows. `attrs`: "explained", the
        shares of variance along x and y; "control", the middle 95 % of their sum for as many random
        tokens.
        """
        rows = [self.row(word) for word in words]
        if len(set(rows)) < 3:
            raise ValueError(f"a plane needs three words or more, got {len(set(rows))}")
        unit = self.unit(centre)
        places, shares, shown = axes.plane(unit[rows])
        rng = np.random.default_rng(seed)
        size = min(len(rows), len(self))
        drawn = (unit[rng.choice(len(self), size, replace=False)] for _ in range(draws))
        control = axes.middle([axes.plane(one)[1].sum() for one in drawn])
        x, y = places.T.astype(float)
        frame = pd.DataFrame({"word": list(words), "x": x, "y": y, "explained": shown})
        frame.attrs = {"explained": tuple(map(float, shares)), "control": control}
        return frame

    def spectrum(self, seed: int = 0) -> pd.DataFrame:
        """Variance along the principal components of the rows about their mean: component variance
        share cumulative control_cumulative (of Gaussian vectors of the same shape)."""
        return spectrum.spectrum(self.vectors, seed)

    def dimension(self, seed: int = 0) -> pd.DataFrame:
        """How many dimensions the rows fill, and how long they are: measure value control.

        participation ratio (Σ λ)² / Σ λ² and entropy rank (exp of the entropy; Roy & Vetterli 2007)
        of the variances λ along the principal components; how many of these hold 90 % of the
        variance; mean norm and standard deviation of norms. control: of Gaussian vectors of the
        same shape and mean squared length, drawn with `seed`.
        """
        return spectrum.dimension(self.vectors, seed)

    def anisotropy(self, removed: Sequence[int] = (1, 3), seed: int = 0) -> pd.DataFrame:
        """The cosine of two different rows over all pairs: as they are (Ethayarajh 2019), centred,
        and without their first principal components (Mu & Viswanath 2018): treatment removed
        mean_cosine deviation control control_deviation.

        Isotropic rows have mean_cosine 0 and deviation 1/√d; centred ones a mean of −1/(n − 1).
        control: Gaussian vectors of the same shape under the same treatment. Nothing else is
        random: all pairs are in the sums.
        """
        spectrum.check_removed(removed, self.vectors.shape)
        return spectrum.anisotropy(self.vectors, removed, seed)

    def cosine_histogram(
        self, bins: int = 60, pairs: int = 100_000, centre: bool = False, seed: int = 0
    ) -> pd.DataFrame:
        """How the cosines of `pairs` random pairs of rows are spread, as shares per bin: low high
        share random (as many pairs of random directions) normal (N(0, 1/d), what theory says of
        these)."""
        return cosines.histogram(self.unit(centre), bins, pairs, seed)

    def cosine_quantiles(
        self,
        at: Sequence[float] = (0.001, 0.025, 0.25, 0.5, 0.75, 0.975, 0.999),
        pairs: int = 100_000,
        centre: bool = False,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Quantiles of the cosine of random pairs of rows, and of random directions: quantile
        cosine random."""
        return cosines.quantiles(self.unit(centre), at, pairs, seed)

    def orthogonality(
        self,
        within: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        pairs: int = 100_000,
        centre: bool = False,
        seed: int = 0,
    ) -> pd.DataFrame:
        """How many pairs of rows are nearly orthogonal: within share random normal could_hold.

        share: of random pairs with |cosine| ≤ `within`; random: of pairs of random directions;
        normal: under N(0, 1/d). could_hold: so many directions certainly fit into d dimensions with
        every pair that near to orthogonal (`cosines.could_hold`); no count of what is here.
        """
        return cosines.orthogonality(self.unit(centre), within, pairs, seed)

    def clusters(
        self,
        words: Sequence[str],
        k: int | None = None,
        labels: Sequence[str] | None = None,
        method: Literal["kmeans", "agglomerative"] = "kmeans",
        centre: bool = True,
        seed: int = 0,
        draws: int = 20,
    ) -> pd.DataFrame:
        """Words in `k` clusters of their unit vectors (by default as many as there are different
        labels): word label cluster silhouette; without labels no such column.

        `attrs`: "silhouette", its mean (Rousseeuw 1987), and "control", the middle 95 % of it over
        `draws` tables in which every dimension was shuffled over the words; with labels "rand", the
        adjusted Rand index (Hubert & Arabie 1985), and "rand_control", the middle 95 % of it with
        shuffled labels. `seed`: the starts of k-means and the shuffles. agglomerative: average
        linkage.
        """
        if k is None and labels is None:
            raise ValueError("clusters needs k=, or labels= whose number is taken for it")
        rows = [self.row(word) for word in words]
        if len(set(rows)) < len(rows):
            raise ValueError("clusters needs each word once: two of them are the same token")
        count = len(set(labels or ())) if k is None else k
        found = grouping.clusters(self.unit(centre)[rows], count, method, labels, seed, draws)
        given = {} if labels is None else {"label": list(labels)}
        frame = pd.DataFrame(
            {
                "word": list(words),
                **given,
                "cluster": found.cluster,
                "silhouette": found.silhouette.astype(float),
            }
        )
        frame.attrs = {"silhouette": float(found.silhouette.mean()), "control": found.control}
        if labels is not None:
            frame.attrs |= {"rand": found.rand, "rand_control": found.rand_control}
        return frame

    def shuffled(self, seed: int) -> Embedding:
        """The control: the same vectors dealt out to the tokens at random."""
        order = np.random.default_rng(seed).permutation(len(self))
        return replace(self, vectors=self.vectors[order])

    def _differences(self, pairs: Sequence[tuple[str, str]], method: str) -> np.ndarray:
        if method not in ("mean", "pca"):
            raise ValueError(f"method={method!r}: expected 'mean' or 'pca'")
        if not pairs:
            raise ValueError("a direction needs at least one pair of words")
        first, second = (self.vectors[[self.row(pair[i]) for pair in pairs]] for i in (0, 1))
        return second - first

    def _question(self, words: Sequence[str]) -> list[int]:
        rows = [self.row(word) for word in words]
        if rows[3] in rows[:3]:
            raise ValueError(f"the expected answer {words[3]!r} is itself one of a, b, c")
        return rows

    def _pool(self, candidates: Iterable[str] | np.ndarray | None) -> np.ndarray:
        """The rows that compete, each once."""
        if candidates is None:
            return np.arange(len(self))
        if isinstance(candidates, np.ndarray) and candidates.dtype.kind in "iu":
            pool = np.unique(candidates)
        else:
            pool = np.unique([self.row(word) for word in candidates])
        if not pool.size or pool[0] < 0 or pool[-1] >= len(self):
            raise ValueError(f"candidates must be some of the rows 0 … {len(self) - 1}")
        return pool

    def _top(self, scores: np.ndarray, pool: np.ndarray, without: set[int], k: int) -> pd.DataFrame:
        if k < 1:
            raise ValueError(f"k={k}: expected at least 1")
        order = np.argsort(-scores, kind="stable")
        order = [i for i in order[: k + len(without)] if pool[i] not in without][:k]
        return pd.DataFrame(
            {
                "rank": np.arange(1, len(order) + 1),
                "token": [self.tokens[pool[i]] for i in order],
                "score": scores[order].astype(float),
            }
        )


def _normalised(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(length == 0, 1, length)
    unit.flags.writeable = False
    return unit


def _flags(value: bool | Iterable[bool]) -> list[bool]:
    return [value] if isinstance(value, bool) else list(value)
