"""Ways to write indices: those that are read, with what they mean, and those that are refused.

Every axis that they are tried on has at least four entries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

READ_ALONE: dict[str, tuple[Any, int]] = {
    "int": (2, 2),
    "negative int": (-1, -1),
    "np.int64": (np.int64(2), 2),
    "np.uint8": (np.uint8(2), 2),
    "negative np.int32": (np.int32(-2), -2),
    "array without axes": (np.array(1), 1),
    "tensor without axes": (torch.tensor(1), 1),
    "negative int16 tensor": (torch.tensor(-1, dtype=torch.int16), -1),
}
"""One index; what it means."""

READ: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "list": (lambda: [2, 0], [2, 0]),
    "tuple": (lambda: (1,), [1]),
    "range": (lambda: range(1, 3), [1, 2]),
    "generator": (lambda: (i for i in (1, 2)), [1, 2]),
    "negatives": (lambda: [-1, 0], [-1, 0]),
    "list of np.int64": (lambda: [np.int64(1), np.int64(2)], [1, 2]),
    "list of tensors": (lambda: [torch.tensor(1), torch.tensor(-1)], [1, -1]),
    "int32 array": (lambda: np.array([1, 2], dtype=np.int32), [1, 2]),
    "array of objects": (lambda: np.array([1, 2], dtype=object), [1, 2]),
    "int32 tensor": (lambda: torch.tensor([1, -1], dtype=torch.int32), [1, -1]),
    "column": (lambda: pd.DataFrame({"layer": [1, 2]})["layer"], [1, 2]),
    "Int64 column": (lambda: pd.Series([1, 2], dtype="Int64"), [1, 2]),
    "index of a frame": (lambda: pd.Index([0, 2]), [0, 2]),
    "values of a column": (lambda: pd.Series([1, 1, 2], dtype="Int64").unique(), [1, 2]),
}
"""Several indices, made anew each time; what they mean, in order."""

REFUSED_ALONE: dict[str, Any] = {
    "True": True,
    "False": False,
    "np.bool_": np.bool_(True),
    "bool tensor": torch.tensor(True),
    "float": 1.5,
    "whole float": 1.0,
    "np.float32": np.float32(1),
    "float tensor": torch.tensor(1.0),
    "NaN": float("nan"),
    "complex": 1 + 0j,
    "object": object(),
    "far beyond": 10**9,
    "far before": -(10**9),
    "beyond 64 bits": 2**70,
}
"""Refused wherever one index is expected; also within a list of them."""

REFUSED: dict[str, Any] = {
    "mask": [True, False, True, False, True],
    "mask of one": [True],
    "np.bool_ mask": [np.bool_(True), np.bool_(False)],
    "array mask": np.array([True, False, True, False]),
    "tensor mask": torch.tensor([True, False, True, False]),
    "column of booleans": pd.Series([True, False]),
    "nullable booleans": pd.Series([True, None], dtype="boolean"),
    "boolean among indices": [0, True],
    "floats": [0.0, 1.0],
    "float among indices": [0, 1.0],
    "float array": np.array([1.0]),
    "float tensor": torch.tensor([1.0]),
    "column with a blank": pd.Series([1, None], dtype="Int64"),
    "column of floats": pd.Series([1.0, np.nan]),
    "None in a list": [0, None],
    "pd.NA in a list": [0, pd.NA],
    "nested list": [[0, 1]],
    "two axes": np.array([[0, 1], [2, 3]]),
    "uneven rows": [0, [1, 2]],
    "tensor of two axes": torch.zeros(1, 2, dtype=torch.int64),
    "mapping": {0: 1},
    "bytes": b"\x00",
    "beyond the end": [0, 10**9],
    "before the start": [0, -(10**9)],
    "beyond 64 bits": np.array([2**64 - 1], dtype=np.uint64),
    "objects": [0, object()],
}
"""Refused wherever several indices are expected."""

NONE_AT_ALL: dict[str, Any] = {
    "list": [],
    "tuple": (),
    "range": range(0),
    "array": np.array([], dtype=np.int64),
    "tensor": torch.tensor([], dtype=torch.int64),
    "column": pd.Series([], dtype="Int64"),
}
"""Refused where several are expected, since nobody means none of them."""

TWICE: dict[str, Any] = {
    "list": [1, 1],
    "array": np.array([0, 1, 0]),
    "column": pd.Series([1, 1, 2]),
}
"""Refused where several are expected, of which each counts once."""
