"""One layer: attention, in a decoder of a source cross-attention, and the MLP.

resid_pre → q, k, v → z → resid_mid → post → resid_post, and beside an encoder
resid_mid → q → z → resid_mid_cross of cross-attention in between. Each step is a method, so that a
partial rerun may enter between them.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from interp.core.config import TransformerConfig
from interp.core.sites import ALONE, Stack
from interp.core.tap import SILENT, EditError, Silent, Tap

from .attention import Attention, SplitInputs
from .experts import Experts
from .layout import Layout, Places
from .mlp import MLP
from .norm import Norm
from .prefix import Encoded, Prefix


class Block(nn.Module):
    """One layer: attention, then the MLP, each added to the residual stream; between them, beside
    an encoder, attention to its output."""

    hook_resid_pre: str
    hook_resid_mid: str
    hook_resid_mid_cross: str
    hook_cross_attn_out: str
    hook_resid_post: str
    hook_attn_out: str
    hook_mlp_out: str

    def __init__(self, cfg: TransformerConfig, layer: int, stack: Stack = ALONE) -> None:
        super().__init__()
        name, position = stack.block(layer), cfg.norm_position
        self.name = name
        self.parallel, self.shared_norm = cfg.parallel, cfg.parallel_shared_norm
        self.scale = cfg.residual_scale
        self.heads = (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)
        crosses = cfg.encoder is not None
        self.attn = Attention(cfg, layer, f"{name}.attn")
        self.cross_attn = Attention(cfg, layer, f"{name}.cross_attn", True) if crosses else None
        kind = Experts if cfg.n_experts else MLP
        self.has_mlp = cfg.d_mlp > 0  # a module asked for a part of its own looks it up slowly
        self.mlp = kind(cfg, f"{name}.mlp") if self.has_mlp else None
        normed = cfg.norm != "none"
        self.pre_norm = normed and position in ("pre", "both")
        self.post_norm = normed and position == "post"
        self.output_norm = normed and position in ("output", "both")
        has_ln2 = cfg.d_mlp > 0 and not cfg.parallel_shared_norm
        if self.pre_norm or self.post_norm:
            self.ln1 = Norm(cfg, f"{name}.ln1")
            self.ln2 = Norm(cfg, f"{name}.ln2") if has_ln2 else None
            self.ln_cross = Norm(cfg, f"{name}.ln_cross") if crosses else None
        has_ln2_post = self.output_norm and cfg.d_mlp > 0
        self.ln1_post = Norm(cfg, f"{name}.ln1_post") if self.output_norm else None
        self.ln2_post = Norm(cfg, f"{name}.ln2_post") if has_ln2_post else None
        has_cross_post = self.output_norm and crosses
        self.ln_cross_post = Norm(cfg, f"{name}.ln_cross_post") if has_cross_post else None
        for site in self.__annotations__:
            setattr(self, site, f"{name}.{site}")
        self.mid = self.hook_resid_mid_cross if crosses else self.hook_resid_mid
        """What the MLP reads."""
        self.input_sites = tuple(f"{name}.hook_{part}_input" for part in "qkv")

    def forward(
        self,
        resid_pre: Float[Tensor, "batch pos d_model"],
        layout: Layout,
        tap: Silent | Tap = SILENT,
        prefix: Prefix | None = None,
        encoded: Encoded | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """hook_resid_post. `prefix` lies to the left; `encoded` is what cross-attention reads."""
        x, normed, z = self.to_z(resid_pre, layout, tap, prefix)
        return self.from_z(x, normed, z, tap, encoded)

    def to_z(
        self,
        resid_pre: Tensor,
        layout: Layout,
        tap: Silent | Tap = SILENT,
        prefix: Prefix | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The residual stream, what the sublayers read of it, and z before its site."""
        x, normed, (q, k, v) = self.to_qkv(resid_pre, layout, tap)
        if prefix is not None:
            k, v = prefix.extend(self.attn.layer, k, v)
        return x, normed, self.attn.attend(q, k, v, layout, tap)

    def from_z(
        self,
        x: Tensor,
        normed: Tensor,
        z: Tensor,
        tap: Silent | Tap = SILENT,
        encoded: Encoded | None = None,
    ) -> Tensor:
        """hook_resid_post from what `to_z` gave: position by position, but for cross-attention."""
        if self.parallel:
            return self.from_z_parallel(x, normed, z, tap)
        resid_mid = self.to_resid_mid(x, z, tap)
        if self.cross_attn is not None:
            x, q = self.to_cross_q(resid_mid, tap)
            z = self.cross_attn.attend_source(q, encoded, tap)
            resid_mid = self.to_resid_mid_cross(x, z, tap)
        if not self.has_mlp:
            return tap(self.hook_resid_post, resid_mid)
        return self.from_post(*self.to_post(resid_mid, tap), tap)

    def to_qkv(
        self, resid_pre: Tensor, places: Places, tap: Silent | Tap = SILENT
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """The residual stream, what the sublayers read of it, and queries, keys and values."""
        x = tap(self.hook_resid_pre, resid_pre)
        split = self._split_inputs(x, tap)
        normed = self.ln1(x, tap) if self.pre_norm else x
        return x, normed, self.attn.to_qkv(normed, places, tap, split)

    def to_resid_mid(self, x: Tensor, z: Tensor, tap: Silent | Tap = SILENT) -> Tensor:
        """The residual stream with attention added, before hook_resid_mid."""
        x = x + self._attn_out(z, tap)
        return self.ln1(x, tap) if self.post_norm else x

    def to_cross_q(self, resid_mid: Tensor, tap: Silent | Tap = SILENT) -> tuple[Tensor, Tensor]:
        """The residual stream, and what cross-attention asks of the source."""
        x = tap(self.hook_resid_mid, resid_mid)
        normed = self.ln_cross(x, tap) if self.pre_norm else x
        return x, self.cross_attn.project_queries(normed, tap)

    def to_resid_mid_cross(self, x: Tensor, z: Tensor, tap: Silent | Tap = SILENT) -> Tensor:
        """The residual stream with cross-attention added, before hook_resid_mid_cross."""
        written = self.cross_attn.output(z, tap)
        x = x + tap(self.hook_cross_attn_out, self.added(written, self.ln_cross_post, tap))
        return self.ln_cross(x, tap) if self.post_norm else x

    def to_post(self, resid_mid: Tensor, tap: Silent | Tap = SILENT) -> tuple[Tensor, Any]:
        """The residual stream, and the neurons before hook_post (of experts: `Experts.to_post`)."""
        x = tap(self.mid, resid_mid)
        return x, self.mlp.to_post(self.ln2(x, tap) if self.pre_norm else x, tap)

    def from_post(self, x: Tensor, post: Any, tap: Silent | Tap = SILENT) -> Tensor:
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

    def _mlp_out(self, post: Any, tap: Silent | Tap) -> Tensor:
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
