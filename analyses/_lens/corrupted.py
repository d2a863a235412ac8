"""The control of corrupted prompts: what a lens reads whatever the prompt is no answer to it.

A bias that writes one token is read from every layer, on clean and corrupted prompts alike. So a
layer is named only where the same answer and wrong answer, read from both prompts of a pair, differ
beyond the noise.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from interp import stats
from interp.report.spine import number, percent

ON_CORRUPTED = ", corrupted"
"""Behind the name of a lens: the same lens on the corrupted prompts."""
DIFFERENCE, FIRST = "logit difference", "answer is the top token"
AGAINST = ("lens", "layer", "what", "clean", "corrupted", "difference", "low?", "high?", "n")


class Contrast(NamedTuple):
    """What one lens says of clean against corrupted prompts."""

    table: pd.DataFrame
    """The rows of `against` of this lens."""
    layer: int | None
    """The first layer from which to the end the logit difference is larger on clean prompts."""

    def at(self, layer: int, what: str = DIFFERENCE) -> pd.Series:
        """The row of a layer."""
        own = self.table[(self.table["layer"] == layer) & (self.table["what"] == what)]
        return own.iloc[0]

    def sure(self, layer: int, what: str) -> bool:
        """Whether at a layer more is read of clean prompts, beyond the noise."""
        return bool(self.at(layer, what)["low"] > 0)


def against(read: pd.DataFrame) -> pd.DataFrame:
    """`AGAINST`: per lens and layer the logit difference (with the interval of a mean of pairs) and
    the share of prompts with the answer on top (Newcombe 1998), clean less corrupted."""
    rows = []
    paired = [
        name for name in read["lens"].unique() if f"{name}{ON_CORRUPTED}" in set(read["lens"])
    ]
    for lens in paired:
        sides = [_by_layer(read[read["lens"] == name]) for name in (lens, f"{lens}{ON_CORRUPTED}")]
        for layer in sides[0]:
            clean, corrupted = (side[layer] for side in sides)
            gap = stats.mean((clean["logit_diff"] - corrupted["logit_diff"]).to_numpy())
            means = (one["logit_diff"].mean() for one in (clean, corrupted))
            rows.append((lens, layer, DIFFERENCE, *means, gap.value, gap.low, gap.high, len(clean)))
            top = [(one["answer_rank"] == 1).to_numpy() for one in (clean, corrupted)]
            gap = stats.paired_difference_of_shares(*top)
            shares = (float(one.mean()) for one in top)
            rows.append((lens, layer, FIRST, *shares, gap.value, gap.low, gap.high, len(clean)))
    frame = pd.DataFrame(rows, columns=[name.removesuffix("?") for name in AGAINST])
    return frame.astype(dict.fromkeys(AGAINST[3:6], float) | {"low": float, "high": float})


def _by_layer(read: pd.DataFrame) -> dict[int, pd.DataFrame]:
    """The prompts of each layer, in order."""
    return {
        int(cast(int, layer)): own.sort_values("example").reset_index(drop=True)
        for layer, own in read.sort_values("layer").groupby("layer")
    }


def clean_against_corrupted(table: pd.DataFrame, lens: str, noise: float) -> Contrast:
    """What a lens says; differences up to `noise` are rounding."""
    own = table[table["lens"] == lens]
    rows = own[own["what"] == DIFFERENCE].sort_values("layer")
    holds = ((rows["low"] > 0) & (rows["difference"] > noise)).to_numpy()
    fails = np.flatnonzero(~holds)
    layers = rows["layer"].to_numpy()
    if not len(holds) or not holds[-1]:
        return Contrast(own, None)
    return Contrast(own, int(layers[fails[-1] + 1 if len(fails) else 0]))


def in_words(row: pd.Series) -> str:
    """Answer − wrong on both sides, and the difference."""
    low, high = float(row["low"]), float(row["high"])
    bounds = "" if np.isnan(low) else f", 95 % {number(low)} to {number(high)}"
    return (
        f"answer − wrong is {number(row['clean'])} logits on clean and {number(row['corrupted'])} "
        f"on corrupted prompts (difference {number(row['difference'])}{bounds})"
    )


def no_layer(contrast: Contrast, lens: str) -> str:
    """The sentence where no layer can be named."""
    last = int(contrast.table["layer"].max())
    row, top = contrast.at(last), contrast.at(last, FIRST)
    if int(row["n"]) == 1:
        return (
            f"By the {lens}, of one pair nothing is sure: at the output {in_words(row)}. No layer "
            "is named."
        )
    return (
        f"By the {lens}, no layer is named: at the output clean prompts do not differ from "
        f"corrupted ones beyond the noise ({in_words(row)}). The answer is the top token there in "
        f"{percent(top['clean'])} of clean and {percent(top['corrupted'])} of corrupted prompts; "
        "what is read whatever the prompt, such as a bias, is no answer to it."
    )
