"""A mixture of experts (Shazeer et al. 2017; Fedus et al. 2022): an MLP whose neurons are shared
out among experts, and a router that chooses the few that a token uses.

Neuron e · d_expert + i is neuron i of expert e. It is multiplied by its expert's weight, which is 0
where the expert is not chosen, so that this is an ordinary MLP whose neurons are mostly silent:
mlp_out = post W_out + Σ_e weight_e b_out_e. All neurons exist only while somebody looks at them;
otherwise each expert computes the tokens that chose it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from interp.core.config import TransformerConfig
from interp.core.tap import SILENT, Silent, Tap

from .mlp import MLP, neurons


class Experts(MLP):
    """in_weight [d_mlp d_model] (gated: gate rows, then in rows), out_weight [d_model d_mlp], rows
    and columns sorted by expert; out_bias [expert d_model]; router_weight [expert d_model]."""

    hook_router: str
    hook_expert_weights: str
    hook_pre: str
    hook_pre_linear: str
    hook_post: str

    def __init__(self, cfg: TransformerConfig, name: str) -> None:
        super().__init__(cfg, name)
        n = self.n_experts = cfg.n_experts
        self.n_chosen, self.over = cfg.experts_per_token, cfg.expert_weights
        self.router_weight = nn.Parameter(torch.empty(n, cfg.d_model), requires_grad=False)
        self.router_bias = None
        if cfg.router_bias:
            self.router_bias = nn.Parameter(torch.empty(n), requires_grad=False)
        if cfg.mlp_bias:
            self.out_bias = nn.Parameter(torch.empty(n, cfg.d_model), requires_grad=False)

    @property
    def readers(self) -> list[tuple[Tensor, Tensor | None]]:
        return [*super().readers, (self.router_weight, self.router_bias)]

    @property
    def multiplies(self) -> tuple[int, int]:
        """The chosen experts' and the router's."""
        share = self.n_chosen / self.n_experts
        into, out = super().multiplies
        return self.router_weight.numel() + round(into * share), round(out * share)

    @property
    def b_out(self) -> Float[Tensor, "expert d_model"]:
        zeros = self.out_weight.new_zeros(self.n_experts, self.out_weight.shape[0])
        return zeros if self.out_bias is None else self.out_bias

    def to_post(
        self, x: Float[Tensor, "*rows d_model"], tap: Silent | Tap = SILENT
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """What the experts read, their weights [*rows expert], and all neurons before hook_post
        where somebody looks at them."""
        weights = self.route(x, tap)
        wanted = any(map(tap.wants, (self.hook_pre, self.hook_pre_linear, self.hook_post)))
        # The gradient of a weight that is 0 needs the output of an expert that is not chosen.
        graded = weights.requires_grad and tap.changes(self.hook_expert_weights)
        if not (wanted or graded):
            return x, weights, None
        share = weights.repeat_interleave(self.d_mlp // self.n_experts, -1)
        return x, weights, super().to_post(x, tap) * share

    def route(
        self, x: Float[Tensor, "*rows d_model"], tap: Silent | Tap = SILENT
    ) -> Float[Tensor, "*rows expert"]:
        """The weight of each expert, 0 for those that are not chosen."""
        logits = tap(self.hook_router, F.linear(x, self.router_weight, self.router_bias))
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        best, chosen = wide.topk(self.n_chosen, -1)
        norm = wide if self.over == "all" else best
        share = (best - norm.logsumexp(-1, keepdim=True)).exp().to(x.dtype)
        weights = torch.zeros_like(logits, dtype=x.dtype).scatter(-1, chosen, share)
        return tap(self.hook_expert_weights, weights)

    def output(
        self, state: tuple[Tensor, Tensor, Tensor | None], tap: Silent | Tap = SILENT
    ) -> Float[Tensor, "*rows d_model"]:
        """From what `to_post` returns: what the experts write together."""
        x, weights, post = state
        if post is not None:
            written = F.linear(tap(self.hook_post, post), self.out_weight)
            return written if self.out_bias is None else written + weights @ self.out_bias
        compute = _compiled if torch.compiler.is_compiling() else _sparse
        written = compute(
            x.flatten(0, -2), weights.flatten(0, -2), self.in_weight, self.in_bias,
            self.out_weight, self.out_bias, self.activation, self.clamp, float(self.offset),
        )  # fmt: skip
        return written.view(x.shape)


def _sparse(
    x: Tensor,
    weights: Tensor,
    in_weight: Tensor,
    in_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    activation: str,
    clamp: float | None,
    offset: float,
) -> Tensor:
    """What the experts whose weight is not 0 write: [rows d_model], as x."""
    n_experts, d_mlp = weights.shape[1], out_weight.shape[1]
    into = in_weight.view(-1, n_experts, d_mlp // n_experts, x.shape[1])
    bias = None if in_bias is None else in_bias.view(into.shape[:-1])
    out = out_weight.unflatten(1, (n_experts, -1))
    written = torch.zeros_like(x)
    expert, row = weights.T.nonzero(as_tuple=True)  # sorted by expert
    for e, rows in enumerate(row.split(expert.bincount(minlength=n_experts).tolist())):
        if not len(rows):
            continue
        pre = [
            F.linear(x[rows], W[e], None if bias is None else bias[i, e])
            for i, W in enumerate(into)
        ]
        post = neurons(pre, activation, clamp, offset) * weights[rows, e, None]
        added = F.linear(post, out[:, e])
        if out_bias is not None:
            added = added + weights[rows, e, None] * out_bias[e]
        written = written.index_add(0, rows, added)
    return written


# A compiled graph takes it as one step: how many rows an expert has depends on the data.
_compiled = torch.library.custom_op(
    "interp::experts",
    _sparse,
    mutates_args=(),
    schema="(Tensor x, Tensor weights, Tensor in_weight, Tensor? in_bias, Tensor out_weight, "
    "Tensor? out_bias, str activation, float? clamp, float offset) -> Tensor",
)
_compiled.register_fake(lambda x, *_: torch.empty_like(x))
