"""What `logit_lens` is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from analyses._task import TaskConfig


@dataclass(frozen=True)
class Config(TaskConfig):
    """A task, what to read of it, and with which lens."""

    layers: tuple[int, ...] | None = None
    """Layers to read and to split into heads and neurons: layer l is what layer l reads. What the
    last one leaves is always read. By default all."""
    tuned: bool = True
    """Whether a tuned lens is trained and read beside the plain one."""
    text: Path | None = None
    """A UTF-8 text file to train the tuned lens on; by default other prompts of the same task."""
    width: int = 64
    """Tokens of a window of --text."""
    windows: int = 256
    """Windows of --text that are read, a fifth of which is held out."""
    steps: int = 100
    """Training steps of the tuned lens, behind its start by regression."""
    neurons: bool = True
    """Whether MLPs are split into neurons."""
    top: int = 12
    """Parts, heads and neurons that are shown by name."""
    out: Path = Path("reports/logit-lens")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("width", 2), ("windows", 2), ("steps", 0), ("top", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if self.layers is not None and not self.layers:
            raise ValueError("layers=(): expected one layer at least; leave it out for all")
        if self.text is not None and not self.tuned:
            raise ValueError("text is what the tuned lens is trained on, and tuned is off")
