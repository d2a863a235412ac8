"""Multi-head attention (Vaswani et al. 2017), grouped-query (Ainslie et al. 2023) included.

to_qkv → attend → output: three stages, so that a run may enter between them. Attention stays
fused (SDPA) while nobody looks at `hook_attn_scores` or `hook_pattern`. Cross-attention takes its
keys and values from an encoder's output, and knows no positions.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.core.config import TransformerConfig
from interp.core.tap import SILENT, Silent, Tap

from .layout import Layout, Places, SourceLayout
from .mlp import _or_zeros
from .norm import Norm
from .prefix import Encoded
from .rotary import rotate

SplitInputs: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None]
"""What queries, keys and values read, per head and normed; None where all heads read the same."""


class Attention(nn.Module):
    """qkv_weight [(n_heads + 2 n_kv_heads)·d_head, d_model]: q, k, v rows; out_weight back."""

    hook_q: str
    hook_k: str
    hook_v: str
    hook_rot_q: str
    hook_rot_k: str
    hook_attn_scores: str
    hook_pattern: str
    hook_z: str
    hook_result: str

    def __init__(self, cfg: TransformerConfig, layer: int, name: str, cross: bool = False) -> None:
        super().__init__()
        self.cross = cross
        self.layer, self.d_head = layer, cfg.d_head
        self.n_heads, self.n_kv_heads = cfg.n_heads, cfg.n_kv_heads
        self.scale, self.softcap, self.window = (
            cfg.scale(layer),
            cfg.attn_softcap,
            None if cross else cfg.window(layer),
        )
        self.rotary, self.interleaved = cfg.is_rotary(layer) and not cross, cfg.rotary_interleaved
        self.biased = cfg.positions in ("alibi", "relative") and not cross
        self.norm_span = cfg.qk_norm
        self.sizes = (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads)
        rows, width = sum(self.sizes) * cfg.d_head, cfg.n_heads * cfg.d_head
        self.qkv_weight = nn.Parameter(torch.empty(rows, cfg.d_model), requires_grad=False)
        self.out_weight = nn.Parameter(torch.empty(cfg.d_model, width), requires_grad=False)
        self.qkv_bias = self.out_bias = None
        if cfg.qkv_bias:
            self.qkv_bias = nn.Parameter(torch.empty(rows), requires_grad=False)
        if cfg.attn_out_bias:
            self.out_bias = nn.Parameter(torch.empty(cfg.d_model), requires_grad=False)
        self.sinks = None
        if cfg.attn_sinks and not cross:
            self.sinks = nn.Parameter(torch.empty(cfg.n_heads), requires_grad=False)
        if cfg.qk_norm != "none":
            for norm, heads in (("q_norm", cfg.n_heads), ("k_norm", cfg.n_kv_heads)):
                width = cfg.d_head * (heads if cfg.qk_norm == "all" else 1)
                rows = heads if cfg.qk_norm == "each" else None
                made = Norm(cfg, f"{name}.{norm}", width, rows=rows, bias=cfg.qk_norm_bias)
                setattr(self, norm, made)
        for site in self.__annotations__:
            setattr(self, site, f"{name}.{site}")
        self.qkv_sites = (self.hook_q, self.hook_k, self.hook_v)

    def to_qkv(
        self,
        x: Float[Tensor, "batch pos d_model"],
        places: Places,
        tap: Silent | Tap = SILENT,
        split: SplitInputs | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [batch pos head d_head], keys and values [batch pos kv_head d_head], normed and
        turned to their positions."""
        q, k, v = self.project(x, tap, split)
        return *self.place(q, k, places, tap), v

    def project(self, x: Tensor, tap: Silent | Tap = SILENT, split: SplitInputs | None = None):
        """Queries, keys and values as they are at their sites."""
        heads = F.linear(x, self.qkv_weight, self.qkv_bias)
        heads = heads.view(*x.shape[:-1], -1, self.d_head)
        q, k, v = heads.split_with_sizes(self.sizes, -2)
        if split is not None:
            maps = ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
            q, k, v = (
                whole if per_head is None else torch.einsum("bphm,hmd->bphd", per_head, W) + b
                for whole, per_head, (W, b) in zip((q, k, v), split, maps, strict=True)
            )
        if 0 < sum(map(tap.wants, self.qkv_sites)) < 3:  # a kept view would keep the other two
            q, k, v = q.clone(), k.clone(), v.clone()
        return tap(self.hook_q, q), tap(self.hook_k, k), tap(self.hook_v, v)

    def project_queries(self, x: Tensor, tap: Silent | Tap = SILENT) -> Tensor:
        """Queries alone [batch pos head d_head]."""
        (q,) = self._projected(x, 0, 1)
        return tap(self.hook_q, q)

    def project_source(self, x: Tensor, tap: Silent | Tap = SILENT) -> tuple[Tensor, Tensor]:
        """Keys and values [batch pos kv_head d_head] of what an encoder made of its source."""
        k, v = self._projected(x, 1, 3)
        if tap.wants(self.hook_k) != tap.wants(self.hook_v):  # a kept view would keep the other
            k, v = k.clone(), v.clone()
        return tap(self.hook_k, k), tap(self.hook_v, v)

    def _projected(self, x: Tensor, first: int, last: int) -> tuple[Tensor, ...]:
        """Some of queries, keys and values."""
        rows = self.rows(first, last)
        bias = None if self.qkv_bias is None else self.qkv_bias[rows]
        heads = F.linear(x, self.qkv_weight[rows], bias)
        heads = heads.view(*x.shape[:-1], -1, self.d_head)
        return heads.split_with_sizes(self.sizes[first:last], -2)

    def place(self, q: Tensor, k: Tensor, places: Places, tap: Silent | Tap = SILENT):
        """Queries and keys normed and turned to their positions, where the architecture does so."""
        if self.norm_span in ("head", "each"):
            q, k = self.q_norm(q, tap), self.k_norm(k, tap)
        elif self.norm_span == "all":
            q, k = (
                norm(t.flatten(-2), tap).unflatten(-1, (-1, self.d_head))
                for norm, t in ((self.q_norm, q), (self.k_norm, k))
            )
        if self.rotary:
            table = places.rotary(self.layer)
            q = tap(self.hook_rot_q, rotate(q, table, self.interleaved))
            k = tap(self.hook_rot_k, rotate(k, table, self.interleaved))
        return q, k

    def attend(
        self,
        q: Float[Tensor, "batch q_pos head d_head"],
        k: Float[Tensor, "batch pos kv_head d_head"],
        v: Float[Tensor, "batch pos kv_head d_head"],
        layout: Layout | SourceLayout,
        tap: Silent | Tap = SILENT,
    ) -> Float[Tensor, "batch q_pos head d_head"]:
        """z: the values, weighted by what each query attends to."""
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.softcap or tap.wants(self.hook_attn_scores) or tap.wants(self.hook_pattern):
            z = self._stepwise(q, k, v, layout, tap)
        else:
            z = self._fused(q, k, v, layout)
        return z.transpose(1, 2)

    def attend_source(
        self, q: Tensor, encoded: Encoded, tap: Silent | Tap = SILENT
    ) -> Float[Tensor, "batch q_pos head d_head"]:
        """z of cross-attention. Keys and values are made when this layer first reads its source."""
        if self.layer not in encoded.keys_values:
            encoded.keys_values[self.layer] = self.project_source(encoded.resid, tap)
        k, v = encoded.keys_values[self.layer]
        return self.attend(q, k, v, SourceLayout(encoded.mask), tap)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout | SourceLayout) -> Tensor:
        grouped, d_head = self.n_heads != self.n_kv_heads, v.shape[-1]
        causal, mask = False, None
        if self.biased:
            mask = layout.masked_bias(self.window)
        elif not layout.sees_all(self.window):
            causal = layout.sees_left(self.window)
            mask = None if causal else layout.mask(self.window)
        if grouped and mask is not None and q.is_cuda:
            # The fused CUDA kernels take a mask or grouped heads, not both.
            k, v, grouped = self._expand(k), self._expand(v), False
        if self.sinks is not None:
            q, k, v, mask = self._with_sink(q, k, v, mask, causal)
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=grouped
        )
        return z if self.sinks is None else z[..., int(causal) :, :d_head]

    def _with_sink(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """A first key whose score is the head's sink and whose value is 0.

        Its score comes from one more dimension, padded to eight as the kernels like it. Under the
        causal triangle a first query keeps the diagonal in its place; its z is to be dropped.
        """
        more, d_head = (0, 8, int(causal), 0), q.shape[-1]
        q, k, v = F.pad(q, more), F.pad(k, (0, 8, 1, 0)), F.pad(v, (0, 8, 1, 0))
        q[..., d_head] = self.sinks[:, None] / self.scale
        k[..., 0, d_head] = 1
        if mask is not None:
            mask = F.pad(mask, (1, 0), value=True if mask.dtype == torch.bool else 0.0)
        return q, k, v, mask

    def _stepwise(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout | SourceLayout, tap: Silent | Tap
    ) -> Tensor:
        return self.pattern(q, k, layout, tap) @ self._expand(v)

    def pattern(
        self,
        q: Float[Tensor, "batch head q_pos d_head"],
        k: Float[Tensor, "batch kv_head k_pos d_head"],
        layout: Layout | SourceLayout,
        tap: Silent | Tap = SILENT,
    ) -> Float[Tensor, "batch head q_pos k_pos"]:
        """What each query attends to, from queries and keys that `place` gave."""
        scores = (q * self.scale) @ self._expand(k).mT
        if self.softcap:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        if self.biased:
            scores = scores + layout.bias()
        scores = tap(self.hook_attn_scores, scores)
        if not layout.sees_all(self.window):
            scores = scores.masked_fill(~layout.mask(self.window), -torch.inf)
        wide = torch.promote_types(scores.dtype, torch.float32)
        if self.sinks is not None:
            sink = self.sinks[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, sink.to(scores)], -1)
        pattern = scores.softmax(-1, dtype=wide).to(q.dtype)
        pattern = pattern if self.sinks is None else pattern[..., :-1]
        return tap(self.hook_pattern, pattern)

    def sink_share(
        self, scores: Float[Tensor, "batch head q_pos k_pos"], layout: Layout
    ) -> Float[Tensor, "batch head q_pos"]:
        """The share of the softmax over these scores that goes to the sink."""
        sink = self.sinks.to(scores)[:, None]
        if not layout.sees_all(self.window):
            scores = scores.masked_fill(~layout.mask(self.window), -torch.inf)
        return (sink - torch.logaddexp(sink, scores.logsumexp(-1))).exp()

    def output(
        self, z: Float[Tensor, "batch pos head d_head"], tap: Silent | Tap = SILENT
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the heads write together, from hook_z on: Σ_head z W_O + b_O."""
        z = tap(self.hook_z, z)
        if tap.wants(self.hook_result):
            result = torch.einsum("bphd,hdm->bphm", z, self.W_O)
            seen = tap(self.hook_result, result)
            if tap.changes(self.hook_result):
                return seen.sum(2) if self.out_bias is None else seen.sum(2) + self.out_bias
        return F.linear(z.flatten(-2), self.out_weight, self.out_bias)

    def _expand(self, kv: Float[Tensor, "batch kv_head pos d_head"]) -> Tensor:
        """Each key-value head beside every query head that it serves."""
        groups = self.n_heads // self.n_kv_heads
        return kv if groups == 1 else kv.repeat_interleave(groups, dim=1)

    def rows(self, first: int, last: int) -> slice:
        """Of the fused weight, those of some of q, k and v (0, 1, 2), `last` excluded."""
        return slice(sum(self.sizes[:first]) * self.d_head, sum(self.sizes[:last]) * self.d_head)

    def _weight(self, which: int) -> Tensor:
        return self.qkv_weight[self.rows(which, which + 1)].unflatten(0, (-1, self.d_head)).mT

    def _bias(self, which: int) -> Tensor:
        bias = _or_zeros(self.qkv_bias, self.qkv_weight)
        return bias[self.rows(which, which + 1)].unflatten(0, (-1, self.d_head))

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        return self._weight(0)

    @property
    def W_K(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._weight(1)

    @property
    def W_V(self) -> Float[Tensor, "kv_head d_model d_head"]:
        return self._weight(2)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        return self.out_weight.unflatten(1, (-1, self.d_head)).permute(1, 2, 0)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        return self._bias(0)

    @property
    def b_K(self) -> Float[Tensor, "kv_head d_head"]:
        return self._bias(1)

    @property
    def b_V(self) -> Float[Tensor, "kv_head d_head"]:
        return self._bias(2)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        return _or_zeros(self.out_bias, self.out_weight)
