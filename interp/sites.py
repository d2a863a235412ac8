"""The table of sites: every place in the forward pass that can be read or edited.

A site has one full name in the strings of TransformerLens ("blocks.3.attn.hook_z"). Wherever a
site is expected, a short form works too: the name without its block ("attn.hook_z"), its last part
("hook_z") or that part without hook_ ("z"), meaning all layers; or a pair ("z", 3), that layer.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral
from typing import NamedTuple, TypeAlias

from .config import TransformerConfig

SiteName: TypeAlias = str | tuple[str, int]
"""A full name, a short form, or a pair (short form, layer)."""
SiteFilter: TypeAlias = SiteName | Iterable[SiteName] | Callable[[str], bool] | None

RESIDUAL = ("batch", "pos", "d_model")
SCALE = ("batch", "pos", "one")
HEADS = ("batch", "pos", "head", "d_head")
KV_HEADS = ("batch", "pos", "kv_head", "d_head")
SCORES = ("batch", "head", "q_pos", "k_pos")
PER_HEAD = ("batch", "pos", "head", "d_model")
PER_KV_HEAD = ("batch", "pos", "kv_head", "d_model")
NEURONS = ("batch", "pos", "d_mlp")
EXPERTS = ("batch", "pos", "expert")

# Each is n_heads times a residual stream, so they are cached only when named.
EXPANSIONS = ("hook_result", "hook_q_input", "hook_k_input", "hook_v_input")


class Site(NamedTuple):
    """One place in the forward pass."""

    name: str
    layer: int | None
    """None: outside the blocks."""
    axes: tuple[str, ...]
    """The words of its shape; "one" is an axis of length 1."""

    @property
    def local_name(self) -> str:
        """The name without its block: "attn.hook_z"."""
        return self.name.split(".", 2)[2] if self.layer is not None else self.name

    @property
    def short_name(self) -> str:
        """The last part without hook_: "z"."""
        return self.name.rpartition(".")[2].removeprefix("hook_")

    @property
    def pos_axis(self) -> int:
        """Which axis counts the positions that this site computes for."""
        return self.axes.index("q_pos" if "q_pos" in self.axes else "pos")


class UnknownSite(KeyError, ValueError):
    """A name or filter that matches no site of this model."""

    def __str__(self) -> str:  # KeyError would show the repr
        return str(self.args[0])


class SiteTable:
    """The sites of one architecture, in the order in which the forward pass meets them."""

    def __init__(self, cfg: TransformerConfig) -> None:
        self._init(_sites(cfg))

    @classmethod
    def of(cls, sites: Iterable[Site], absent: Mapping[str, str] | None = None) -> SiteTable:
        """The table of these sites, in this order; `absent` says why others are not in it."""
        table = object.__new__(cls)
        table._init(sites)
        table._absent = dict(absent or {})
        return table

    def _init(self, sites: Iterable[Site]) -> None:
        self._absent: dict[str, str] = {}
        self._sites = {site.name: site for site in sites}
        self._aliases: dict[str, list[str]] = {}
        for site in self._sites.values():
            last = site.name.rpartition(".")[2]
            local = site.local_name
            shorts = (local, local.replace("hook_", ""), last, site.short_name)
            for alias in dict.fromkeys((site.name, *shorts)):
                self._aliases.setdefault(alias, []).append(site.name)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def __len__(self) -> int:
        return len(self._sites)

    def __contains__(self, name: object) -> bool:
        return name in self._sites

    def __getitem__(self, name: SiteName) -> Site:
        """The one site of this name. Raises UnknownSite when it is none or several."""
        names = self._named(name)
        if len(names) > 1:
            raise UnknownSite(
                f"{name!r} names {len(names)} sites ({_some(names)}); give one in full or, "
                f"for one layer, a pair such as ({self._sites[names[0]].local_name!r}, 3)"
            )
        return self._sites[names[0]]

    @property
    def names(self) -> list[str]:
        """All full names, in forward order."""
        return list(self._sites)

    def select(self, names_filter: SiteFilter = None) -> list[str]:
        """Full names that a filter matches, in forward order.

        None means every site but the per-head expansions (hook_result, hook_q|k|v_input).
        A callable gets each full name. Raises UnknownSite when nothing matches.
        """
        if names_filter is None:
            return [name for name in self._sites if not name.endswith(EXPANSIONS)]
        if callable(names_filter):
            chosen = {name for name in self._sites if names_filter(name)}
            if not chosen:
                raise UnknownSite(
                    f"the filter function matches none of the {len(self)} sites "
                    f"({_some(self.names)}); it is called with full names"
                )
        elif isinstance(names_filter, str) or _is_pair(names_filter):
            chosen = set(self._named(names_filter))  # type: ignore[arg-type]
        else:
            if not isinstance(names_filter, Iterable):
                raise UnknownSite(f"{names_filter!r} is not a site: {_EXPECTED}")
            filters = list(names_filter)
            if not filters:
                raise UnknownSite("the filter is empty: it names no site")
            chosen = {name for one in filters for name in self.select(one)}
        return [name for name in self._sites if name in chosen]

    def before_layer(self, layer: int) -> SiteTable:
        """The sites of a run that stops before this layer."""
        in_blocks = [s for s in self if s.layer is not None]
        first = next(i for i, site in enumerate(self) if site is in_blocks[0])
        return SiteTable.of(
            [*list(self)[:first], *(s for s in in_blocks if (s.layer or 0) < layer)]
        )

    def _named(self, name: SiteName) -> list[str]:
        text, layer = (name[0], int(name[1])) if _is_pair(name) else (name, None)
        if not isinstance(text, str):
            raise UnknownSite(f"{name!r} is not a site: {_EXPECTED}")
        names = self._aliases.get(text, [])
        if layer is not None:
            names = [n for n in names if self._sites[n].layer == layer]
        if not names:
            raise UnknownSite(self._unknown(text, layer))
        return names

    def _unknown(self, text: str, layer: int | None) -> str:
        if text in self._aliases:
            found = (self._sites[n].layer for n in self._aliases[text])
            layers = [layer for layer in found if layer is not None]
            where = f"it has layers {min(layers)} to {max(layers)}" if layers else "it has no layer"
            return f"site {text!r} has no layer {layer}: {where}"
        for name, why in self._absent.items():
            if (text if "." in text else f"hook_{text.removeprefix('hook_')}") in (
                name,
                name.rpartition(".")[2],
                name.split(".", 2)[-1],
            ):
                return f"this model has no site {text!r}: {name!r} is left out ({why})"
        near = difflib.get_close_matches(text, self._aliases, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see model.sites"
        return f"this model has no site {text!r}; {hint}"

    def __repr__(self) -> str:
        locals_ = dict.fromkeys(site.local_name for site in self)
        return f"SiteTable({len(self)} sites: {', '.join(locals_)})"


_EXPECTED = "expected a name, a pair (name, layer), several of these, or a function of the name"


def _is_pair(name: object) -> bool:
    return isinstance(name, tuple) and len(name) == 2 and isinstance(name[1], Integral)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _sites(cfg: TransformerConfig) -> Iterator[Site]:
    yield Site("hook_embed", None, RESIDUAL)
    if cfg.positions in ("learned", "sinusoidal"):
        yield Site("hook_pos_embed", None, RESIDUAL)
    if cfg.n_token_types:
        yield Site("hook_token_type_embed", None, RESIDUAL)
    if cfg.embed_norm:
        yield from _norm("embed_ln", None)
    for layer in range(cfg.n_layers):
        yield from _block(cfg, layer)
    if cfg.final_norm and cfg.norm != "none":
        yield from _norm("ln_final", None)
    if cfg.head != "none":
        yield Site("hook_logits", None, ("batch", "pos", "d_vocab"))


def _norm(name: str, layer: int | None) -> Iterator[Site]:
    yield Site(f"{name}.hook_scale", layer, SCALE)
    yield Site(f"{name}.hook_normalized", layer, RESIDUAL)


def _block(cfg: TransformerConfig, layer: int) -> Iterator[Site]:
    block = f"blocks.{layer}"
    has = {
        position: cfg.norm != "none" and cfg.norm_position == position
        for position in ("pre", "post", "output", "both")
    }

    def site(name: str, axes: tuple[str, ...]) -> Site:
        return Site(f"{block}.{name}", layer, axes)

    yield site("hook_resid_pre", RESIDUAL)
    yield site("hook_q_input", PER_HEAD)
    yield site("hook_k_input", PER_KV_HEAD)
    yield site("hook_v_input", PER_KV_HEAD)
    if has["pre"] or has["both"]:
        yield from _norm(f"{block}.ln1", layer)
    yield from _attention(cfg, layer)
    if has["output"] or has["both"]:
        yield from _norm(f"{block}.ln1_post", layer)
    yield site("hook_attn_out", RESIDUAL)
    if has["post"]:
        yield from _norm(f"{block}.ln1", layer)
    if cfg.d_mlp:
        if not cfg.parallel:
            yield site("hook_resid_mid", RESIDUAL)
        if (has["pre"] or has["both"]) and not cfg.parallel_shared_norm:
            yield from _norm(f"{block}.ln2", layer)
        if cfg.n_experts:
            yield site("mlp.hook_router", EXPERTS)
            yield site("mlp.hook_expert_weights", EXPERTS)
        yield site("mlp.hook_pre", NEURONS)
        if cfg.mlp_gated:
            yield site("mlp.hook_pre_linear", NEURONS)
        yield site("mlp.hook_post", NEURONS)
        if has["output"] or has["both"]:
            yield from _norm(f"{block}.ln2_post", layer)
        yield site("hook_mlp_out", RESIDUAL)
        if has["post"]:
            yield from _norm(f"{block}.ln2", layer)
    yield site("hook_resid_post", RESIDUAL)


def _attention(cfg: TransformerConfig, layer: int) -> Iterator[Site]:
    attn = f"blocks.{layer}.attn"
    yield Site(f"{attn}.hook_q", layer, HEADS)
    yield Site(f"{attn}.hook_k", layer, KV_HEADS)
    yield Site(f"{attn}.hook_v", layer, KV_HEADS)
    if cfg.qk_norm != "none":
        one = ("one",) if cfg.qk_norm == "all" else ("head", "one")
        yield Site(f"{attn}.q_norm.hook_scale", layer, ("batch", "pos", *one))
        kv_one = ("one",) if cfg.qk_norm == "all" else ("kv_head", "one")
        yield Site(f"{attn}.k_norm.hook_scale", layer, ("batch", "pos", *kv_one))
    if cfg.is_rotary(layer):
        yield Site(f"{attn}.hook_rot_q", layer, HEADS)
        yield Site(f"{attn}.hook_rot_k", layer, KV_HEADS)
    yield Site(f"{attn}.hook_attn_scores", layer, SCORES)
    yield Site(f"{attn}.hook_pattern", layer, SCORES)
    yield Site(f"{attn}.hook_z", layer, HEADS)
    yield Site(f"{attn}.hook_result", layer, PER_HEAD)
