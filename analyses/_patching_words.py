"""What activation patching tells its report: sentences, tables and figures from the effects."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from analyses._patching_effects import EFFECTS, HOLES, WAYS, Effects, Study
from analyses._phrases import head_name, listed, plus_minus
from analyses._task import position_names
from interp.report import Report, figures

OUTPUT_NAMES = {"attn_out": "attention", "mlp_out": "MLP"}
INPUTS = ("q", "k", "v", "pattern", "z")
SHOWN = 20
"""Rows of a table that may be long; the CSV holds all."""
Head = tuple[int, int]


def strongest_heads(heads: Effects, top: int) -> pd.DataFrame:
    """The heads whose z has the largest mean effect, either way: layer head."""
    own = heads.of((heads.nodes["site"] == "z").to_numpy())
    size = np.max([np.abs(one.mean(1)) for one in own.ways.values()], axis=0)
    order = np.argsort(-size, kind="stable")[:top]
    return own.nodes.iloc[order][["layer", "head"]].reset_index(drop=True)


def named_heads(study: Study, heads: Effects, least: float, level: float | None) -> list[Head]:
    """Heads whose z restores, or loses, at least so large a share, away from zero and past what
    unrelated words show; the strongest first. None where the model does not do the task."""
    if not (study.found.able and study.found.normal):
        return []
    table = study.table(heads).query("site == 'z'")
    size = np.zeros(len(table))
    for way in WAYS:
        share, low, high = (table[f"{way}_{what}"] for what in ("share", "low", "high"))
        sure = (share.abs() >= least) & ~((low <= 0) & (high >= 0))
        sure &= table[way].abs() > (level or 0.0)
        size = np.maximum(size, np.where(sure, share.abs(), 0))
    order = [i for i in np.argsort(-size, kind="stable") if size[i] > 0]
    return [(int(table["layer"].iloc[i]), int(table["head"].iloc[i])) for i in order]


class Dress:
    """Writes what was measured into a report; one method per part."""

    def __init__(self, report: Report, study: Study) -> None:
        self.report, self.study = report, study
        self.names = position_names(study.pairs)
        self.told = study.found.able and study.found.normal
        """Whether findings can be stated: the model does the task, and the corruption shows."""
        self.axis = "share of the gap" if study.found.normal else "logits"
        self.points: list[pd.DataFrame] = []
        if not self.told:
            why = (
                "corrupting the prompts does not change the answer"
                if study.found.able
                else "the model does not do this task better than chance"
            )
            report.finding(f"No position, layer, head or path is named, because {why}.")

    # What the numbers are called ------------------------------------------------------------

    def drawn(self, table: pd.DataFrame, way: str) -> pd.Series:
        """What figures show: the share restored or lost; without a gap the same in logits."""
        if self.study.found.normal:
            return table[f"{way}_share"]
        return table[way] if way == "denoise" else -table[way]

    def amount(self, row: Any, way: str = "denoise") -> str:
        """A share and its interval."""
        low, high = row[f"{way}_low"], row[f"{way}_high"]
        told = f"{row[f'{way}_share']:.0%}"
        return told if low != low else f"{told}, {low:.0%} to {high:.0%}"

    def _agree(self, name: str, table: pd.DataFrame) -> str | None:
        table = table[(table["denoise"] != 0) | (table["noise"] != 0)]  # else nothing differs there
        one, two = (self.drawn(table, way) for way in WAYS)
        self.points.append(pd.DataFrame({"nodes": name, "denoise": one, "noise": two}))
        if len(table) < 3 or one.nunique() < 2 or two.nunique() < 2:
            return None
        rho = float(np.corrcoef(one.rank(), two.rank())[0, 1])
        return f"{rho:.2f} over {len(table)} {name}"

    # Positions and layers -------------------------------------------------------------------

    def stream(self, effects: Effects) -> None:
        table = self._placed(effects).drop(columns="site")
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
            table, "Residual stream by layer and position", name="residual-stream",
            missing=HOLES, rows=SHOWN,
        )  # fmt: skip
        self.stream_agrees = self._agree("cells of the residual stream", table)
        if not self.told:
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
        table = self._placed(effects)
        section = self.report.section(
            "What attention and MLPs write",
            "The output of each layer's attention and MLP at each position, patched alone.",
        )
        agree = []
        for site, rows in table.groupby("site", sort=False):
            name = OUTPUT_NAMES[str(site)]
            section.figure(
                self._map(rows, f"{name} output"), f"Output of {name}",
                name=f"{name.lower()}-output-map",
            )  # fmt: skip
            agree.append(self._agree(f"cells of {name} outputs", rows))
        section.table(
            table, "Sublayer outputs by layer and position", name="sublayer-outputs",
            missing=HOLES, rows=SHOWN,
        )  # fmt: skip
        if self.told:
            best = table.loc[table["denoise"].abs().sort_values(ascending=False).index[:3]]
            cells = [
                f"{OUTPUT_NAMES[row['site']]} of layer {row['layer']} at “{row['position']}” "
                f"({self.amount(row)}; noised it loses {row['noise_share']:.0%})"
                for _, row in best.iterrows()
            ]
            self.report.finding(f"Of single sublayer outputs most is restored by {listed(cells)}.")

    def _placed(self, effects: Effects) -> pd.DataFrame:
        table = self.study.table(effects)
        at = table.columns.get_loc("pos") + 1
        table.insert(at, "position", [self.names[pos] for pos in table["pos"]])
        return table

    def _map(self, table: pd.DataFrame, what: str) -> figures.Figure:
        both = self._both(table, ["layer", "pos"])
        return figures.heatmap(
            both, rows="layer", columns="pos", value="share", names={"pos": self.names},
            titles={"layer": "way and layer", "pos": "position"}, axis=f"{what}: {self.axis}",
            alt=f"{what}, layer by position: what is restored by denoising, above, and lost by "
            "noising, below.",
        )  # fmt: skip

    def _both(self, table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
        """Both ways below one another, the way in front of the layer."""
        parts = [
            table[keys].assign(
                layer=[f"{way} L{layer}" for layer in table["layer"]], share=self.drawn(table, way)
            )
            for way in WAYS
        ]
        return pd.concat(parts, ignore_index=True)

    # Heads ----------------------------------------------------------------------------------

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
                self._both(z, ["layer", "head"]), rows="layer", columns="head", value="share",
                titles={"layer": "way and layer"}, axis=f"z: {self.axis}",
                alt="Heads by layer: what z restores by denoising, above, and loses by noising.",
            ),
            "Output z of each head", name="heads-map",
        )  # fmt: skip
        inputs = self._inputs(table, strongest)
        section.figure(
            figures.heatmap(
                inputs, rows="head", columns="part", value="share",
                axis=f"denoised: {self.axis}", titles={"part": "what is patched"},
                alt="The strongest heads by what of them is patched: q, k, v, pattern, z.",
            ),
            "What of the strongest heads carries it", name="heads-by-input",
        )  # fmt: skip
        section.table(
            table, "Heads by what of them is patched", name="heads", missing=HOLES, rows=SHOWN
        )
        agree = self._agree("heads (z)", z)
        self._scatter(section)
        self._examples(section, effects, strongest)
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
            for part in INPUTS:
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
            f"{rows.loc[one, 'noise_share']:.0%})"
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
                parts = ", ".join(f"{part} {own[part]:.0%}" for part in INPUTS[:4])
                carried.append(f"{name} most by {best} ({parts})")
        self.report.finding(f"What reaches them, by input: {listed(carried)}.")

    def _agreement(
        self, agree: str | None, z: pd.DataFrame, named: list[Head], least: float
    ) -> None:
        told = [one for one in (agree, getattr(self, "stream_agrees", None)) if one]
        if not told:
            return
        rows = z.set_index(["layer", "head"])
        apart = [
            f"{head_name(*one)} ({rows.loc[one, 'denoise_share']:.0%} restored, "
            f"{rows.loc[one, 'noise_share']:.0%} lost)"
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
        section.figure(
            figures.scatter(
                pd.concat(self.points, ignore_index=True), x="noise", y="denoise", group="nodes",
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
        table = self._placed(effects).drop(columns="site")
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
                alt="The strongest heads by position: what denoising z restores.",
            ),
            "Heads by position", name="head-positions-map",
        )  # fmt: skip
        section.table(table, "Heads by position", name="head-positions", missing=HOLES, rows=SHOWN)
        rows = table.set_index(["layer", "head"])
        told = []
        for one in [one for one in named if one in rows.index][:3]:
            own = rows.loc[[one]].reset_index()
            row = own.loc[own["denoise"].abs().idxmax()]
            told.append(f"{head_name(*one)} at “{row['position']}” ({self.amount(row)})")
        if told:
            self.report.finding(f"By position z restores most: {listed(told)}.")

    def together(self, effects: Effects, told: list[tuple[str, int]]) -> None:
        names, counts = zip(*told, strict=True)
        table = self.study.table(effects)[[name.rstrip("?") for name in EFFECTS]]
        table.insert(0, "nodes", names)
        table.insert(1, "count", counts)
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
                f"the gap and lose {one['noise_share']:.0%} when noised; "
                + (f"{left:.0%} remains unexplained by them" if left > 0
                   else f"that is {-left:.0%} too much, which other parts hold back")
                + f". For comparison: {listed(others)}."
            )  # fmt: skip
        else:
            self.report.finding(f"Patched together, {listed(others)} of the gap.")

    # Neurons --------------------------------------------------------------------------------

    def neurons(self, effects: Effects) -> None:
        table = self.study.table(effects).drop(columns="site")
        size = np.maximum(table["denoise"].abs(), table["noise"].abs())
        table = table.loc[size.sort_values(ascending=False, kind="stable").index]
        table = table.reset_index(drop=True)
        layers = sorted(int(layer) for layer in table["layer"].unique())
        section = self.report.section(
            "Neurons", f"Each neuron of layer {listed(layers)} alone, at all positions."
        )
        best = table.head(10)
        if len(self.study.pairs) > 1 and self.study.found.normal:
            section.figure(self._bars(best), "The strongest neurons", name="neurons-strongest")
        section.table(
            table, "Neurons, the strongest first", name="neurons", missing=HOLES, rows=SHOWN
        )
        if not self.told:
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

    # Paths and controls ---------------------------------------------------------------------

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
            drawn, rows="sender", columns="receiver", value="share",
            names=None, axis=f"denoised, by one input: {self.axis}",
            alt="Senders by receivers and their inputs: what passes by this path alone.",
        )  # fmt: skip

    def _receiver(self, kind: str, layer: object, head: object) -> str:
        """Keys and values that several heads share are named as such."""
        cfg = self.study.model.cfg
        shared = kind in ("k", "v") and cfg.n_kv_heads != cfg.n_heads
        return f"L{layer} KV{head}" if shared else head_name(layer, head)

    def _path_words(self, direct: pd.DataFrame, between: pd.DataFrame, least: float) -> str:
        speak = [
            f"{head_name(row['from_layer'], row['from_head'])} ({self.amount(row)}"
            + (f"; {row['held_share']:.0%} with norms held)" if row["held"] == row["held"] else ")")
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
        return own.loc[own["denoise"].abs().sort_values(ascending=False, kind="stable").index]

    def control(self, chance: pd.DataFrame, itself: pd.DataFrame) -> None:
        level, largest = float(chance["effect"].abs().max()), float(itself["effect"].abs().max())
        gap = abs(float(self.study.found.gap.mean()))
        section = self.report.section(
            "Controls",
            "The same denoising, measured on two words that have nothing to do with the pair, says "
            "how large effects become by themselves. A run patched into itself must not change.",
        )
        holes = ("pos", "head", "stderr")
        section.table(chance, "Unrelated words", name="control", missing=holes, rows=SHOWN)
        section.table(itself, "A run patched into itself", name="itself", missing=holes[:2])
        part = f" ({level / gap:.1%} of the gap)" if self.study.found.normal else ""
        self.report.sure(
            f"Control: on words that have nothing to do with the pair (seed "
            f"{self.study.config.seed}) no mean effect of the {len(chance)} nodes patched is "
            f"larger than {level:.2f} logits{part}; a run patched into itself changes by at most "
            f"{largest:.1g} logits."
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
