"""The MLP: neurons act(x W_in), or act(x W_gate) · (x W_in) (Shazeer 2020), written by W_out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.core.config import TransformerConfig
from interp.core.tap import SILENT, Silent, Tap

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "silu": F.silu,
}


def neurons(
    pre: Sequence[Tensor], activation: str, clamp: float | None = None, offset: float = 0.0
) -> Tensor:
    """Neurons from x W_in, or from x W_gate and x W_in; `clamp` and `offset` are as in the config's
    mlp_clamp and mlp_linear_offset."""
    act = ACTIVATIONS[activation]
    if len(pre) == 1:
        return act(pre[0])
    gate, linear = pre
    if clamp is not None:
        gate, linear = gate.clamp(max=clamp), linear.clamp(-clamp, clamp)
    return act(gate) * (linear + offset if offset else linear)


class MLP(nn.Module):
    """in_weight [d_mlp d_model] (gated: gate rows, then in rows), out_weight [d_model d_mlp]."""

    hook_pre: str
    hook_pre_linear: str
    hook_post: str

    def __init__(self, cfg: TransformerConfig, name: str) -> None:
        super().__init__()
        self.gated, self.d_mlp = cfg.mlp_gated, cfg.d_mlp
        self.activation, self.clamp, self.offset = (
            cfg.activation,
            cfg.mlp_clamp,
            cfg.mlp_linear_offset,
        )
        rows = cfg.d_mlp * (2 if cfg.mlp_gated else 1)
        self.in_weight = nn.Parameter(torch.empty(rows, cfg.d_model), requires_grad=False)
        self.out_weight = nn.Parameter(torch.empty(cfg.d_model, cfg.d_mlp), requires_grad=False)
        self.in_bias = self.out_bias = None
        if cfg.mlp_bias:
            self.in_bias = nn.Parameter(torch.empty(rows), requires_grad=False)
            self.out_bias = nn.Parameter(torch.empty(cfg.d_model), requires_grad=False)
        for site in self.__annotations__:
            setattr(self, site, f"{name}.{site}")

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], tap: Silent | Tap = SILENT
    ) -> Float[Tensor, "batch pos d_model"]:
        return self.output(self.to_post(x, tap), tap)

    def to_post(
        self, x: Float[Tensor, "*rows d_model"], tap: Silent | Tap = SILENT
    ) -> Float[Tensor, "*rows d_mlp"]:
        """The neurons, before hook_post."""
        pre = F.linear(x, self.in_weight, self.in_bias)
        if not self.gated:
            return neurons([tap(self.hook_pre, pre)], self.activation)
        gate, linear = pre.split_with_sizes((self.d_mlp, self.d_mlp), -1)
        if tap.wants(self.hook_pre) != tap.wants(self.hook_pre_linear):
            gate, linear = gate.clone(), linear.clone()  # a kept view would keep the other half
        gate, linear = tap(self.hook_pre, gate), tap(self.hook_pre_linear, linear)
        return neurons((gate, linear), self.activation, self.clamp, self.offset)

    def output(
        self, post: Float[Tensor, "*rows d_mlp"], tap: Silent | Tap = SILENT
    ) -> Float[Tensor, "*rows d_model"]:
        """From hook_post on: what W_out writes."""
        return F.linear(tap(self.hook_post, post), self.out_weight, self.out_bias)

    @property
    def readers(self) -> list[tuple[Tensor, Tensor | None]]:
        """The maps [out, d_model] that read the input, with their biases."""
        return [(self.in_weight, self.in_bias)]

    @property
    def multiplies(self) -> tuple[int, int]:
        """Multiply-adds per token up to the neurons, and behind them."""
        return self.in_weight.numel(), self.out_weight.numel()

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        return self.in_weight[-self.d_mlp :].T

    @property
    def W_gate(self) -> Float[Tensor, "d_model d_mlp"]:
        if not self.gated:
            raise AttributeError("this MLP is not gated: it has W_in and W_out, no W_gate")
        return self.in_weight[: self.d_mlp].T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        return self.out_weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        return _or_zeros(self.in_bias, self.in_weight)[-self.d_mlp :]

    @property
    def b_gate(self) -> Float[Tensor, " d_mlp"]:
        return _or_zeros(self.in_bias, self.in_weight)[: self.d_mlp]

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        return _or_zeros(self.out_bias, self.out_weight)


def _or_zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(weight.shape[0]) if bias is None else bias
