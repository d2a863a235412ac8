"""Where activations were read: site, layer, position and head of each set of features."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.core.indices import Indices, indices, reusable, whole_number
from interp.core.tap import ActivationCache

COLUMNS = ("source", "site", "layer", "pos", "head")
"""What names a place in a frame; layer, pos and head are blank where there is none."""
MODEL = "model"
"""The source of what is probed; a baseline has a name of its own."""
PATTERNS = ("hook_pattern", "hook_attn_scores", "pattern", "attn_scores")
IN_BLOCK = re.compile(r"((?:encoder_|decoder_)?)blocks\.(\d+)\.(.+)")

Activations: TypeAlias = Mapping[Any, Any] | np.ndarray | Tensor


class Place(NamedTuple):
    """Site and layer; position and head where the features have them."""

    site: str
    layer: int | None = None
    pos: int | None = None
    head: int | None = None

    @classmethod
    def of(cls, key: Any) -> Place:
        """From a full name of a site ("blocks.3.hook_resid_post"), any other string, or a tuple
        (site, layer[, pos[, head]])."""
        if isinstance(key, str):
            match = IN_BLOCK.fullmatch(key)
            if match is None:
                return cls(key)
            stack, layer, local = match.groups()
            return cls(f"{stack}blocks.{local}" if stack else local, int(layer))
        if isinstance(key, tuple) and 1 <= len(key) <= 4 and isinstance(key[0], str):
            named = zip(("layer", "pos", "head"), key[1:], strict=False)
            return cls(key[0], *(None if part is None else _number(name, part, key)
                                 for name, part in named))  # fmt: skip
        raise ValueError(
            f"{key!r} names no place: expected a site, or (site, layer[, pos[, head]])"
        )

    def matches(self, name: Any) -> bool:
        """Whether a name of a site, short or full, or a pair (name, layer) means this place."""
        if isinstance(name, tuple):
            return self.layer == _number("layer", name[1], name) and self.matches(name[0])
        asked = Place.of(name)
        last = self.site.rpartition(".")[2]
        forms = {form for one in (self.site, last) for form in (one, one.replace("hook_", ""))}
        return asked.site in forms and asked.layer in (None, self.layer)

    def __str__(self) -> str:
        named = zip(("layer", "pos", "head"), self[1:], strict=True)
        return ", ".join([self.site, *(f"{a} {b}" for a, b in named if b is not None)])


def _number(column: str, value: object, key: tuple) -> int:
    """What names a place counts from 0: of a mapping nobody knows where its axis ends."""
    number = whole_number(value, f"{column} of {key}")
    if number < 0:
        raise ValueError(f"{column} of {key} is {number}: expected a number from 0 on")
    return number


class Features(NamedTuple):
    """One set of features."""

    source: str
    place: Place
    x: Tensor
    """[n d], float32 or float64."""


def read(
    activations: Activations,
    n: int,
    *,
    source: str = MODEL,
    sites: Any = None,
    positions: Indices | None = None,
) -> list[Features]:
    """Every place of the activations, as matrices of n rows.

    A mapping from places to [n d], [n pos d] or [n pos head d]; an ActivationCache is one. An array
    [problem n d] is site "activations", its layers the problems. sites: some of them, by name, pair
    (name, layer) or a list of these; positions: some of the position axis, of a cache those of its
    run. Raises ValueError on another number of rows, on values that are not finite, on a name that
    matches nothing, and on a position that is not there.
    """
    found: list[Features] = []
    named = _named(activations)
    if isinstance(activations, ActivationCache) and sites is not None:
        sites = activations.select(sites)
    chosen = _chosen([place for place, _ in named], sites)
    positions = reusable(positions)
    for place, value in named:
        if place not in chosen:
            continue
        x = _tensor(value, place)
        if x.ndim not in (2, 3, 4) or len(x) != n:
            raise ValueError(
                f"the activations of {place} have shape {list(x.shape)}; expected {n} rows, one "
                "for each label: [n d], [n pos d] or [n pos head d]"
            )
        for where, part in _parts(place, x, positions, activations):
            if not bool(part.isfinite().all()):
                raise ValueError(
                    f"{int((~part.isfinite()).sum())} activations of {where} are NaN or infinite"
                )
            found.append(Features(source, where, part))
    return found


def frame(features: Sequence[Features]) -> pd.DataFrame:
    """The columns that name the places."""
    table = pd.DataFrame(
        {
            "source": [one.source for one in features],
            "site": [one.place.site for one in features],
            **{name: [getattr(one.place, name) for one in features] for name in COLUMNS[2:]},
        }
    )
    return table.astype(dict.fromkeys(COLUMNS[2:], "Int64"))


def _named(activations: Any) -> list[tuple[Place, Any]]:
    if isinstance(activations, Mapping):
        if not activations:
            raise ValueError("there are no activations: the mapping is empty")
        named = [(Place.of(key), activations[key]) for key in activations]
        for place, _ in named:
            if place.site.rpartition(".")[2] in PATTERNS:
                raise ValueError(f"{place.site!r} has no features by position: [head q_pos k_pos]")
        return named
    if getattr(activations, "ndim", 0) != 3:
        raise ValueError(
            "activations must be a mapping from places to arrays, an ActivationCache, or an array "
            f"[problem n d]; got {type(activations).__name__} "
            f"{list(getattr(activations, 'shape', ()))}"
        )
    return [(Place("activations", i), one) for i, one in enumerate(activations)]


def _chosen(places: list[Place], sites: Any) -> set[Place]:
    if sites is None:
        return set(places)
    names: Iterable[Any] = [sites] if isinstance(sites, str | tuple) else sites
    chosen: set[Place] = set()
    for name in names:
        own = {place for place in places if place.matches(name)}
        if not own:
            known = ", ".join(dict.fromkeys(place.site for place in places))
            raise ValueError(f"sites={name!r} matches none of the activations; they have {known}")
        chosen |= own
    return chosen


def _tensor(value: Any, place: Place) -> Tensor:
    if isinstance(value, Tensor):
        x = value.detach()
    else:
        x = torch.as_tensor(np.require(np.asarray(value), requirements="W"))
    if x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"the activations of {place} are {x.dtype}, not numbers")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _parts(
    place: Place, x: Tensor, positions: Indices | None, activations: Activations
) -> Iterable[tuple[Place, Tensor]]:
    """By position and head. Of a cache that holds some positions, they are those of its run."""
    if x.ndim == 2:
        yield place, x
        return
    kept, width = range(x.shape[1]), x.shape[1]
    if isinstance(activations, ActivationCache):
        kept, width = _kept(activations, place, kept)
    for pos in kept if positions is None else indices(positions, width, f"positions of {place}"):
        if pos not in kept:
            raise ValueError(
                f"position {pos} of {place} was not kept: the cache was taken with pos={list(kept)}"
            )
        at = x[:, kept.index(pos)]
        if x.ndim == 3:
            yield place._replace(pos=pos), at
        else:
            for head in range(x.shape[2]):
                yield place._replace(pos=pos, head=head), at[:, head]


def _kept(cache: ActivationCache, place: Place, every: range) -> tuple[Sequence[int], int]:
    """The positions that a cache holds of a site, and how many its run had."""
    name = place.site if place.layer is None else (place.site, place.layer)
    kept = cache.positions(name)
    return (every, len(every)) if kept is None else (kept, cache.width(name))
