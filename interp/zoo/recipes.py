"""How the bundled models were made, and how they are measured: `interp train --recipe NAME`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro

from interp.core.devices import as_device
from interp.loading import load
from interp.model import HookedTransformer
from interp.training import Data, TrainConfig, train
from interp.training.text import made

from . import modadd, shakespeare, tinyworld

SEED = 2026
"""Of the sentences that tinyworld's models are measured on."""


@dataclass(frozen=True)
class Recipe:
    """One bundled model: what it is, how it is made, what is measured of it."""

    about: str
    make: Callable[[RecipeRun], tuple[HookedTransformer, Data]]
    """The model, and its data."""
    train: TrainConfig
    evaluate: Callable[[HookedTransformer, Path | None], pd.DataFrame]
    """Frame task split measure n value."""
    text: str | None = None
    """The text that it needs, where it needs one."""
    fresh: bool = True
    """Training draws the weights anew; else it begins with those of the model that is made."""
    kept: tuple[int, ...] = ()
    """Steps whose weights are bundled, beside the last."""

    def check_text(self, name: str, text: Path | None) -> None:
        """Raises ValueError where a text is missing, or one is given that nobody would read."""
        if self.text and text is None:
            raise ValueError(f"{name} needs a text: --text FILE, {self.text}")
        if text is not None and not self.text:
            raise ValueError(f"--text {text}: {name} reads no text; leave it out")


@dataclass(frozen=True, kw_only=True)
class RecipeRun:
    """Train a bundled model again, in a folder of your own; its other settings are the recipe's.

    The same command goes on where a stopped run was.
    """

    recipe: Literal["modadd", "shakespeare", "tiny-encoder", "tinyworld"]
    """Which one."""
    out: Path
    """Folder of the run."""
    text: Path | None = None
    """The text, for a recipe that needs one."""
    device: str | None = None
    """By default CUDA where there is one."""
    resume_anyway: bool = False
    """Go on with a run that was begun with another code, torch, number of threads, dtype or device;
    it then ends in other numbers than an undisturbed one."""


def _shakespeare(run: RecipeRun) -> tuple[HookedTransformer, Data]:
    return made(shakespeare.run(run.text, run.out))


def _modadd(run: RecipeRun) -> tuple[HookedTransformer, Data]:
    return HookedTransformer(modadd.config(), name="modadd"), modadd.data()


def _tinyworld(run: RecipeRun) -> tuple[HookedTransformer, Data]:
    model = HookedTransformer(tinyworld.config(), tinyworld.tokenizer(), name="tinyworld")
    return model, tinyworld.data()


def _tiny_encoder(run: RecipeRun) -> tuple[HookedTransformer, Data]:
    """It begins as tinyworld: from random weights it knows no more than word classes after 8
    million words (compare BehnamGhader et al. 2024, LLM2Vec)."""
    model = HookedTransformer(
        tinyworld.encoder_config(), tinyworld.tokenizer(), name="tiny-encoder"
    )
    model.load_state_dict(load("tinyworld", "cpu").state_dict())
    return model, tinyworld.encoder_data()


RECIPES = {
    "modadd": Recipe(
        about="addition modulo 113, one layer, trained until it groks",
        make=_modadd,
        train=modadd.training(),
        evaluate=lambda model, _: modadd.evaluate(model),
        kept=(0, 475, 1274, 2087, 3417, 4372, 5595),
    ),
    "shakespeare": Recipe(
        about="characters of Tiny Shakespeare, rotary positions",
        make=_shakespeare,
        train=shakespeare.run(Path(), Path()).train,
        evaluate=shakespeare.evaluate,
        text="Tiny Shakespeare (input.txt of karpathy/char-rnn)",
    ),
    "tiny-encoder": Recipe(
        about="masked language model of a small English whose every word is known",
        make=_tiny_encoder,
        train=tinyworld.encoder_training(),
        fresh=False,
        evaluate=lambda model, _: tinyworld.evaluate(model, seed=SEED),
    ),
    "tinyworld": Recipe(
        about="a small English whose every word is known: facts, names, years, senses, repetition",
        make=_tinyworld,
        train=tinyworld.training(),
        evaluate=lambda model, _: tinyworld.evaluate(model, seed=SEED),
    ),
}
"""By name."""


def train_recipe(run: RecipeRun, *, progress: bool = True) -> HookedTransformer:
    """Train a bundled model again."""
    recipe = RECIPES[run.recipe]
    recipe.check_text(run.recipe, run.text)
    device = as_device(run.device)
    model, data = recipe.make(run)
    model.to(device)
    return train(
        model,
        data,
        run.out,
        recipe.train,
        fresh=recipe.fresh,
        resume_anyway=run.resume_anyway,
        progress=progress,
    )


def command(options: Sequence[str]) -> Path:
    """`interp train --recipe`: parse its options, train; the folder of the run."""
    run = tyro.cli(RecipeRun, args=list(options), prog="interp train")
    train_recipe(run)
    return run.out
