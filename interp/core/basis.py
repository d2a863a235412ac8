"""Orthonormal vectors: a basis of the span of given directions, and random ones."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from . import chance
from .vectors import Numbers, numbers

ALIKE = 1e-6
"""Directions that differ from those before by less than this share of their length add nothing to
the span: it is what float32 leaves of activations that are equal. Half precision leaves more."""


def span(directions: Numbers, name: str = "directions") -> Float[Tensor, "width rank"]:
    """An orthonormal basis, in its columns, of the span of one direction [width] or several
    [k, width]; in float64, on their device.

    Their lengths do not count, and dependent ones span what they span together: the rank is how
    many singular values of the unit vectors lie above rounding. Raises ValueError on a direction
    that is zero, and on what are no finite vectors.
    """
    given = numbers(directions, name)
    if given.ndim not in (1, 2):
        raise ValueError(
            f"{name} have the shape {list(given.shape)}: expected one vector [width] or several "
            "[k, width]"
        )
    rows = torch.atleast_2d(given).double()
    rows = rows / rows.abs().amax(-1, keepdim=True)  # squares of large numbers would overflow
    lengths = rows.norm(dim=-1, keepdim=True)
    if not bool(lengths.isfinite().all()):
        zero = int((~lengths[:, 0].isfinite()).nonzero()[0])
        raise ValueError(f"{name}: number {zero} of {len(rows)} is zero, and zero is no direction")
    _, sizes, found = torch.linalg.svd(rows / lengths, full_matrices=False)
    rounding = max(ALIKE, torch.finfo(given.dtype).eps)
    return found[sizes > rounding * len(rows) ** 0.5].T


def random_orthonormal(*shape: int, generator: torch.Generator) -> Float[Tensor, "*batch width k"]:
    """Random orthonormal columns, of a square matrix a rotation or reflection, uniform over all of
    them (Mezzadri 2007): *batch width k, with k ≤ width; in float64, on the CPU."""
    q, r = torch.linalg.qr(chance.normal(*shape, generator=generator))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
