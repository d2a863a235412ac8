"""What is removed, and what single removals find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from interp.core.files.untrusted import safe_join

ALPHA = 0.05


@dataclass(frozen=True)
class Options:
    """Which parts are removed, and how it is tested."""

    layers: tuple[int, ...] = ()
    """Layers whose heads and MLPs are removed; none given: all."""
    heads: tuple[int, ...] = ()
    """Heads that are removed in these layers; none given: all."""
    neurons: tuple[int, ...] = ()
    """Layers whose neurons are removed one by one."""
    top: int = 5
    """The strongest heads, after each of which every head is removed once more."""
    least: float = 0.05
    """Share of the unedited logit difference that an effect must surely exceed to be named."""
    random_sets: int = 30
    """Random orders in which heads are removed together."""
    own_donor: bool = False
    """Whether resampled values come from each prompt's own corrupted one."""
    seed: int = 0
    journal: Path | None = None
    """A folder in which every sweep keeps what it has measured."""

    def kept(self, name: str) -> Path | None:
        """The journal of one sweep."""
        if self.journal is None:
            return None
        self.journal.mkdir(parents=True, exist_ok=True)
        return safe_join(self.journal, f"{name}.jsonl")


@dataclass(frozen=True, eq=False)
class Removals:
    """Every part of one sort, removed alone."""

    part: str
    """head, mlp or neuron."""
    nodes: pd.DataFrame
    effects: Mapping[str, np.ndarray]
    """Kind → change of the logit difference [node n]."""
    table: pd.DataFrame
    """One row per kind and node."""

    def of(self, kind: str) -> pd.DataFrame:
        return self.table[self.table["kind"] == kind].reset_index(drop=True)
