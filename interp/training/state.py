"""From what a run goes on: weights, the optimiser's moments, the step, and what it was asked to do.

A state is one file with checksums, replaced in one step. It is written last: what it vouches for
(the model of its step, the log, the models kept on the way) is on the disk before it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from interp.core.files.untrusted import parse_json
from interp.loading import CorruptFile
from interp.loading.stored import check_header, read_tensors, write_tensors

FILE = "state.safetensors"
ABOUT = "about"
"""Under which name its metadata hold all but the tensors."""
WEIGHTS, MOMENTS = "weights.", "moments."
"""How the names of its tensors begin."""
OLD = "state-*/about.json"
"""What an earlier version wrote, which this one cannot go on from."""


class TrainingError(ValueError):
    """A run that cannot go on, or cannot go on from what lies in its folder."""


class State(NamedTuple):
    """A run at one step."""

    about: dict[str, Any]
    """step; log: its lines; run: what it was asked to do; machines: on what it ran, from which
    step."""
    tensors: dict[str, Tensor]

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put it into a model and its optimiser."""
        model.load_state_dict(_under(WEIGHTS, self.tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(MOMENTS, self.tensors).items():
            i, _, name = key.partition(".")
            moments.setdefault(int(i), {})[name] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})


def write(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, about: dict[str, Any]
) -> None:
    """Put the state of a run in the place of the one before it."""
    tensors = {f"{WEIGHTS}{name}": value for name, value in model.state_dict().items()}
    for i, values in optimizer.state_dict()["state"].items():
        tensors |= {f"{MOMENTS}{i}.{name}": value for name, value in values.items()}
    write_tensors(out / FILE, tensors, {ABOUT: json.dumps(about)})


def read(out: Path) -> State | None:
    """The state in a run's folder, where there is one. Raises TrainingError, naming the file, on
    one that is damaged or that an earlier version wrote."""
    if not _is_there(out):
        return None
    try:
        tensors, metadata = read_tensors(out / FILE)
        return State(_about(out, metadata), tensors)
    except CorruptFile as error:
        raise _damaged(out, error) from None


def read_about(out: Path) -> dict[str, Any] | None:
    """What the state in a run's folder says, without its tensors; None where there is no state.
    Raises TrainingError as `read` does."""
    if not _is_there(out):
        return None
    try:
        return _about(out, check_header(out / FILE))
    except CorruptFile as error:
        raise _damaged(out, error) from None


def differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """What two runs were asked to do differently, in words; empty: nothing."""
    words = []
    here = json.loads(json.dumps(here))  # tuples become lists, as in the file
    for name in sorted({*there, *here}):
        before, now = there.get(name), here.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            for field in sorted({*before, *now}):
                if before.get(field) != now.get(field):
                    words.append(f"{field} was {before.get(field)!r} and is {now.get(field)!r}")
        elif before != now:
            plural = name in ("data", "first weights")
            words.append(f"the {name} are others" if plural else f"{name} differs")
    return "; ".join(words)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _is_there(out: Path) -> bool:
    if (out / FILE).is_file():
        return True
    if any(out.glob(OLD)):
        raise TrainingError(
            f"{out} holds the run of an earlier version, which this one cannot go on with; name "
            "another folder"
        )
    return False


def _about(out: Path, metadata: dict[str, str]) -> dict[str, Any]:
    return parse_json(metadata.get(ABOUT, "").encode(), str(out / FILE))


def _damaged(out: Path, error: CorruptFile) -> TrainingError:
    return TrainingError(
        f"{error}. Bring back the file, or name another folder to train from the beginning"
    )
