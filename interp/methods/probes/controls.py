"""What a probe reads where there is nothing to read, and how many bits it saves where there is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core import chance
from interp.model import HookedTransformer

from . import fitting
from .splits import Examples, Folds

FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""The parts of the data after which the online code learns anew (Voita & Titov 2020)."""
DRAWS = 100
"""Tries for a control labelling of which every training part holds two classes."""


def control_labels(
    y: np.ndarray, types: np.ndarray, n: int, made: Folds, rng: np.random.Generator
) -> np.ndarray:
    """The labels of n control tasks [n examples] (Hewitt & Liang 2019).

    Every type draws one label from the labels of all examples and keeps it wherever it stands: only
    a probe that learns types by heart does better than chance. Raises ValueError where no type
    stands twice, or there are too few of them for two classes in every training part.
    """
    names, type_of = np.unique(types, return_inverse=True)
    if len(names) == len(y):
        raise ValueError(
            "types: none stands twice, so nothing can be learned by heart; a control task needs "
            "the type of each example, such as its word"
        )
    drawn = []
    for _ in range(n):
        for _ in range(DRAWS):
            labels = rng.choice(y, size=len(names))[type_of]
            if all(len(np.unique(labels[row])) > 1 for row in made.train):
                break
        else:
            raise ValueError(
                f"types: with {len(names)} of them no control labelling was found in {DRAWS} draws "
                "of which every training part holds two labels"
            )
        drawn.append(labels)
    return np.stack(drawn)


def random_features(n: int, d: int, draws: int, seed: int, like: Tensor) -> Float[Tensor, "b n d"]:
    """Gaussian features; the same for a seed on every device."""
    generator = chance.seeded(seed)
    return chance.normal(draws, n, d, generator=generator, dtype=like.dtype).to(like.device)


def random_copy(model: HookedTransformer, seed: int = 0) -> HookedTransformer:
    """A model of the same architecture with fresh weights, and the same hooks; seeded.

    What is read from it is owed to the architecture and the tokens, not to training (Conneau et al.
    2018). Raises ValueError on a model behind the bridge.
    """
    if model.opaque:
        raise ValueError(
            f"{model.name!r} cannot be initialised anew ({model.opaque}); load a model of a "
            "supported family"
        )
    copy = HookedTransformer(
        model.cfg, model.tokenizer, name=f"{model.name} (random weights, seed {seed})",
        device=model.device, dtype=model.dtype, seed=seed,
    )  # fmt: skip
    return copy.with_hooks(model.fwd_hooks) if model.fwd_hooks else copy


def blocks(examples: Examples, seed: int) -> tuple[np.ndarray, list[int]]:
    """The order in which the online code sends the examples, and where it learns anew.

    Random; the members of a group lie together and are never parted, so that no block is foretold
    by its own groups.
    """
    n, rng = len(examples), np.random.default_rng(seed)
    groups = np.arange(n) if examples.groups is None else examples.groups
    _, group = np.unique(groups, return_inverse=True)
    place = rng.permutation(group.max() + 1)[group]
    order = np.argsort(place, kind="stable")
    ends = np.flatnonzero(np.diff(place[order], append=-1)) + 1
    sizes = [int(ends[np.searchsorted(ends, max(2, round(n * f)))]) for f in FRACTIONS]
    return order, sorted(set(sizes))


def description_length(
    x: Float[Tensor, "b n d"], examples: Examples, seed: int, **options: Any
) -> np.ndarray:
    """Bits of the online (prequential) code of the labels given the features [b].

    The labels of the first block cost log₂ K bits each; those of every later one −log₂ p under a
    probe that has learned from all before it (Voita & Titov 2020, §2.2). A class that no example
    has shown yet has probability 1 / (t + K) after t of them, and the others share the rest.
    `options` go to `fitting.fit`.
    """
    assert examples.classes is not None
    order, sizes = blocks(examples, seed)
    k = len(examples.classes)
    y = torch.from_numpy(examples.y[order]).to(x.device)
    x = x[:, torch.from_numpy(order).to(x.device)]
    bits = x.new_full((len(x),), sizes[0] * float(np.log2(k)), dtype=torch.float64)
    for before, after in pairwise(sizes):
        logs = next_block(x[:, :after], y[:after], before, k, **options)
        bits -= logs.double().sum(1) / float(np.log(2))
    return bits.cpu().numpy()


def next_block(
    x: Float[Tensor, "b m d"], y: Tensor, before: int, n_classes: int, **options: Any
) -> Float[Tensor, "b block"]:
    """Log-probabilities of the labels after `before`, by a probe that has learned from the rest."""
    seen, codes = torch.unique(y[:before], return_inverse=True)
    unseen = n_classes - len(seen)
    left = 1 - unseen / (before + n_classes)
    place = torch.full((n_classes,), -1, device=y.device)
    place[seen] = torch.arange(len(seen), device=y.device)
    target = place[y[before:]]
    if len(seen) == 1:
        known = x.new_zeros(len(x), 1, len(target))
    else:
        known = _learned(x, codes, before, len(seen), **options)
    of_known = known.gather(1, target.clamp_min(0).expand(len(x), 1, -1))[:, 0] + float(
        np.log(left)
    )
    return torch.where(target >= 0, of_known, -float(np.log(before + n_classes)))


def _learned(
    x: Tensor, codes: Tensor, before: int, n_seen: int, **options: Any
) -> Float[Tensor, "b k block"]:
    """Log-probabilities of the classes seen so far."""
    train = torch.arange(x.shape[1], device=x.device)[None] < before
    y = torch.zeros(1, x.shape[1], dtype=torch.long, device=x.device)
    y[0, :before] = codes
    if x.shape[2] <= before:  # nothing of what follows is needed to learn
        learned = fitting.prepare(x[:, :before], train[:, :before], strict=False)
        found = fitting.fit(learned, y[:, :before], n_classes=n_seen, **options)
        slopes, offset = learned.original(found.coef)
        z = (slopes[:, 0, 0] @ x[:, before:].mT) + offset[:, 0, 0, :, None]
    else:
        prepared = fitting.prepare(x, train, by_rows=True, strict=False)
        found = fitting.fit(prepared, y, n_classes=n_seen, **options)
        rows = torch.arange(before, x.shape[1], device=x.device)
        z = prepared.decide(found.coef, 0, rows)[:, 0]
    return log_probabilities(z)


def log_probabilities(z: Float[Tensor, "*b k n"]) -> Float[Tensor, "*b k2 n"]:
    """Of every class, from decisions: one row of them for two classes, else a row per class."""
    if z.shape[-2] == 1:
        z = torch.cat([torch.zeros_like(z), z], -2)
    return z.log_softmax(-2)


def check_types(types: Any, n: int) -> np.ndarray | None:
    """The types as an array. Raises ValueError unless there is one for each example."""
    if types is None:
        return None
    array = np.asarray(types)
    if array.shape != (n,):
        raise ValueError(f"types has shape {list(array.shape)} for {n} labels")
    return array
