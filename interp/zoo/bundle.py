"""Puts a finished run among the bundled models: `python -m interp.zoo.bundle --name N --run DIR`.

For those who maintain this package. Weights are stored in half precision, and what the card says is
measured of them as they are stored.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro

from interp.core.files.writing import write_file
from interp.loading import load, save
from interp.loading.files import ZOO
from interp.training import TrainingError, state

from .cards import CARD, CHECKPOINTS, CURVE
from .recipes import RECIPES

MAX_BYTES = 8_000_000
STORED = "float16"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Put a finished run among the bundled models, with its card."""

    name: str
    """Which recipe's."""
    run: Path
    """Its folder."""
    commit: str
    """The code that it was trained by."""
    took: str
    """How long it took, on what."""
    text: Path | None = None
    """The text that it was trained on, where its recipe needs one."""


def bundle(wanted: Bundle) -> Path:
    """The folder of the bundled model. Raises TrainingError on a run that is not the recipe's, or
    not finished."""
    recipe, out = RECIPES[wanted.name], ZOO / wanted.name
    recipe.check_text(wanted.name, wanted.text)
    about = state.read_about(wanted.run) or {}
    if about.get("step") != recipe.train.steps:
        raise TrainingError(f"{wanted.run}: step {about.get('step')} of {recipe.train.steps}")
    differences = state.differences(
        {"train": about["run"]["train"]}, {"train": dataclasses.asdict(recipe.train)}
    )
    if differences:
        raise TrainingError(f"{wanted.run} is not the recipe's: {differences}")
    shutil.rmtree(out, ignore_errors=True)
    exact = load(wanted.run, "cpu")
    save(exact, out, STORED)
    for step in recipe.kept:
        kept = load(wanted.run / CHECKPOINTS / f"step-{step:07}", "cpu")
        save(kept, out / CHECKPOINTS / f"step-{step:07}", STORED)
    shutil.copy(wanted.run / "log.csv", out / CURVE)
    measured, before = (recipe.evaluate(model, wanted.text) for model in (load(out, "cpu"), exact))
    changed = float((measured["value"] - before["value"]).abs().max())
    text = f" --text {wanted.text.name}" if wanted.text else ""
    card = {
        "about": recipe.about,
        "made by": f"interp train --recipe {wanted.name}{text} --out {wanted.name}",
        "commit": wanted.commit,
        "seed": str(recipe.train.seed),
        "data": about["run"]["data"],
        **{key: about["run"][key] for key in ("first weights",) if key in about["run"]},
        "took": wanted.took,
        "stored": f"{STORED}; no number below moves by more than {changed:.2g} for it",
        "licence": "MIT",
        "measured": measured.astype({"value": float}).to_numpy().tolist(),
    }
    write_file(out / CARD, (json.dumps(card, indent=1) + "\n").encode())
    size = sum(file.stat().st_size for file in out.rglob("*"))
    if size > MAX_BYTES:
        raise ValueError(f"{out}: {size:,} bytes, at most {MAX_BYTES:,} may be bundled")
    return out


if __name__ == "__main__":
    print(bundle(tyro.cli(Bundle)))
