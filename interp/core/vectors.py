"""Numbers and vectors as users write them: the one place where what stands for an activation, or
for a direction among activations, is read.

They come as numbers, tensors, arrays or lists, and are finite. Whole numbers count as the floats
that they are; a boolean is no number, and a complex number no activation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

Numbers: TypeAlias = Any
"""One number, or several: a tensor, an array, a (nested) list."""


def numbers(values: Numbers, name: str, *, hiding: bool = False) -> Float[Tensor, "..."]:
    """Finite numbers as a floating-point tensor of their own shape, in memory of its own.

    A tensor keeps its device and floating-point dtype; all else becomes float64 on the CPU. `name`
    is what errors call it; with `hiding`, −∞ stands for a score that hides a key, and may be there.
    Raises ValueError on booleans, complex numbers, text, nothing at all, lists of unequal length,
    and on what is infinite or no number.
    """
    given = values if isinstance(values, Tensor) else _tensor(values, name)
    if given.dtype == torch.bool or given.is_complex():
        raise ValueError(f"{name} is of {given.dtype}: expected real numbers")
    if given.layout != torch.strided or given.is_quantized or given.device.type == "meta":
        raise ValueError(
            f"{name} is a tensor of layout {given.layout} on {given.device}: expected a dense one "
            "that holds its numbers"
        )
    if given.numel() == 0:
        raise ValueError(f"{name} is empty (shape {list(given.shape)})")
    given = given.detach() if given.is_floating_point() else given.detach().double()
    finite = given.isfinite() | (given.isneginf() & hiding)
    if not bool(finite.all()):
        at = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"{name} is not finite: {float(given[tuple(at)])}" + (f" at {at}" if at else "")
        )
    return given.clone(memory_format=torch.contiguous_format)


def number(value: Numbers, name: str, *, least: float | int = -math.inf) -> float:
    """One finite number, `least` or more; of a tensor or an array also with axes of length one."""
    found = numbers(value, name)
    if found.numel() != 1:
        raise ValueError(f"{name} has the shape {list(found.shape)}: expected one number")
    if found.item() < least:
        raise ValueError(f"{name}={found.item():g}: expected {least:g} or more")
    return float(found.item())


def vector(values: Numbers, name: str) -> Float[Tensor, " width"]:
    """One finite vector [width] that is not zero, as a direction is."""
    found = numbers(values, name)
    if found.ndim != 1:
        raise ValueError(f"{name} has the shape {list(found.shape)}: expected one vector [width]")
    if not bool(found.any()):
        raise ValueError(f"{name} is zero, and zero is no direction")
    return found


@dataclass(frozen=True, eq=False)
class StandIn:
    """Numbers that stand for an activation, and how they lie at a site.

    They may be one number; a vector over the site's last axis, the same for every example, position
    and head; one such vector per example [batch, width]; or a tensor of as many axes as the site
    has, each of full length or of length one, those of positions of length one: [batch, 1, d_model]
    is one vector per example at a residual stream, [1, 1, head, d_head] one per head at z.
    [batch, width] could as well hold a vector per position or per head where there are as many of
    these as examples: it then raises, and is to be written with all its axes.
    """

    values: Float[Tensor, "..."]
    """In float64, on the CPU."""
    name: str
    """What errors call them."""
    largest: float
    """In size, of those that are finite."""

    @classmethod
    def of(
        cls, values: Numbers, name: str, factor: float = 1.0, *, hiding: bool = False
    ) -> StandIn:
        """So many times these numbers. Raises ValueError where they are not finite; with `hiding`,
        they may be −∞."""
        given = numbers(values, name, hiding=hiding).double().cpu()
        found = numbers(factor * given, name, hiding=hiding)
        return cls(found, name, float(found.abs().where(found.isfinite(), 0).max()))

    def at(
        self, x: Tensor, axes: Sequence[str], examples: Int[Tensor, " rows"], full: Sequence[int]
    ) -> Float[Tensor, "..."]:
        """As they lie at a site with these axes, broadcastable to x [rows, …] of these examples.
        `full`: the lengths of the axes in a whole run, of which x may hold fewer positions.

        Raises ValueError where the shape does not fit, or could mean two things.
        """
        values = self.values
        if self.largest > torch.finfo(x.dtype).max:
            raise ValueError(f"{self.name} holds {self.largest:g}, which is beyond {x.dtype}")
        if values.ndim > 1:
            values = values.view(self._shape(axes, full))
            values = values[examples.cpu()] if len(values) > 1 else values
        elif values.ndim == 1 and len(values) != full[-1]:
            where = f"{' '.join(axes)} {list(full)}"
            raise ValueError(
                f"{self.name}: a vector of {len(values)} for a site of width {full[-1]} ({where})"
            )
        return values.to(x)

    def _shape(self, axes: Sequence[str], full: Sequence[int]) -> list[int]:
        """The shape at the site, of as many axes as that has."""
        shape = list(self.values.shape)
        if len(shape) == 2 and shape == [full[0], full[-1]]:
            inner = zip(axes[1:-1], full[1:-1], strict=True)
            alike = [axis for axis, n in inner if n == full[0] > 1]
            if alike:
                ways = ", ".join(_written(axes, full, axis) for axis in ("batch", *alike))
                raise ValueError(
                    f"{self.name} has the shape {shape} at a site of {' '.join(axes)} "
                    f"{list(full)}: is that per example, or per {' or '.join(alike)}? Give {ways}"
                )
            return [full[0], *[1] * (len(full) - 2), full[-1]]
        allowed = [{1} if axis in POSITIONS else {1, n} for axis, n in zip(axes, full, strict=True)]
        fits = len(shape) == len(full) and all(
            n in lengths for n, lengths in zip(shape, allowed, strict=True)
        )
        if not fits:
            raise self._misfit(axes, full)
        return shape

    def _misfit(self, axes: Sequence[str], full: Sequence[int]) -> ValueError:
        every = ["1" if axis in POSITIONS else axis for axis in axes]
        return ValueError(
            f"{self.name} has the shape {list(self.values.shape)} at a site of {' '.join(axes)} "
            f"{list(full)}: expected one number, a vector [{full[-1]}], one for each example "
            f"[{full[0]}, {full[-1]}], or [{', '.join(every)}], any of these 1; a value for each "
            "position is another run's: edits.patch"
        )


POSITIONS = ("pos", "q_pos")


def _written(axes: Sequence[str], full: Sequence[int], kept: str) -> str:
    """How a vector per example, head or position is given without a doubt."""
    if kept in POSITIONS:
        return "edits.patch a run (per position)"
    shape = [n if axis == kept else 1 for axis, n in zip(axes[:-1], full[:-1], strict=True)]
    return f"{[*shape, full[-1]]} (per {kept.replace('batch', 'example')})"


def _tensor(values: Numbers, name: str) -> Tensor:
    if isinstance(values, list | tuple) and values and all(
        isinstance(one, Tensor) for one in values
    ):  # fmt: skip
        if len({one.shape for one in values}) > 1:
            raise ValueError(f"{name}: its tensors have different shapes")
        return torch.stack(list(values))
    try:
        array = np.array(values)
    except ValueError:
        raise ValueError(f"{name}: its rows have different lengths") from None
    if array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name} is a {type(values).__name__}: expected a number, a tensor, an array or a list "
            "of numbers"
        )
    return torch.as_tensor(array)
