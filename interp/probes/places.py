"""Where activations were read: site, layer, position and head of each set of features."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from torch import Tensor

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
            return cls(key[0], *(None if part is None else int(part) for part in key[1:]))
        raise ValueError(
            f"{key!r} names no place: expected a site, or (site, layer[, pos[, head]])"
        )

    def matches(self, name: Any) -> bool:
        """Whether a name of a site, short or full, or a pair (name, layer) means this place."""
        if isinstance(name, tuple):
            return self.layer == name[1] and self.matches(name[0])
        asked = Place.of(name)
        last = self.site.rpartition(".")[2]
        forms = {form for one in (self.site, last) for form in (one, one.replace("hook_", ""))}
        return asked.site in forms and asked.layer in (None, self.layer)

    def __str__(self) -> str:
        named = zip(("layer", "pos", "head"), self[1:], strict=True)
        return ", ".join([self.site, *(f"{a} {b}" for a, b in named if b is not None)])


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
    positions: Sequence[int] | None = None,
) -> list[Features]:
    """Every place of the activations, as matrices of n rows.

    A mapping from places to [n d], [n pos d] or [n pos head d]; an ActivationCache is one. An array
    [problem n d] is site "activations", its layers the problems. sites: some of them, by name, pair
    (name, layer) or a list of these; positions: some of the position axis. Raises ValueError on
    another number of rows, on values that are not finite, and on a name that matches nothing.
    """
    found: list[Features] = []
    named = _named(activations)
    chosen = _chosen([place for place, _ in named], sites)
    for place, value in named:
        if place not in chosen:
            continue
        x = _tensor(value, place)
        if x.ndim not in (2, 3, 4) or len(x) != n:
            raise ValueError(
                f"the activations of {place} have shape {list(x.shape)}; expected {n} rows, one "
                "for each label: [n d], [n pos d] or [n pos head d]"
            )
        for where, part in _parts(place, x, positions):
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
    place: Place, x: Tensor, positions: Sequence[int] | None
) -> Iterable[tuple[Place, Tensor]]:
    """By position and head."""
    if x.ndim == 2:
        yield place, x
        return
    length = x.shape[1]
    for given in range(length) if positions is None else positions:
        if not -length <= given < length:
            raise ValueError(f"positions: {given} is outside the {length} positions of {place}")
        pos = given % length
        if x.ndim == 3:
            yield place._replace(pos=pos), x[:, pos]
        else:
            for head in range(x.shape[2]):
                yield place._replace(pos=pos, head=head), x[:, pos, head]
