"""Rotary positions (Su et al. 2021, RoFormer): queries and keys are turned by where they stand.

The scalings are those of Chen et al. 2023, Peng et al. 2023 (YaRN), Ding et al. 2024 (LongRoPE),
the NTK-aware base and Llama 3.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.config import RotaryScaling


def rotate(x: Tensor, table: tuple[Tensor, Tensor], interleaved: bool) -> Tensor:
    """x [batch pos head d_head] with its leading rotary_dim dimensions turned."""
    cos, sin = table
    width = cos.shape[-1]
    turned = x if width == x.shape[-1] else x[..., :width]
    if interleaved:
        swapped = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    else:
        swapped = turned.roll(width // 2, -1)
    turned = torch.addcmul(turned * cos, swapped, sin)
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)


def rotary_frequencies(
    base: float,
    scaling: RotaryScaling | None,
    width: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, " half"], float]:
    """Radians per position of each pair, and the factor on cosine and sine.

    Those of longrope are still to be divided by the factors of the sequence's length.
    """
    if scaling is not None and scaling.kind == "ntk":
        base = base * scaling.factor ** (width / (width - 2))
    exponent = torch.arange(0, width, 2, device=device).to(dtype) / width
    frequency = base**-exponent
    if scaling is None or scaling.kind == "ntk":
        return frequency, 1.0
    if scaling.kind == "linear":
        return frequency / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequency, scaling), 1.0
    if scaling.kind == "longrope":
        return frequency, _longrope_factor(scaling)
    return _yarn(frequency, scaling, base, width)


def longrope(frequency: Tensor, scaling: RotaryScaling, lengths: Tensor) -> Tensor:
    """[#batch #pos half]: divided by the long factors where a sequence passes original_n_ctx."""
    short, long = (frequency.new_tensor(f) for f in (scaling.short_factors, scaling.long_factors))
    return frequency / torch.where((lengths > scaling.original_n_ctx)[..., None], long, short)


def _longrope_factor(scaling: RotaryScaling) -> float:
    if scaling.attention_factor is not None or scaling.factor <= 1:
        return scaling.attention_factor or 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_n_ctx))


def _llama3(frequency: Tensor, scaling: RotaryScaling) -> Tensor:
    rotations = scaling.original_n_ctx * frequency / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequency / scaling.factor + kept * frequency


def _yarn(
    frequency: Tensor, scaling: RotaryScaling, base: float, width: int
) -> tuple[Tensor, float]:
    def pair_at(rotations: float) -> float:
        """The pair that turns this often over the original context."""
        turns = scaling.original_n_ctx / (rotations * 2 * math.pi)
        return width * math.log(turns) / (2 * math.log(base))

    low, high = pair_at(scaling.beta_fast), pair_at(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    pair = torch.arange(width // 2, device=frequency.device).to(frequency.dtype)
    scaled = ((pair - low) / max(high - low, 1e-3)).clamp(0, 1)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1 if scaling.factor > 1 else 1.0
    return scaled * frequency / scaling.factor + (1 - scaled) * frequency, factor
