"""LayerNorm (Ba et al. 2016) and RMSNorm (Zhang & Sennrich 2019): normalized = (x − mean) / scale.

Fused while nobody looks at `hook_scale` or `hook_normalized`; step by step otherwise. RMSNorm
leaves out the mean. `hook_normalized` is the vector before gain and bias.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.core.config import TransformerConfig
from interp.core.tap import SILENT, Silent, Tap


class Norm(nn.Module):
    """One norm over the last axis; its gain `w` is an offset from 1 under rmsnorm_plus1."""

    def __init__(
        self,
        cfg: TransformerConfig,
        name: str,
        width: int | None = None,
        *,
        rows: int | None = None,
        bias: bool = True,
    ) -> None:
        """With `rows`, a gain for each index of the axis before the last; `bias` False has none."""
        super().__init__()
        self.kind, self.eps = cfg.norm, cfg.norm_eps
        self.width = width or cfg.d_model
        has_bias = bias and cfg.norm_affine and cfg.norm_bias and cfg.norm == "layernorm"
        shape = (self.width,) if rows is None else (rows, self.width)
        self.w = _frozen(*shape) if cfg.norm_affine else None
        self.b = _frozen(*shape) if has_bias else None
        self.by_row = rows is not None
        self.hook_scale = f"{name}.hook_scale"
        self.hook_normalized = f"{name}.hook_normalized"

    def forward(
        self, x: Float[Tensor, "*batch width"], tap: Silent | Tap = SILENT
    ) -> Float[Tensor, "*batch width"]:
        if tap.wants(self.hook_scale) or tap.wants(self.hook_normalized):
            return self._stepwise(x, tap)
        if self.by_row:
            return self._affine(self._plain(x))
        if self.kind == "layernorm":
            return torch.layer_norm(x, (self.width,), self.w, self.b, self.eps)
        return torch.rms_norm(x, (self.width,), self.gain, self.eps)

    def _plain(self, x: Tensor) -> Tensor:
        if self.kind == "layernorm":
            return torch.layer_norm(x, (self.width,), None, None, self.eps)
        return torch.rms_norm(x, (self.width,), None, self.eps)

    def _affine(self, normalized: Tensor) -> Tensor:
        gain = self.gain
        if gain is None:
            return normalized
        return normalized * gain if self.b is None else torch.addcmul(self.b, normalized, gain)

    @property
    def gain(self) -> Float[Tensor, "*rows width"] | None:
        """What the normalized vector is multiplied by; None: nothing."""
        return 1 + self.w if self.kind == "rmsnorm_plus1" and self.w is not None else self.w

    def _stepwise(self, x: Tensor, tap: Silent | Tap) -> Tensor:
        # A variance in half precision loses most of its digits; the scale keeps float32 there.
        wide = x if x.dtype.itemsize >= 4 else x.float()
        if self.kind == "layernorm":
            square, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
            wide = wide - mean
        else:
            square = wide.pow(2).mean(-1, keepdim=True)
        scale = tap(self.hook_scale, (square + self.eps).sqrt())
        return self._affine(tap(self.hook_normalized, (wide / scale).to(x.dtype)))


def _frozen(*shape: int) -> nn.Parameter:
    """An unset parameter without gradient."""
    return nn.Parameter(torch.empty(*shape), requires_grad=False)
