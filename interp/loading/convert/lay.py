"""From tensors in memory to our parameters, by a table: every key used, dropped or an error.

`assemble` does the same for the files of published families, whose tensors need no turning; the
checkpoints that `convert` reads keep heads on an axis of their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from interp.core.config import TransformerConfig
from interp.model import HookedTransformer

from ..assemble import WeightsError, pattern, raise_faults

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PARTS = ("q", "k", "v", "gate", "in")
"""In the order in which they lie in a fused parameter."""


class Slot(NamedTuple):
    """Where a stored tensor goes."""

    axes: str
    """Its axes, by the names of sizes: "head d_model d_head"."""
    name: str
    """Our parameter."""
    part: str = ""
    """Which rows of it: one of PARTS, or all."""
    order: tuple[int, ...] = ()
    """The stored axes in our order, output first; () as stored."""


@dataclass(frozen=True)
class Recipe:
    """How one checkpoint becomes a model."""

    kind: str
    """What it is, in words."""
    cfg: TransformerConfig
    slots: Mapping[str, Slot]
    """Key template to slot; `{}` stands for the layer. Of several templates for one place a file
    has exactly one, and places that the config leaves out have none."""
    sizes: Mapping[str, int]
    """The axes that slots name."""
    constants: Mapping[str, bool] = field(default_factory=dict)
    """Templates that a file need not have; ones (True) or zeros stand in for them."""
    dropped: Sequence[str] = ()
    """Templates deliberately not read."""
    notes: Sequence[str] = ()
    """What the user should know."""
    finish: Callable[[HookedTransformer], None] | None = None
    """What no renaming expresses."""


def lay(recipe: Recipe, tensors: Mapping[str, Tensor]) -> tuple[HookedTransformer, list[str]]:
    """The model, in the smallest dtype that holds every tensor, and the templates dropped.

    Raises WeightsError, listing all missing, unexpected and wrongly shaped keys.
    """
    _check_layers(recipe, tensors)
    with torch.device("meta"):
        model = HookedTransformer(recipe.cfg)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    stored = dict(tensors)
    faults: dict[str, list[str]] = {"missing": [], "unexpected": [], "wrongly shaped": []}
    faults["not of floats"] = []
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in shapes}
    for slot, layer, templates in _places(recipe, shapes):
        keys = [template.format(layer) for template in templates]
        found = [key for key in keys if key in stored]
        shape = [recipe.sizes[axis] for axis in slot.axes.split()]
        constant = next((recipe.constants[t] for t in templates if t in recipe.constants), None)
        if found:
            tensor = stored.pop(found[0])
            if list(tensor.shape) != shape:
                given = list(tensor.shape)
                faults["wrongly shaped"].append(f"{found[0]} {given}, expected {shape}")
                continue
            if tensor.dtype not in FLOATS:
                faults["not of floats"].append(f"{found[0]} ({tensor.dtype})")
        elif constant is not None:
            tensor = torch.full(shape, constant, dtype=torch.bool)  # decides no common dtype
        else:
            faults["missing"].append(keys[0])
            continue
        name = slot.name.format(layer)
        turned = tensor.permute(slot.order) if slot.order else tensor
        flat = turned.reshape(-1, *shapes[name][1:])
        parts[name][slot.part] = flat
    dropped = [t for t in recipe.dropped if any(map(pattern([t]).fullmatch, stored))]
    known = pattern(recipe.dropped)
    faults["unexpected"] = [key for key in stored if not known.fullmatch(key)]
    raise_faults(recipe.kind, faults)
    model.load_state_dict(_joined(parts), assign=True)
    model.requires_grad_(False)
    if recipe.finish is not None:
        recipe.finish(model)
    return model.eval(), dropped


def _check_layers(recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
    """Before a module is made for each of the layers that a config claims."""
    matches = (re.match(r"(?:blocks|transformer\.h)\.(\d{1,9})\.", key) for key in tensors)
    found, n = {int(match[1]) for match in matches if match}, recipe.cfg.n_layers
    if found != set(range(n)):
        raise WeightsError(
            f"the tensors do not fit the config ({recipe.kind}): it says n_layers={n}, and they "
            f"are of {len(found)} layers, the last {max(found, default='none')}"
        )


def _places(
    recipe: Recipe, shapes: Mapping[str, Sequence[int]]
) -> Iterator[tuple[Slot, int, list[str]]]:
    """Each place that the config has: its slot, layer, and the templates that may fill it."""
    places: dict[tuple[str, str], tuple[Slot, list[str]]] = {}
    for template, slot in recipe.slots.items():
        places.setdefault((slot.name, slot.part), (slot, []))[1].append(template)
    for slot, templates in places.values():
        for layer in range(recipe.cfg.n_layers) if "{}" in slot.name else (0,):
            if slot.name.format(layer) in shapes:
                yield slot, layer, templates


def _joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    dtypes = [tensor.dtype for pieces in parts.values() for tensor in pieces.values()]
    common = dtypes[0]
    for dtype in dtypes:
        common = torch.promote_types(common, dtype)
    ordered = {
        name: [pieces[part] for part in ("", *PARTS) if part in pieces]
        for name, pieces in parts.items()
    }
    return {
        name: torch.cat([piece.to(common) for piece in pieces]) for name, pieces in ordered.items()
    }
