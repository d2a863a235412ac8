"""What an intervention puts in place of an activation: small frozen objects with a name.

An edit is `bind`ed to a model once, which reads what it needs (a mean, a reference set, another
run); the bound edit then computes replacements for rows of a batch. A row is one example under
one node. Whatever is random is drawn from (seed, node, example), so that order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import chance
from .finite import finite_cache
from .selection import counted_by, stable_hash
from .sites import Site
from .tap import ActivationCache
from .tokens import Tokens

Direction = Literal["ablate", "patch", "steer"]


class Rows(NamedTuple):
    """Which rows of a batch a replacement is computed for."""

    site: Site
    examples: Int[Tensor, " rows"]
    nodes: Sequence[int]
    """A number per row that names its node, for what is random."""
    start: int = 0
    """The position at which the tensor begins."""
    numbers: Sequence[int] = ()
    """The `row` of each node, as its frame counts them."""

    def of(self, at: Sequence[int]) -> Rows:
        """Some of them."""
        index = torch.as_tensor(at, device=self.examples.device)
        return self._replace(
            examples=self.examples[index],
            nodes=[self.nodes[int(i)] for i in at],
            numbers=[self.numbers[int(i)] for i in at],
        )


Replace = Callable[[Tensor, Rows], Tensor]
"""From x [rows, *site axes] to what would stand in its place, of the same shape."""


@dataclass(frozen=True, eq=False)
class Edit:
    """A named intervention. `direction`: ablate (remove), patch (from another run), steer."""

    name: str
    direction: Direction
    bind: Callable[[Any, Tokens, Iterable[str]], Replace] = field(repr=False)
    """(model, tokens of the run, sites) → replacement, which acts position by position; reads
    what the edit needs."""
    made_of: tuple = field(default=(), repr=False)
    """What the edit was made with: numbers, tensors, tokens. A journal tells edits apart by it."""
    reference: Tokens | None = field(default=None, repr=False)
    """The rows whose mean, or one of which, is put in, where that is what the edit does."""


def zero() -> Edit:
    """Zeros."""
    return _plain("zero", "ablate", lambda x, rows: torch.zeros_like(x))


def set_to(value: float | Tensor) -> Edit:
    """A number, or a vector over the site's last axis."""
    return _plain("set", "steer", lambda x, rows: _like(value, x).expand_as(x), value)


def scale(factor: float) -> Edit:
    """The activation times a number."""
    return _plain(f"scale({factor:g})", "steer", lambda x, rows: x * factor, factor)


def add(direction: Float[Tensor, " width"], factor: float = 1.0) -> Edit:
    """The activation plus `factor` times a vector over the site's last axis."""

    def replace(x: Tensor, rows: Rows) -> Tensor:
        return x + factor * _like(direction, x)

    return _plain(f"add({factor:g})", "steer", replace, direction, factor)


def project_out(directions: Float[Tensor, "*k width"]) -> Edit:
    """The activation without its part in the span of one or several directions."""
    basis = torch.linalg.qr(torch.atleast_2d(directions.detach().double()).T).Q

    def replace(x: Tensor, rows: Rows) -> Tensor:
        own = _like(basis, x, last=False)
        return x - (x @ own) @ own.T

    return _plain("project_out", "ablate", replace, directions)


def noise(sigma: float, seed: int = 0) -> Edit:
    """The activation plus N(0, σ²) on every entry, drawn per node and example."""

    def replace(x: Tensor, rows: Rows) -> Tensor:
        axis = rows.site.pos_axis
        full = list(x.shape)  # drawn from position 0 on, wherever the tensor begins
        full[axis] += rows.start
        drawn = torch.stack([
            chance.normal(*full[1:], generator=_generator(seed, node, int(example)))
            for node, example in zip(rows.nodes, rows.examples, strict=True)
        ])  # fmt: skip
        drawn = drawn.narrow(axis, rows.start, x.shape[axis])
        return x + sigma * drawn.to(x)

    return _plain(f"noise({sigma:g})", "steer", replace, sigma, seed)


def patch(source: ActivationCache | Tokens) -> Edit:
    """What the same example has in another run: a cache of it, or its tokens.

    Raises ValueError where the shapes of the two runs differ, or the cache lacks a site.
    """

    def bind(model: Any, tokens: Tokens, sites: Iterable[str]) -> Replace:
        other = _accepted(model, source)
        for theirs, own in ((other, tokens), (other.source, tokens.source)):
            if theirs is not None and own is not None and theirs.shape != own.shape:
                raise ValueError(
                    f"the source run has shape {list(theirs.shape)} [batch pos], this one "
                    f"{list(own.shape)}: patching needs equal batch and length"
                )
        values = _read(model, source, sites)
        return lambda x, rows: _from_start(values[rows.site.name], rows)[rows.examples]

    return Edit("patch", "patch", bind, (_tokens(source),))


def mean(reference: ActivationCache | Tokens, per: Literal["all", "pos"] = "all") -> Edit:
    """The mean over a reference set: over all its real tokens, or per position.

    A mean over examples that all have one answer holds that answer: a part that carries it keeps
    it, and its effect comes out too small or with the wrong sign. `sweep` warns where that is so;
    `pairs.both`, clean and corrupted prompts together, is a reference that speaks for neither.
    """
    if per not in ("all", "pos"):
        raise ValueError(f"per={per!r}: expected 'all' or 'pos'")

    def bind(model: Any, tokens: Tokens, sites: Iterable[str]) -> Replace:
        read, other = _read(model, reference, sites), _accepted(model, reference)
        means = {name: _mean(x, model.sites[name], other, per) for name, x in read.items()}
        for site in map(model.sites.__getitem__, read if per == "pos" else ()):
            theirs, own = (counted_by(site, some).shape[1] for some in (other, tokens))
            if theirs != own:
                raise ValueError(
                    f"per='pos': the reference has {theirs} positions at {site.name!r}, this run "
                    f"{own}; use per='all'"
                )
        return lambda x, rows: _from_start(means[rows.site.name], rows).expand_as(x)

    name = f"mean per {per}" if per == "pos" else "mean"
    rows = _tokens(reference)
    return Edit(name, "ablate", bind, (rows, per), rows)


def resample(reference: ActivationCache | Tokens, seed: int = 0) -> Edit:
    """What a random example of a reference set has there, drawn per node and example."""

    def bind(model: Any, tokens: Tokens, sites: Iterable[str]) -> Replace:
        read = _read(model, reference, sites)
        size, other = next(iter(read.values())).shape[0], _accepted(model, reference)
        for site in map(model.sites.__getitem__, read):
            theirs, own = (counted_by(site, some).shape[1] for some in (other, tokens))
            if theirs != own:
                raise ValueError(
                    f"the reference has {theirs} positions at {site.name!r}, this run {own}: "
                    "resampling needs equal length"
                )

        def replace(x: Tensor, rows: Rows) -> Tensor:
            drawn = [stable_hash(seed, node, int(example)) % size
                     for node, example in zip(rows.nodes, rows.examples, strict=True)]  # fmt: skip
            return _from_start(read[rows.site.name], rows)[torch.tensor(drawn, device=x.device)]

        return replace

    rows = _tokens(reference)
    return Edit("resample", "ablate", bind, (rows, seed), rows)


def each(by_row: Mapping[int, Edit], name: str = "each") -> Edit:
    """Every node its own edit, by the `row` of the node: one sweep, and one base run, where there
    would be one for each. Raises ValueError at a node without one."""
    kinds = {one.direction for one in by_row.values()}

    def bind(model: Any, tokens: Tokens, sites: Iterable[str]) -> Replace:
        names = list(sites)
        bound = {row: one.bind(model, tokens, names) for row, one in by_row.items()}

        def replace(x: Tensor, rows: Rows) -> Tensor:
            places: dict[int, list[int]] = {}
            for i, number in enumerate(rows.numbers):
                places.setdefault(number, []).append(i)
            lost = sorted(places.keys() - bound.keys())
            if lost:
                raise ValueError(f"row {lost[0]} has no edit: there are some for {sorted(bound)}")
            new = x.clone()
            for number, at in places.items():
                new[at] = bound[number](x[at], rows.of(at))
            return new

        return replace

    made_of = tuple((row, one.name, one.made_of) for row, one in by_row.items())
    return Edit(name, kinds.pop() if len(kinds) == 1 else "steer", bind, made_of)


def _plain(name: str, direction: Direction, replace: Replace, *made_of: Any) -> Edit:
    return Edit(name, direction, lambda model, tokens, sites: replace, made_of)


def _like(value: float | Tensor, x: Tensor, last: bool = True) -> Tensor:
    given = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if last and given.ndim and given.shape[-1] != x.shape[-1]:
        raise ValueError(f"a vector of {given.shape[-1]} for a site of width {x.shape[-1]}")
    return given


def _tokens(source: ActivationCache | Tokens) -> Tokens:
    """The tokens of a reference run."""
    return source.tokens if isinstance(source, ActivationCache) else Tokens.of(source)


def _accepted(model: Any, source: ActivationCache | Tokens) -> Tokens:
    """The same as the model takes them: to an encoder–decoder, with a source."""
    return source.tokens if isinstance(source, ActivationCache) else model.accept(source)


def _read(model: Any, source: ActivationCache | Tokens, sites: Iterable[str]) -> dict[str, Tensor]:
    """The sites of a reference run, from its cache or by running it."""
    names = list(sites)
    if not isinstance(source, ActivationCache):
        return dict(finite_cache(model, model.accept(source), names))
    if not source.is_of(model.stacks):
        raise ValueError(
            "the cache was taken on another model, or on one that is gone; take it on this one, "
            "or give the tokens in its place"
        )
    for name in names:
        width = counted_by(model.sites[name], source.tokens).shape[1]
        kept, count = source.positions(name), source[name].shape[model.sites[name].pos_axis]
        if kept is not None or count != width:
            order = "" if count != width else f", in the order {list(kept or ())[:8]}"
            raise ValueError(
                f"the cache has {count} of {width} positions at {name!r}{order}: it was taken with "
                "pos=, or in a step of generation; take it of a whole run"
            )
    return {name: source[name].to(model.device) for name in names}


def _from_start(values: Tensor, rows: Rows) -> Tensor:
    """A whole run's values from the position on at which the tensor begins."""
    axis = rows.site.pos_axis
    if rows.start == 0 or values.shape[axis] == 1:
        return values
    return values.narrow(axis, rows.start, values.shape[axis] - rows.start)


def _mean(x: Tensor, site: Site, tokens: Tokens, per: str) -> Tensor:
    axis = site.pos_axis
    shape = [1] * x.ndim
    shape[0], shape[axis] = x.shape[0], x.shape[axis]
    weights = counted_by(site, tokens).real.to(x).view(shape)
    over = (0, axis) if per == "all" else (0,)
    return (x * weights).sum(over, keepdim=True) / weights.sum(over, keepdim=True).clamp(min=1)


def _generator(*parts: int) -> torch.Generator:
    return chance.seeded(stable_hash(*parts))
