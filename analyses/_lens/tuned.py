"""The tuned lens of the report on lenses: on which text it is trained, and how well it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analyses._lens.config import Config
from analyses._task import TASKS
from analyses._text import text_windows, tokens_of_rows
from interp import stats
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods.lens import TunedLens, fit_tuned_lens
from interp.report import Report, Section
from interp.report.figures import curves
from interp.report.spine import listed

FITTED = ("layer", "plain", "plain_stderr?", "tuned", "tuned_stderr?", "train_plain", "train_tuned")
TUNED_TABLES = {
    "tuned-lens": FITTED,
    "tuned-lens-figure": ("lens", "layer", "kl", "low", "high"),
}
PROMPTS = 300
"""Other pairs of a task, of which a lens is trained where no text is given."""
LEAST = 8
"""Texts below which no lens is trained."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A tuned lens, and what it was trained on in words."""

    lens: TunedLens
    source: str


def train_lens(
    report: Report, model: Any, pairs: Pairs, layers: list[int], config: Config
) -> Trained | None:
    """Trains a lens on the user's text or other prompts of the task; None where there is none,
    which is said."""
    if not config.tuned:
        report.skip("The tuned lens: tuned is off.")
        return None
    if not layers[:-1]:
        report.skip("The tuned lens: of the layers asked for only the last stream is left.")
        return None
    tokens, source = _text(report, model, pairs, config)
    if len(tokens) < LEAST:
        report.skip(
            f"The tuned lens: {source} are {len(tokens)} different texts, and it takes at least "
            f"{LEAST}; give a text file with --text."
        )
        return None
    lens = fit_tuned_lens(model, tokens, layers=layers[:-1], steps=config.steps, seed=config.seed)
    return Trained(lens, source)


def tuned_section(report: Report, trained: Trained) -> None:
    """What the training came to, on text held out and on text seen."""
    made_of = trained.lens.made_of
    section = report.section(
        "The tuned lens",
        "An affine map of each layer's stream, put before the final norm (Belrose et al. 2023), "
        f"trained on {trained.source}: {made_of['rows']} texts of {made_of['positions']:,} tokens; "
        f"another {made_of['held_out_rows']} of {made_of['held_out_positions']:,} were held out. "
        "Below: how far what is read lies from what the model says in the end, over all positions.",
    )
    _show(section, trained.lens)
    _tell(report, trained.lens, trained.source)


def _text(report: Report, model: Any, pairs: Pairs, config: Config) -> tuple[Tokens, str]:
    """What to train on, and what to call it."""
    if config.text is not None:
        return text_windows(report, model, config), f"the text {config.text.name}"
    mine = list(dict.fromkeys([*_rows(pairs.clean), *_rows(pairs.corrupted)]))
    if config.prompts is None:
        others = TASKS[config.task](model, PROMPTS, config.seed + 1, bos=config.bos)
        found = dict.fromkeys([*_rows(others.clean), *_rows(others.corrupted)])
        rows = [row for row in found if row not in set(mine)]
        if len(rows) >= LEAST:
            report.doubt(
                "The tuned lens was trained on prompts of this very task, of one form: what holds "
                "for it here need not hold on other text. --text trains it on yours."
            )
            return tokens_of_rows(model, rows), f"other prompts of {config.task}"
    report.doubt(
        "The tuned lens is read on the prompts that it was trained on, so that it may know them by "
        "heart; --text trains it on a text of yours."
    )
    return tokens_of_rows(model, mine), "the prompts themselves"


def _rows(tokens: Tokens) -> list[tuple[int, ...]]:
    """The ids of each row, without pads."""
    return [tuple(row[real].tolist()) for row, real in zip(tokens.ids, tokens.real, strict=True)]


def _show(section: Section, lens: TunedLens) -> None:
    drawn = []
    for name in ("plain", "tuned"):
        for row in lens.table.to_dict("records"):
            half = stats.Z * row[f"{name}_stderr"]
            half = 0.0 if half != half else half
            kl = row[name]
            drawn.append({"lens": name, "layer": int(row["layer"]), "kl": kl,
                          "low": max(kl - half, 0.0), "high": kl + half})  # fmt: skip
    first = lens.table.iloc[0]
    figure = curves(
        pd.DataFrame(drawn), x="layer", value="kl", low="low", high="high", group="lens",
        x_axis="layer (what it reads; the last: the output)",
        axis="KL(output ‖ lens), nats (95 %)",
        alt="Divergence of the model's output from what each layer says, on text held out. At "
        f"layer {int(first['layer'])}: plain {first['plain']:.2f}, tuned {first['tuned']:.2f} "
        "nats. At the output both are 0.",
    )  # fmt: skip
    section.figure(figure, "How far each layer is from the output, on text held out",
                   name="tuned-lens-figure")  # fmt: skip
    section.table(
        lens.table, "Divergence from the output, nats per position: held out (with standard error "
        "over texts) and, to show what was learnt by heart, on texts trained on",
        name="tuned-lens", missing=("plain_stderr", "tuned_stderr"),
    )  # fmt: skip


def _tell(report: Report, lens: TunedLens, source: str) -> None:
    own = lens.table[lens.table["layer"] < lens.n_layers]
    better = (own["tuned"] < own["plain"]).to_numpy(bool)
    middle = own.iloc[len(own) // 2]
    report.finding(
        f"On text held out, the tuned lens is nearer to the output than the plain one at "
        f"{int(better.sum())} of {len(own)} layers; before layer {int(middle['layer'])} it is "
        f"{middle['tuned']:.2f} nats away, the plain one {middle['plain']:.2f}."
    )
    report.sure(
        f"The tuned lens was trained on {source}, {lens.made_of['steps']} steps, seed "
        f"{lens.made_of['seed']}. On texts seen its mean divergence over layers is "
        f"{own['train_tuned'].mean():.2f} nats, on texts held out {own['tuned'].mean():.2f}; the "
        f"plain lens, which learns nothing, has {own['train_plain'].mean():.2f} and "
        f"{own['plain'].mean():.2f}."
    )
    if not bool(better.all()):
        worse = own.loc[~better, "layer"].astype(int)
        report.warn(
            "The tuned lens is worse than the plain one on text held out at layer "
            f"{listed(worse)}: it has learnt its texts by heart. Give it more with --text."
        )
