"""A model from a text file: what `interp train` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from interp.core import files
from interp.core.config import TransformerConfig
from interp.core.devices import as_device
from interp.model import HookedTransformer

from .config import TrainConfig
from .data import Data, MaskedData, TextData
from .loop import train
from .vocabulary import train_tokenizer

MAX_BYTES = 1 << 30
"""What is read of a text to train on, which is held whole."""


@dataclass(frozen=True, kw_only=True)
class TextRun:
    """Train a small model on a text file, and leave it in a folder that `interp.load` opens.

    The same command goes on where a stopped run was.
    """

    text: Path
    """UTF-8 text; its last tenth is for validation."""
    out: Path
    """Folder of the run."""
    tokenizer: Literal["char", "word", "bpe"] = "char"
    """Made from the text: its characters, its words, or byte-level BPE."""
    vocab_size: int | None = None
    """Entries: of BPE (default 4096), or the commonest words (default all)."""
    objective: Literal["next", "masked"] = "next"
    """Predict the next token, or tokens that are hidden from a model that sees both ways."""
    n_layers: int = 4
    n_heads: int = 4
    d_model: int = 128
    n_ctx: int = 128
    positions: Literal["learned", "rotary"] = "learned"
    """Added to the embeddings, or turned into queries and keys (Su et al. 2021)."""
    device: str | None = None
    """By default CUDA where there is one."""
    resume_anyway: bool = False
    """Go on with a run that was begun with another code, torch, number of threads, dtype or device;
    it then ends in other numbers than an undisturbed one."""
    train: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def train_on_text(run: TextRun, *, progress: bool = True) -> HookedTransformer:
    """Make the tokenizer, the model and the data of a run, and train."""
    model, data = made(run)
    return train(
        model, data, run.out, run.train, resume_anyway=run.resume_anyway, progress=progress
    )


def made(run: TextRun) -> tuple[HookedTransformer, Data]:
    """The model of a run, not yet trained, with the tokenizer of its text, and its data."""
    text, masked = read_text(run.text), run.objective == "masked"
    name = run.out.name
    tokenizer = train_tokenizer(text, run.tokenizer, run.vocab_size, name, masked=masked)
    cfg = TransformerConfig(
        n_layers=run.n_layers,
        d_model=run.d_model,
        n_heads=run.n_heads,
        d_mlp=4 * run.d_model,
        d_vocab=tokenizer.vocab_size,
        n_ctx=run.n_ctx,
        positions=run.positions,
        causal=not masked,
        tied=True,
    )
    device = as_device(run.device)
    model = HookedTransformer(cfg, tokenizer, name=name, device=device, seed=run.train.seed)
    data = TextData(text, tokenizer, run.n_ctx, seed=run.train.seed)
    return model, MaskedData(data, cfg.d_vocab, seed=run.train.seed) if masked else data


def command(options: Sequence[str]) -> Path:
    """`interp train`: parse its options, train; the folder of the run."""
    run = tyro.cli(TextRun, args=list(options), prog="interp train")
    train_on_text(run)
    return run.out


def read_text(file: Path) -> str:
    """A UTF-8 file with something in it, as `interp.files.read_text` reads it."""
    text = files.read_text(file, MAX_BYTES)
    if not text.strip():
        raise ValueError(f"{file}: the file is empty; there is nothing to train on")
    return text
