"""The table of sites: every place in the forward pass that can be read or edited.

A site has one full name in the strings of TransformerLens ("blocks.3.attn.hook_z"). Wherever a
site is expected, a short form works too: the name without its block ("attn.hook_z"), its last part
("hook_z") or that part without hook_ ("z"), meaning all layers; or a pair ("z", 3), that layer,
which may be counted from the end: ("z", -1).

An encoder–decoder has two stacks: "encoder_blocks.3.attn.hook_z", "decoder_blocks.3.attn.hook_z",
"decoder_blocks.3.cross_attn.hook_z"; outside the blocks the encoder's names begin with "encoder.".
A short form means every site that it matches; "decoder_blocks.attn.z" is that of one stack.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from .config import TransformerConfig
from .indices import whole_number

SiteName: TypeAlias = str | tuple[str, int]
"""A full name, a short form, or a pair (short form, layer): −1 is the last layer."""
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


class Stack(NamedTuple):
    """How the names of a stack's sites begin: in its blocks, and outside of them."""

    blocks: str
    outside: str = ""

    def block(self, layer: int) -> str:
        """The name of a block."""
        return f"{self.blocks}.{layer}"


ALONE, ENCODER, DECODER = (
    Stack("blocks"),
    Stack("encoder_blocks", "encoder."),
    Stack("decoder_blocks"),
)


class Site(NamedTuple):
    """One place in the forward pass."""

    name: str
    layer: int | None
    """None: outside the blocks."""
    axes: tuple[str, ...]
    """The words of its shape; "one" is an axis of length 1."""
    source: tuple[str, ...] = ()
    """Which of its axes of positions count the source, what an encoder reads."""

    @property
    def local_name(self) -> str:
        """The name without its layer: "attn.hook_z", or "decoder_blocks.attn.hook_z"."""
        if self.layer is None:
            return self.name
        blocks, _, local = self.name.split(".", 2)
        return local if blocks == ALONE.blocks else f"{blocks}.{local}"

    @property
    def inner_name(self) -> str:
        """The name without stack and block: "attn.hook_z"."""
        if self.layer is None:
            return self.name.removeprefix(ENCODER.outside)
        return self.name.split(".", 2)[2]

    @property
    def in_encoder(self) -> bool:
        """Whether it belongs to the encoder of an encoder–decoder."""
        return self.name.startswith((f"{ENCODER.blocks}.", ENCODER.outside))

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

    def __init__(self, cfg: TransformerConfig, stack: Stack | None = None) -> None:
        if stack is None:
            stack = ALONE if cfg.encoder is None else DECODER
        of_encoder = () if cfg.encoder is None else SiteTable(cfg.encoder, ENCODER)
        n_layers = {stack.blocks: cfg.n_layers}
        if cfg.encoder is not None:
            n_layers[ENCODER.blocks] = cfg.encoder.n_layers
        self._init([*of_encoder, *_sites(cfg, stack)], n_layers)

    @classmethod
    def of(
        cls,
        sites: Iterable[Site],
        n_layers: Mapping[str, int],
        absent: Mapping[str, str] | None = None,
    ) -> SiteTable:
        """The table of these sites, in this order. n_layers: of the model's stacks, by the name of
        their blocks, whether or not each layer has a site here (a stack that is left out takes no
        layers counted from the end); `absent` says why some sites are not in it."""
        table = object.__new__(cls)
        table._init(sites, n_layers)
        table._absent = dict(absent or {})
        return table

    def _init(self, sites: Iterable[Site], n_layers: Mapping[str, int]) -> None:
        self.n_layers = dict(n_layers)
        """Layers of each stack of the model, by the name of its blocks."""
        self._absent: dict[str, str] = {}
        self._sites = {site.name: site for site in sites}
        self._aliases: dict[str, list[str]] = {}
        for site in self._sites.values():
            last = site.name.rpartition(".")[2]
            locals_ = [site.local_name, site.inner_name, last]
            if site.inner_name != site.local_name:  # of two stacks
                locals_.append(f"{site.local_name.removesuffix(site.inner_name)}{last}")
            shorts = (*locals_, *(n.replace("hook_", "") for n in locals_))
            for alias in dict.fromkeys((site.name, *shorts)):
                self._aliases.setdefault(alias, []).append(site.name)
        for name in self._sites:  # a full name means one site, whatever else ends so
            self._aliases[name] = [name]

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
            kinds = list(dict.fromkeys(self._sites[n].local_name for n in names))
            shown = _some(names) if len(kinds) == 1 else ", ".join(kinds)
            raise UnknownSite(
                f"{name!r} names {len(names)} sites ({shown}); give one in full or, "
                f"for one layer, a pair such as ({kinds[0]!r}, 3)"
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
            if any(one is None for one in filters):
                raise UnknownSite(f"None is not a site: {_EXPECTED}; None alone means them all")
            chosen = {name for one in filters for name in self.select(one)}
        return [name for name in self._sites if name in chosen]

    def before_layer(self, layer: int) -> SiteTable:
        """The sites of a run that stops before this layer (of the decoder, where there are two
        stacks)."""
        own = [s.name.partition(".")[0] for s in self if s.layer is not None][-1] + "."
        in_blocks = [s for s in self if s.name.startswith(own)]
        first = next(i for i, site in enumerate(self) if site is in_blocks[0])
        met = [*list(self)[:first], *(s for s in in_blocks if (s.layer or 0) < layer)]
        return SiteTable.of(met, self.n_layers)

    def _named(self, name: SiteName) -> list[str]:
        if not _is_pair(name):
            if not isinstance(name, str):
                raise UnknownSite(f"{name!r} is not a site: {_EXPECTED}")
            if name not in self._aliases:
                raise UnknownSite(self._unknown(name, None))
            return self._aliases[name]
        text, given = name
        try:
            layer = whole_number(given, f"the layer of {text!r}")
        except ValueError as error:
            raise UnknownSite(str(error)) from None
        names = [n for n in self._aliases.get(text, ()) if self._is_in(self._sites[n], layer)]
        if not names:
            raise UnknownSite(self._unknown(text, layer))
        return names

    def _is_in(self, site: Site, layer: int) -> bool:
        """Whether a site is in that layer, which may be counted from the end of its stack."""
        if site.layer is None or layer >= 0:
            return site.layer == layer
        n_layers = self.n_layers.get(site.name.partition(".")[0])
        if n_layers is None:
            raise UnknownSite(
                f"layer {layer} of {site.local_name!r}: this table does not know how many layers "
                "the model has; count from the first, 0"
            )
        return site.layer == layer + n_layers

    def _unknown(self, text: str, layer: int | None) -> str:
        if text in self._aliases:
            found = (self._sites[n].layer for n in self._aliases[text])
            layers = [layer for layer in found if layer is not None]
            where = f"it has layers {min(layers)} to {max(layers)}" if layers else "it has no layer"
            end = "" if layer is None or layer >= 0 or not layers else ", and −1 is the last of all"
            return f"site {text!r} has no layer {layer}: {where}{end}"
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


def _is_pair(name: object) -> TypeGuard[tuple[str, object]]:
    """Whether it is (name, layer), and not two names, pairs or functions."""
    if not (isinstance(name, tuple) and len(name) == 2 and isinstance(name[0], str)):
        return False
    return not (isinstance(name[1], str | tuple | list) or callable(name[1]))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def stack_config(site: Site, cfg: Any) -> Any:
    """The config of the stack that a site belongs to; of a bridged model, the one that it has."""
    return cfg.encoder if cfg.encoder is not None and site.in_encoder else cfg


OWN_POSITIONS = ("pos", "q_pos", "k_pos")


def _sites(cfg: TransformerConfig, stack: Stack) -> Iterator[Site]:
    source = OWN_POSITIONS if stack is ENCODER else ()

    def site(name: str, axes: tuple[str, ...]) -> Site:
        return Site(stack.outside + name, None, axes, source)

    yield site("hook_embed", RESIDUAL)
    if cfg.positions in ("learned", "sinusoidal"):
        yield site("hook_pos_embed", RESIDUAL)
    if cfg.n_token_types:
        yield site("hook_token_type_embed", RESIDUAL)
    if cfg.embed_norm:
        yield from _norm(site, "embed_ln")
    for layer in range(cfg.n_layers):
        yield from _block(cfg, layer, stack)
    if cfg.final_norm and cfg.norm != "none":
        yield from _norm(site, "ln_final")
    if cfg.head != "none":
        yield site("hook_logits", ("batch", "pos", "d_vocab"))


Make = Callable[[str, tuple[str, ...]], Site]


def _norm(site: Make, name: str) -> Iterator[Site]:
    yield site(f"{name}.hook_scale", SCALE)
    yield site(f"{name}.hook_normalized", RESIDUAL)


def _block(cfg: TransformerConfig, layer: int, stack: Stack) -> Iterator[Site]:
    has = {
        position: cfg.norm != "none" and cfg.norm_position == position
        for position in ("pre", "post", "output", "both")
    }
    source = OWN_POSITIONS if stack is ENCODER else ()

    def site(name: str, axes: tuple[str, ...]) -> Site:
        return Site(f"{stack.block(layer)}.{name}", layer, axes, source)

    yield site("hook_resid_pre", RESIDUAL)
    yield site("hook_q_input", PER_HEAD)
    yield site("hook_k_input", PER_KV_HEAD)
    yield site("hook_v_input", PER_KV_HEAD)
    if has["pre"] or has["both"]:
        yield from _norm(site, "ln1")
    yield from _attention(cfg, layer, site)
    if has["output"] or has["both"]:
        yield from _norm(site, "ln1_post")
    yield site("hook_attn_out", RESIDUAL)
    if has["post"]:
        yield from _norm(site, "ln1")
    if cfg.encoder is not None:
        yield from _cross_attention(site, has)
    if cfg.d_mlp:
        if not cfg.parallel:
            yield site(
                "hook_resid_mid" if cfg.encoder is None else "hook_resid_mid_cross", RESIDUAL
            )
        if (has["pre"] or has["both"]) and not cfg.parallel_shared_norm:
            yield from _norm(site, "ln2")
        if cfg.n_experts:
            yield site("mlp.hook_router", EXPERTS)
            yield site("mlp.hook_expert_weights", EXPERTS)
        yield site("mlp.hook_pre", NEURONS)
        if cfg.mlp_gated:
            yield site("mlp.hook_pre_linear", NEURONS)
        yield site("mlp.hook_post", NEURONS)
        if has["output"] or has["both"]:
            yield from _norm(site, "ln2_post")
        yield site("hook_mlp_out", RESIDUAL)
        if has["post"]:
            yield from _norm(site, "ln2")
    yield site("hook_resid_post", RESIDUAL)


def _attention(cfg: TransformerConfig, layer: int, site: Make) -> Iterator[Site]:
    yield site("attn.hook_q", HEADS)
    yield site("attn.hook_k", KV_HEADS)
    yield site("attn.hook_v", KV_HEADS)
    if cfg.qk_norm != "none":
        one = ("one",) if cfg.qk_norm == "all" else ("head", "one")
        yield site("attn.q_norm.hook_scale", ("batch", "pos", *one))
        kv_one = ("one",) if cfg.qk_norm == "all" else ("kv_head", "one")
        yield site("attn.k_norm.hook_scale", ("batch", "pos", *kv_one))
    if cfg.is_rotary(layer):
        yield site("attn.hook_rot_q", HEADS)
        yield site("attn.hook_rot_k", KV_HEADS)
    yield site("attn.hook_attn_scores", SCORES)
    yield site("attn.hook_pattern", SCORES)
    yield site("attn.hook_z", HEADS)
    yield site("attn.hook_result", PER_HEAD)


def _cross_attention(site: Make, has: dict[str, bool]) -> Iterator[Site]:
    """Queries count the decoder's positions; keys and values, and what they are weighted by,
    the source's."""
    yield site("hook_resid_mid", RESIDUAL)
    if has["pre"] or has["both"]:
        yield from _norm(site, "ln_cross")
    yield site("cross_attn.hook_q", HEADS)
    yield site("cross_attn.hook_k", KV_HEADS)._replace(source=("pos",))
    yield site("cross_attn.hook_v", KV_HEADS)._replace(source=("pos",))
    yield site("cross_attn.hook_attn_scores", SCORES)._replace(source=("k_pos",))
    yield site("cross_attn.hook_pattern", SCORES)._replace(source=("k_pos",))
    yield site("cross_attn.hook_z", HEADS)
    yield site("cross_attn.hook_result", PER_HEAD)
    if has["output"] or has["both"]:
        yield from _norm(site, "ln_cross_post")
    yield site("hook_cross_attn_out", RESIDUAL)
    if has["post"]:
        yield from _norm(site, "ln_cross")
