"""What a planted model consists of: the model, the truth about it, and inputs that show it.

The residual stream of a planted model is cut into named blocks of coordinates (`Spaces`), one axis
per thing that is represented: block "tok" holds the token, one-hot; block "out" holds what the
unembedding reads. A matrix is then a list of links from coordinates to coordinates (`links`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.core import chance
from interp.core.basis import random_orthonormal
from interp.core.config import TransformerConfig
from interp.core.sites import SiteName
from interp.core.tokens import Tokens
from interp.model import HookedTransformer

HeadId: TypeAlias = tuple[int, int]
"""(layer, head)."""
NeuronId: TypeAlias = tuple[int, int]
"""(layer, neuron)."""
Index: TypeAlias = Tensor | slice | int

GAIN = 8.0
"""Logits per unit of block "out": one unit gives its token .99 of the probability and more."""
BOS = 0
"""The first token of every prompt."""


class Attends(NamedTuple):
    """Where a planted head looks, in the roles of the prompts: at least .99 of its attention."""

    head: HeadId
    query: str
    key: str


@dataclass(frozen=True, eq=False)
class Truth:
    """What matters in a planted model, and why. Empty in a control."""

    roles: Mapping[str, tuple[HeadId, ...]] = field(default_factory=dict)
    """The heads of the circuit by what they do: {"induction": ((1, 2),)}."""
    neurons: tuple[NeuronId, ...] = ()
    """The neurons of the circuit."""
    attends: tuple[Attends, ...] = ()
    """Where the heads look on clean prompts."""
    directions: Mapping[str, Float[Tensor, "n d_model"]] = field(default_factory=dict)
    """What lives where in the residual stream: orthonormal rows by name, float64 on the CPU."""
    note: str = ""
    """Why these, under which ablation, and what hides them."""

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """All heads of the circuit, in order."""
        return tuple(sorted({head for heads in self.roles.values() for head in heads}))


@dataclass(frozen=True, eq=False)
class Prompts:
    """Clean and corrupted prompts of one length, the answer read at the last position, role "end".

    `answer` is right on the clean prompt and `wrong` on the corrupted one. Positions by name are in
    `clean.roles`; they hold for the corrupted prompt as well.
    """

    clean: Tokens
    corrupted: Tokens
    answer: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"]

    @classmethod
    def of(
        cls, clean: Tensor, corrupted: Tensor, answer: Tensor, wrong: Tensor, roles: dict
    ) -> Prompts:
        """Prompts from ids that begin with BOS, and the positions of the roles."""
        both = (Tokens(ids, roles=roles, bos=True) for ids in (clean, corrupted))
        return cls(*both, answer, wrong)

    def __len__(self) -> int:
        return len(self.clean)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Inputs with binary features, to be probed at one site and position.

    `linear` names the features that a linear probe reads there, `hidden` those on which it is at
    chance.
    """

    tokens: Tokens
    labels: Mapping[str, Int[Tensor, " batch"]]
    """Feature → 0 or 1 per row."""
    site: SiteName
    position: int
    linear: tuple[str, ...]
    hidden: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Planted:
    """A model of which the truth is known. `prompts`, `labelled`: what shows it, seeded."""

    name: str
    model: HookedTransformer
    truth: Truth
    make_prompts: Callable[[int, torch.Generator], Prompts] | None = None
    make_labelled: Callable[[int, torch.Generator], Labelled] | None = None
    analogies: pd.DataFrame | None = None
    """Columns category a b c expected, as `Embedding.evaluate` takes them."""
    scales: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Direction → words in the order in which they lie along it."""

    def prompts(self, n: int = 200, seed: int = 0) -> Prompts:
        """n seeded prompts of the task. Raises ValueError where the model has none."""
        return self._made("prompts", n, seed)

    def labelled(self, n: int = 512, seed: int = 0) -> Labelled:
        """n seeded inputs with their features. Raises ValueError where the model has none."""
        return self._made("labelled", n, seed)

    def _made(self, what: str, n: int, seed: int):
        make = getattr(self, f"make_{what}")
        if make is None:
            has = [field for field in ("prompts", "labelled") if getattr(self, f"make_{field}")]
            has += [] if self.analogies is None else ["analogies"]
            raise ValueError(f"{self.name!r} has no {what}; it has {', '.join(has)}")
        if n < 1:
            raise ValueError(f"n={n}: expected at least 1")
        made = make(n, chance.seeded(seed))
        moved = {
            name: value.to(self.model.device)
            for name, value in vars(made).items()
            if isinstance(value, Tokens | Tensor)
        }
        return dataclasses.replace(made, **moved)


class Spaces:
    """Named blocks of coordinates, side by side in the residual stream."""

    def __init__(self, **sizes: int) -> None:
        self.sizes, self._starts, self.d_model = sizes, {}, 0
        for name, size in sizes.items():
            self._starts[name] = self.d_model
            self.d_model += size

    def __getitem__(self, name: str) -> Int[Tensor, " n"]:
        """The coordinates of a block."""
        return torch.arange(self.sizes[name]) + self._starts[name]

    def directions(self, *names: str) -> dict[str, Float[Tensor, "n d_model"]]:
        """The axes of some blocks, as rows."""
        axes = torch.eye(self.d_model, dtype=torch.float64)
        return {name: axes[self[name]] for name in names}


def links(
    shape: tuple[int, int], *entries: tuple[Index, Index, float]
) -> Float[Tensor, "rows columns"]:
    """A matrix that is zero but for entries (rows, columns, strength), row i linked to column i."""
    matrix = torch.zeros(shape, dtype=torch.float64)
    for rows, columns, strength in entries:
        matrix[rows, columns] = strength
    return matrix


def blank(cfg: TransformerConfig, name: str, tokenizer=None) -> HookedTransformer:
    """A model with every weight zero, in float64 on the CPU."""
    model = HookedTransformer(
        cfg, tokenizer, name=f"planted-{name}", device="cpu", dtype=torch.float64
    )
    for parameter in model.parameters():
        parameter.zero_()
    return model


def orthogonal(n: int, generator: torch.Generator) -> Float[Tensor, "n n"]:
    """A random rotation or reflection, uniform over all of them (Mezzadri 2007)."""
    return random_orthonormal(n, n, generator=generator)


def distinct(n: int, k: int, among: range, generator: torch.Generator) -> Int[Tensor, "n k"]:
    """n rows of k different numbers out of a range, at random."""
    draws = chance.uniform(n, len(among), generator=generator, dtype=torch.float32)
    return draws.argsort(dim=1)[:, :k] + among.start
