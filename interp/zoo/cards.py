"""What is known of each bundled model: how it was made, and what it can do, measured.

`interp models` lists them, `interp models NAME` prints a card, and `--measure` measures it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from interp.core.files import read_csv
from interp.core.files.untrusted import read_json
from interp.loading import bundled, load
from interp.loading.files import ZOO
from interp.loading.info import info

from .recipes import RECIPES

CARD, CURVE, CHECKPOINTS = "card.json", "curve.csv", "checkpoints"
COUNTS = ("step", "tokens_per_second")
"""Columns of the log of a training that are whole numbers."""
FACTS = (
    "made by",
    "commit",
    "seed",
    "first weights",
    "data",
    "took",
    "stored",
    "licence",
    "sha256",
)
"""What a card says, in order, as far as it does."""


@dataclass(frozen=True, eq=False)
class Card:
    """One bundled model. `str()` is the page that `interp models NAME` prints."""

    name: str
    about: str
    facts: dict[str, str]
    """How it was made, or where it comes from."""
    measured: pd.DataFrame
    """task split measure n value: what `measure` found when it was bundled."""
    curve: pd.DataFrame
    """The log of its training: step lr train_loss val_loss tokens_per_second."""

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.about}", ""]
        width = max(map(len, self.facts), default=0)
        lines += [f"  {name:<{width}}  {text}" for name, text in self.facts.items()]
        if len(self.curve):
            rows = self.curve.iloc[_spread(len(self.curve))]
            losses = rows[["step", "train_loss", "val_loss"]]
            lines += ["", "Training", _indented(losses.to_string(index=False))]
        if len(self.measured):
            again = f"interp models {self.name} --measure"
            text = self.measured.to_string(index=False, float_format="{:.4g}".format)
            lines += ["", f"Measured (again by: {again})", _indented(text)]
        return "\n".join(lines)


def card(name: str) -> Card:
    """What is known of a bundled model. Raises ValueError on any other name."""
    if name not in bundled():
        raise ValueError(f"model {name!r}: there is no card; bundled are {', '.join(bundled())}")
    values = read_json(ZOO / name / CARD)
    curve = ZOO / name / CURVE
    return Card(
        name=name,
        about=values["about"],
        facts={fact: values[fact] for fact in FACTS if fact in values},
        measured=pd.DataFrame(
            values.get("measured", []), columns=["task", "split", "measure", "n", "value"]
        ),
        curve=_curve(curve) if curve.is_file() else pd.DataFrame(),
    )


def cards() -> pd.DataFrame:
    """The bundled models: name params layers d_model about."""
    rows: list[dict[str, Any]] = []
    for name in bundled():
        found = info(name)
        rows.append(
            {
                "name": name,
                "params": found.n_params,
                "layers": found.cfg.n_layers,
                "heads": found.cfg.n_heads,
                "d_model": found.cfg.d_model,
                "about": card(name).about,
            }
        )
    return pd.DataFrame(rows)


def measure(name: str, text: Path | None = None) -> pd.DataFrame:
    """The numbers of a card, measured again: task split measure n value card.

    `text`: what the model was trained on, for those that the card says need it.
    """
    recipe = RECIPES.get(name)
    if recipe is None:
        raise ValueError(f"model {name!r}: no numbers to measure; {', '.join(RECIPES)} have some")
    recipe.check_text(name, text)
    told = card(name).measured.rename(columns={"value": "card"})
    found = recipe.evaluate(load(name), text)
    return found.merge(told, on=["task", "split", "measure", "n"], how="left")


def checkpoints(name: str) -> dict[int, Path]:
    """By step, the folders of weights kept from a bundled model's training; `load` opens them."""
    card(name)
    folders = sorted((ZOO / name / CHECKPOINTS).glob("step-*"))
    return {int(folder.name.removeprefix("step-")): folder for folder in folders}


def _curve(path: Path) -> pd.DataFrame:
    """The log of a training, as the columns of `Card.curve` say."""
    return pd.DataFrame(
        [
            {
                name: row.whole_number(name) if name in COUNTS else row.number(name)
                for name in row.cells
            }
            for row in read_csv(path)
        ]
    )


def _spread(n: int, shown: int = 8) -> list[int]:
    """Some of n rows, first and last among them."""
    return sorted({round(i * (n - 1) / (shown - 1)) for i in range(shown)}) if n else []


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
