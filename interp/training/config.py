"""How a model is trained: one dataclass, which is also the command line of `interp train`."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. The defaults train a small decoder on two CPU cores."""

    steps: int = 2_000
    """Updates of the weights."""
    batch_size: int = 32
    """Sequences per forward pass."""
    accumulate: int = 1
    """Forward passes per update."""
    lr: float = 1e-3
    """Highest learning rate."""
    min_lr: float = 1e-4
    """Learning rate at the end of the cosine."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Of matrices and embeddings; AdamW's, decoupled (Loshchilov and Hutter 2019)."""
    decay_all: bool = False
    """Biases and gains decay as well."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of AdamW."""
    grad_clip: float | None = 1.0
    """Largest norm of the gradient; None: any."""
    seed: int = 0
    """Of the initial weights; the data have their own."""
    init_std: float = 0.02
    """Standard deviation of the initial weights (see `HookedTransformer.init_weights`)."""
    eval_every: int = 250
    """Steps between validations; a validation saves the state, too."""
    eval_batches: int = 20
    """Batches of a validation, always the same ones."""
    checkpoints: int = 0
    """Models kept over the run, at steps spaced evenly in their logarithm, first and last
    among them."""
    mixed_precision: bool = True
    """bfloat16 products on CUDA; on the CPU never."""
    compile: bool | None = None
    """torch.compile; by default on CUDA, where it helps."""
    double_loss: bool = False
    """Softmax and loss in float64 (small losses stay exact)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "eval_every", "eval_batches"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r}: expected a whole number, 1 or more")
        for name in ("warmup", "checkpoints"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r}: expected a whole number, 0 or more")
        if not 0 <= self.min_lr <= self.lr < float("inf") or self.lr == 0:
            raise ValueError(
                f"lr={self.lr}, min_lr={self.min_lr}: expected 0 ≤ min_lr ≤ lr and lr > 0"
            )

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to min_lr (Loshchilov and Hutter 2017)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        along = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.min_lr + 0.5 * (1 + math.cos(math.pi * along)) * (self.lr - self.min_lr)

    @property
    def kept(self) -> list[int]:
        """The steps after which a model is kept."""
        if not self.checkpoints:
            return []
        n = max(2, self.checkpoints) - 1
        return sorted({0, *(round(self.steps ** (i / n)) for i in range(1, n + 1))})
