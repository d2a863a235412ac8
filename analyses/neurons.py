"""Neurons: which MLP neurons does a task need, when do they fire, and what do they say?

Ranks neurons by what removing them costs and by what they write to the logits, removes the ranked
ones together beside random ones, and shows of the first (or of those that you name) how they fire,
on which texts most, which tokens they promote, and what the loss is without them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analyses import _task, main
from analyses._neurons import shown
from analyses._neurons.parts import (
    LAYERS,
    RANDOM,
    RANKING,
    SETS,
    Kind,
    Ranking,
    layers_that_fit,
    name_of,
    ranked,
    sets_against_random,
    whole_layers,
)
from analyses._neurons.shown import (
    MOST,
    Reading,
    show_examples,
    show_firing,
    show_removal,
    show_writing,
)
from analyses._task import Task, TaskConfig, task_pairs, task_section
from analyses._text import text_windows
from interp.core.indices import indices
from interp.data.tasks import Pairs
from interp.loading.needs import Needs
from interp.methods.baseline import measure_baseline
from interp.methods.neurons import neuron_ids, neuron_stats
from interp.methods.stats import errors_needed
from interp.report import Report
from interp.report.figures import curves, scatter
from interp.report.provenance import provenance
from interp.report.spine import listed, no_effect, signed

POINTS = 600
"""Neurons of the picture of two rankings."""
NEEDS = Needs(
    text=True,
    tokenizer=True,
    wordless=("task", "induction"),
    logits=True,
    one_stack=True,
    neurons=True,
    native=True,
)
TABLES = {
    **_task.TABLES,
    "layers": LAYERS,
    "ranking": RANKING,
    "rankings": ("neuron", "removal", "writes", "layer"),
    "sets": SETS,
    "removed-together": ("size", "effect", "low", "high", "removed"),
    **shown.TABLES,
}


@dataclass(frozen=True)
class Config(TaskConfig):
    """Which neurons, for which task, on which text."""

    task: Task = "capitals"
    """Bundled pairs of prompts; not used where --prompts is given."""
    n: int = 32
    """Pairs of the bundled task; of --prompts all are used."""
    neurons: tuple[str, ...] = ()
    """Neurons to show, as layer.neuron ("2.17"); by default those that the task needs most."""
    layers: tuple[int, ...] = ()
    """Layers whose neurons are removed one by one; by default those that the task needs most, while
    they have at most --most neurons together."""
    most: int = 4096
    """Neurons that are removed one by one, where no layers are given."""
    kind: Kind = "zero"
    """What stands in place of a removed neuron when they are ranked: zero, or its mean over all
    tokens of the clean and corrupted prompts."""
    text: Path | None = None
    """A text file on which the neurons' firing and the loss are measured; by default the clean
    prompts of the task."""
    windows: int = 200
    """Windows that are read of the text."""
    width: int = 64
    """Tokens of a window."""
    top: int = 5
    """Neurons that are shown, where none are named."""
    examples: int = 4
    """Texts that are shown of each: those on which it fires most."""
    out: Path = Path("reports/neurons")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in ("zero", "mean"):
            raise ValueError(f"kind={self.kind!r}: expected 'zero' or 'mean'")
        if not 1 <= self.top <= MOST or len(self.neurons) > MOST:
            raise ValueError(
                f"top={self.top}, {len(self.neurons)} neurons named: 1 to {MOST} are shown"
            )
        for name in ("most", "windows", "examples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.width < 2:
            raise ValueError(f"width={self.width}: expected at least 2 tokens")


def run(model: Any, config: Config) -> Report:
    """The report. Raises ValueError on a model without logits or without an MLP, with an encoder
    beside its decoder, or behind the bridge, and on neurons that it does not have."""
    if model.opaque or getattr(model, "encoder", None) is not None:
        raise ValueError(
            f"neurons need a native model of one stack: {model.opaque or 'this has an encoder'}"
        )
    named = neuron_ids(model, config.neurons) if config.neurons else []
    asked_for = indices(config.layers, model.cfg.n_layers, "layers") if len(config.layers) else []
    report = Report(
        f"Neurons of {model.name}",
        "Which MLP neurons does the task need, when do they fire, and what do they say?",
        analysis="neurons",
        provenance=provenance(config, model),
    )
    pairs = task_pairs(model, config)
    reading = _read(report, model, pairs, config)
    found = measure_baseline(model, pairs)
    task_section(report, model, pairs, found, config)
    layers = whole_layers(model, pairs, config.kind, config)
    chosen = asked_for or layers_that_fit(layers, model.cfg.d_mlp, config.most)
    if len(chosen) < model.cfg.n_layers:
        report.skip(f"Neurons were removed one by one in layers {listed(chosen, 30)} only.")
    ranking = ranked(model, pairs, chosen, config.kind, config, found.noise)
    sets = sets_against_random(model, pairs, ranking, config.kind, config)
    shown = named or ranking.costliest[: config.top]
    _findings(report, ranking, sets, float(found.clean.mean()), config)
    _firing_finding(report, reading)
    _show_ranking(report, layers, ranking, sets, config)
    show_firing(report, reading, shown)
    show_writing(report, model, shown)
    show_removal(report, model, pairs, reading, shown, config)
    show_examples(report, model, reading, shown, config.examples)
    _certainty(report, ranking, pairs, reading, config)
    _doubts(report, config)
    return report


def _read(report: Report, model: Any, pairs: Pairs, config: Config) -> Reading:
    tokens, name = pairs.clean, "the clean prompts"
    if config.text is not None:
        tokens, name = text_windows(report, model, config), config.text.name
    return Reading(tokens, name, neuron_stats(model, tokens))


def _findings(
    report: Report, ranking: Ranking, sets: pd.DataFrame | None, clean: float, config: Config
) -> None:
    table, first = ranking.table.set_index(["layer", "neuron"]), ranking.costliest[0]
    row = table.loc[first]
    if ranking.silent:
        report.finding(
            f"Removing a neuron alone ({config.kind} ablation) has {no_effect(ranking.noise)} on "
            f"the logit difference, for any of {len(table):,} neurons; none is ranked by it."
        )
        return
    report.finding(
        f"Of {len(table):,} neurons, each removed alone ({config.kind} ablation), neuron "
        f"{name_of(first)} costs the task most on average: {signed(row['effect'])}"
        f"{_bounds(row['low'], row['high'])} of {clean:.2f} logits; {_beyond(ranking)}."
    )
    if sets is None:
        report.skip("Sets of neurons: too few prompts to rank on one half and measure the other.")
    else:
        _sets_finding(report, sets)
    rho = ranking.correlation
    if rho == rho:
        report.finding(
            "What a neuron writes to the logits itself and what its removal takes have a rank "
            f"correlation of {rho:.2f} (Spearman's, over {len(table):,} neurons); the rest acts "
            "through later layers, or is made up for there."
        )
    else:
        report.skip(
            "Direct attribution to neurons: in this model what they write to the logits is no sum, "
            "or does not vary."
        )


def _beyond(ranking: Ranking) -> str:
    """How many have an effect beyond chance, and where so few prompts could hardly show one."""
    n, tests = int(ranking.table["n"].iloc[0]), len(ranking.table)
    if n < 2:
        return "of one prompt nothing can be said to lie beyond chance"
    told = f"{ranking.beyond or 'none'} of the {tests:,} have an effect beyond chance"
    needed, usual = errors_needed(n, tests), errors_needed(1000, tests)
    if ranking.beyond or needed < 1.5 * usual:
        return told
    return (
        f"{told}, for which {n} prompts ask {needed:.0f} standard errors of it (many prompts "
        f"{usual:.1f}): --n takes more"
    )


def _sets_finding(report: Report, sets: pd.DataFrame) -> None:
    top, random = (sets[sets["removed"] == kind] for kind in ("costliest", "random"))
    beyond = top["high"].to_numpy() < random["low"].to_numpy()
    at = int(np.flatnonzero(beyond)[-1]) if beyond.any() else len(top) - 1
    row, other = top.iloc[at], random.iloc[at]
    size = int(row["size"])
    told = f"the {size} costliest neurons" if size > 1 else "the costliest neuron"
    report.finding(
        f"Ranked on one half of the prompts and removed together on the other, {told} change the "
        f"logit difference by {signed(row['effect'])}{_bounds(row['low'], row['high'])}; "
        f"{RANDOM} random sets of as many by {signed(other['low'])} to {signed(other['high'])}"
        f"{'' if beyond.any() else ', so that nothing tells them apart'}."
    )


def _firing_finding(report: Report, reading: Reading) -> None:
    frame = reading.stats
    silent, rare = int((frame["max"] <= 0).sum()), int((frame["active"] < 0.05).sum())
    report.finding(
        f"On {reading.name}, {silent:,} of {len(frame):,} neurons never rise above zero, "
        f"{rare:,} do on fewer than one token in 20; the median neuron does on "
        f"{frame['active'].median():.0%}."
    )


def _show_ranking(
    report: Report,
    layers: pd.DataFrame,
    ranking: Ranking,
    sets: pd.DataFrame | None,
    config: Config,
) -> None:
    section = report.section(
        "Which neurons the task needs",
        f"Effects are changes of the logit difference when neurons are removed ({config.kind} "
        "ablation at every token); negative: the task needs them. Attribution is what a neuron "
        "writes towards the answer itself, at the last token.",
    )
    missing = ("stderr", "low", "high", "attribution", "by_attribution")
    section.table(layers, "All neurons of a layer removed", name="layers", missing=missing)
    caption = "Neurons removed one by one, the largest effect first"
    section.table(ranking.table, caption, name="ranking", rows=20, missing=missing,
                  formats={"by_attribution": ".0f"})  # fmt: skip
    table = ranking.table
    if ranking.correlation == ranking.correlation:
        most = (table["rank"] <= POINTS // 2) | (table["by_attribution"] <= POINTS // 2)
        own = table[most] if len(table) > POINTS else table
        frame = pd.DataFrame(
            {
                "neuron": [name_of((a, b)) for a, b in own[["layer", "neuron"]].to_numpy(int)],
                "removal": -own["effect"],
                "writes": own["attribution"],
                "layer": [f"layer {layer}" for layer in own["layer"]],
            }
        ).sort_values("layer", kind="stable", ignore_index=True)
        shown = "all" if len(own) == len(table) else f"the first {POINTS // 2} by either"
        group = "layer" if len(set(own["layer"])) < 6 else None
        figure = scatter(
            frame, x="writes", y="removal", x_axis="written to answer − wrong (logits)",
            y_axis="lost by removal (logits)", group=group,
            alt=f"What neurons write towards the answer against what their removal costs, {shown}.",
        )  # fmt: skip
        section.figure(figure, f"Two rankings of neurons ({shown})", name="rankings")
    if sets is None:
        return
    section.table(sets, "Neurons removed together, on held-out prompts", name="sets",
                  missing=missing)  # fmt: skip
    frame = sets[["size", "effect", "low", "high", "removed"]].copy()
    for bound in ("low", "high"):
        frame[bound] = frame[bound].fillna(frame["effect"])
    last = frame[frame["size"] == frame["size"].max()].set_index("removed")["effect"]
    figure = curves(
        frame, x="size", value="effect", low="low", high="high", group="removed",
        x_axis="neurons removed", axis="change of the logit difference",
        alt=f"Change of the logit difference by neurons removed: {last['costliest']:.2f} for the "
        f"{frame['size'].max()} costliest, {last['random']:.2f} for as many random ones.",
    )  # fmt: skip
    caption = "Bands: 95 % interval over prompts; of random sets, the least and the most"
    section.figure(figure, caption, name="removed-together")


def _certainty(
    report: Report, ranking: Ranking, pairs: Pairs, reading: Reading, config: Config
) -> None:
    table = ranking.table
    report.sure(
        f"{len(pairs)} prompts; numbers in brackets are 95 % intervals over prompts, of one neuron "
        f"at a time. Among {len(table):,} neurons some lie beyond theirs by chance: “beyond "
        "chance” are those whose interval leaves zero out even when widened for all of them "
        "(Bonferroni)."
    )
    report.sure(
        f"Control: {RANDOM} sets of random neurons of the same layers for each size (seed "
        f"{config.seed}), measured on prompts that the ranking has not seen."
    )
    report.sure(f"Firing: {int(reading.stats['n'].iloc[0]):,} tokens of {reading.name}.")


def _doubts(report: Report, config: Config) -> None:
    kind = (
        "Zero is a value that a neuron with a large mean never has"
        if config.kind == "zero"
        else "A mean over all tokens switches a neuron partly on where it is silent"
    )
    report.doubt(
        f"{kind}; the other ablation can rank them otherwise. The table of zero and mean ablation "
        "shows both for the neurons above."
    )
    report.doubt(
        "A neuron whose work others take over costs nothing when it is removed alone, and one that "
        "few prompts need has a small average: look at sets, and at more prompts."
    )
    report.doubt(
        "Texts on which a neuron fires most are its extremes and say little of its ordinary "
        "firing; the directions that a model uses need not be neurons (Bolukbasi et al. 2021)."
    )
    report.doubt(
        "Promoted tokens are what a neuron says to the unembedding itself. In early layers most of "
        "what it does passes through later ones."
    )


def _bounds(low: float, high: float) -> str:
    return "" if low != low else f" [{signed(low)}, {signed(high)}]"


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
