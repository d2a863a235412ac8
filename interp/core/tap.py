"""The tap: what one run reads and edits, and the ledger of what fired.

The model holds no hooks. Its forward pass calls `x = tap(site, x)` at every site, and asks
`tap.wants(site)` before computing what exists only to be looked at. A tap lives for one run.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .calls import is_plain, second_argument
from .hashing import weights_hash
from .indices import Indices, indices, reusable
from .sites import SiteFilter, SiteName, SiteTable, UnknownSite
from .tokens import Tokens


class Hook(NamedTuple):
    """Where an edit function is called."""

    name: str
    layer: int | None


EditFn: TypeAlias = Callable[..., Tensor | None]
"""(tensor, hook) → its replacement, or None for the tensor as it was changed in place."""
FwdHooks: TypeAlias = Sequence[tuple[SiteFilter, EditFn]]
Positions: TypeAlias = Indices | None
"""Some positions: an index, a slice, or several of them; None: all."""


class Fired(NamedTuple):
    """One line of the ledger: how often a site's edits ran, over how many rows in all."""

    site: str
    times: int
    rows: int


class EditError(ValueError):
    """An edit that cannot land: wrong shape, dtype or device, or it never fired."""


class Silent:
    """The tap of a plain forward pass: wants nothing, changes nothing."""

    __slots__ = ()

    def wants(self, site: str) -> bool:
        return False

    def changes(self, site: str) -> bool:
        return False

    def __call__(self, site: str, x: Tensor) -> Tensor:
        return x


SILENT = Silent()


class Tap:
    """Reads `reads` into `values` and applies `fwd_hooks`, in order, during one run.

    An edit function gets its own copy of the tensor and a `Hook`, by name if it has a parameter
    `hook` and as its second argument otherwise. It returns a tensor of the site's shape, dtype and
    device, or None for the copy as it stands. A value is read after its edits.
    `pos` keeps some positions of each read (the axis stays); `device` moves reads there; `grad`
    keeps them in the autograd graph. What becomes of the sites `met_before` is remembered from an
    earlier run, which has read and edited them. Raises UnknownSite on a name that the table does
    not have.
    """

    def __init__(
        self,
        sites: SiteTable,
        *,
        reads: Iterable[str] = (),
        fwd_hooks: FwdHooks = (),
        pos: Positions = None,
        device: torch.device | str | None = None,
        grad: bool = False,
        met_before: Iterable[str] = (),
    ) -> None:
        self.sites = sites
        self.values: dict[str, Tensor] = {}
        self._reads = set(reads)
        self._edits: dict[str, list[EditFn]] = {}
        for names_filter, fn in fwd_hooks:
            edit = _taking_hook(fn, names_filter)
            for name in sites.select(names_filter):
                self._edits.setdefault(name, []).append(edit)
        for name in self._reads:
            if name not in sites:
                sites[name]  # raises with the nearest names
        for name in met_before:
            self._reads.discard(name)
            self._edits.pop(name, None)
        self._looked_at = self._reads | set(self._edits)
        self._device, self._grad = device, grad
        self._pos = reusable(pos)
        self.kept: dict[str, tuple[int, ...]] = {}
        """By site that was read: which positions, where they are not all, in order."""
        self._fired: dict[str, list[int]] = {}

    def wants(self, site: str) -> bool:
        """Whether anybody reads or edits this site."""
        return site in self._looked_at

    def changes(self, site: str) -> bool:
        """Whether what flows on from this site may depend on the tap: an edit, or a gradient."""
        return site in self._edits or (self._grad and site in self._reads)

    def __call__(self, site: str, x: Tensor) -> Tensor:
        if site in self._looked_at:
            if site in self._edits:
                x = self._edit(site, x)
            if site in self._reads:
                x = self._read(site, x)
        return x

    @property
    def ledger(self) -> list[Fired]:
        """What fired, in the order of first firing."""
        return [Fired(site, *counts) for site, counts in self._fired.items()]

    def check_fired(self) -> None:
        """Raise EditError unless every edit ran and every read was met."""
        silent = [
            site for site in self.sites.names if site in self._edits and site not in self._fired
        ]
        if silent:
            raise EditError(
                f"the edit on {silent[0]!r} never fired"
                + (f" (nor did {len(silent) - 1} more)" if len(silent) > 1 else "")
                + ": the run did not reach that site"
            )
        unread = self._reads - set(self.values)
        if unread:
            raise EditError(f"the run did not reach {sorted(unread)[0]!r}, which was to be read")

    def _edit(self, site: str, x: Tensor) -> Tensor:
        hook = Hook(site, self.sites[site].layer)
        for edit in self._edits[site]:
            handed = x.clone()
            returned = edit(handed, hook)
            # What was handed out may have become something else: x.data = …, x.resize_(…).
            x = _checked(handed if returned is None else returned, x, site)
        times, rows = self._fired.get(site, (0, 0))
        self._fired[site] = [times + 1, rows + x.shape[0]]
        return x

    def _read(self, site: str, x: Tensor) -> Tensor:
        if self._grad and not x.requires_grad:
            x = x.detach().requires_grad_()
        kept = x if self._pos is None else self._some_positions(site, x)
        self.values[site] = kept if self._device is None else kept.to(self._device)
        return x

    def _some_positions(self, site: str, x: Tensor) -> Tensor:
        """Those of `pos`, copied: a view would keep all the others in memory."""
        axis = self.sites[site].pos_axis
        chosen = indices(self._pos, x.shape[axis], f"{site!r}: pos")
        if chosen != list(range(x.shape[axis])):
            self.kept[site] = tuple(chosen)
        return x.index_select(axis, torch.tensor(chosen, device=x.device))


def _same_weights(ours: nn.ModuleList | None, theirs: nn.ModuleList) -> bool:
    if ours is theirs or ours is None:
        return ours is theirs
    weights, others = ours.state_dict(), theirs.state_dict()
    return weights.keys() == others.keys() and all(
        weight.device == others[name].device and torch.equal(weight, others[name])
        for name, weight in weights.items()
    )


def _taking_hook(fn: EditFn, names_filter: SiteFilter) -> EditFn:
    """The same function with its hook as the second argument."""
    if not callable(fn):
        raise EditError(f"the hook on {names_filter!r} is {fn!r}, not a function")
    if is_plain(fn, "hook"):
        return fn
    try:
        second = second_argument(fn, "hook")
    except TypeError as error:
        raise EditError(f"the hook on {names_filter!r}: {error}, not (tensor, hook)") from None
    if second == "absent":
        raise EditError(f"the hook on {names_filter!r} takes one argument, not (tensor, hook)")
    return fn if second != "named" else lambda x, hook: fn(x, hook=hook)


def _checked(edited: Tensor, given: Tensor, site: str) -> Tensor:
    """What an edit made of a site's tensor. Raises EditError where it is no tensor like that."""
    if not isinstance(edited, Tensor):
        raise EditError(
            f"the edit on {site!r} returned {type(edited).__name__}, not a tensor or None"
        )
    if edited.shape != given.shape:
        raise EditError(
            f"the edit on {site!r} returned shape {list(edited.shape)}; "
            f"the site has {list(given.shape)}"
        )
    for what in ("dtype", "device", "layout"):
        if getattr(edited, what) != getattr(given, what):
            raise EditError(
                f"the edit on {site!r} returned {what} {getattr(edited, what)}; "
                f"the site has {getattr(given, what)}"
            )
    return edited


class ActivationCache(Mapping[str, Tensor]):
    """What one run read: site name → tensor, in forward order. Short forms work as keys.

    `cache["pattern", 3]`, `cache["blocks.3.attn.hook_pattern"]`, `cache["hook_embed"]`.
    """

    def __init__(
        self,
        values: Mapping[str, Tensor],
        sites: SiteTable,
        tokens: Tokens,
        stacks: Sequence[nn.ModuleList],
        kept: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self._values = dict(values)
        self._kept = dict(kept or {})
        self._sites = sites
        self._stacks = [weakref.ref(blocks) for blocks in stacks]
        self._hashes: list[str | None] | None = None  # of the blocks, in a cache out of a pickle
        self.tokens = tokens
        """The tokens of the run."""

    def is_of(self, stacks: Sequence[nn.ModuleList]) -> bool:
        """Whether the run went through these blocks, or through others with the same weights.

        False also where the model of the run is gone, since nobody can tell.
        """
        if self._hashes is not None:
            if self._hashes != [weights_hash(blocks) for blocks in stacks]:
                return False
            self._stacks, self._hashes = [weakref.ref(blocks) for blocks in stacks], None
        ours = [blocks() for blocks in self._stacks]
        return len(ours) == len(stacks) and all(map(_same_weights, ours, stacks))

    def __getstate__(self) -> dict[str, Any]:
        """For pickle: in place of the blocks, hashes of their weights."""
        hashes = self._hashes
        if hashes is None:
            alive = [blocks() for blocks in self._stacks]
            hashes = [None if blocks is None else weights_hash(blocks) for blocks in alive]
        return {**self.__dict__, "_stacks": [], "_hashes": hashes}

    def __copy__(self) -> ActivationCache:
        return self._twin(self.__dict__)

    def __deepcopy__(self, memo: dict[int, Any]) -> ActivationCache:
        return self._twin(copy.deepcopy(self.__dict__, memo))  # of weak references: the same ones

    def _twin(self, state: dict[str, Any]) -> ActivationCache:
        twin = object.__new__(type(self))
        twin.__dict__.update(state)
        return twin

    def positions(self, name: SiteName) -> tuple[int, ...] | None:
        """Which positions of the run a site has along its axis of positions, in order; None: all.

        Those of `run_with_cache(pos=…)`, and in a step of generation the one of the new token.
        """
        return self._kept.get(self._cached(name))

    def width(self, name: SiteName) -> int:
        """How many positions the run had along a site's axis of positions, kept or not."""
        site, source = self._sites[name], self.tokens.source
        of_source = source is not None and site.axes[site.pos_axis] in site.source
        return (source if of_source else self.tokens).shape[1]

    def select(self, names_filter: SiteFilter) -> list[str]:
        """The full names of the cached sites that a filter matches, in forward order."""
        names = [name for name in self._sites.select(names_filter) if name in self._values]
        if not names:
            raise UnknownSite(f"{names_filter!r} was not cached; name it in names_filter")
        return names

    def __getitem__(self, name: SiteName) -> Tensor:
        return self._values[self._cached(name)]

    def _cached(self, name: SiteName) -> str:
        """The full name of a site that was cached."""
        site = self._sites[name].name
        if site not in self._values:
            raise UnknownSite(
                f"{site!r} was not cached; name it in names_filter "
                f"(cached: {len(self._values)} sites, e.g. {next(iter(self._values), None)!r})"
            )
        return site

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        try:
            self[name]  # type: ignore[index]
        except KeyError:
            return False
        return True

    def stack(self, name: str) -> Tensor:
        """One site over all cached layers: [layer, *shape of the site]."""
        names = [n for n in self._sites.select(name) if n in self._values]
        locals_ = {self._sites[n].local_name for n in names}
        if len(locals_) > 1:
            raise UnknownSite(f"{name!r} names several sites: {', '.join(sorted(locals_))}")
        if not names:
            raise UnknownSite(f"no layer of {name!r} was cached; name it in names_filter")
        return torch.stack([self._values[n] for n in names])

    def __repr__(self) -> str:
        size = sum(x.numel() * x.element_size() for x in self.values()) / 1e6
        return f"ActivationCache({len(self)} sites, {size:.1f} MB, {self.tokens!r})"
