"""What activation patching tells of heads: which, by what input, where, by which paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analyses._patching.words import SHOWN, Dress, strongest_first
from interp.methods.patching import HOLES, OF_HEADS, WAYS, Effects
from interp.methods.paths import Head
from interp.report import figures
from interp.report.spine import head_name, listed, number, plus_minus


class HeadDress(Dress):
    """`Dress`, and heads."""

    def heads(
        self, effects: Effects, named: list[Head], strongest: pd.DataFrame,
        least: float, level: float | None,
    ) -> None:  # fmt: skip
        table = self.study.table(effects)
        z = table[table["site"] == "z"]
        section = self.report.section(
            "Heads",
            "Each head alone, at all positions: its queries, keys, values, pattern or output z. "
            "q and k change where it looks, v what it moves; keys and values that several heads "
            "share count for all of them.",
        )
        section.figure(
            figures.heatmap(
                self.both(z, ["layer", "head"]), rows="layer", columns="head", value="share",
                titles={"layer": "way and layer"}, axis=f"z: {self.axis}",
                **self.shading,
                alt="Heads by layer: what z restores by denoising, above, and loses by noising.",
            ),
            "Output z of each head", name="heads-map",
        )  # fmt: skip
        inputs = self._inputs(table, strongest)
        section.figure(
            figures.heatmap(
                inputs, rows="head", columns="part", value="share",
                axis=f"denoised: {self.axis}", titles={"part": "what is patched"},
                **self.shading,
                alt="The strongest heads by what of them is patched: q, k, v, pattern, z.",
            ),
            "What of the strongest heads carries it", name="heads-by-input",
        )  # fmt: skip
        section.table(
            strongest_first(table),
            "Heads by what of them is patched, the strongest first",
            name="heads",
            missing=HOLES,
            rows=SHOWN,
        )
        agree = self.agree("heads (z)", z, "heads")
        self._scatter(section)
        self._examples(section, effects, strongest)
        if self.nothing(z, "Single heads"):
            return
        if self.told:
            self._head_findings(z, inputs, named, least, level)
            self._agreement(agree, z, named, least)
        self._spread(z, strongest)

    def _inputs(self, table: pd.DataFrame, strongest: pd.DataFrame) -> pd.DataFrame:
        share = self.drawn(table, "denoise").set_axis(
            pd.MultiIndex.from_frame(table[["site", "layer", "head"]])
        )
        rows = []
        for layer, head in strongest.itertuples(index=False):
            for part in OF_HEADS:
                own = self.study.group(head) if part in ("k", "v") else head
                rows.append((head_name(layer, head), part, share[part, layer, own]))
        return pd.DataFrame(rows, columns=["head", "part", "share"])

    def _head_findings(
        self, z: pd.DataFrame, inputs: pd.DataFrame, named: list[Head], least: float,
        level: float | None,
    ) -> None:  # fmt: skip
        past = (
            "" if level is None else f" and more than {level:.2f} logits, what unrelated words show"
        )
        if not named:
            self.report.finding(
                f"No single head restores or loses {least:.0%} of the gap or more{past}."
            )
            return
        rows = z.set_index(["layer", "head"])
        told = [
            f"{head_name(*one)} (restores {self.amount(rows.loc[one])}; noised it loses "
            f"{number(rows.loc[one, 'noise_share'], 'z.0%')})"
            for one in named
        ]
        self.report.finding(
            f"Of {len(z)} heads {len(named)} restore{'s' if len(named) == 1 else ''} or "
            f"lose{'s' if len(named) == 1 else ''} at least {least:.0%} of the gap{past}: "
            f"{listed(told)}."
        )
        share = inputs.set_index(["head", "part"])["share"]
        carried = []
        for one in named[:3]:
            name = head_name(*one)
            if name in share.index.get_level_values(0):
                own = share[name]
                best = own[["q", "k", "v"]].abs().idxmax()
                parts = ", ".join(f"{part} {number(own[part], 'z.0%')}" for part in OF_HEADS[:4])
                carried.append(f"{name} most by {best} ({parts})")
        self.report.finding(f"What reaches them, by input: {listed(carried)}.")

    def _agreement(
        self, agree: str | None, z: pd.DataFrame, named: list[Head], least: float
    ) -> None:
        told = [*([agree] if agree else []), *self.agreed]
        if not told:
            return
        rows = z.set_index(["layer", "head"])
        apart = [
            f"{head_name(*one)} ({number(rows.loc[one, 'denoise_share'], 'z.0%')} restored, "
            f"{number(rows.loc[one, 'noise_share'], 'z.0%')} lost)"
            for one in named
            if abs(rows.loc[one, "denoise_share"] - rows.loc[one, "noise_share"]) > max(
                least, 0.5 * rows.loc[one, ["denoise_share", "noise_share"]].abs().max()
            )
        ]  # fmt: skip
        self.report.finding(
            f"Noising and denoising agree by rank correlation {listed(told)}; "
            + (f"they disagree on {listed(apart)}." if apart else "they disagree on no named head.")
        )

    def _scatter(self, section: Any) -> None:
        points = pd.concat(self.points, ignore_index=True)
        if points.empty:
            return
        section.figure(
            figures.scatter(
                points, x="noise", y="denoise", group="nodes",
                x_axis=f"lost by noising ({self.axis})",
                y_axis=f"restored by denoising ({self.axis})",
                alt="Every node once: what noising it loses against what denoising it restores.",
            ),
            "Noising against denoising", name="ways",
        )  # fmt: skip

    def _examples(self, section: Any, effects: Effects, strongest: pd.DataFrame) -> None:
        own = effects.of((effects.nodes["site"] == "z").to_numpy())
        keys = pd.MultiIndex.from_frame(own.nodes[["layer", "head"]])
        at = keys.get_indexer(pd.MultiIndex.from_frame(strongest))
        n = len(self.study.pairs)
        frame = strongest.loc[strongest.index.repeat(n)].reset_index(drop=True)
        frame["example"] = np.tile(np.arange(n), len(strongest))
        for way in WAYS:
            frame[way] = own.ways[way][at].ravel()
        section.table(
            frame, "Effects of the strongest heads on every prompt, in logits", name="examples",
            rows=min(n, SHOWN),
        )  # fmt: skip

    def _spread(self, z: pd.DataFrame, strongest: pd.DataFrame) -> None:
        if len(self.study.pairs) == 1:
            return
        rows = z.set_index(["layer", "head"])
        told = [
            f"{head_name(*one)} {plus_minus(rows.loc[one, 'denoise'], rows.loc[one, 'denoise_sd'])}"
            for one in strongest.head(3).itertuples(index=False, name=None)
        ]
        self.report.sure(
            "Prompts differ: the effect of denoising z is, in logits (mean ± standard deviation "
            f"over prompts), {listed(told)}."
        )

    def positions(self, effects: Effects, named: list[Head]) -> None:
        table = self.placed(effects).drop(columns="site")
        label = [head_name(row.layer, row.head) for row in table.itertuples()]
        drawn = pd.DataFrame(
            {"head": label, "pos": table["pos"], "share": self.drawn(table, "denoise")}
        )
        section = self.report.section(
            "The strongest heads by position", "z of one head at one position, patched alone."
        )
        section.figure(
            figures.heatmap(
                drawn, rows="head", columns="pos", value="share", names={"pos": self.names},
                titles={"pos": "position"}, axis=f"denoised z: {self.axis}",
                **self.shading,
                alt="The strongest heads by position: what denoising z restores.",
            ),
            "Heads by position", name="head-positions-map",
        )  # fmt: skip
        section.table(
            strongest_first(table), "Heads by position, the strongest first", name="head-positions",
            missing=HOLES, rows=SHOWN,
        )  # fmt: skip
        rows = table.set_index(["layer", "head"])
        told = []
        for one in [one for one in named if one in rows.index][:3]:
            own = rows.loc[[one]].reset_index()
            row = own.loc[own["denoise"].abs().idxmax()]
            told.append(f"{head_name(*one)} at “{row['position']}” ({self.amount(row)})")
        if told:
            self.report.finding(f"By position z restores most: {listed(told)}.")

    def together(self, table: pd.DataFrame) -> None:
        names = list(table["nodes"])
        section = self.report.section(
            "Patched together",
            "Heads and MLPs act through each other, so that their single shares need not add up; "
            "here they are patched at once.",
        )
        section.table(table, "Nodes patched together", name="together", missing=HOLES)
        if not self.told:
            return
        rows = table.set_index("nodes")
        others = [
            f"{name} restore {self.amount(rows.loc[name])}"
            for name in names if name != "named heads"
        ]  # fmt: skip
        if "named heads" in names:
            one = rows.loc["named heads"]
            left, count = 1 - one["denoise_share"], int(one["count"])
            self.report.finding(
                f"The named heads ({count}) patched together restore {self.amount(one)} of "
                f"the gap and lose {number(one['noise_share'], 'z.0%')} when noised; "
                + (f"{left:.0%} remains unexplained by them" if left > 0
                   else f"that is {-left:.0%} too much, which other parts hold back")
                + f". For comparison: {listed(others)}."
            )  # fmt: skip
        else:
            self.report.finding(f"Patched together, {listed(others)} of the gap.")

    def paths(self, frame: pd.DataFrame | None, least: float) -> None:
        if frame is None:
            return
        section = self.report.section(
            "Paths",
            "A head's z from the other run, with all other heads held as they are and MLPs and "
            "norms recomputed: what then reaches the logits, or q, k or v of one later head, is "
            "put in, and the rest follows. “held” is denoising with the norms on the way dividing "
            "by what they do in the unpatched run.",
        )
        direct = frame[frame["to"] == "logits"]
        drawn = pd.DataFrame({
            "layer": direct["from_layer"], "head": direct["from_head"],
            "share": self.drawn(direct, "denoise"),
        })  # fmt: skip
        section.figure(
            figures.heatmap(
                drawn, rows="layer", columns="head", value="share",
                axis=f"denoised, to the logits: {self.axis}",
                **self.shading,
                alt="Heads by layer: what reaches the logits without any other head.",
            ),
            "From heads to the logits", name="paths-to-logits",
        )  # fmt: skip
        between = frame[frame["to"] != "logits"]
        if len(between):
            section.figure(self._between(between), "From head to head", name="paths-to-heads")
        section.table(
            frame, "Paths", name="paths", rows=SHOWN,
            missing=("to_layer", "to_head", "held", "held_share", *HOLES),
        )  # fmt: skip
        if self.told:
            self.report.finding(self._path_words(direct, between, least))

    def _between(self, between: pd.DataFrame) -> figures.Figure:
        drawn = pd.DataFrame({
            "sender": [head_name(r.from_layer, r.from_head) for r in between.itertuples()],
            "receiver": [
                f"{self._receiver(r.to, r.to_layer, r.to_head)} {r.to}"
                for r in between.itertuples()
            ],
            "share": self.drawn(between, "denoise"),
        })  # fmt: skip
        return figures.heatmap(
            drawn, rows="receiver", columns="sender", value="share",
            names=None, axis=f"denoised, by one input: {self.axis}",
            **self.shading,
            alt="Receiving heads and their inputs by senders: what passes by this path alone.",
        )  # fmt: skip

    def _receiver(self, kind: str, layer: object, head: object) -> str:
        """Keys and values that several heads share are named as such."""
        cfg = self.study.model.cfg
        shared = kind in ("k", "v") and cfg.n_kv_heads != cfg.n_heads
        return f"L{layer} KV{head}" if shared else head_name(layer, head)

    def _path_words(self, direct: pd.DataFrame, between: pd.DataFrame, least: float) -> str:
        speak = [
            f"{head_name(row['from_layer'], row['from_head'])} ({self.amount(row)}"
            + (
                f"; {number(row['held_share'], 'z.0%')} with norms held)"
                if row["held"] == row["held"]
                else ")"
            )
            for row in self._sure(direct, least).to_dict("records")
        ]
        read = [
            f"{self._receiver(row['to'], row['to_layer'], row['to_head'])} reads "
            f"{head_name(row['from_layer'], row['from_head'])} by {row['to']} ({self.amount(row)})"
            for row in self._sure(between, least).to_dict("records")
        ]
        return (
            f"Paths of at least {least:.0%} of the gap. To the logits without any other head: "
            f"{listed(speak)}. From one of the strongest heads to another: {listed(read)}."
        )

    def _sure(self, table: pd.DataFrame, least: float) -> pd.DataFrame:
        share, low, high = (table[f"denoise_{what}"] for what in ("share", "low", "high"))
        own = table[(share.abs() >= least) & ~((low <= 0) & (high >= 0))]
        own = own[own["denoise"].abs() > self.level]
        return own.loc[own["denoise"].abs().sort_values(ascending=False, kind="stable").index]
