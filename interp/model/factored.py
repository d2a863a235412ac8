"""Products of two thin matrices that are never multiplied out: a head's QK and OV circuit."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from interp.core.finite import NotFinite, is_finite
from interp.core.indices import index_tensor, whole_number
from interp.core.precision import wide


class FactoredMatrix:
    """The product A B, kept as its factors: [..., m, r] and [..., r, n] with r small.

    Products, singular values, eigenvalues and norms never multiply it out (Elhage et al. 2021 read
    QK and OV circuits this way). Those of half-precision factors are float32.
    """

    def __init__(self, A: Float[Tensor, "*#batch m r"], B: Float[Tensor, "*#batch r n"]) -> None:
        if A.shape[-1] != B.shape[-2]:
            raise ValueError(
                f"inner sizes differ: A is {list(A.shape)}, B is {list(B.shape)}; "
                "expected [..., m, r] and [..., r, n]"
            )
        self.A, self.B = A, B

    @property
    def shape(self) -> torch.Size:
        batch = torch.broadcast_shapes(self.A.shape[:-2], self.B.shape[:-2])
        return torch.Size([*batch, self.A.shape[-2], self.B.shape[-1]])

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def AB(self) -> Float[Tensor, "*batch m n"]:
        """The product, multiplied out."""
        return self.A @ self.B

    @property
    def T(self) -> FactoredMatrix:
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __getitem__(self, index) -> FactoredMatrix:
        """The factors of a piece of the product: QK[3, 5] is one head's, QK[3, 5, :4, :8] its first
        four rows and eight columns, QK[..., :8] those columns of every head.

        Each axis takes a whole number, a slice, or one list of whole numbers. Leading indices count
        batch axes; behind them come rows, then columns, where a number keeps its axis with length
        one, since a product has rows and columns. Raises ValueError on all else (new axes, masks,
        lists that would be paired with rows or columns): there `.AB[...]` says what is meant.
        """
        batch = self.shape[:-2]
        keys = _axis_keys(index, self.shape)
        of_batch, (rows, columns) = keys[: len(batch)], keys[len(batch) :]
        A = self.A.expand(*batch, *self.A.shape[-2:])[of_batch]
        B = self.B.expand(*batch, *self.B.shape[-2:])[of_batch]
        return FactoredMatrix(A[..., _kept(rows), :], B[..., _kept(columns)])

    def __iter__(self) -> Iterator[FactoredMatrix]:
        """Over the first axis."""
        return (self[i] for i in range(self.shape[0]))

    def __matmul__(self, other: object) -> FactoredMatrix | Tensor:
        """Times a matrix, still factored; times one vector [n], the vector [..., m]."""
        if isinstance(other, FactoredMatrix):
            inner = self.B @ other.A
            if inner.shape[-1] <= inner.shape[-2]:  # keep the smaller inner size
                return FactoredMatrix(self.A @ inner, other.B)
            return FactoredMatrix(self.A, inner @ other.B)
        if not isinstance(other, Tensor):
            return NotImplemented
        if other.ndim == 1:
            return (self.A @ (self.B @ other)[..., None])[..., 0]
        return FactoredMatrix(self.A, self.B @ other)

    def __rmatmul__(self, other: object) -> FactoredMatrix | Tensor:
        """A matrix times this, still factored; one vector [m] times this, the vector [..., n]."""
        if not isinstance(other, Tensor):
            return NotImplemented
        if other.ndim == 1:
            return ((other @ self.A)[..., None, :] @ self.B)[..., 0, :]
        return FactoredMatrix(other @ self.A, self.B)

    __array_ufunc__ = None  # a numpy number times this comes here, and does not iterate over it

    def __mul__(self, factor: object) -> FactoredMatrix:
        """Times one number."""
        number = _one_number(factor)
        return NotImplemented if number is None else FactoredMatrix(self.A * number, self.B)

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> FactoredMatrix:
        number = _one_number(divisor)
        return NotImplemented if number is None else FactoredMatrix(self.A / number, self.B)

    def __neg__(self) -> FactoredMatrix:
        return FactoredMatrix(-self.A, self.B)

    def diagonal(self) -> Float[Tensor, "*batch k"]:
        """The main diagonal of A B: min(m, n) numbers, without the other products."""
        k = min(self.shape[-2:])
        return (self.A[..., :k, :] * self.B[..., :k].mT).sum(-1)

    def svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U [..., m, r], S [..., r] falling, Vh [..., r, n] with A B = U diag(S) Vh."""
        self._check_finite()
        q_a, r_a = torch.linalg.qr(wide(self.A))
        q_b, r_b = torch.linalg.qr(wide(self.B).mT)
        U, S, Vh = torch.linalg.svd(r_a @ r_b.mT, full_matrices=False)
        return q_a @ U, S, Vh @ q_b.mT

    @property
    def U(self) -> Float[Tensor, "*batch m r"]:
        """The left singular vectors, as columns."""
        return self.svd()[0]

    @property
    def S(self) -> Float[Tensor, "*batch r"]:
        """The singular values, falling."""
        return self.svd()[1]

    @property
    def Vh(self) -> Float[Tensor, "*batch r n"]:
        """The right singular vectors, as rows. (`Vh` of TransformerLens is `V`.)"""
        return self.svd()[2]

    @property
    def V(self) -> Float[Tensor, "*batch n r"]:
        """The right singular vectors, as columns."""
        return self.Vh.mT

    @property
    def eigenvalues(self) -> Tensor:
        """The eigenvalues of A B that can differ from zero, complex [..., r]: those of B A."""
        if self.shape[-1] != self.shape[-2]:
            raise ValueError(f"eigenvalues need a square product, this one is {list(self.shape)}")
        self._check_finite()
        return torch.linalg.eigvals(wide(self.B) @ wide(self.A))

    def norm(self) -> Tensor:
        """Frobenius norm [...], from singular values (a Gram product would square the error)."""
        return self.svd()[1].square().sum(-1).sqrt()

    def _check_finite(self) -> None:
        """Raise NotFinite: a decomposition of NaN is an error of LAPACK, or NaN."""
        for name, factor in (("A", self.A), ("B", self.B)):
            if not is_finite(factor):
                *batch, row, column = (~factor.isfinite()).nonzero()[0].tolist()
                at = f" of the product {batch}" if batch else ""
                raise NotFinite(f"the factor {name}{at} is not finite at [{row}, {column}]")

    def __repr__(self) -> str:
        return f"FactoredMatrix({list(self.shape)}, inner {self.A.shape[-1]})"


Key: TypeAlias = int | slice | Tensor
"""What picks from one axis; a tensor holds the numbers of a list, none of them negative."""


def _axis_keys(index: Any, shape: torch.Size) -> tuple[Key, ...]:
    """One key per axis of a product of this shape."""
    keys = list(index) if isinstance(index, tuple) else [index]
    dots = [i for i, key in enumerate(keys) if key is Ellipsis]
    if len(keys) - len(dots) > len(shape) or len(dots) > 1 or any(key is None for key in keys):
        raise ValueError(
            f"{len(keys)} indices for a product with the axes {list(shape)}: expected at most one "
            "for each, one '...' and no new axes; multiply it out for those: `.AB[...]`"
        )
    lacking = [slice(None)] * (len(shape) - len(keys) + len(dots))
    at = dots[0] if dots else len(keys)
    keys = [*keys[:at], *lacking, *keys[at + len(dots) :]]
    read = tuple(_key(key, shape[i], f"index {i}") for i, key in enumerate(keys))
    lists = [i for i, key in enumerate(read) if isinstance(key, Tensor)]
    if len(lists) > 1 and lists[-1] >= len(shape) - 2:
        raise ValueError(
            "lists of several axes are paired, and rows and columns lie in different factors: "
            "index one axis after the other, or multiply the product out: `.AB[...]`"
        )
    return read


def _key(key: Any, size: int, name: str) -> Key:
    if isinstance(key, slice):
        ends = (key.start, key.stop, key.step)
        return slice(*(None if end is None else whole_number(end, name) for end in ends))
    numbers = index_tensor(key, size, name)
    if numbers.ndim > 1:
        raise ValueError(
            f"{name} has the shape {list(numbers.shape)}: expected a number, a slice or one list; "
            "multiply the product out for more: `.AB[...]`"
        )
    return numbers if numbers.ndim else int(numbers)


def _kept(key: Key) -> slice | Tensor:
    """A key that leaves its axis where it is."""
    return slice(key, key + 1) if isinstance(key, int) else key


def _one_number(factor: object) -> float | Tensor | None:
    """A factor of a product; None for what is no number."""
    if isinstance(factor, Tensor) and factor.numel() != 1:
        raise ValueError(
            f"a product is multiplied by one number, got a tensor of shape {list(factor.shape)}; "
            "for matrices write @"
        )
    if isinstance(factor, Tensor):
        return factor.reshape(())
    return float(factor) if isinstance(factor, Real) and not isinstance(factor, bool) else None
