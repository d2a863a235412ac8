"""From what a run goes on: weights, the optimiser's moments, the step, and what it was asked to do.

A state is a folder, `state-<step>`, that is there whole or not at all; the one before it goes when
the new one is there. Nothing in it is a pickle.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

ABOUT = "about.json"
PREFIX = "state-"


def newest(out: Path) -> Path | None:
    """The newest state of a run's folder."""
    found = [path for path in out.glob(f"{PREFIX}*") if (path / ABOUT).is_file()]
    return max(found, key=lambda path: path.name, default=None)


def write(
    out: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, about: dict[str, Any]
) -> None:
    """Write beside, flush to disk, then put it in its place."""
    folder, beside = out / f"{PREFIX}{step:08}", out / ".state.tmp"
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        safetensors.torch.save_file(weights, beside / "weights.safetensors")
        moments = {
            f"{i}.{name}": value.contiguous()
            for i, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        safetensors.torch.save_file(moments, beside / "moments.safetensors")
        (beside / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        for file in beside.iterdir():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        old = [path for path in out.glob(f"{PREFIX}*") if path != folder]
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for path in old:
        shutil.rmtree(path)


def read(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put a state into a model and its optimiser."""
    model.load_state_dict(safetensors.torch.load_file(folder / "weights.safetensors"))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in safetensors.torch.load_file(folder / "moments.safetensors").items():
        i, _, name = key.partition(".")
        moments.setdefault(int(i), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


def read_about(folder: Path) -> dict[str, Any]:
    """The step of a state, its log, and the run that it belongs to."""
    return json.loads((folder / ABOUT).read_text("utf-8"))


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What two runs were asked to do differently, in words; empty: nothing."""
    found = []
    here = json.loads(json.dumps(here))  # tuples become lists, as in the file
    for part in sorted({*there, *here}):
        one, other = there.get(part), here.get(part)
        if isinstance(one, dict) and isinstance(other, dict):
            for name in sorted({*one, *other}):
                if one.get(name) != other.get(name):
                    found.append(f"{name} was {one.get(name)!r} and is {other.get(name)!r}")
        elif one != other:
            plural = part in ("data", "first weights")
            found.append(f"the {part} are others" if plural else f"{part} differs")
    return "; ".join(found)
