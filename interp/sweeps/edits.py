"""What an intervention puts in place of an activation: small frozen objects with a name.

An edit is `bind`ed to a model once, which reads what it needs (a mean, a reference set, another
run); the bound edit then computes replacements for rows of a batch. A row is one example under
one node. Whatever is random is drawn from (seed, node, example), so that order does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.core import chance
from interp.core.basis import span
from interp.core.calls import Portable
from interp.core.finite import finite_cache
from interp.core.indices import whole_number
from interp.core.precision import wide
from interp.core.sites import Site
from interp.core.tap import ActivationCache
from interp.core.tokens import Tokens
from interp.core.vectors import Numbers, StandIn, number
from interp.model import HookedTransformer

from .nodes import Node, counted_by, stable_hash

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
        return self._replace(
            examples=self.examples[list(at)],
            nodes=[self.nodes[int(i)] for i in at],
            numbers=[self.numbers[int(i)] for i in at],
        )


Replace = Callable[[Tensor, Rows], Tensor]
"""From x [rows, *site axes] to what would stand in its place, of the same shape."""

Sites = Iterable[str]
"""The names of the sites that are edited. A mapping says of each at which positions of which
examples, as `edited_positions` does; of other iterables it is not known."""


@dataclass(frozen=True, eq=False)
class Edit(Portable):
    """A named intervention. `direction`: ablate (remove), patch (from another run), steer.

    It can be pickled, if `bind` can.
    """

    name: str
    direction: Direction
    bind: Callable[[Any, Tokens, Sites], Replace] = field(repr=False)
    """(model, tokens of the run, sites) → replacement, which acts position by position; reads
    what the edit needs."""
    made_of: tuple = field(default=(), repr=False)
    """What the edit was made with, where `bind` does not say it. A journal tells edits apart by
    both."""
    reference: Tokens | None = field(default=None, repr=False)
    """The rows whose mean, or one of which, is put in, where that is what the edit does."""


def zero() -> Edit:
    """Zeros."""
    return Edit("zero", "ablate", partial(_bound, replace=_zeros))


def set_to(value: Numbers) -> Edit:
    """A number; a vector over the site's last axis, the same for every example, position and head;
    one vector per example [batch, width]; or a tensor of as many axes as the site has, those of
    positions of length one ([batch, 1, d_model], [1, 1, head, d_head]).

    −∞ at attn_scores hides keys from queries. Raises ValueError on other numbers that are not
    finite (of −∞ at other sites, the sweep does), on other shapes, and on [batch, width] where
    a site has as many positions or heads as there are examples: write all axes then.
    """
    return Edit("set", "steer", partial(_bind_set, value=StandIn.of(value, "value", hiding=True)))


def scale(factor: float) -> Edit:
    """The activation times a number."""
    size = number(factor, "factor")
    return Edit(f"scale({size:g})", "steer", partial(_bound, replace=partial(_scaled, factor=size)))


def add(direction: Numbers, factor: float = 1.0) -> Edit:
    """The activation plus `factor` times a direction, which has the shape of `set_to`'s value: most
    often one vector over the site's last axis, or one per example."""
    size = number(factor, "factor")
    value = StandIn.of(direction, "direction", size)
    return Edit(f"add({size:g})", "steer", partial(_bind_add, value=value))


def project_out(directions: Numbers) -> Edit:
    """The activation without its part in the span of one direction [width] or several [k, width].

    Their lengths do not count, and dependent ones span what they span together. Raises ValueError
    on a direction that is zero or not finite.
    """
    basis = span(directions).cpu()
    return Edit("project_out", "ablate", partial(_bound, replace=partial(_without, basis=basis)))


def noise(sigma: float, seed: int = 0) -> Edit:
    """The activation plus N(0, σ²) on every entry, drawn per node and example."""
    size, seed = number(sigma, "sigma", least=0), whole_number(seed, "seed")
    replace = partial(_noised, sigma=size, seed=seed)
    return Edit(f"noise({size:g})", "steer", partial(_bound, replace=replace))


def patch(source: ActivationCache | Tokens) -> Edit:
    """What the same example has in another run: a cache of it, or its tokens.

    Raises ValueError where the shapes of the two runs differ, the cache lacks a site, or a real
    token would get what the other run has at a pad.
    """
    return Edit("patch", "patch", partial(_bind_patch, source=_source(source)))


def mean(reference: ActivationCache | Tokens, per: Literal["all", "pos"] = "all") -> Edit:
    """The mean over a reference set: over all its real tokens, or per position.

    A mean over examples that all have one answer holds that answer: a part that carries it keeps
    it, and its effect comes out too small or with the wrong sign. `sweep` warns where that is so;
    `pairs.both`, clean and corrupted prompts together, is a reference that speaks for neither.
    per="pos" raises ValueError where the lengths of the two runs differ, or a real token is edited
    at a position where no row of the reference has one.
    """
    if per not in ("all", "pos"):
        raise ValueError(f"per={per!r}: expected 'all' or 'pos'")
    name = "mean per pos" if per == "pos" else "mean"
    source = _source(reference)
    bind = partial(_bind_mean, reference=source, per=per)
    return Edit(name, "ablate", bind, reference=_tokens(source))


def resample(reference: ActivationCache | Tokens, seed: int = 0) -> Edit:
    """What a random example of a reference set has there, drawn per node and example.

    Raises ValueError where the lengths of the two runs differ, or a real token is edited at a
    position where a row of the reference has a pad.
    """
    source = _source(reference)
    bind = partial(_bind_resample, reference=source, seed=whole_number(seed, "seed"))
    return Edit("resample", "ablate", bind, reference=_tokens(source))


def each(by_row: Mapping[int, Edit], name: str = "each") -> Edit:
    """Every node its own edit, by the `row` of the node: one sweep, and one base run, where there
    would be one for each. Raises ValueError at a node without one."""
    kinds = {edit.direction for edit in by_row.values()}
    direction = kinds.pop() if len(kinds) == 1 else "steer"
    return Edit(name, direction, partial(_bind_each, by_row=dict(by_row)))


def edited_positions(
    nodes: Iterable[Node], model: HookedTransformer, tokens: Tokens
) -> dict[str, Bool[Tensor, "batch pos"]]:
    """Of every site that nodes edit, the positions of each example that one of them touches."""
    chosen: dict[str, set[tuple[int | None, str | None]]] = {}
    for node in nodes:
        for part in node.parts:
            chosen.setdefault(part.site, set()).add((part.pos, part.role))
    found = {}
    for name, places in chosen.items():
        counted = counted_by(model.sites[name], tokens)
        found[name] = torch.zeros(counted.shape, dtype=torch.bool, device=counted.device)
        rows = torch.arange(len(counted), device=counted.device)
        for pos, role in places:
            at = slice(None) if pos is None else pos
            found[name][rows, at if role is None else counted.roles[role]] = True
    return found


def _bound(model: HookedTransformer, tokens: Tokens, sites: Sites, *, replace: Replace) -> Replace:
    """An edit that reads nothing."""
    return replace


def _zeros(x: Tensor, rows: Rows) -> Tensor:
    return torch.zeros_like(x)


def _scaled(x: Tensor, rows: Rows, *, factor: float) -> Tensor:
    return x * factor


def _without(x: Tensor, rows: Rows, *, basis: Float[Tensor, "width rank"]) -> Tensor:
    if x.shape[-1] != len(basis):
        raise ValueError(
            f"directions of {len(basis)} numbers at {rows.site.name!r}, a site of width "
            f"{x.shape[-1]}"
        )
    full = wide(x)
    columns = basis.to(full)
    return (full - (full @ columns) @ columns.T).to(x.dtype)


def _noised(x: Tensor, rows: Rows, *, sigma: float, seed: int) -> Tensor:
    axis = rows.site.pos_axis
    full = list(x.shape)  # drawn from position 0 on, wherever the tensor begins
    full[axis] += rows.start
    drawn = torch.stack([
        chance.normal(*full[1:], generator=_generator(seed, node, int(example)))
        for node, example in zip(rows.nodes, rows.examples, strict=True)
    ])  # fmt: skip
    drawn = drawn.narrow(axis, rows.start, x.shape[axis])
    return x + sigma * drawn.to(x)


def _bind_set(model: HookedTransformer, tokens: Tokens, sites: Sites, *, value: StandIn) -> Replace:
    return lambda x, rows: _at(value, x, rows, len(tokens)).expand_as(x)


def _bind_add(model: HookedTransformer, tokens: Tokens, sites: Sites, *, value: StandIn) -> Replace:
    return lambda x, rows: x + _at(value, x, rows, len(tokens))


def _at(value: StandIn, x: Tensor, rows: Rows, batch: int) -> Tensor:
    """A value as it lies at the rows of a site."""
    full = [batch, *x.shape[1:]]
    full[rows.site.pos_axis] += rows.start
    return value.at(x, rows.site.axes, rows.examples, full)


def _bind_patch(
    model: HookedTransformer, tokens: Tokens, sites: Sites, *, source: ActivationCache | Tokens
) -> Replace:
    other = _accepted(model, source)
    for theirs, ours in ((other, tokens), (other.source, tokens.source)):
        if theirs is not None and ours is not None and theirs.shape != ours.shape:
            raise ValueError(
                f"the source run has shape {list(theirs.shape)} [batch pos], this one "
                f"{list(ours.shape)}: patching needs equal batch and length"
            )
    values = _read(model, source, sites)
    _check_real(model, tokens, other, sites, lambda real: real, "the same example")
    return lambda x, rows: _from_start(values[rows.site.name], rows)[rows.examples]


def _bind_mean(
    model: HookedTransformer,
    tokens: Tokens,
    sites: Sites,
    *,
    reference: ActivationCache | Tokens,
    per: str,
) -> Replace:
    read, other = _read(model, reference, sites), _accepted(model, reference)
    if per == "pos":
        _check_lengths(model, tokens, other, sites, "per='pos' needs equal length; use per='all'")
        any_row = lambda real: real.any(0)  # noqa: E731
        _check_real(model, tokens, other, sites, any_row, "every row of the reference")
    means = {name: _mean(x, model.sites[name], other, per) for name, x in read.items()}
    return lambda x, rows: _from_start(means[rows.site.name], rows).expand_as(x)


def _bind_resample(
    model: HookedTransformer,
    tokens: Tokens,
    sites: Sites,
    *,
    reference: ActivationCache | Tokens,
    seed: int,
) -> Replace:
    read, other = _read(model, reference, sites), _accepted(model, reference)
    _check_lengths(model, tokens, other, sites, "resampling needs equal length")
    every_row = lambda real: real.all(0)  # noqa: E731
    _check_real(model, tokens, other, sites, every_row, "a row of the reference")
    size = next(iter(read.values())).shape[0]

    def replace(x: Tensor, rows: Rows) -> Tensor:
        drawn = [stable_hash(seed, node, int(example)) % size
                 for node, example in zip(rows.nodes, rows.examples, strict=True)]  # fmt: skip
        return _from_start(read[rows.site.name], rows)[drawn]

    return replace


def _bind_each(
    model: HookedTransformer, tokens: Tokens, sites: Sites, *, by_row: Mapping[int, Edit]
) -> Replace:
    names = sites if isinstance(sites, Mapping) else list(sites)
    bound = {row: edit.bind(model, tokens, names) for row, edit in by_row.items()}

    def replace(x: Tensor, rows: Rows) -> Tensor:
        places: dict[int, list[int]] = {}
        for i, row in enumerate(rows.numbers):
            places.setdefault(row, []).append(i)
        lost = sorted(places.keys() - bound.keys())
        if lost:
            raise ValueError(f"row {lost[0]} has no edit: there are some for {sorted(bound)}")
        new = x.clone()
        for row, at in places.items():
            new[at] = bound[row](x[at], rows.of(at))
        return new

    return replace


def _check_lengths(
    model: HookedTransformer, tokens: Tokens, other: Tokens, sites: Sites, why: str
) -> None:
    """Raises ValueError where a site counts other positions in a reference than in this run."""
    for name in sites:
        theirs, ours = (counted_by(model.sites[name], run).shape[1] for run in (other, tokens))
        if theirs != ours:
            raise ValueError(
                f"the reference has {theirs} positions at {name!r}, this run {ours}: {why}"
            )


def _check_real(
    model: HookedTransformer,
    tokens: Tokens,
    other: Tokens,
    sites: Sites,
    usable: Callable[[Bool[Tensor, "rows pos"]], Bool[Tensor, "..."]],
    whose: str,
) -> None:
    """Raises ValueError where a real token is edited and the other run has a pad there: what stands
    at a pad means nothing. `usable`: from the other's real tokens to where it has values."""
    for name in sites:
        site = model.sites[name]
        real = counted_by(site, tokens).real
        edited = sites[name] if isinstance(sites, Mapping) else torch.ones_like(real)
        lacking = edited & real & ~usable(counted_by(site, other).real)
        if bool(lacking.any()):
            example, pos = lacking.nonzero()[0].tolist()
            raise ValueError(
                f"position {pos} of example {example} is edited at {name!r}, and {whose} has a pad "
                "there, whose value means nothing: give a run with real tokens at all positions "
                "that are edited, or edit other positions"
            )


def _source(source: ActivationCache | Tokens) -> ActivationCache | Tokens:
    """A run to read from: a cache, or tokens in any form."""
    return source if isinstance(source, ActivationCache) else Tokens.of(source)


def _tokens(source: ActivationCache | Tokens) -> Tokens:
    return source.tokens if isinstance(source, ActivationCache) else source


def _accepted(model: HookedTransformer, source: ActivationCache | Tokens) -> Tokens:
    """The tokens of a run to read from, as the model takes them: an encoder–decoder, with a
    source."""
    return source.tokens if isinstance(source, ActivationCache) else model.accept(source)


def _read(
    model: HookedTransformer, source: ActivationCache | Tokens, sites: Sites
) -> dict[str, Tensor]:
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
    width = values.shape[axis]
    return values if width == 1 else values.narrow(axis, rows.start, width - rows.start)


def _mean(x: Tensor, site: Site, tokens: Tokens, per: str) -> Tensor:
    axis = site.pos_axis
    shape = [1] * x.ndim
    shape[0], shape[axis] = x.shape[0], x.shape[axis]
    weights = counted_by(site, tokens).real.to(wide(x[:0])).view(shape)
    over = (0, axis) if per == "all" else (0,)
    # Where no token is real the sum is 0, and nobody asks: `_check_real` has seen to that.
    total = (x * weights).sum(over, keepdim=True)
    return (total / weights.sum(over, keepdim=True).clamp(min=1)).to(x.dtype)


def _generator(*parts: int) -> torch.Generator:
    return chance.seeded(stable_hash(*parts))
