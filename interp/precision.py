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


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision; any other floating dtype is wide enough."""
    return torch.promote_types(dtype, torch.float32)


def wide(x: Tensor) -> Tensor:
    """The same numbers in float32 at least: what goes into a decomposition, a solver or a sum."""
    return x.to(wide_dtype(x.dtype))


def to_numpy(x: Tensor) -> np.ndarray:
    """The numbers on the CPU, those of half precision as float32."""
    x = x.detach().cpu()
    return (wide(x) if x.dtype in HALF else x).numpy()
