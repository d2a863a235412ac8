"""Random numbers: drawn on the CPU from a generator of their own, and then moved to where they go.

A generator of another device gives other numbers for the same seed. Whatever is drawn with torch in
this library is drawn here, so that a seed means the same on every device, and no global seed is
read or changed. (What is drawn with numpy comes from `numpy.random.default_rng`.)
"""

from __future__ import annotations

import torch
from torch import Tensor


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator("cpu").manual_seed(seed)


def normal(
    *size: int, generator: torch.Generator, std: float = 1.0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Numbers from N(0, std²), on the CPU."""
    return torch.empty(size, dtype=dtype, device="cpu").normal_(0, std, generator=generator)


def uniform(*size: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers from [0, 1), on the CPU."""
    return torch.rand(size, generator=generator, dtype=dtype, device="cpu")


def integers(low: int, high: int, *size: int, generator: torch.Generator) -> Tensor:
    """Whole numbers from low to high − 1, on the CPU."""
    return torch.randint(low, high, size, generator=generator, device="cpu")


def permutation(n: int, generator: torch.Generator) -> Tensor:
    """The numbers 0 to n − 1 in random order, on the CPU."""
    return torch.randperm(n, generator=generator, device="cpu")
