"""Indices as users write them: the one place where layers, heads, positions, neurons and ids are
read.

An index is a whole number of any integer type: Python's, numpy's, torch's (also an array or tensor
without axes). Negative ones count from the end of their axis. A boolean is no index, nor is a float
without a fraction: read as numbers, the mask [True, False, True] would be positions 1, 0 and 1.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

Indices: TypeAlias = Any
"""One index, a slice, or several: a list, range, set, array, tensor or column of a frame."""
SHOWN = 80
"""Characters of a wrong value that an error shows."""


def whole_number(value: object, name: str) -> int:
    """One whole number of any integer type. `name` is what errors call it.

    Raises ValueError on booleans, floats, text, None and several numbers.
    """
    given = value.item() if _is_array(value) and value.ndim == 0 else value
    if isinstance(given, bool):
        raise _refusal(name, value, "a boolean is not an index")
    if isinstance(given, float):
        raise _refusal(name, value, "a float is not an index, also where it has no fraction")
    if hasattr(given, "__index__") and not _is_array(given):
        return operator.index(given)  # type: ignore[arg-type]
    raise _refusal(name, value, f"expected a whole number, got {_kind(value)}")


def index(value: object, size: int, name: str, *, end: bool = False) -> int:
    """One index of an axis of `size`, counted from its start: −1 gives size − 1.

    With `end`, size itself counts too, as where a range ends. Raises ValueError on what is no
    whole number, and outside the axis.
    """
    number = whole_number(value, name)
    if not -size <= number < size + end:
        raise ValueError(f"{name}={number}: {_range(size, end)}")
    return number + size if number < 0 else number


def indices(values: Indices, size: int, name: str) -> list[int]:
    """Several indices of an axis of `size`, in the order given; one alone is a list of one.

    A slice picks as it does from a list. Raises ValueError as `index` does, on masks, on none at
    all, and on one that is there twice, also as 3 and −1 of four.
    """
    if isinstance(values, slice):
        chosen = list(span(values, size, name))
    else:
        chosen = [index(value, size, name) for value in listed(values, name)]
    if not chosen:
        raise ValueError(f"{name} is empty: {_range(size)}; leave it out for all of them")
    check_once(chosen, name)
    return chosen


def span(values: slice, size: int, name: str) -> range:
    """What a slice picks of an axis, as it does from a list: one that reaches past an end is cut
    there. Raises ValueError on anything but a slice of whole numbers."""
    if not isinstance(values, slice):
        raise _refusal(name, values, "expected a slice, such as slice(0, 100)")
    parts = (values.start, values.stop, values.step)
    bounds = (None if part is None else whole_number(part, name) for part in parts)
    return range(size)[slice(*bounds)]


def index_tensor(values: Indices, size: int, name: str) -> Int[Tensor, "..."]:
    """Indices of an axis of `size` as an int64 tensor of their own shape, in which one may stand
    several times: a position for every row. Raises ValueError as `index` does, and on masks."""
    numbers = whole_numbers(values, name)
    _check_range(numbers, -size, size, name)
    return torch.where(numbers < 0, numbers + size, numbers)


def id_tensor(values: Indices, size: int, name: str) -> Int[Tensor, "..."]:
    """Ids from 0 to size − 1 as an int64 tensor of their own shape; an id is not counted from the
    end. Raises ValueError as `index` does, and on masks."""
    numbers = whole_numbers(values, name)
    _check_range(numbers, 0, size, name)
    return numbers


def whole_numbers(values: Indices, name: str) -> Int[Tensor, "..."]:
    """Whole numbers as an int64 tensor of their own shape, on their own device.

    From tensors, arrays, columns of frames and nested lists. Raises ValueError on booleans, floats
    and whatever else is no whole number, and on lists of unequal length.
    """
    if isinstance(values, Tensor) and values.dtype != torch.uint64:
        _check_dtype(values, name)
        return values.long()
    rows = listed(values, name, deep=True)
    if any(is_several(row) for row in rows):
        parts = [whole_numbers(row, name) for row in rows]
        if len({part.shape for part in parts}) > 1:
            lengths = ", ".join(str(list(part.shape)) for part in parts[:3])
            raise ValueError(f"{name}: its rows have different shapes ({lengths}, …)")
        return torch.stack(parts)
    plain = all(type(row) is int for row in rows)
    numbers = rows if plain else [whole_number(row, name) for row in rows]
    over = [number for number in numbers if not -(2**63) <= number < 2**63]
    if over:
        raise ValueError(f"{name}: {over[0]} is beyond a 64-bit integer")
    found = torch.tensor(numbers, dtype=torch.int64)
    return found if is_several(values) else found[0]


def row_indices(values: Indices, size: int, name: str = "rows") -> Int[Tensor, " n"]:
    """Rows that are picked from a batch, in order, on the CPU. Here a mask of the batch is as good
    as indices, and a row may be there several times (a bootstrap). Raises ValueError as `indices`
    does."""
    if isinstance(values, slice) and values == slice(None):
        return torch.arange(size)
    if isinstance(values, slice) or not is_several(values):
        return torch.tensor(indices(values, size, name))
    entries = values if _is_array(values) else list(values)
    if _is_mask(entries):
        if len(entries) != size or getattr(entries, "ndim", 1) != 1:
            raise ValueError(f"{name}: a mask of {len(entries)} for {size} of them")
        entries = torch.as_tensor(entries).nonzero().flatten()
    found = index_tensor(entries, size, name)
    if found.ndim != 1 or not len(found):
        raise ValueError(f"{name} of the shape {list(found.shape)}: expected one or more of {size}")
    return found.cpu()


def reusable(values: Indices) -> Indices:
    """The same, to be read several times: what can be gone through but once becomes a list."""
    return list(values) if isinstance(values, Iterator) else values


def listed(values: Indices, name: str, *, deep: bool = False) -> list[Any]:
    """The entries of a list of indices in any form, not yet read; one alone is a list of one.

    Raises ValueError on masks, text, mappings and, unless `deep`, on more than one axis.
    """
    if isinstance(values, str | bytes | Mapping):
        raise _refusal(name, values, f"expected whole numbers, got {_kind(values)}")
    if not is_several(values):
        return [values]
    if _is_array(values):
        if values.ndim > 1 and not deep:
            raise _refusal(name, values, f"expected one axis, got the shape {list(values.shape)}")
        _check_dtype(values, name)
    entries = values.tolist() if _is_array(values) else list(values)
    if _is_mask(entries):
        raise _mask(name, "[i for i, chosen in enumerate(mask) if chosen]")
    return entries


def pair(value: Indices, name: str, entries: str) -> tuple[Any, Any]:
    """The two entries of a pair, not yet read, such as "(layer, head)". Raises ValueError on
    anything else."""
    found = listed(value, name)
    if len(found) != 2:
        raise _refusal(name, value, f"expected pairs {entries}")
    return found[0], found[1]


def check_once(values: Iterable[object], name: str) -> None:
    """Raises ValueError where an entry stands there twice."""
    seen: set[object] = set()
    for value in values:
        if value in seen:
            raise ValueError(
                f"{name}: {value!r} is there twice; give each once (of a column: column.unique())"
            )
        seen.add(value)


def is_several(value: object) -> bool:
    """Whether a value has entries to go through: an array with axes, a list; text has none."""
    if isinstance(value, str | bytes):
        return False
    return value.ndim > 0 if _is_array(value) else isinstance(value, Iterable)  # type: ignore[union-attr]


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray | np.generic)


def _is_mask(entries: Any) -> bool:
    """Whether an array, tensor or list holds booleans and nothing else."""
    if _is_array(entries):
        return entries.dtype in (torch.bool, np.bool_)
    return len(entries) > 0 and all(isinstance(entry, bool | np.bool_) for entry in entries)


def _check_dtype(values: Any, name: str) -> None:
    """Of an array or a tensor; objects are looked at one by one."""
    if isinstance(values, Tensor):
        whole = not (values.is_floating_point() or values.is_complex())
    else:
        whole = values.dtype.kind in "iuO"
    if _is_mask(values):
        way = "mask.nonzero().flatten()" if isinstance(values, Tensor) else "np.flatnonzero(mask)"
        raise _mask(name, way)
    if not whole:
        raise ValueError(f"{name} is of {values.dtype}: expected whole numbers (an integer dtype)")


def _check_range(numbers: Tensor, low: int, size: int, name: str) -> None:
    wrong = numbers[(numbers < low) | (numbers >= size)]
    if len(wrong.flatten()):
        raise ValueError(f"{name}={int(wrong.flatten()[0])}: {_range(size, low=low)}")


def _range(size: int, end: bool = False, low: int | None = None) -> str:
    allowed = f"expected 0 to {size - 1 + end}"
    return allowed if low == 0 else f"{allowed}, or -{size} to -1 counted from the end"


def _kind(value: object) -> str:
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def _refusal(name: str, value: object, why: str) -> ValueError:
    shown = " ".join(repr(value).split())
    shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"
    return ValueError(f"{name}={shown}: {why}")


def _mask(name: str, way: str) -> ValueError:
    return ValueError(f"{name} is a mask; give the indices at which it is true: {way}")
