"""Tensors that do not fill whole rows of a parameter in their order: those of one expert or head,
of all experts with gate and input beside one another, and weights packed as MXFP4.

MXFP4 (OCP Microscaling Formats, 2023): a number is four bits, sign, two of exponent, one of
mantissa; 32 of them share a scale, a power of two stored as its exponent plus 127.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from interp.core.config import TransformerConfig

MXFP4_BLOCK = 32
MXFP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The numbers of the lower three bits; the fourth is the sign."""


class Part(NamedTuple):
    """What a stored tensor holds of one of our parameters."""

    shape: Callable[[TransformerConfig], list[int]]
    """As it is stored."""
    put: Callable[[TransformerConfig, int, Tensor, Tensor], object]
    """(config, which expert or head, our parameter, the stored tensor): copies it there."""
    packed: bool = False
    """Bytes, not numbers."""


def _size(cfg: TransformerConfig) -> int:
    return cfg.d_mlp // cfg.n_experts


def _into(cfg: TransformerConfig, parameter: Tensor) -> Tensor:
    """The rows of in_weight (or in_bias) as [gate and in, expert, neuron, …]."""
    return parameter.unflatten(0, (2, cfg.n_experts, _size(cfg)))


def _out(cfg: TransformerConfig, parameter: Tensor) -> Tensor:
    """The columns of out_weight as [expert, d_model, neuron]."""
    return parameter.unflatten(1, (cfg.n_experts, _size(cfg))).transpose(0, 1)


def _put_gate(cfg: TransformerConfig, expert: int, parameter: Tensor, stored: Tensor) -> None:
    _into(cfg, parameter)[0, expert].copy_(stored)


def _put_in(cfg: TransformerConfig, expert: int, parameter: Tensor, stored: Tensor) -> None:
    _into(cfg, parameter)[1, expert].copy_(stored)


def _put_out(cfg: TransformerConfig, expert: int, parameter: Tensor, stored: Tensor) -> None:
    _out(cfg, parameter)[expert].copy_(stored)


def _put_gate_in(cfg: TransformerConfig, expert: int, parameter: Tensor, stored: Tensor) -> None:
    """Stored [expert, …, 2 · neuron]: a neuron's gate beside its input."""
    pairs = stored.unflatten(-1, (-1, 2)).movedim((-1, 0, -2), (0, 1, 2))
    _into(cfg, parameter).copy_(pairs)


def _put_all_out(cfg: TransformerConfig, expert: int, parameter: Tensor, stored: Tensor) -> None:
    _out(cfg, parameter).copy_(stored.mT)


def _rows(cfg: TransformerConfig, parameter: Tensor, read: Callable[[int], Tensor]) -> None:
    """Each expert's rows [2 · neuron, d_model], gate and input in turn, go where they belong."""
    for expert in range(cfg.n_experts):
        _into(cfg, parameter)[:, expert].copy_(read(expert).unflatten(0, (-1, 2)).transpose(0, 1))


def _values(blocks: Tensor, like: Tensor) -> Tensor:
    """Packed [row, block, 16] → [row, 32 · block], without their scales; low bits come first."""
    table = like.new_tensor([*MXFP4, *(-value for value in MXFP4)])
    blocks = blocks.to(like.device)
    bits = torch.stack([blocks & 15, blocks >> 4], -1)
    return table[bits.int()].flatten(-3)


def _scales(scales: Tensor, like: Tensor) -> Tensor:
    """[row, block] → the factor of each number [row, 32 · block]."""
    exponents = scales.to(like.device).int() - 127
    ones = torch.ones_like(exponents, dtype=like.dtype)
    return torch.ldexp(ones, exponents).repeat_interleave(MXFP4_BLOCK, -1)


def _put_blocks_in(cfg: TransformerConfig, _: int, parameter: Tensor, stored: Tensor) -> None:
    _rows(cfg, parameter, lambda expert: _values(stored[expert], parameter))


def _put_scales_in(cfg: TransformerConfig, _: int, parameter: Tensor, stored: Tensor) -> None:
    for expert in range(cfg.n_experts):
        factors = _scales(stored[expert], parameter).unflatten(0, (-1, 2)).transpose(0, 1)
        _into(cfg, parameter)[:, expert].mul_(factors)


def _put_blocks_out(cfg: TransformerConfig, _: int, parameter: Tensor, stored: Tensor) -> None:
    for expert in range(cfg.n_experts):
        _out(cfg, parameter)[expert].copy_(_values(stored[expert], parameter))


def _put_scales_out(cfg: TransformerConfig, _: int, parameter: Tensor, stored: Tensor) -> None:
    for expert in range(cfg.n_experts):
        _out(cfg, parameter)[expert].mul_(_scales(stored[expert], parameter))


def _blocks(rows: int, columns: int, cfg: TransformerConfig, *packed: int) -> list[int]:
    return [cfg.n_experts, rows, columns // MXFP4_BLOCK, *packed]


BYTES_PER_BLOCK = MXFP4_BLOCK // 2
PARTS = {
    "head": Part(lambda c: [c.d_head], lambda _, head, ours, stored: ours[head].copy_(stored)),
    "expert gate": Part(lambda c: [_size(c), c.d_model], _put_gate),
    "expert in": Part(lambda c: [_size(c), c.d_model], _put_in),
    "expert out": Part(lambda c: [c.d_model, _size(c)], _put_out),
    "gate and in": Part(lambda c: [c.n_experts, c.d_model, 2 * _size(c)], _put_gate_in),
    "gate and in bias": Part(lambda c: [c.n_experts, 2 * _size(c)], _put_gate_in),
    "all out": Part(lambda c: [c.n_experts, _size(c), c.d_model], _put_all_out),
    "blocks in": Part(
        lambda c: _blocks(2 * _size(c), c.d_model, c, BYTES_PER_BLOCK), _put_blocks_in, True
    ),
    "scales in": Part(lambda c: _blocks(2 * _size(c), c.d_model, c), _put_scales_in, True),
    "blocks out": Part(
        lambda c: _blocks(c.d_model, _size(c), c, BYTES_PER_BLOCK), _put_blocks_out, True
    ),
    "scales out": Part(lambda c: _blocks(c.d_model, _size(c), c), _put_scales_out, True),
}
"""By the `part` of a `families.family.Target`."""
