"""A planted model in another basis, and models in which there is nothing to find."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from interp.core import chance
from interp.core.chance import seeded
from interp.model import HookedTransformer

from .base import Planted, Truth, orthogonal

READS = ("W_E", "W_pos", "W_token_type", "qkv_weight", "in_weight", "unembed.weight", "out_bias")
"""Parameters whose last axis is the residual stream."""
WRITES = "out_weight"
"""Parameters whose first axis is the residual stream."""


def rotated(planted: Planted, seed: int = 0) -> Planted:
    """The same function with its residual stream turned by a random orthogonal matrix R: x → x R.

    What reads or fills the stream becomes W R (as rows), what writes it Rᵀ W. Logits, scores,
    patterns, q, k, v, z and neurons are the same to rounding; residual streams, and what a method
    reads off their axes one by one, are not. The truth's directions turn along. Raises
    ValueError where a norm is tied to the axes: LayerNorm subtracts their mean, a gain weighs them.
    """
    cfg = planted.model.cfg
    if cfg.norm != "none" and (cfg.norm == "layernorm" or cfg.norm_affine):
        raise ValueError(
            f"norm={cfg.norm!r} with norm_affine={cfg.norm_affine} is not the same in another "
            "basis; expected norm='none', or 'rmsnorm' with norm_affine=False"
        )
    R = orthogonal(cfg.d_model, seeded(seed))
    turn = R.to(planted.model.W_E)
    state = planted.model.state_dict()
    for name, value in state.items():
        if name.endswith(WRITES):
            state[name] = turn.mT @ value
        elif name.endswith(READS):
            state[name] = value @ turn
    directions = {name: rows @ R for name, rows in planted.truth.directions.items()}
    truth = dataclasses.replace(planted.truth, directions=directions)
    return with_state(planted, "rotated", state, truth)


def random_control(planted: Planted, seed: int = 0) -> Planted:
    """The same architecture with Gaussian weights, each matrix of each head of its former norm."""
    generator, cfg = seeded(seed), planted.model.cfg
    state = planted.model.state_dict()
    for name, value in state.items():
        if name.endswith((".w", ".b")):  # the gain of a norm: random, it would break the norm
            continue
        noise = chance.normal(*value.shape, generator=generator).to(value)
        if name.endswith("attn.qkv_weight"):
            by_head, axes = (-1, cfg.d_head, cfg.d_model), (1, 2)
        elif name.endswith("attn.out_weight"):
            by_head, axes = (cfg.d_model, cfg.n_heads, cfg.d_head), (0, 2)
        else:
            by_head, axes = value.shape, tuple(range(value.ndim))
        lengths = [t.reshape(by_head).norm(dim=axes, keepdim=True) for t in (value, noise)]
        state[name] = (noise.reshape(by_head) * (lengths[0] / lengths[1])).reshape(value.shape)
    truth = Truth(note="Control: random weights of the same norms; there is nothing to find.")
    return with_state(planted, "random", state, truth)


def permuted_control(planted: Planted, seed: int = 0) -> Planted:
    """The heads' output matrices dealt out anew in every layer; no head keeps its own.

    A head of the circuit gets that of a head outside it, so the circuit is broken while every
    matrix is still there. Raises ValueError where a layer has too few heads for that.
    """
    generator, cfg = seeded(seed), planted.model.cfg
    state = planted.model.state_dict()
    for layer in range(cfg.n_layers):
        own = [head for at, head in planted.truth.heads if at == layer]
        others = [head for head in range(cfg.n_heads) if head not in own]
        if len(others) < max(len(own), 1) or cfg.n_heads < 2:
            raise ValueError(
                f"layer {layer} of {planted.name!r} has {len(own)} heads in the circuit and "
                f"{len(others)} beside it; permuting needs at least as many beside it, and two"
            )
        shuffled = chance.permutation(len(others), generator).tolist()
        order = torch.tensor([*own, *(others[i] for i in shuffled)])
        name = f"blocks.{layer}.attn.out_weight"
        by_head = state[name].unflatten(1, (cfg.n_heads, cfg.d_head)).clone()
        by_head[:, order] = by_head[:, order.roll(-max(len(own), 1))]
        state[name] = by_head.flatten(1)
    truth = Truth(note="Control: every head writes through another's matrix; nothing to find.")
    return with_state(planted, "permuted", state, truth)


def with_state(planted: Planted, what: str, state: Mapping[str, Tensor], truth: Truth) -> Planted:
    """The planted model with other weights and another truth; the given one stays as it is."""
    old = planted.model
    model = HookedTransformer(
        old.cfg, old.tokenizer, name=f"{old.name}-{what}", device=old.device, dtype=old.dtype
    )
    model.load_state_dict(state)
    return dataclasses.replace(planted, name=f"{planted.name} ({what})", model=model, truth=truth)
