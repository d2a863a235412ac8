"""Directions of the residual stream: found, kept, looked at, and tested by causing something.

A direction that separates two classes need not be used by the model (probing finds what is there),
and one that moves the output need not be what the model uses (a dormant part can do it: Makelov et
al. 2023). So a direction comes with what it was found on, `dormancy` says how much of it the data
ever vary along, and `causal_check` compares ablating and adding it with directions at random.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from interp.core.finite import finite
from interp.core.sites import SiteName, stack_config
from interp.core.vectors import numbers
from interp.data.activations import vector_site
from interp.loading.stored import check_tensors, write_tensors
from interp.model import HookedTransformer

from . import axes

KIND = "interp direction"


@dataclass(frozen=True, eq=False)
class Direction:
    """A vector of activations at one site, of any length, and what it was found on."""

    vector: Float[Tensor, " d"]
    site: str
    """The full name of the site: "blocks.2.hook_resid_post"."""
    origin: str
    """How it was found, in words."""
    model: str = ""
    """The name of the model."""
    seed: int | None = None
    """Of what was random in finding it."""
    mean: Float[Tensor, " d"] | None = None
    """Of the activations it was found on."""
    scale: float | None = None
    """Their standard deviation along it."""

    def __post_init__(self) -> None:
        for name in ("vector", "mean"):
            given = getattr(self, name)
            if given is not None and not (isinstance(given, Tensor) and given.is_floating_point()):
                object.__setattr__(self, name, numbers(given, name))
        if self.vector.ndim != 1 or not bool(self.vector.isfinite().all()):
            raise ValueError(
                f"a direction is one finite vector [d], got {list(self.vector.shape)}, finite: "
                f"{bool(self.vector.isfinite().all())}"
            )
        if not bool(self.vector.any()):
            raise ValueError("a direction must not be zero: its classes or pairs do not differ")
        if self.mean is not None and self.mean.shape != self.vector.shape:
            raise ValueError(
                f"mean has shape {list(self.mean.shape)}, the vector {list(self.vector.shape)}"
            )

    @property
    def width(self) -> int:
        return len(self.vector)

    @property
    def unit(self) -> Float[Tensor, " d"]:
        """At length one, in float64."""
        wide = self.vector.double()
        return wide / wide.norm()

    def check(self, model: HookedTransformer, site: SiteName | None = None) -> str:
        """The full name of the site at which it is used, by default its own.

        Raises ValueError where the activations there are of another width.
        """
        found = vector_site(model, self.site if site is None else site)
        size = {"expert": "n_experts"}.get(found.axes[2], found.axes[2])
        width = getattr(stack_config(found, model.cfg), size)
        if width != self.width:
            raise ValueError(
                f"this direction of {self.width} numbers was found at {self.site!r} and cannot be "
                f"used at {found.name!r}, whose activations have {width}"
            )
        return found.name

    def along(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows"]:
        """Where activations lie along it, in float64: (x − mean) · unit, about zero if there is
        no mean."""
        if x.shape[-1] != self.width:
            raise ValueError(f"activations of {x.shape[-1]} for a direction of {self.width}")
        wide = x.double().cpu()
        wide = wide if self.mean is None else wide - self.mean.double().cpu()
        return wide @ self.unit.cpu()

    def save(self, path: str | os.PathLike) -> Path:
        """Write a .safetensors file; whole, or not at all."""
        path = Path(path)
        tensors = {"vector": self.vector} | ({} if self.mean is None else {"mean": self.mean})
        facts = {"site": self.site, "origin": self.origin, "model": self.model,
                 "seed": self.seed, "scale": self.scale}  # fmt: skip
        write_tensors(path, tensors, {KIND: json.dumps(facts)})
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> Direction:
        """What `save` wrote. Raises ValueError on any other file."""
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})[KIND])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            check_tensors(Path(path), required=False)
        except FileNotFoundError:
            raise
        except Exception as error:  # noqa: BLE001  # the library raises its own and plain ones
            raise ValueError(f"{path} holds no direction ({error})") from None
        known = {name: facts[name] for name in ("site", "origin", "model", "seed", "scale")}
        return cls(tensors["vector"], mean=tensors.get("mean"), **known)


def difference_of_means(
    x: Float[Tensor, "n d"], y: Int[Tensor, " n"], *, site: str, model: str = ""
) -> Direction:
    """From the mean of the rows with label 0 to that of those with label 1 (Marks & Tegmark
    2023)."""
    labels = torch.as_tensor(y).to(x.device)
    if labels.shape != x.shape[:1] or set(labels.unique().tolist()) != {0, 1}:
        raise ValueError(
            f"labels {list(labels.shape)} with values {labels.unique().tolist()[:5]}: expected 0 "
            f"and 1, one for each of {len(x)} rows"
        )
    wide = x.double()
    vector = wide[labels == 1].mean(0) - wide[labels == 0].mean(0)
    return _found(vector, wide, site, "difference of means", model)


def pair_direction(
    first: Float[Tensor, "n d"],
    second: Float[Tensor, "n d"],
    *,
    site: str,
    method: Literal["mean", "pca"] = "pca",
    model: str = "",
) -> Direction:
    """The unit vector that leads from first rows to second ones: their mean difference, or the
    first principal component of the differences about zero (Bolukbasi et al. 2016), turned to agree
    with it."""
    if first.shape != second.shape or not len(first):
        raise ValueError(f"pairs of {list(first.shape)} and {list(second.shape)}")
    if method not in ("mean", "pca"):
        raise ValueError(f"method={method!r}: expected 'mean' or 'pca'")
    both = torch.cat([first, second]).double()
    apart = (second.double() - first.double()).cpu().numpy()
    vector = torch.from_numpy(axes.direction(apart, method))
    return _found(vector, both, site, f"{method} of {len(first)} pair differences", model)


def word_direction(
    table: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    site: str,
    method: Literal["mean", "pca"] = "mean",
    model: str = "",
) -> Direction:
    """What pairs of words share in a table of vectors, as `interp.embedding(model)` makes one."""
    rows = [[table.row(word) for word in pair] for pair in pairs]
    if not rows:
        raise ValueError("a direction needs at least one pair of words")
    vectors = torch.from_numpy(np.asarray(table.vectors)[np.array(rows)]).double()
    found = pair_direction(vectors[:, 0], vectors[:, 1], site=site, method=method, model=model)
    return Direction(
        found.vector, site, f"{method} of {len(pairs)} pairs of words", model, None, found.mean,
        found.scale,
    )  # fmt: skip


def _found(vector: Tensor, x: Tensor, site: str, origin: str, model: str) -> Direction:
    vector, x = vector.cpu(), x.cpu()
    length = vector.norm()
    scale = float((x @ vector / length).std()) if len(x) > 1 and length > 0 else None
    return Direction(vector, site, origin, model, None, x.mean(0), scale)


def cosines(directions: Mapping[str, Direction]) -> pd.DataFrame:
    """Every pair, in order: a b cosine chance.

    chance: what |cosine| exceeds in 5 % of pairs of random directions of that width.
    """
    if len({one.width for one in directions.values()}) > 1:
        widths = {name: one.width for name, one in directions.items()}
        raise ValueError(f"directions of unequal width have no cosine: {widths}")
    names = list(directions)
    units = torch.stack([directions[name].unit.cpu() for name in names])
    table = units @ units.T
    d = units.shape[1]
    chance = 1.959963984540054 / math.sqrt(d)
    rows = [
        (a, b, float(table[i, j]), chance)
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i < j
    ]
    return pd.DataFrame(rows, columns=["a", "b", "cosine", "chance"])


@torch.no_grad()
def promoted_tokens(model: HookedTransformer, direction: Direction, k: int = 10) -> pd.DataFrame:
    """The tokens that the direction itself raises and lowers most when it reaches the unembedding:
    side rank id token logit z.

    logit: what one unit of it adds to the logit less the mean over the vocabulary, before any
    soft-cap, with the final norm's gain and centring folded in and its scale at one. z: that, in
    standard deviations over the vocabulary; the largest of 50,000 normal numbers is about 4.3.
    Raises ValueError where the logits are no linear function of the stream, or none moves.
    """
    direction.check(model, model.blocks[-1].hook_resid_post)
    if model.cfg.head != "unembed":
        raise ValueError(f"head={model.cfg.head!r}: no unembedding reads the stream directly")
    if not 1 <= k <= model.cfg.d_vocab:
        raise ValueError(f"k={k}: expected 1 to {model.cfg.d_vocab}")
    read = direction.unit.to(model.device)
    norm = model.ln_final
    if norm is not None:
        read = read - read.mean() if norm.kind == "layernorm" else read
        read = read if norm.gain is None else read * norm.gain.double()
    logits = (read @ model.W_U.double()) * (model.cfg.logit_scale or 1.0)
    finite(logits, model, "what the direction adds to the logits")
    logits = (logits - logits.mean()).cpu()
    spread = float(logits.std())
    if spread == 0:
        raise ValueError("the unembedding does not read this direction: no logit moves with it")
    z = logits / spread
    frames = []
    for side, order in (
        ("promoted", logits.argsort(descending=True)),
        ("suppressed", logits.argsort()),
    ):
        ids = order[:k].tolist()
        names = _names(model, ids)
        frames.append(pd.DataFrame({
            "side": side, "rank": range(1, k + 1), "id": ids, "token": names,
            "logit": logits[ids].numpy(), "z": z[ids].numpy(),
        }))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _names(model: HookedTransformer, ids: list[int]) -> list[str]:
    if model.tokenizer is None:
        return [str(i) for i in ids]
    return model.tokenizer.str_tokens(ids)
