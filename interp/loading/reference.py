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
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.core.tokens import Tokens
from interp.model import HookedTransformer

from .assemble import assembled
from .families import read_config
from .tensors import Entry, Reader

FILE = Path(__file__).with_name("references.json")
TOLERANCE = 1e-5
"""Largest relative error that passes: the reference rounds some steps to float32."""
SPREAD = 0.35
"""Weights are uniform in ± this, so large that no part of a model hides."""
STEP, FEWEST = 61, 20
"""Every so many numbers of the output are recorded; of a small one more, to have so many."""


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
    stored = shapes(given)
    entries = {
        key: Entry(key, FILE, "F64", shape, 0, 8 * math.prod(shape))
        for key, shape in stored.items()
    }
    reader = partial(FormulaReader, stored)
    build = (torch.float64, torch.device("cpu"), f"reference of {name}", reader)
    return assembled(family, cfg, entries, *build).eval()


def run(model: HookedTransformer, inputs: Mapping[str, Any]) -> Tensor:
    """Our output for the inputs of a reference, where Hugging Face has its own."""
    given = tensors(inputs)
    with torch.no_grad():
        if "pixel_values" in given:
            return model(given["pixel_values"])[:, 0]
        if "states" in given:
            return model({"returns": given.pop("returns_to_go"), **given})[:, 1::3]
        read = given["input_features" if "input_features" in given else "input_ids"]
        if model.encoder is None:
            return model(read)
        return model(Tokens(given["decoder_input_ids"], source=model.encoder.accept(read)))


def tensors(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inputs of a reference: ids as they are recorded, numbers by formula from their shape."""
    return {
        name: numbers(name, tuple(value["shape"])) if isinstance(value, dict) else
        torch.tensor(value) for name, value in inputs.items()
    }  # fmt: skip


def distance(output: Tensor, given: Reference) -> float:
    """The relative error of an output: of the recorded numbers, or of the norm if that is worse."""
    sample = sampled(output)
    recorded = torch.tensor(given.output, dtype=torch.float64)
    if sample.shape != recorded.shape:
        return math.inf
    off = float((sample - recorded).abs().max() / recorded.abs().max())
    off_norm = abs(float(output.norm()) - given.norm) / given.norm
    return max(off, off_norm) if off == off else math.nan


def sampled(output: Tensor) -> Tensor:
    """The numbers of an output that are recorded."""
    return output.flatten()[:: max(1, min(STEP, output.numel() // FEWEST))]


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
    """Reads tensors of no file: their numbers follow from their names and shapes."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.shapes = shapes

    def read(self, entry: Entry) -> Tensor:
        # What is read may be the first row of a tensor, or have lost its axes of length 1.
        every = numbers(entry.key, self.shapes[entry.key]).flatten()
        return every[: math.prod(entry.shape)].view(entry.shape)

    def copy(self, entry: Entry, target: Tensor) -> None:
        target.copy_(self.read(entry))

    def equals(self, entry: Entry, tensor: Tensor) -> bool:
        return torch.equal(self.read(entry), tensor)


@cache
def _records() -> dict[str, dict[str, Any]]:
    return json.loads(FILE.read_text(encoding="utf-8"))
