"""Which examples a probe learns from and which it is asked about; a split that leaks is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

INNER = 5
"""Parts of a training part, each of which is held out to choose C."""


class Folds(NamedTuple):
    """`train` [folds, n]: whether a fold learns from an example. `of` [n]: the fold that is asked
    about it, −1 for an example that is only learned from."""

    train: np.ndarray
    of: np.ndarray

    @property
    def asked(self) -> np.ndarray:
        """The examples that some fold is asked about."""
        return np.flatnonzero(self.of >= 0)


@dataclass(frozen=True, eq=False)
class Examples:
    """What splitting has to know of the examples."""

    y: np.ndarray
    """Class numbers, or the numbers of a regression."""
    classes: np.ndarray | None
    """The classes' names; None: a regression."""
    groups: np.ndarray | None
    texts: Any
    """None, or something to be known again for each example."""

    def __len__(self) -> int:
        return len(self.y)

    def some(self, rows: np.ndarray) -> Examples:
        """The examples of these rows."""
        groups = None if self.groups is None else self.groups[rows]
        texts = None if self.texts is None else [self.texts[i] for i in rows]
        return Examples(self.y[rows], self.classes, groups, texts)


def folds(examples: Examples, cv: int, split: Any = None, seed: int = 0) -> Folds:
    """Stratified and, with groups, grouped folds in random order; or the given split.

    split [n]: "train" or "test"; or True where an example is of the test part; or the fold that is
    asked about it, −1 for never (scikit-learn's PredefinedSplit). Raises ValueError where a text or
    a group is on both sides, where a class has fewer members (or groups) than there are folds or is
    missing from a training part, and where one group holds more than half of the examples.
    """
    if split is None:
        made = _drawn(examples, cv, seed)
    else:
        of = _given(split, len(examples))
        numbers = np.unique(of[of >= 0])
        if not len(numbers):
            raise ValueError("split asks about no example: it holds no test part")
        train = np.stack([of != number for number in numbers])
        made = Folds(train, np.where(of >= 0, np.searchsorted(numbers, of), -1))
    _check_sides(examples, made)
    return made


def inner(examples: Examples, made: Folds, seed: int, every: bool = False) -> np.ndarray:
    """Of each fold's training part the rows that choose C: [part, folds, n], in one part of about
    a fifth; with `every` in all fifths, so that each training row is in one of them."""
    held = np.zeros((INNER if every else 1, *made.train.shape), dtype=bool)
    for i, row in enumerate(made.train):
        rows = np.flatnonzero(row)
        own = examples.some(rows)
        cv = min(INNER, _fewest(own))
        if cv < 2:
            raise ValueError(
                f"C cannot be chosen within the training part of fold {i}: one of its classes has "
                "a single member (or group); give one C, or merge that class"
            )
        part = folds(replace(own, texts=None), cv, seed=seed).of
        for number in range(cv if every else 1):
            held[number, i, rows[part == number]] = True
    return held[held.any((1, 2))]


def permuted(
    examples: Examples, of: np.ndarray, n: int, shuffle: str, rng: np.random.Generator
) -> tuple[np.ndarray, str]:
    """n permutations of the labels [n, examples], each within the folds, and what was permuted.

    Within a fold, so that every fold keeps its classes. auto: without groups the examples; whole
    groups where all members of a group have one label; else the examples within their group, as
    scikit-learn's permutation_test_score does. Raises ValueError where the last leaves more than
    half of the examples where they are.
    """
    known = ("auto", "examples", "groups", "within")
    if shuffle not in known:
        raise ValueError(f"shuffle={shuffle!r}: expected one of {', '.join(map(repr, known))}")
    groups = examples.groups
    if groups is None:
        if shuffle in ("groups", "within"):
            raise ValueError(f"shuffle={shuffle!r} needs groups=")
        shuffle = "examples"
    elif shuffle in ("auto", "groups"):
        one_label = _one_label(examples.y, groups)
        if not one_label and shuffle == "groups":
            raise ValueError("shuffle='groups' needs groups whose members have one label each")
        shuffle = "groups" if one_label else "within"
    if shuffle == "within" and groups is not None:
        blocks = np.unique(groups, return_inverse=True)[1]
        mixed = np.array([len(set(examples.y[blocks == b])) > 1 for b in range(blocks.max() + 1)])
        if mixed[blocks].mean() < 0.5:
            raise ValueError(
                f"labels can be shuffled within groups for {mixed[blocks].mean():.0%} of the "
                "examples only: all others share one label in their group; pass "
                "shuffle='examples', which takes the examples of a group as independent"
            )
    elif shuffle == "groups" and groups is not None:
        return np.stack([_by_group(examples.y, groups, of, rng) for _ in range(n)]), shuffle
    else:
        blocks = of
    return np.stack([_within(examples.y, blocks, rng) for _ in range(n)]), shuffle


def _within(y: np.ndarray, blocks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """y permuted within each block."""
    home = np.argsort(blocks, kind="stable")
    mixed = np.lexsort((rng.random(len(y)), blocks))
    out = np.empty_like(y)
    out[home] = y[mixed]
    return out


def _by_group(
    y: np.ndarray, groups: np.ndarray, of: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The labels of whole groups permuted within each fold."""
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    return _within(y[first], of[first], rng)[group]


def _one_label(y: np.ndarray, groups: np.ndarray) -> bool:
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    return bool((y == y[first][group]).all())


def _fewest(examples: Examples) -> int:
    """Members, or groups, of the smallest class that has any; of a regression all."""
    units = np.arange(len(examples)) if examples.groups is None else examples.groups
    if examples.classes is None:
        return len(np.unique(units))
    return min(len(np.unique(units[examples.y == c])) for c in np.unique(examples.y))


def _drawn(examples: Examples, cv: int, seed: int) -> Folds:
    _check_enough(examples, cv)
    options = {"n_splits": cv, "shuffle": True, "random_state": seed}
    grouped, stratified = examples.groups is not None, examples.classes is not None
    kinds = {
        (False, False): KFold,
        (False, True): StratifiedKFold,
        (True, False): GroupKFold,
        (True, True): StratifiedGroupKFold,
    }
    splitter = kinds[grouped, stratified](**options)
    of = np.empty(len(examples), dtype=int)
    for i, (_, test) in enumerate(splitter.split(of, examples.y, examples.groups)):
        of[test] = i
    return Folds(np.stack([of != i for i in range(cv)]), of)


def _check_enough(examples: Examples, cv: int) -> None:
    if cv < 2:
        raise ValueError(f"cv={cv}: expected two folds or more")
    if len(examples) < cv:
        raise ValueError(f"{len(examples)} examples are fewer than cv={cv} folds")
    if examples.groups is not None:
        names, counts = np.unique(examples.groups, return_counts=True)
        if len(names) < cv:
            raise ValueError(f"{len(names)} groups are fewer than cv={cv} folds")
        if counts.max() * 2 > len(examples):
            raise ValueError(
                f"the group {names[int(counts.argmax())].item()!r} holds {counts.max()} of the "
                f"{len(examples)} examples: whichever fold holds it out learns from less than "
                "half; part it, or give split="
            )
    what = "members" if examples.groups is None else "groups"
    units = np.arange(len(examples)) if examples.groups is None else examples.groups
    for c, name in enumerate([] if examples.classes is None else examples.classes.tolist()):
        has = len(np.unique(units[examples.y == c]))
        if has < cv:
            raise ValueError(f"the class {name!r} has {has} {what}, fewer than cv={cv} folds")


def _given(split: Any, n: int) -> np.ndarray:
    given = np.asarray(split)
    if given.shape != (n,):
        raise ValueError(f"split has shape {list(given.shape)} for {n} examples")
    if given.dtype == bool:
        return np.where(given, 0, -1)
    if given.dtype.kind in "iu":
        return given.astype(int)
    names = set(given.tolist())
    if not names <= {"train", "test"}:
        raise ValueError(
            f"split holds {sorted(map(str, names - {'train', 'test'}))[0]!r}: expected 'train' and "
            "'test', booleans (True: test), or the number of the fold"
        )
    return np.where(given == "test", 0, -1)


def _check_sides(examples: Examples, made: Folds) -> None:
    """No text and no group on both sides, and every class among those learned from."""
    for i, row in enumerate(made.train):
        asked = made.of == i
        for what, values in (("group", examples.groups), ("text", examples.texts)):
            if values is None:
                continue
            known = {_key(values[j]) for j in np.flatnonzero(row)}
            both = [j for j in np.flatnonzero(asked) if _key(values[j]) in known]
            if both:
                advice = "pass groups=texts or drop repeats" if what == "text" else "mend split="
                raise ValueError(
                    f"the {what} {_key(values[both[0]])!r} stands on both sides of fold {i}, and "
                    f"so do {len(both) - 1} more examples of its test part: what is learned by "
                    f"heart would count as found; {advice}"
                )
        if examples.classes is None:
            continue
        missing = set(range(len(examples.classes))) - set(examples.y[row].tolist())
        if missing:
            name = examples.classes.tolist()[min(missing)]
            raise ValueError(f"the class {name!r} is not in the training part of fold {i}")


def _key(value: Any) -> Any:
    """A text may be a string, a number, or ids in an array or list."""
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray | Tensor) else value
    return tuple(plain) if isinstance(plain, list) else plain
