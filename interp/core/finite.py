"""Numbers that are not finite: caught where a run's numbers enter a result, and traced to where
they began.

A forward pass and a cache show what a model computes, NaN included; whoever makes a result of them
reads them through `finite_cache` or `finite`, which look once at the smallest and largest number.
Only where one is not finite, the run is made once more, with a tap that stops at the first site
that has such a number, and the weights are searched.

Looking at the end is not enough: torch's fused attention on a CPU answers queries that are NaN with
zeros, and in half precision keys and queries that are infinite with finite numbers. So the weights
are looked at before a run (a gigabyte takes 50 ms), and where queries can overflow, a run as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .precision import HALF
from .sites import SiteFilter
from .tap import ActivationCache, FwdHooks, Tap
from .tokens import Tokens

LARGE = 1e10
"""A weight beyond it may make queries and keys that no dtype holds."""


class NotFinite(ValueError):
    """A result would hold NaN or infinity. `where` says at which site, by which weight."""

    def __init__(self, what: str, where: str = "") -> None:
        super().__init__(f"{what}: {where}" if where else what)
        self.what, self.where = what, where


def is_finite(x: Tensor) -> bool:
    """Whether no number is NaN or infinite."""
    if x.is_complex():
        x = torch.view_as_real(x)
    if not x.is_floating_point() or not x.numel():
        return True
    low, high = x.detach().aminmax()  # both are NaN where any number is
    return bool(low.isfinite() & high.isfinite())


def finite(x: Tensor, model: Any, what: str, tokens: Tokens | None = None) -> Tensor:
    """The same numbers. Raises NotFinite, naming the first site of the run of `tokens`, or the
    weight, at which they are not finite; `what` says what they are of."""
    if not is_finite(x):
        raise NotFinite(f"{what} would not be finite", place(model, tokens))
    return x


def finite_cache(
    model: Any, tokens: Tokens, names_filter: SiteFilter, stop_at_layer: int | None = None
) -> ActivationCache:
    """The sites of one run, for a result; raises NotFinite as `finite` does."""
    check_model(model, tokens)
    _, cache = model.run_with_cache(tokens, names_filter, stop_at_layer=stop_at_layer)
    check_cache(model, cache)
    return cache


def check_cache(model: Any, cache: ActivationCache) -> None:
    """Raise NotFinite, as `finite` does, where a site of a run of this model is not finite."""
    for site, value in cache.items():
        if not is_finite(value):
            told = f"{site!r} holds numbers that are not finite"
            raise NotFinite(told, place(model, cache.tokens))


def check_edit(new: Tensor, site: str, where: Sequence[str]) -> None:
    """Raise NotFinite where an edit puts numbers that are not finite; `where` names each row.

    They need not reach the result: fused attention may answer them with zeros. A score of −∞, which
    hides a key from a query, is meant.
    """
    seen = new.clamp(min=torch.finfo(new.dtype).min) if site.endswith("attn_scores") else new
    if not is_finite(seen):
        row = int((~seen.isfinite()).flatten(1).any(1).nonzero()[0])
        told = f"what the edit puts is not finite at {where[row]}"
        raise NotFinite(told, "the unedited run is finite, so it is the edit")


def check_model(model: Any, tokens: Tokens) -> None:
    """Raise NotFinite, as `finite` does, where a weight is not finite, or where a run of these
    tokens has queries or keys that are not."""
    largest = 0.0
    for value in model.state_dict().values():
        if value.is_floating_point() and value.numel():
            low, high = (float(end) for end in value.detach().aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise NotFinite("a weight is not finite", place(model, tokens))
            largest = max(largest, -low, high)
    overflows = model.dtype == torch.float16 and model.device.type == "cpu"
    if (overflows or largest > LARGE) and first_site(model, tokens) is not None:
        raise NotFinite("the run holds numbers that are not finite", place(model, tokens))


@contextmanager
def traced(model: Any, tokens: Tokens) -> Iterator[None]:
    """What is not finite in here, and was not traced to a place, is traced in the run of these
    tokens."""
    try:
        yield
    except NotFinite as error:
        if error.where:
            raise
        raise NotFinite(error.what, place(model, tokens)) from None


def place(model: Any, tokens: Tokens | None, hooks: FwdHooks = ()) -> str:
    """Where numbers stop being finite, in words, and what to do. Runs the model once more."""
    site = None if tokens is None else first_site(model, tokens, hooks)
    weights = weight_faults(model)
    parts = []
    if tokens is not None:
        parts.append(
            f"the first site with such numbers is {site!r}" if site is not None
            else "every site of the run is finite"
        )  # fmt: skip
    edited = [name for one, _ in (*model.fwd_hooks, *hooks) for name in model.sites.select(one)]
    if weights:
        more = f" (and {len(weights) - 1} more weights)" if len(weights) > 1 else ""
        parts.append(f"the weight {weights[0]}{more}: the file is damaged, or somebody wrote it so")
    elif site in edited:
        parts.append("which an edit or a hook changes")
    elif tokens is not None and tokens.vectors is not None and not is_finite(tokens.vectors):
        parts.append("the input vectors are not finite")
    elif site is not None or tokens is None:
        parts.append(_overflow(model))
    return "; ".join(parts)


def first_site(model: Any, tokens: Tokens, hooks: FwdHooks = ()) -> str | None:
    """The first site, in forward order, that is not finite in a run; None: all are. Per-head
    expansions are not looked at."""
    tap = _Watch(model.sites, fwd_hooks=(*model.fwd_hooks, *hooks))
    try:
        with torch.no_grad():
            model._run(tokens, tap, None, None)
    except _Met as met:
        return met.site
    return None


class _Met(Exception):
    def __init__(self, site: str) -> None:
        super().__init__(site)
        self.site = site


class _Watch(Tap):
    """A tap that ends the run at the first site that is not finite."""

    def wants(self, site: str) -> bool:
        return site in self._watched or super().wants(site)

    @property
    def _watched(self) -> frozenset[str]:
        if "watched" not in self.__dict__:
            self.__dict__["watched"] = frozenset(self.sites.select(None))
        return self.__dict__["watched"]

    def __call__(self, site: str, x: Tensor) -> Tensor:
        x = super().__call__(site, x)
        if not is_finite(x):
            raise _Met(site)
        return x


def weight_faults(model: Any) -> list[str]:
    """The weights that are not finite, in words, in the order of the forward pass."""
    return [
        _fault(model, name, value)
        for name, value in model.state_dict().items()
        if not is_finite(value)
    ]


def _fault(model: Any, name: str, value: Tensor) -> str:
    bad = (~value.isfinite()).nonzero()
    first = bad[0].tolist()
    number = float(value[tuple(first)])
    told = f"{name} holds {number:g} at {first}"
    named = None if model.opaque else _named(model, name, first)
    told += "" if named is None else f", which is of {named}"
    return f"{told} ({len(bad)} of {value.numel():,} of its numbers are not finite)"


def _named(model: Any, name: str, at: Sequence[int]) -> str | None:
    """What a researcher calls an entry of a parameter, where that is not its own name."""
    cfg = model.cfg.of_parameter(name)
    leaf = name.rpartition(".")[2]
    if leaf in ("qkv_weight", "qkv_bias"):
        mark, head = "W" if leaf == "qkv_weight" else "b", at[0] // cfg.d_head
        for kind, n in (("Q", cfg.n_heads), ("K", cfg.n_kv_heads), ("V", cfg.n_kv_heads)):
            if head < n:
                return f"head {head} of {mark}_{kind}"
            head -= n
    if leaf == "out_weight" and name.endswith("attn.out_weight"):
        return f"head {at[1] // cfg.d_head} of W_O"
    if leaf == "out_weight":
        return f"neuron {at[1]} of W_out"
    if leaf in ("in_weight", "in_bias"):
        mark, row = "W" if leaf == "in_weight" else "b", at[0]
        if not cfg.mlp_gated:
            return f"neuron {row} of {mark}_in"
        kind = "gate" if row < cfg.d_mlp else "in"
        return f"neuron {row % cfg.d_mlp} of {mark}_{kind}"
    if name == "embed.W_E" and cfg.inputs == "tokens":
        return f"the word vector of id {at[0]}"
    return f"the logit of id {at[0]}" if name.startswith("unembed.") else None


def _overflow(model: Any) -> str:
    dtype = str(model.dtype).removeprefix("torch.")
    wider = "float32" if model.dtype in HALF else "float64"
    text = f"all weights are finite, so numbers pass the largest of {dtype} on the way"
    if model.dtype == torch.float64:
        return text
    return f"{text}: load the model with dtype={wider!r} (on the command line --dtype {wider})"
