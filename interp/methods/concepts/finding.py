"""The directions of a concept: by every method, in every layer, on one half of its texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.activations import vectors_at
from interp.model import HookedTransformer

from ..directions import Direction, difference_of_means, pair_direction
from ..probes import LinearProbe
from .texts import Concept, Halves

Method = Literal["means", "pca", "probe"]
METHODS: dict[Method, str] = {
    "means": "difference of means",
    "pca": "PCA of pairs",
    "probe": "linear probe",
}


def find(
    method: Method,
    x: Float[Tensor, "n d"],
    concept: Concept,
    rows: np.ndarray,
    site: str,
    model: str,
    labels: Tensor | None = None,
) -> Direction:
    """The direction of one method, from some rows of all activations `x`.

    labels: by default the concept's. Raises ValueError where there is none (the classes do not
    differ there), and for PCA where the texts are no pairs.
    """
    y = concept.labels if labels is None else labels
    at = torch.from_numpy(rows)
    if method == "means":
        return difference_of_means(x[at], y[at], site=site, model=model)
    if method == "pca":
        if not concept.paired:
            raise ValueError("the texts are no pairs")
        first = at[at < len(x) // 2]
        second = first + len(x) // 2
        turned = (y[first] == 1)[:, None]
        low = torch.where(turned, x[second], x[first])
        high = torch.where(turned, x[first], x[second])
        return pair_direction(low, high, site=site, method="pca", model=model)
    probe = LinearProbe(standardise=True).fit(x[at].double(), y[at])
    vector = torch.as_tensor(probe.coef_)[0]
    spread = float((x[at].double() @ vector / vector.norm()).std())
    return Direction(
        vector, site, "weights of a logistic probe", model, None, x[at].double().mean(0), spread
    )


@dataclass(frozen=True, eq=False)
class Directions:
    """The directions of all layers and methods, and the activations they were found in."""

    concept: Concept
    halves: Halves
    layers: tuple[int, ...]
    sites: dict[int, str]
    x: dict[int, Float[Tensor, "n d"]]
    directions: dict[tuple[int, Method], Direction] = field(default_factory=dict)
    failed: list[tuple[int, Method, str]] = field(default_factory=list)

    def methods(self, layer: int) -> list[Method]:
        """Those that found something there."""
        return [method for at, method in self.directions if at == layer]


def find_all(
    model: HookedTransformer, concept: Concept, site: str, layers: tuple[int, ...], seed: int
) -> Directions:
    """Every method in every layer, on the fitted half of the texts."""
    halves = concept.halves(seed)
    sites = {layer: model.sites[site, layer].name for layer in layers}
    x = {
        layer: vectors_at(model, concept.tokens, name, concept.pos).double()
        for layer, name in sites.items()
    }
    found = Directions(concept, halves, layers, sites, x)
    for layer in layers:
        for method in METHODS:
            if method == "pca" and not concept.paired:
                continue
            try:
                found.directions[layer, method] = find(
                    method, x[layer], concept, halves.fit, sites[layer], model.name
                )
            except ValueError as error:
                found.failed.append((layer, method, str(error)))
    return found
