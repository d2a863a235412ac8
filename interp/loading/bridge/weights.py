"""Weights of a bridged block in our layout, measured on what the library computes with them.

A view is given only where x W + b really is what the map puts out for x; a packed, quantised weight
never passes for one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interp.core import chance

BLOCK_WEIGHTS = {
    "attn": {"Q": "q", "K": "k", "V": "v", "O": "o"},
    "mlp": {"in": "in", "gate": "gate", "out": "out"},
}
"""Our name of a map, and the bridge's, in each half of a block."""
PROBES = 3


class QuantisedWeights(ValueError):
    """A weight view of a part whose weights are stored quantised."""


class BlockWeights(nn.Module):
    """`blocks[l].attn.W_Q` and its kin; holds the library's block."""

    def __init__(self, block: nn.Module, d_head: int) -> None:
        super().__init__()
        self.block = block
        self.attn = PartWeights(block, "attn", d_head)
        self.mlp = PartWeights(block, "mlp", d_head)


class PartWeights:
    """The maps of one half of a block: W_Q [head d_model d_head], W_K and W_V [kv_head d_model
    d_head], W_O [head d_head d_model], W_in and W_gate [d_model d_mlp], W_out [d_mlp d_model]."""

    def __init__(self, block: nn.Module, part: str, d_head: int) -> None:
        self._block, self._part, self._d_head = block, part, d_head

    def __getattr__(self, name: str) -> Tensor:
        kind, _, which = name.partition("_")
        path = BLOCK_WEIGHTS[self.__dict__["_part"]].get(which)
        if kind not in ("W", "b") or path is None:
            raise AttributeError(f"{self._part} has no {name!r}")
        weight, bias = self._map(name, path)
        return weight if kind == "W" else bias

    def _map(self, name: str, path: str) -> tuple[Tensor, Tensor]:
        half = self._block._modules.get(self._part)
        module = None if half is None else half._modules.get(path)
        original = getattr(module, "original_component", module)
        weight = getattr(original, "weight", None)
        if original is None or weight is None:
            raise ValueError(f"{name}: behind the bridge this block has no map of its own for it")
        refuse_quantised(original, name)
        bias = getattr(original, "bias", None)
        W = _in_out(original, weight, bias, name)
        b = W.new_zeros(W.shape[1]) if bias is None else bias
        if self._part == "mlp":
            return W, b
        d_head = self._d_head
        if path == "o":
            return W.view(-1, d_head, W.shape[1]), b
        return W.view(W.shape[0], -1, d_head).transpose(0, 1), b.view(-1, d_head)


def _in_out(module: nn.Module, weight: Tensor, bias: Tensor | None, name: str) -> Tensor:
    """The weight as [in, out]: of the two ways to read it, the one that the module computes."""
    for W in (weight.T, weight) if weight.ndim == 2 else ():
        x = chance.normal(PROBES, W.shape[0], generator=chance.seeded(0)).to(weight)
        try:
            y = module(x)
        except RuntimeError:  # the sizes are those of the other way
            continue
        ours = x @ W if bias is None else x @ W + bias
        close = {"rtol": 1e-2, "atol": 1e-2 * float(y.abs().max())}
        if y.shape == ours.shape and torch.allclose(ours, y, **close):
            return W
    raise ValueError(f"{name}: the module is no plain linear map, so it has no such matrix")


def outer_weight(module: nn.Module, name: str) -> Tensor:
    """The matrix of an embedding, which must be a plain one."""
    original = getattr(module, "original_component", module)
    refuse_quantised(original, name)
    return original.weight


def refuse_quantised(module: nn.Module, name: str) -> None:
    """Raise QuantisedWeights where a weight is packed: its numbers are codes, not a matrix."""
    weight = module.weight
    if is_quantised(module):
        raise QuantisedWeights(
            f"{name} is stored quantised ({type(module).__name__}, {weight.dtype} "
            f"{list(weight.shape)}), so there is no matrix to view; open the model without "
            "quantization=, or read activations"
        )


def is_quantised(module: nn.Module) -> bool:
    """Whether a module computes with codes in place of its weight's numbers."""
    weight = getattr(module, "weight", None)
    packed = isinstance(weight, Tensor) and not weight.is_floating_point()
    states = [getattr(one, "quant_state", None) for one in (module, weight)]
    return packed or any(state is not None for state in states)
