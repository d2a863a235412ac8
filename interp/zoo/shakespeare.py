"""A character-level GPT on Tiny Shakespeare (Karpathy 2015), the text of nanoGPT's first example.

The text is not part of the package: 1,115,394 characters, `input.txt` of karpathy/char-rnn.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from interp.model import HookedTransformer
from interp.training.config import TrainConfig
from interp.training.data import TextData
from interp.training.text import TextRun, read_text

BATCH = 64


def run(text: Path, out: Path) -> TextRun:
    """What `interp train` does for it: 4 layers of 6 heads, rotary positions, 1.8 M parameters."""
    return TextRun(
        text=text,
        out=out,
        n_layers=4,
        n_heads=6,
        d_model=192,
        positions="rotary",
        train=TrainConfig(steps=2_000, lr=2e-3),
    )


@torch.no_grad()
def evaluate(model: HookedTransformer, text: Path) -> pd.DataFrame:
    """Loss in nats per character on all of the last tenth of the text, windows side by side, each
    read from its own beginning: task split measure n value."""
    n_ctx = model.cfg.n_ctx
    part = TextData(read_text(text), model.tokenizer, n_ctx).parts["val"]
    n = (len(part) - 1) // n_ctx
    ids = part[: n * n_ctx].view(n, n_ctx).split(BATCH)
    targets = part[1 : n * n_ctx + 1].view(n, n_ctx).split(BATCH)
    total = sum(
        float(F.cross_entropy(model(x).flatten(0, 1).cpu(), y.flatten(), reduction="sum"))
        for x, y in zip(ids, targets, strict=True)
    )
    row = ("next character", "val", "loss", n * n_ctx, total / (n * n_ctx))
    return pd.DataFrame([row], columns=["task", "split", "measure", "n", "value"])
