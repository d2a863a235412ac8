"""The hooked transformer: embed → blocks → unembed, read top to bottom.

Every tensor that a site names passes through the tap. With no tap this is the plain fast model:
attention and norms stay fused, and nothing is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import ConfigError, TransformerConfig
from ..sites import SiteFilter, SiteTable
from ..tap import SILENT, ActivationCache, EditError, FwdHooks, Positions, Silent, Tap
from ..tokens import Tokens
from .attention import Attention, SplitInputs
from .embed import Embed, MLMHead, Unembed
from .mlp import MLP
from .norm import Norm
from .positions import GrowingPrefix, Layout, Prefix
from .verbs import Verbs

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

Input: TypeAlias = Tokens | Tensor | str | Sequence
"""Tokens, ids, vectors [batch pos d_model], or text where the model has a tokenizer."""

# What a config may say and this forward pass does not compute.
NOT_YET = {"positions": "sinusoidal"}


class Block(nn.Module):
    """One layer: attention, then the MLP, each added to the residual stream."""

    hook_resid_pre: str
    hook_resid_mid: str
    hook_resid_post: str
    hook_attn_out: str
    hook_mlp_out: str

    def __init__(self, cfg: TransformerConfig, layer: int) -> None:
        super().__init__()
        name, position = f"blocks.{layer}", cfg.norm_position
        self.parallel, self.shared_norm = cfg.parallel, cfg.parallel_shared_norm
        self.scale = cfg.residual_scale
        self.heads = (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)
        self.attn = Attention(cfg, layer)
        self.mlp = MLP(cfg, layer) if cfg.d_mlp else None
        normed = cfg.norm != "none"
        self.pre_norm = normed and position in ("pre", "both")
        self.post_norm = normed and position == "post"
        self.output_norm = normed and position in ("output", "both")
        has_ln2 = cfg.d_mlp > 0 and not cfg.parallel_shared_norm
        if self.pre_norm or self.post_norm:
            self.ln1 = Norm(cfg, f"{name}.ln1")
            self.ln2 = Norm(cfg, f"{name}.ln2") if has_ln2 else None
        has_ln2_post = self.output_norm and cfg.d_mlp > 0
        self.ln1_post = Norm(cfg, f"{name}.ln1_post") if self.output_norm else None
        self.ln2_post = Norm(cfg, f"{name}.ln2_post") if has_ln2_post else None
        for site in self.__annotations__:
            setattr(self, site, f"{name}.{site}")
        self.input_sites = tuple(f"{name}.hook_{part}_input" for part in "qkv")

    def forward(
        self,
        resid_pre: Float[Tensor, "batch pos d_model"],
        layout: Layout,
        tap: Silent | Tap = SILENT,
    ) -> Float[Tensor, "batch pos d_model"]:
        x, normed, z = self.to_z(resid_pre, layout, tap)
        if self.parallel:
            return self.from_z_parallel(x, normed, z, tap)
        resid_mid = self.to_resid_mid(x, z, tap)
        if self.mlp is None:
            return tap(self.hook_resid_post, resid_mid)
        return self.from_post(*self.to_post(resid_mid, tap), tap)

    # The stages of a block, at whose seams a run may enter: resid_pre → z → resid_mid → post.

    def to_z(
        self, resid_pre: Tensor, layout: Layout, tap: Silent | Tap = SILENT
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream, what the sublayers read of it, and z before its site."""
        x = tap(self.hook_resid_pre, resid_pre)
        split = self._split_inputs(x, tap)
        normed = self.ln1(x, tap) if self.pre_norm else x
        return x, normed, self.attn.to_z(normed, layout, tap, split)

    def to_resid_mid(self, x: Tensor, z: Tensor, tap: Silent | Tap = SILENT) -> Tensor:
        """The residual stream with attention added, before hook_resid_mid."""
        x = x + self._attn_out(z, tap)
        return self.ln1(x, tap) if self.post_norm else x

    def to_post(self, resid_mid: Tensor, tap: Silent | Tap = SILENT) -> tuple[Tensor, Tensor]:
        """The residual stream, and the neurons before hook_post."""
        x = tap(self.hook_resid_mid, resid_mid)
        return x, self.mlp.to_post(self.ln2(x, tap) if self.pre_norm else x, tap)

    def from_post(self, x: Tensor, post: Tensor, tap: Silent | Tap = SILENT) -> Tensor:
        """hook_resid_post: the residual stream with the MLP added."""
        x = x + self._mlp_out(post, tap)
        return tap(self.hook_resid_post, self.ln2(x, tap) if self.post_norm else x)

    def from_z_parallel(self, x: Tensor, normed: Tensor, z: Tensor, tap: Silent | Tap) -> Tensor:
        attn_out = self._attn_out(z, tap)
        read = normed if self.shared_norm or not self.pre_norm else self.ln2(x, tap)
        mlp_out = self._mlp_out(self.mlp.to_post(read, tap), tap)
        return tap(self.hook_resid_post, x + attn_out + mlp_out)

    def _attn_out(self, z: Tensor, tap: Silent | Tap) -> Tensor:
        written = self.attn.output(z, tap)
        return tap(self.hook_attn_out, self.added(written, self.ln1_post, tap))

    def _mlp_out(self, post: Tensor, tap: Silent | Tap) -> Tensor:
        written = self.mlp.output(post, tap)
        return tap(self.hook_mlp_out, self.added(written, self.ln2_post, tap))

    def added(self, written: Tensor, norm: Norm | None, tap: Silent | Tap = SILENT) -> Tensor:
        """What a sublayer adds to the residual stream."""
        added = written if norm is None else norm(written, tap)
        return added if self.scale is None else added * self.scale

    def _split_inputs(self, x: Tensor, tap: Silent | Tap) -> SplitInputs | None:
        """What q, k and v read, per head, where somebody may change it."""
        if not any(map(tap.wants, self.input_sites)):
            return None
        if self.pre_norm and any(map(tap.changes, self.input_sites)):
            for site in (self.ln1.hook_scale, self.ln1.hook_normalized):
                if tap.changes(site):  # heads with an input of their own no longer read it
                    raise EditError(
                        f"{site!r} cannot be changed in one run with {self.input_sites}: a head "
                        "whose input is its own is normed apart; use one or the other"
                    )
        parts: list[Tensor | None] = [None, None, None]
        for i, (site, heads) in enumerate(zip(self.input_sites, self.heads, strict=True)):
            if tap.wants(site):
                seen = tap(site, x[:, :, None].expand(-1, -1, heads, -1))
                if tap.changes(site):
                    parts[i] = self.ln1(seen) if self.pre_norm else seen
        return None if parts == [None, None, None] else tuple(parts)


class HookedTransformer(Verbs):
    """A transformer of the given config. Its weights are set by `init_weights` or by loading.

    Parameters never require a gradient unless somebody asks them to (`model.requires_grad_()`).
    Made under `torch.device("meta")`, it allocates nothing.
    """

    def __init__(
        self,
        cfg: TransformerConfig,
        tokenizer: Tokenizer | None = None,
        *,
        name: str = "custom",
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for field, value in NOT_YET.items():
            if getattr(cfg, field) == value:
                raise ConfigError(f"{field}={value!r} is not computed yet by HookedTransformer")
        if cfg.rotary_scaling is not None and cfg.rotary_scaling.kind == "ntk":
            raise ConfigError("rotary_scaling.kind='ntk' is not computed yet by HookedTransformer")
        self.cfg, self.tokenizer, self.name = cfg, tokenizer, name
        self.sites = SiteTable(cfg)
        self.fwd_hooks: tuple = ()
        self.source: dict = {}
        normed = cfg.norm != "none"
        with torch.device(torch.empty(0).device if device is None else device):
            self.embed = Embed(cfg)
            self.embed_ln = Norm(cfg, "embed_ln") if cfg.embed_norm else None
            self.blocks = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
            self.ln_final = Norm(cfg, "ln_final") if cfg.final_norm and normed else None
            self.mlm_head = MLMHead(cfg) if cfg.head == "mlm" else None
            self.unembed = None if cfg.head == "none" else Unembed(cfg)
        self.to(dtype)
        if not self.W_E.is_meta:
            self.init_weights(seed)

    def forward(
        self,
        tokens: Input,
        tap: Tap | None = None,
        *,
        prefix: Prefix | None = None,
        stop_at_layer: int | None = None,
    ) -> Tensor:
        """Logits [batch pos d_vocab]; with cfg.head "none" the final residual [batch pos d_model].

        With stop_at_layer=l, the residual stream that layer l would read (l = n_layers: the last).
        `prefix` lies to the left of the tokens. Raises ValueError on ids outside the vocabulary, an
        empty prompt, or positions past n_ctx.
        """
        tokens = self.accept(tokens)
        stop = self._stop(stop_at_layer)
        if tap is not None or not self.fwd_hooks:
            return self._run(tokens, SILENT if tap is None else tap, prefix, stop)
        own = self.make_tap(stop_at_layer=stop_at_layer)
        out = self._run(tokens, own, prefix, stop)
        own.check_fired()
        return out

    def _run(
        self,
        tokens: Tokens,
        tap: Silent | Tap,
        prefix: Prefix | None,
        stop: int | None,
        layout: Layout | None = None,
    ) -> Tensor:
        layout = layout or Layout(self.cfg, tokens, prefix, like=self.embed.W_E)
        layout.check_context()
        x = self.embed(tokens, layout, tap)
        if self.embed_ln is not None:
            x = self.embed_ln(x, tap)
        for layer, block in enumerate(self.blocks):
            if layer == stop:
                return x
            x = block(x, layout, tap)
        if isinstance(prefix, GrowingPrefix):
            prefix.advance(tokens)
        return x if stop is not None else self.to_logits(x, tap)

    def to_logits(
        self, resid: Float[Tensor, "batch pos d_model"], tap: Silent | Tap = SILENT
    ) -> Tensor:
        """From the last residual stream to the model's output: final norm, the transform of a
        masked-LM head, unembedding."""
        x = self._read_out(resid, tap)
        if self.unembed is None:
            return x
        return tap("hook_logits", self.unembed(x, self.embed.W_E))

    def _read_out(self, resid: Tensor, tap: Silent | Tap = SILENT) -> Tensor:
        """What the unembedding reads of the last residual stream."""
        x = resid if self.ln_final is None else self.ln_final(resid, tap)
        return x if self.mlm_head is None else self.mlm_head(x)

    def logits_of(
        self,
        resid: Float[Tensor, "rows pos d_model"],
        ids: Int[Tensor, "rows pos k"],
        log_probs: bool = False,
    ) -> Float[Tensor, "rows pos k"]:
        """The logits of some ids, or their log-probabilities (nats), from the last residual stream.

        Computes no other logits, and none of those that a log-probability is normed by is kept.
        """
        x = self._read_out(resid)
        logits = self.unembed.columns(x, self.W_E, ids)
        if not log_probs:
            return logits
        norm = self.unembed.log_sum_exp(x.flatten(0, 1), self.W_E).view(*x.shape[:2], 1)
        return logits.to(norm) - norm

    def run_with_hooks(
        self, tokens: Input, fwd_hooks: FwdHooks, *, stop_at_layer: int | None = None
    ) -> Tensor:
        """The output of one run with `fwd_hooks` [(filter, fn)], fn(tensor, hook) → a tensor
        or None."""
        return self.with_hooks(fwd_hooks)(tokens, stop_at_layer=stop_at_layer)

    def run_with_cache(
        self,
        tokens: Input,
        names_filter: SiteFilter = None,
        *,
        pos: Positions = None,
        stop_at_layer: int | None = None,
        device: torch.device | str | None = None,
        grad: bool = False,
    ) -> tuple[Tensor, ActivationCache]:
        """The output of one run, and the sites that `names_filter` selects (None: all but the
        per-head expansions).

        `pos` keeps some positions (an index, slice or list; the axis stays). `device` is where
        the cache goes; the model stays. With grad=True the cached tensors are in the autograd
        graph, so that `torch.autograd.grad(metric, cache.values())` works; it refuses pos= and
        device=, whose copies would be off the graph.
        """
        if grad and (pos is not None or device is not None):
            raise ValueError("grad=True refuses pos= and device=: their copies are off the graph")
        tokens = self.accept(tokens)
        tap = self.make_tap(
            names_filter,
            reading=True,
            stop_at_layer=stop_at_layer,
            pos=pos,
            device=device,
            grad=grad,
        )
        with torch.set_grad_enabled(grad):
            out = self._run(tokens, tap, None, self._stop(stop_at_layer))
        tap.check_fired()
        return out, ActivationCache(tap.values, self.sites, tokens, self.blocks)

    def make_tap(
        self,
        names_filter: SiteFilter = None,
        *,
        reading: bool = False,
        stop_at_layer: int | None = None,
        pos: Positions = None,
        device: torch.device | str | None = None,
        grad: bool = False,
    ) -> Tap:
        """A tap for one run: this view's hooks and, when `reading`, the sites of `names_filter`."""
        stop = self._stop(stop_at_layer)
        sites = self.sites if stop is None else self.sites.before_layer(stop)
        reads = sites.select(names_filter) if reading else ()
        return Tap(sites, reads=reads, fwd_hooks=self.fwd_hooks, pos=pos, device=device, grad=grad)

    def with_hooks(self, fwd_hooks: FwdHooks) -> HookedTransformer:
        """A view of this model on which the hooks are active in every verb.

        The view shares the weights and cannot be changed; this model stays as it is. Views of
        views apply the older hooks first. Raises UnknownSite at once where a name matches nothing.
        """
        hooks = (*self.fwd_hooks, *fwd_hooks)
        Tap(self.sites, fwd_hooks=hooks)  # names and functions are checked here
        view = copy.copy(self)
        view.__dict__["fwd_hooks"] = hooks
        return view

    def hooks(self, *_: object, **__: object) -> None:
        """Not here: hooks in a context would need state in the model."""
        raise TypeError("the model holds no hooks; use `model.with_hooks([(site, fn)])(tokens)`")

    def __setattr__(self, name: str, value: object) -> None:
        if self.__dict__.get("fwd_hooks"):
            raise AttributeError(f"cannot set {name!r}: a view made by with_hooks is immutable")
        super().__setattr__(name, value)

    def _apply(self, fn, recurse: bool = True):
        if self.fwd_hooks:
            raise AttributeError("a view made by with_hooks is immutable: move or cast the model")
        return super()._apply(fn, recurse)

    def _stop(self, stop_at_layer: int | None) -> int | None:
        if stop_at_layer is None:
            return None
        n = self.cfg.n_layers
        if not -n <= stop_at_layer <= n:
            raise ValueError(f"stop_at_layer={stop_at_layer}: this model has layers 0 to {n - 1}")
        return stop_at_layer % n if stop_at_layer < 0 else stop_at_layer

    @torch.no_grad()
    def init_weights(self, seed: int = 0, std: float = 0.02) -> None:
        """Random weights as GPT-2's: N(0, std), writers divided by √(2 n_layers), biases 0."""
        generator = torch.Generator(self.W_E.device).manual_seed(seed)
        shrink = (2 * self.cfg.n_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith(".w"):
                parameter.fill_(0.0 if self.cfg.norm == "rmsnorm_plus1" else 1.0)
            elif name.endswith((".b", "bias")):
                parameter.zero_()
            else:
                own = std * (shrink if name.endswith("out_weight") else 1)
                parameter.normal_(0, own, generator=generator)
