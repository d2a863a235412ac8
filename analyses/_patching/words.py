"""What activation patching tells its report: sentences, tables and figures from the effects."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses._task import position_names
from interp.methods.patching import HOLES, WAYS, Effects, Study
from interp.report import Report, figures
from interp.report.spine import listed, no_effect, number

OUTPUT_NAMES = {"attn_out": "attention", "mlp_out": "MLP"}
SHOWN = 20
"""Rows of a table that may be long; the CSV holds all."""


def strongest_first(table: pd.DataFrame) -> pd.DataFrame:
    """The largest effects first, either way."""
    size = np.maximum(table["denoise"].abs(), table["noise"].abs())
    order = size.sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index(drop=True)


class Dress:
    """Writes what was measured into a report; one method per part. `_patching_heads` goes on."""

    def __init__(self, report: Report, study: Study, seed: int) -> None:
        self.report, self.study, self.seed = report, study, seed
        self.names = position_names(study.pairs)
        self.told = study.baseline.able and study.baseline.normal
        """Whether findings can be stated: the model does the task, and the corruption shows."""
        self.axis = "share of the gap" if study.baseline.normal else "logits"
        self.limit: float | None = None
        """The value of the last shade of all maps."""
        self.band = self.level = study.baseline.noise
        """What the control shows by itself, in logits (`level`), and as maps draw it (`band`)."""
        self.points: list[pd.DataFrame] = []
        """Of every part, its nodes by both ways: the scatter."""
        self.agreed: list[str] = []
        if not self.told:
            why = (
                "corrupting the prompts does not change the answer"
                if study.baseline.able
                else "the model does not do this task better than chance"
            )
            report.finding(f"No position, layer, head or path is named, because {why}.")

    def set_scale(
        self, drawn: Sequence[Effects], paths: pd.DataFrame | None, level: float | None
    ) -> None:
        """One scale for the maps of all these effects, on which what unrelated words show
        (`level`, in logits) is grey."""
        tables = [self.study.table(one) for one in drawn] + ([] if paths is None else [paths])
        largest = [float(self.drawn(table, way).abs().max()) for table in tables for way in WAYS]
        self.limit = max(largest, default=0.0) or None
        self.level = max(level or 0.0, self.study.baseline.noise)
        normal, gap = self.study.baseline.normal, abs(float(self.study.baseline.gap.mean()))
        self.band = self.level / gap if normal else self.level

    @property
    def shading(self) -> dict[str, float | None]:
        """What all maps have in common."""
        return {"limit": self.limit, "noise": self.band}

    # What the numbers are called ------------------------------------------------------------

    def drawn(self, table: pd.DataFrame, way: str) -> pd.Series:
        """What figures show: the share restored or lost; without a gap the same in logits."""
        if self.study.baseline.normal:
            return table[f"{way}_share"]
        return table[way] if way == "denoise" else -table[way]

    def amount(self, row: Any, way: str = "denoise") -> str:
        """A share and its interval."""
        low, high = row[f"{way}_low"], row[f"{way}_high"]
        told = number(row[f"{way}_share"], "z.0%")
        return told if low != low else f"{told}, {number(low, 'z.0%')} to {number(high, 'z.0%')}"

    def agree(self, name: str, table: pd.DataFrame, what: str) -> str | None:
        """Keeps the nodes for the scatter, and says how alike both ways rank them."""
        table = self.real(table)
        one, two = (self.drawn(table, way) for way in WAYS)
        self.points.append(pd.DataFrame({"nodes": name, "denoise": one, "noise": two}))
        if len(table) < 3 or one.nunique() < 2 or two.nunique() < 2:
            return None
        rho = float(np.corrcoef(one.rank(), two.rank())[0, 1])
        return f"{rho:.2f} over {len(table)} {what}"

    def real(self, table: pd.DataFrame) -> pd.DataFrame:
        """Without nodes of which both effects are rounding."""
        return table[table[list(WAYS)].abs().max(axis=1) > self.study.baseline.noise]

    def nothing(self, table: pd.DataFrame, what: str) -> bool:
        """Says so where all effects are rounding."""
        silent = self.told and self.real(table).empty
        if silent:
            self.report.finding(f"{what}: {no_effect(self.study.baseline.noise)}.")
        return silent

    # Positions and layers -------------------------------------------------------------------

    def stream(self, effects: Effects) -> None:
        table = self.placed(effects).drop(columns="site")
        section = self.report.section(
            "The residual stream",
            "What each layer reads at each position, from the other run. Denoise: the clean value "
            "in the corrupted run, and the share of the gap that it restores. Noise: the corrupted "
            "value in the clean run, and the share that is lost.",
        )
        section.figure(
            self._map(table, "residual stream"), "Residual stream", name="residual-stream-map"
        )
        section.table(
            strongest_first(table), "Residual stream, the strongest first", name="residual-stream",
            missing=HOLES, rows=SHOWN,
        )  # fmt: skip
        told = self.agree("residual stream", table, "cells of the residual stream")
        self.agreed += [told] if told else []
        if not self.told or self.nothing(table, "The residual stream"):
            return
        best = table.loc[table.groupby("layer")["denoise_share"].idxmax()]
        runs = []
        for place, rows in itertools.groupby(best.to_dict("records"), key=lambda r: r["position"]):
            some = list(rows)
            first, last = some[0]["layer"], some[-1]["layer"]
            layers = f"layer {first}" if first == last else f"layers {first} to {last}"
            top = max(some, key=lambda r: r["denoise_share"])
            runs.append(f"at “{place}” before {layers} ({self.amount(top)})")
        self.report.finding(
            f"In the residual stream a single clean position restores most {listed(runs)}."
        )

    def outputs(self, effects: Effects) -> None:
        table = self.placed(effects)
        section = self.report.section(
            "What attention and MLPs write",
            "The output of each layer's attention and MLP at each position, patched alone.",
        )
        for site, rows in table.groupby("site", sort=False):
            name = OUTPUT_NAMES[str(site)]
            section.figure(
                self._map(rows, f"{name} output"), f"Output of {name}",
                name=f"{name.lower()}-output-map",
            )  # fmt: skip
            self.agree(f"{name} output", rows, "cells")
        section.table(
            strongest_first(table), "Sublayer outputs, the strongest first",
            name="sublayer-outputs",
            missing=HOLES, rows=SHOWN,
        )  # fmt: skip
        if self.told and not self.nothing(table, "Sublayer outputs"):
            real = self.real(table)
            best = real.loc[real["denoise"].abs().sort_values(ascending=False).index[:3]]
            cells = [
                f"{OUTPUT_NAMES[row['site']]} of layer {row['layer']} at “{row['position']}” "
                f"({self.amount(row)}; noised it loses {number(row['noise_share'], 'z.0%')})"
                for _, row in best.iterrows()
            ]
            self.report.finding(f"Of single sublayer outputs most is restored by {listed(cells)}.")

    def placed(self, effects: Effects) -> pd.DataFrame:
        table = self.study.table(effects)
        at = table.columns.get_loc("pos") + 1
        table.insert(at, "position", [self.names[pos] for pos in table["pos"]])
        return table

    def _map(self, table: pd.DataFrame, what: str) -> figures.Figure:
        both = self.both(table, ["layer", "pos"])
        return figures.heatmap(
            both, rows="layer", columns="pos", value="share", names={"pos": self.names},
            titles={"layer": "way and layer", "pos": "position"}, axis=f"{what}: {self.axis}",
            **self.shading,
            alt=f"{what}, layer by position: what is restored by denoising, above, and lost by "
            "noising, below.",
        )  # fmt: skip

    def both(self, table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
        """Both ways below one another, the way in front of the layer."""
        parts = [
            table[keys].assign(
                layer=[f"{way} L{layer}" for layer in table["layer"]], share=self.drawn(table, way)
            )
            for way in WAYS
        ]
        return pd.concat(parts, ignore_index=True)

    # Neurons --------------------------------------------------------------------------------

    def neurons(self, effects: Effects) -> None:
        table = self.study.table(effects).drop(columns="site")
        table = strongest_first(table)
        layers = sorted(int(layer) for layer in table["layer"].unique())
        section = self.report.section(
            "Neurons", f"Each neuron of layer {listed(layers)} alone, at all positions."
        )
        best = table.head(10)
        if len(self.study.pairs) > 1 and self.study.baseline.normal:
            section.figure(self._bars(best), "The strongest neurons", name="neurons-strongest")
        section.table(
            table, "Neurons, the strongest first", name="neurons", missing=HOLES, rows=SHOWN
        )
        if not self.told or self.nothing(table, "Single neurons"):
            return
        absolute = table["denoise"].abs().sort_values(ascending=False).cumsum()
        half = 1 + int((absolute < absolute.iloc[-1] / 2).sum())
        row = best.iloc[0]
        self.report.finding(
            f"Of {len(table)} neurons in layer {listed(layers)} the strongest, "
            f"L{row['layer']:.0f} N{row['neuron']:.0f}, restores {self.amount(row)}; {half} "
            "neurons make half of the summed absolute effects."
        )

    def _bars(self, best: pd.DataFrame) -> figures.Figure:
        label = [f"L{row.layer} N{row.neuron}" for row in best.itertuples()]
        parts = [
            pd.DataFrame({
                "neuron": label, "way": way,
                **{what: best[f"{way}_{what}"] for what in ("share", "low", "high")},
            })
            for way in WAYS
        ]  # fmt: skip
        return figures.bars(
            pd.concat(parts, ignore_index=True), label="neuron", value="share", low="low",
            high="high", group="way", axis="share of the gap restored or lost (95 % interval)",
            alt="The strongest neurons: what denoising restores and noising loses.",
        )  # fmt: skip

    # Controls -------------------------------------------------------------------------------

    def control(self, chance: pd.DataFrame, itself: pd.DataFrame) -> None:
        level, largest = float(chance["effect"].abs().max()), float(itself["effect"].abs().max())
        gap = abs(float(self.study.baseline.gap.mean()))
        section = self.report.section(
            "Controls",
            "The same denoising, measured on two words that have nothing to do with the pair, says "
            "how large effects become by themselves. A run patched into itself must not change.",
        )
        holes = ("pos", "head", "stderr")
        order = chance["effect"].abs().sort_values(ascending=False, kind="stable").index
        chance = chance.loc[order]
        section.table(
            chance,
            "Unrelated words, the strongest first",
            name="control",
            missing=holes,
            rows=SHOWN,
        )
        section.table(itself, "A run patched into itself", name="itself", missing=holes[:2])
        part = f" ({level / gap:.1%} of the gap)" if self.study.baseline.normal else ""
        self.report.sure(
            f"Control: on words that have nothing to do with the pair (seed "
            f"{self.seed}) no mean effect of the {len(chance)} nodes patched is "
            f"larger than {level:.2f} logits{part}; a run patched into itself changes by at most "
            f"{largest:.1g} logits. All maps share one scale, on which effects no larger than on "
            "unrelated words are grey."
        )
        if largest > 1e-4:
            self.report.warn(
                f"A run patched into itself changes by {largest:.2g} logits: this model does not "
                "compute the same twice, and the effects are wrong by as much."
            )

    def doubts(self) -> None:
        n = len(self.study.pairs)
        if n > 1:
            self.report.sure(
                f"Intervals are 95 % over {n} pairs; shares are ratios of means (effect ÷ gap, by "
                "the delta method), since single prompts with a small gap would drown a mean of "
                "ratios."
            )
        for text in DOUBTS:
            self.report.doubt(text)
        if self.study.pairs.clean.mask is not None:
            self.report.doubt(
                "The prompts differ in length: one position number is not one place in the "
                "sentence, and heatmaps by position mix them."
            )


DOUBTS = (
    "A patch says what differs between the two prompts and where it matters, not what is the same "
    "in both: a head that both prompts need alike shows nothing.",
    "Noising alone misses parts that stand in for each other, and denoising alone misses parts "
    "that are needed together; where the two differ, read both.",
    "A patched run is in a state that no prompt brings about; what comes of it may be a habit of "
    "that state. Another corruption may name other heads.",
    "Single shares need not add up: what passes two heads in series is counted at both.",
)
