"""Neurons: which MLP neurons does a task need, when do they fire, and what do they say?

Ranks neurons by what removing them costs and by what they write to the logits, removes the ranked
ones together beside random ones, and shows of the first (or of those that you name) how they fire,
on which texts most, which tokens they promote, and what the loss is without them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analyses import _task, main
from analyses._neurons_shown import (
    MOST,
    SHOWN_TABLES,
    Reading,
    promoted_or_none,
    show_examples,
    show_firing,
    show_removal,
    show_removed_together,
    show_two_rankings,
    show_writing,
    words_of,
)
from analyses._task import Task, TaskConfig, task_pairs, task_section
from analyses._text import text_windows
from interp.core.indices import indices
from interp.data.tasks import Pairs
from interp.loading.needs import Needs
from interp.methods.baseline import measure_baseline
from interp.methods.neurons import (
    NeuronId,
    Ranking,
    layer_effects,
    neuron_ids,
    neuron_stats,
    rank_neurons,
    sets_against_random,
)
from interp.methods.neurons.removal import (
    LAYERS,
    RANDOM_SETS,
    RANKING,
    SETS,
    Kind,
)
from interp.methods.stats import errors_needed
from interp.model import HookedTransformer
from interp.report import Report
from interp.report.provenance import provenance
from interp.report.spine import listed, neuron_name, no_effect, number, percent, signed

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
    **SHOWN_TABLES,
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


def run(model: HookedTransformer, config: Config) -> Report:
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
        tables=TABLES,
    )
    pairs = task_pairs(model, config)
    reading = _read(report, model, pairs, config)
    baseline = measure_baseline(model, pairs)
    task_section(report, model, pairs, baseline, config)
    layers = layer_effects(model, pairs, config.kind, journal=config.kept("layers"))
    chosen = asked_for or layers_that_fit(layers, model.cfg.d_mlp, config.most)
    if len(chosen) < model.cfg.n_layers:
        report.skip(f"Neurons were removed one by one in layers {listed(chosen, 30)} only.")
    ranking = rank_neurons(
        model, pairs, chosen, config.kind, noise=baseline.noise, journal=config.kept("neurons")
    )
    sets = sets_against_random(
        model, pairs, ranking, config.kind, seed=config.seed, journal=config.kept("sets")
    )
    shown = named or ranking.costliest[: config.top]
    promoted = promoted_or_none(report, model, shown)
    clean = float(baseline.clean.mean())
    removed_to = {"zero": "zero", "mean": "its mean"}[config.kind]
    opening = report.answer(_answer(ranking, sets, baseline.clean, removed_to))
    if sets is not None:
        show_removed_together(opening, sets)
    _first_findings(report, ranking, reading, promoted, shown, clean)
    _findings(report, ranking, sets, clean, config)
    _firing_finding(report, reading)
    _show_ranking(report, layers, ranking, sets, config)
    show_firing(report, reading, shown)
    if promoted is not None:
        show_writing(report, promoted, shown)
    show_removal(report, model, pairs, reading, shown, config)
    show_examples(report, model, reading, shown, config.examples)
    _certainty(report, ranking, pairs, reading, config)
    _doubts(report, config)
    return report


def layers_that_fit(layers: pd.DataFrame, d_mlp: int, most: int) -> list[int]:
    """The layers that matter most, while they have at most so many neurons; at least one."""
    order = layers["effect"].abs().sort_values(ascending=False, kind="stable").index
    chosen = order[: max(1, most // d_mlp)]
    return sorted(int(layer) for layer in layers.loc[chosen, "layer"])


def _read(report: Report, model: HookedTransformer, pairs: Pairs, config: Config) -> Reading:
    tokens, name = pairs.clean, "the clean prompts"
    if config.text is not None:
        tokens, name = text_windows(report, model, config), config.text.name
    return Reading(tokens, name, neuron_stats(model, tokens))


def _answer(ranking: Ranking, sets: pd.DataFrame | None, clean: np.ndarray, removed_to: str) -> str:
    """Which neurons the task needs, in one sentence; `clean` is the lead of the answer per prompt,
    `removed_to` what stands in place of a removed neuron."""
    total = f"{len(ranking.table):,}"
    if ranking.silent:
        return f"No neuron matters alone: removing any of {total} changes nothing above rounding."
    if sets is None:
        first = ranking.costliest[0]
        effect = float(ranking.effects.loc[first].mean())
        return (
            f"Of {total} neurons {neuron_name(*first)} costs the task most: set to {removed_to}, "
            f"it moves the answer's lead over the wrong one from {number(clean.mean())} to "
            f"{number(clean.mean() + effect)} logits."
            if effect < 0
            else f"The task needs none of {total} neurons: removing one costs it nothing."
        )
    row, other, beyond = _telling(sets)
    size, lead = int(row["size"]), float(clean[1::2].mean())
    costliest = f"the {size} costliest of {total} neurons" if size > 1 else "the costliest neuron"
    if not beyond:
        return (
            f"No few neurons can be named that the task needs: without {costliest} the answer "
            "loses no more than without random ones."
        )
    low, high = number(lead + other["low"], "z.1f"), number(lead + other["high"], "z.1f")
    return (
        f"Without {costliest} the answer leads the wrong one by "
        f"{number(lead + row['effect'], 'z.1f')} instead of {number(lead, 'z.1f')} logits; without "
        f"as many random ones by {low if low == high else f'{low} to {high}'}."
    )


def _first_findings(
    report: Report,
    ranking: Ranking,
    reading: Reading,
    promoted: pd.DataFrame | None,
    shown: list[NeuronId],
    clean: float,
) -> None:
    """The three findings of the first screen: the costliest, what one says, how they fire."""
    if not ranking.silent:
        _costliest_alone(report, ranking, shown, clean)
    if promoted is not None:
        first = shown[0]
        words = {
            side: words_of(promoted, first, str(side), 3) for side in ("promoted", "suppressed")
        }
        report.finding(
            f"Where it fires, {neuron_name(*first)} makes {words['promoted']} likelier, and "
            f"{words['suppressed']} less likely.",
            at="words",
            links=_neuron_links([first], shown),
        )
    silent = int((reading.stats["max"] <= 0).sum())
    report.finding(
        f"On {reading.name} {silent:,} of {len(reading.stats):,} neurons never fire; the median "
        f"neuron fires on {percent(float(reading.stats['active'].median()))} of tokens.",
        at="firing",
    )


def _costliest_alone(report: Report, ranking: Ranking, shown: list[NeuronId], clean: float) -> None:
    """What the costliest neuron alone takes, and whether that is beyond chance."""
    first = ranking.costliest[0]
    lost = -float(ranking.effects.loc[first].mean())
    here = (ranking.table[["layer", "neuron"]] == first).all(axis=1)
    chance = "" if ranking.beyond_chance[here].item() else "; that may be chance"
    if int(ranking.table["n"].iloc[0]) < 2:
        chance = " on this one prompt"
    report.finding(
        f"Alone, {neuron_name(*first)} costs the task most: {number(lost)} of the {number(clean)} "
        f"logits by which the answer leads{chance}."
        if lost > ranking.noise
        else "Alone, no neuron costs the task anything.",
        at="ranking",
        links=_neuron_links([first], shown) if lost > ranking.noise else None,
    )


def _neuron_links(neurons: list[NeuronId], shown: list[NeuronId]) -> dict[str, str]:
    """Names of neurons, each with the texts on which it fires, where these are shown."""
    return {
        neuron_name(*neuron): f"examples-{shown.index(neuron) + 1}"
        for neuron in neurons
        if neuron in shown
    }


def _findings(
    report: Report, ranking: Ranking, sets: pd.DataFrame | None, clean: float, config: Config
) -> None:
    """What removing neurons does, in full."""
    table, first = ranking.table.set_index(["layer", "neuron"]), ranking.costliest[0]
    row = table.loc[first]
    if ranking.silent:
        report.finding(
            f"Removing a neuron alone ({config.kind} ablation) has {no_effect(ranking.noise)} on "
            f"the logit difference, for any of {len(table):,} neurons; none is ranked by it."
        )
        return
    report.finding(
        f"Of {len(table):,} neurons, each removed alone ({config.kind} ablation), "
        f"{neuron_name(*first)} costs the task most on average: {signed(row['effect'])}"
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
    count = int(ranking.beyond_chance.sum())
    beyond = f"{count or 'none'} of the {tests:,} have an effect beyond chance"
    needed, usual = errors_needed(n, tests), errors_needed(1000, tests)
    if count or needed < 1.5 * usual:
        return beyond
    return (
        f"{beyond}, for which {n} prompts ask {needed:.0f} standard errors of it (many prompts "
        f"{usual:.1f}): --n takes more"
    )


def _telling(sets: pd.DataFrame) -> tuple[pd.Series, pd.Series, bool]:
    """The largest set of the costliest that does more than random ones, these, and whether there is
    one; else the largest of all."""
    top, random = (sets[sets["removed"] == kind] for kind in ("costliest", "random"))
    beyond = top["high"].to_numpy() < random["low"].to_numpy()
    at = int(np.flatnonzero(beyond)[-1]) if beyond.any() else len(top) - 1
    return top.iloc[at], random.iloc[at], bool(beyond.any())


def _sets_finding(report: Report, sets: pd.DataFrame) -> None:
    row, other, beyond = _telling(sets)
    size = int(row["size"])
    removed = f"the {size} costliest neurons" if size > 1 else "the costliest neuron"
    report.finding(
        f"Ranked on one half of the prompts and removed together on the other, {removed} change "
        f"the logit difference by {signed(row['effect'])}{_bounds(row['low'], row['high'])}; "
        f"{RANDOM_SETS} random sets of as many by {signed(other['low'])} to "
        f"{signed(other['high'])}{'' if beyond else ', so that nothing tells them apart'}."
    )


def _firing_finding(report: Report, reading: Reading) -> None:
    frame = reading.stats
    silent, rare = int((frame["max"] <= 0).sum()), int((frame["active"] < 0.05).sum())
    report.finding(
        f"On {reading.name}, {silent:,} of {len(frame):,} neurons never rise above zero, "
        f"{rare:,} do on fewer than one token in 20; the median neuron does on "
        f"{percent(float(frame['active'].median()))}."
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
    section.table(layers, "All neurons of a layer removed", name="layers")
    section.table(
        ranking.table,
        "Neurons removed one by one, the largest effect first",
        name="ranking",
        rows=20,
        formats={"by_attribution": ".0f"},
    )
    show_two_rankings(section, ranking)
    if sets is not None:
        section.table(sets, "Neurons removed together, on held-out prompts", name="sets")


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
        f"Control: {RANDOM_SETS} sets of random neurons of the same layers for each size (seed "
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
