"""One tiny model per family, and what Hugging Face's code computed for it: a recorded fingerprint.

`references.json` has, for each family, a config, the names and shapes of its tensors as they are
published, a few ids, and some of the output in float64. The weights are a formula of the tensor's
name, so that no version of anything draws other numbers. `tests/parity/record.py` writes the file
with transformers; reading it, and checking our forward pass against it, needs none.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model import HookedTransformer
from .assemble import assembled
from .families import read_config
from .tensors import Entry, Reader

FILE = Path(__file__).with_name("references.json")
TOLERANCE = 1e-5
"""Largest relative error that passes: the reference rounds some steps to float32."""
SPREAD = 0.35
"""Weights are uniform in ± this, so large that no part of a model hides."""
STEP = 61
"""Every so many numbers of the output are recorded."""


class Reference(NamedTuple):
    """A tiny published model and what it computes."""

    config: dict[str, Any]
    """Its config.json."""
    layers: int
    """What `{}` counts to in the names of `tensors`."""
    tensors: dict[str, list[int]]
    """Shape by name, `{}` for the layer where all layers have it."""
    inputs: dict[str, Any]
    """What the reference was called with: input_ids as lists."""
    output: list[float]
    """Every STEP-th number of its output, flattened."""
    norm: float
    """The root of the sum of squares of the whole output."""


class FamilyCheck(NamedTuple):
    """How far our forward pass is from the recorded one."""

    family: str
    error: float
    """The largest error, as a share of the largest number."""
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance  # NaN does not hold


def check_family(name: str) -> FamilyCheck:
    """Build the reference of a family through its rename table, run it, compare.

    Takes some ten milliseconds. Raises ValueError on a family without a reference.
    """
    given = reference(name)
    output = run(reference_model(name), given.inputs)
    return FamilyCheck(name, distance(output, given), TOLERANCE)


def families() -> list[str]:
    """The families that have a reference, by their `model_type`."""
    return list(_records())


def reference(name: str) -> Reference:
    """What is recorded of a family. Raises ValueError on an unknown one."""
    if name not in _records():
        known = ", ".join(_records())
        raise ValueError(f"family {name!r} has no recorded reference; there are: {known}")
    return Reference(**_records()[name])


def reference_model(name: str) -> HookedTransformer:
    """Our model of a family's reference, in float64 on the CPU, filled as `load` fills one."""
    given = reference(name)
    family, cfg = read_config(given.config, f"{FILE.name}: {name}")
    entries = {
        key: Entry(key, FILE, "F64", shape, 0, 8 * math.prod(shape))
        for key, shape in shapes(given).items()
    }
    build = (torch.float64, torch.device("cpu"), f"reference of {name}", FormulaReader)
    return assembled(family, cfg, entries, *build).eval()


def run(model: HookedTransformer, inputs: Mapping[str, Any]) -> Tensor:
    """Our output for the inputs of a reference."""
    assert set(inputs) == {"input_ids"}, f"inputs {sorted(inputs)}"
    with torch.no_grad():
        return model(torch.tensor(inputs["input_ids"]))


def distance(output: Tensor, given: Reference) -> float:
    """The relative error of an output: of the recorded numbers, or of the norm if that is worse."""
    sample = output.flatten()[::STEP]
    recorded = torch.tensor(given.output, dtype=torch.float64)
    if sample.shape != recorded.shape:
        return math.inf
    off = float((sample - recorded).abs().max() / recorded.abs().max())
    off_norm = abs(float(output.norm()) - given.norm) / given.norm
    return max(off, off_norm) if off == off else math.nan


def shapes(given: Reference) -> dict[str, tuple[int, ...]]:
    """Every tensor by its full name."""
    return {
        name.format(layer): tuple(shape)
        for name, shape in given.tensors.items()
        for layer in (range(given.layers) if "{}" in name else (0,))
    }


def numbers(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weights of this name: gains of norms about 1, all else about 0; float64, exact.

    Whole numbers of 32 bits are mixed as in a hash, so that every machine has the same ones.
    """
    x = torch.arange(math.prod(shape)) * 2_654_435_761 + zlib.crc32(name.encode())
    for _ in range(2):
        x = x & 0xFFFF_FFFF
        x = (x ^ (x >> 16)) * 0x45D9F3B
    x = x & 0xFFFF_FFFF
    uniform = SPREAD * (2 * x.double() / 2**32 - 1)
    gain = len(shape) == 1 and name.endswith(".weight")
    return (uniform + 1 if gain else uniform).reshape(shape)


class FormulaReader(Reader):
    """Reads tensors of no file: their numbers follow from their names."""

    def copy(self, entry: Entry, target: Tensor) -> None:
        target.copy_(numbers(entry.key, entry.shape))

    def read(self, entry: Entry) -> Tensor:
        return numbers(entry.key, entry.shape)

    def equals(self, entry: Entry, tensor: Tensor) -> bool:
        return torch.equal(numbers(entry.key, entry.shape), tensor)


@cache
def _records() -> dict[str, dict[str, Any]]:
    return json.loads(FILE.read_text(encoding="utf-8"))
