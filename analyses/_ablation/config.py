"""What `head_ablation` is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from analyses._reference import MeanConfig
from interp.methods.ablation import KINDS, Kind, Options


@dataclass(frozen=True)
class Config(MeanConfig):
    """What is removed, how, and on which task."""

    kinds: tuple[Kind, ...] = KINDS
    """How parts are removed; the first leads where one must be chosen."""
    layers: tuple[int, ...] = ()
    """Layers whose heads and MLPs are removed; none given: all."""
    heads: tuple[int, ...] = ()
    """Heads that are removed in these layers; none given: all."""
    neurons: tuple[int, ...] = ()
    """Layers whose neurons are removed one by one."""
    top: int = 5
    """The strongest heads, after each of which every head is removed once more."""
    least: float = 0.05
    """Share of the unedited logit difference that an effect must surely exceed for its head, MLP or
    pair to be named."""
    random_sets: int = 30
    """Random orders in which heads are removed together; the first k of each are a random set."""
    donors: Literal["corrupted", "own", "clean"] = "corrupted"
    """Where resampled values come from: a random corrupted prompt, each prompt's own corrupted one,
    or a random clean one."""
    text: Path | None = None
    """A text on which the loss is measured, in UTF-8, a text a line; by default the clean prompts
    themselves."""
    windows: int = 32
    """Windows of --text that are read."""
    width: int = 64
    """Tokens of such a window."""
    out: Path = Path("reports/head-ablation")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ValueError(f"kinds={self.kinds}: expected some of {', '.join(KINDS)}, each once")
        for name in ("top", "random_sets"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not 0 <= self.least < 1:
            raise ValueError(f"least={self.least}: expected a share, from 0 to below 1")

    @property
    def options(self) -> Options:
        """What the method is asked."""
        return Options(
            layers=self.layers,
            heads=self.heads,
            neurons=self.neurons,
            top=self.top,
            least=self.least,
            random_sets=self.random_sets,
            own_donor=self.donors == "own",
            seed=self.seed,
            journal=self.journal,
        )
