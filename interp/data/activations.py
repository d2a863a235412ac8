"""What a model has at one site for every example: rows for probes, directions and erasers."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import finite_cache
from interp.core.sites import Site, SiteName
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from interp.sweeps.metrics import Where, one_position
from interp.sweeps.nodes import as_frame

HERE = "the position read"
"""The role under which a position per example is known to a sweep."""
BATCH = 64


@torch.no_grad()
def vectors_at(
    model: HookedTransformer, tokens: Any, site: SiteName, pos: Where | Literal["all"] = None
) -> Float[Tensor, "n d"]:
    """The activations at one site, on the CPU: one row per example, at `pos` (default: the last
    real token), or with "all" one per real token, in order of example. Runs `BATCH` at a time.

    Raises ValueError at a site that has no one vector per position.
    """
    tokens, found = model.accept(tokens), vector_site(model, site)
    everywhere = isinstance(pos, str) and pos == "all"
    at = None if everywhere else one_position(pos, tokens)[:, 0]
    parts = []
    for rows in torch.arange(len(tokens)).split(BATCH):
        some = tokens[rows]
        values = finite_cache(model, some, found.name)[found.name]
        if at is None:
            parts.append(values[some.real].cpu())
        else:
            own = rows.to(at.device)
            parts.append(values[torch.arange(len(rows), device=at.device), at[own]].cpu())
    return torch.cat(parts)


def vector_site(model: HookedTransformer, site: SiteName) -> Site:
    """The site of a name, if it holds one vector per position; raises ValueError otherwise."""
    found = model.sites[site]
    if len(found.axes) != 3 or found.axes[:2] != ("batch", "pos") or found.axes[2] == "one":
        raise ValueError(
            f"{found.name!r} is {' '.join(found.axes)}: a site with one vector per position is "
            "needed, such as ('resid_post', layer)"
        )
    return found


def node_at(
    model: HookedTransformer, tokens: Any, site: SiteName, pos: Where | Literal["all"]
) -> tuple[Tokens, pd.DataFrame]:
    """The node of a sweep that edits a site where `vectors_at` reads it, and the tokens that know
    the position."""
    tokens, found = model.accept(tokens), vector_site(model, site)
    node: dict[str, Any] = {"site": found.local_name, "layer": found.layer}
    if not (isinstance(pos, str) and pos == "all"):
        roles = {**tokens.roles, HERE: one_position(pos, tokens)[:, 0]}
        tokens, node["role"] = dataclasses.replace(tokens, roles=roles), HERE
    return tokens, as_frame([node])
