"""What numbers are computed in.

Half precision is for storing weights and for running them on accelerators. No library has a QR, a
decomposition or a solver for it, NumPy does not know bfloat16, and a sum of many numbers loses its
end or, in float16, overflows past 65504. What is computed from a run or from weights is therefore
computed in float32 at least, and in float64 where it is small.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
AUTO = "auto"
"""The dtype that `analysis_dtype` chooses."""


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision; any other floating dtype is wide enough."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """The same numbers in float32 at least: what goes into a decomposition, a solver or a sum."""
    return x.to(wide_dtype(x.dtype))


def analysis_dtype(own: torch.dtype, device: torch.device) -> torch.dtype:
    """What an analysis computes in unless it is told: float32 for half-precision weights on a CPU,
    which holds each weight exactly and is no slower there; elsewhere the weights' own dtype."""
    return wide_dtype(own) if device.type == "cpu" else own


def dtype_name(dtype: torch.dtype) -> str:
    """As people write it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def in_words(computed: str | None, stored: str | None, device: str | None) -> str | None:
    """What a result was computed in, as a sentence; None where that is not known."""
    if computed is None or device is None:
        return None
    where = f"Computed in {computed} on {device}"
    if stored is None or stored == computed:
        return f"{where}." if stored is None else f"{where}, the model's own dtype."
    return f"{where}; the model's own dtype is {stored} (--dtype {stored} computes in that)."


def to_numpy(x: Tensor) -> np.ndarray:
    """The numbers on the CPU, those of half precision as float32."""
    x = x.detach().cpu()
    return (wide(x) if x.dtype in HALF else x).numpy()
