"""Sweeps (i) and (ii) of GPT-2 written out in plain torch: what their arithmetic alone costs.

The same recomputation as interp's without hooks and for nothing else. Only patches that change
something are run. A patched `resid_pre` takes q, k, v of its block from the two runs' caches, as
they depend on their own position alone; a patched z enters as resid_mid + Δz W_O. The rows of all
nodes, ragged in their positions, are one matrix per product, and only attention goes by starting
position, with the base run's keys and values to its left. In the last block only the final
position is computed past k and v, and the metric is two dot products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

ROWS = 8192
"""Rows of the longest matrix product: what more nodes would exceed is another pass."""
CLEAN, CORRUPTED = 0, 1


class Affine(NamedTuple):
    """A matrix [in, out] or the gain of a layer norm, and a bias."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: Any) -> Affine:
        return cls(module.weight.detach(), module.bias.detach())


class Block(NamedTuple):
    """One transformer block."""

    ln1: Affine
    qkv: Affine
    out: Affine
    ln2: Affine
    up: Affine
    down: Affine


class Weights:
    """Those of a Hugging Face `GPT2LMHeadModel`, shared with it."""

    def __init__(self, model: Any) -> None:
        body = model.transformer
        self.n_heads, self.eps = model.config.n_head, model.config.layer_norm_epsilon
        self.tokens, self.positions = body.wte.weight.detach(), body.wpe.weight.detach()
        self.blocks = [
            Block(*map(Affine.of, (
                h.ln_1, h.attn.c_attn, h.attn.c_proj, h.ln_2, h.mlp.c_fc, h.mlp.c_proj
            )))
            for h in body.h
        ]  # fmt: skip
        self.ln_f, self.unembed = Affine.of(body.ln_f), model.lm_head.weight.detach()

    def norm(self, x: Tensor, ln: Affine) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *ln, eps=self.eps)

    def to_qkv(self, block: Block, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows 3d"]:
        return linear(self.norm(x, block.ln1), block.qkv)

    def mlp(self, block: Block, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        return linear(F.gelu(linear(self.norm(x, block.ln2), block.up), approximate="tanh"),
                      block.down)  # fmt: skip

    def attend(
        self, q: Float[Tensor, "rows q d"], k: Float[Tensor, "rows k d"], v: Tensor
    ) -> Float[Tensor, "rows q d"]:
        """The queries are those of the last positions."""
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in (q, k, v))
        n, m = q.shape[2], k.shape[2]
        mask = None if n == 1 else torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return z.transpose(1, 2).flatten(2)


def linear(x: Float[Tensor, "rows d_in"], by: Affine) -> Float[Tensor, "rows d_out"]:
    return torch.addmm(by.bias, x, by.weight)


class Runs(NamedTuple):
    """Both runs, [run batch pos width] per layer; past k and v the last one has one position."""

    pre: list[Tensor]
    qkv: list[Tensor]
    z: list[Tensor]
    mid: list[Tensor]
    last: Float[Tensor, "run batch d"]

    def left(self, layer: int, start: int, rows: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the base run left of a position, once per node."""
        kept = self.qkv[layer][CORRUPTED, :, :start]
        _, k, v = kept.repeat(rows // len(kept), 1, 1).chunk(3, -1)
        return k, v


class Question(NamedTuple):
    """What is asked of both sweeps: logit(answer) − logit(wrong) at the end, mean over a batch."""

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    answer: Int[Tensor, " batch"]
    wrong: Int[Tensor, " batch"]

    @property
    def start(self) -> int:
        """The first position that differs."""
        return int((self.clean != self.corrupted).any(0).nonzero()[0])

    def measure(self, w: Weights, x: Float[Tensor, "rows d"]) -> Float[Tensor, " nodes"]:
        """Of each node's rows, one per example."""
        x = w.norm(x, w.ln_f).unflatten(0, (-1, len(self.answer)))
        right, other = (x * w.unembed[self.answer]).sum(-1), (x * w.unembed[self.wrong]).sum(-1)
        return (right - other).mean(1)


def run_both(w: Weights, question: Question) -> Runs:
    """One forward of the clean and the corrupted batch together, short of the unembedding."""
    ids = torch.cat([question.clean, question.corrupted])
    size, width = ids.shape
    x = w.tokens[ids] + w.positions[:width]
    kept: list[tuple[Tensor, ...]] = []
    for block in w.blocks:
        pre, qkv = x, w.to_qkv(block, x.flatten(0, 1)).unflatten(0, (size, width))
        q, k, v = qkv.chunk(3, -1)
        if block is w.blocks[-1]:
            x, q = x[:, -1:], q[:, -1:]
        z = w.attend(q, k, v)
        mid = x + linear(z.flatten(0, 1), block.out).view_as(x)
        x = mid + w.mlp(block, mid.flatten(0, 1)).view_as(mid)
        kept.append(tuple(t.unflatten(0, (2, -1)) for t in (pre, qkv, z, mid)))
    return Runs(*map(list, zip(*kept, strict=True)), last=x[:, -1].unflatten(0, (2, -1)))


AtBlock = Callable[[int, int], tuple[Tensor, Tensor] | None]
"""(layer, start) → the residual stream and q, k, v of the rows that join there."""
AtMid = Callable[[int], Tensor | None]
"""Layer → the residual streams after attention of the rows that join there."""


def carry(
    w: Weights, runs: Runs, starts: Sequence[int], at_block: AtBlock, at_mid: AtMid
) -> list[Float[Tensor, "rows 1 d"]]:
    """One pass over the layers; rows join at its blocks, in groups that share a start."""
    first = runs.pre[0][CORRUPTED]
    groups = [first[:0, start:] for start in starts]
    for layer, block in enumerate(w.blocks):
        qkv = unpack(w.to_qkv(block, pack(groups)), groups)
        for g, start in enumerate(starts):
            new = at_block(layer, start)
            if new is not None:
                groups[g], qkv[g] = torch.cat([groups[g], new[0]]), torch.cat([qkv[g], new[1]])
        z = []
        for g, start in enumerate(starts):
            q, k, v = qkv[g].chunk(3, -1)
            if layer == len(w.blocks) - 1:
                groups[g], q = groups[g][:, -1:], q[:, -1:]
            left_k, left_v = runs.left(layer, start, len(k))
            z.append(w.attend(q, torch.cat([left_k, k], 1), torch.cat([left_v, v], 1)))
        x = pack(groups).add_(linear(pack(z), block.out))
        new = at_mid(layer)
        if new is not None:
            groups[0] = torch.cat([*unpack(x, groups), new])
            x = pack(groups)
        groups = unpack(x.add_(w.mlp(block, x)), groups)
    return groups


def pack(groups: Sequence[Float[Tensor, "_rows _pos d"]]) -> Float[Tensor, "rows d"]:
    return torch.cat([x.flatten(0, 1) for x in groups])


def unpack(x: Float[Tensor, "rows d"], like: Sequence[Tensor]) -> list[Tensor]:
    pieces = x.split([len(group) * group.shape[1] for group in like])
    return [piece.view(*group.shape[:2], x.shape[-1])
            for piece, group in zip(pieces, like, strict=True)]  # fmt: skip


def resid_pre(w: Weights, question: Question) -> Float[Tensor, "layer pos"]:
    """Sweep (i): the clean residual stream at one layer and position."""
    runs, (batch, width) = run_both(w, question), question.clean.shape
    values = question.measure(w, runs.last[CORRUPTED]).repeat(len(w.blocks), width)
    changed = torch.stack([(x[CLEAN] != x[CORRUPTED]).any(-1).any(0) for x in runs.pre]).cpu()

    def joining(layer: int, start: int) -> tuple[Tensor, Tensor] | None:
        if not changed[layer, start]:
            return None
        both = []
        for kept in (runs.pre[layer], runs.qkv[layer]):
            patched = kept[CORRUPTED, :, start:].clone()
            patched[:, 0] = kept[CLEAN, :, start]
            both.append(patched)
        return both[0], both[1]

    costs = [batch * (width - start) * len(w.blocks) for start in range(width)]
    for starts in passes(range(question.start, width), costs):
        for start, x in zip(starts, carry(w, runs, starts, joining, lambda _: None), strict=True):
            values[changed[:, start], start] = question.measure(w, x[:, 0])
    return values


def head_z(w: Weights, question: Question) -> Float[Tensor, "layer head"]:
    """Sweep (ii): the clean z of one head, at all positions."""
    runs, (batch, width), start = run_both(w, question), question.clean.shape, question.start
    values = runs.last.new_empty(len(w.blocks), w.n_heads)
    costs = [batch * (width - start) * len(w.blocks)] * w.n_heads
    for heads in passes(range(w.n_heads), costs):

        def joining(layer: int, heads: Sequence[int] = heads) -> Tensor:
            n = min(width - start, runs.mid[layer].shape[2])  # the last layer has one position
            both = runs.z[layer][:, :, -n:].unflatten(-1, (w.n_heads, -1))
            change = (both[CLEAN] - both[CORRUPTED])[:, :, heads]
            mid = runs.mid[layer][CORRUPTED, :, -n:]
            out = w.blocks[layer].out.weight.unflatten(0, (w.n_heads, -1))[heads]
            return (mid + torch.einsum("bphk,hkd->hbpd", change, out)).flatten(0, 1)

        (x,) = carry(w, runs, [start], lambda *_: None, joining)
        by_node = question.measure(w, x[:, 0]).unflatten(0, (-1, len(heads)))
        values[:, list(heads)] = by_node
    return values


def passes(nodes: Sequence[int], costs: Sequence[int]) -> Iterator[list[int]]:
    """Nodes that run together, of at most `ROWS` rows at the last layer."""
    some: list[int] = []
    for node in nodes:
        if some and sum(costs[n] for n in [*some, node]) > ROWS:
            yield some
            some = []
        some.append(node)
    yield some
