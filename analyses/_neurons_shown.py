"""Pictures of rankings, and neurons one by one: firing, words, removal, the texts they fire on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analyses._task import TaskConfig
from interp import metrics, stats
from interp.core.finite import finite_cache
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods.baseline import metric_of
from interp.methods.neurons import (
    SITE,
    NeuronId,
    Ranking,
    promoted_tokens,
    set_effects,
    top_activations,
)
from interp.methods.neurons.removal import INTERVAL, Kind, over_prompts
from interp.model import HookedTransformer
from interp.report import Report, Section
from interp.report.figures import curves, scatter
from interp.report.spine import listed, neuron_name, signed
from interp.sweeps.metrics import Metric

MOST = 20
"""Neurons that are shown one by one."""
POINTS = 600
"""Neurons of the picture of two rankings."""
WORDS = 6
"""Words of a neuron on one line."""
EXAMPLE = ("row", "pos", "token", "value (activation)?")
FIRES = ("layer", "neuron", "n", "mean", "sd", "active", "kurtosis?", "min", "max")
ABLATIONS = ("neuron", "edit", "metric", "n", "effect", *INTERVAL)
PROMOTED = ("layer", "neuron", "side", "rank", "id", "token", "value")
TOP = ("layer", "neuron", "rank", "example", "pos", "value", "token")
SHOWN_TABLES = {
    "firing": FIRES,
    "chosen-firing": FIRES,
    "ablations": ABLATIONS,
    "promoted": PROMOTED,
    "words": ("neuron", "promoted", "suppressed"),
    "top-tokens": TOP,
    **{f"examples-{i}": EXAMPLE for i in range(1, MOST + 1)},
}


@dataclass(frozen=True, eq=False)
class Reading:
    """The text on which neurons are watched."""

    tokens: Tokens
    name: str
    stats: pd.DataFrame
    """`FIRES`, of every neuron of the model."""


def show_two_rankings(section: Section, ranking: Ranking) -> None:
    """What neurons write themselves against what their removal costs."""
    table = ranking.table
    if ranking.correlation == ranking.correlation:
        most = (table["rank"] <= POINTS // 2) | (table["by_attribution"] <= POINTS // 2)
        drawn = table[most] if len(table) > POINTS else table
        frame = pd.DataFrame(
            {
                "neuron": [f"{a}.{b}" for a, b in drawn[["layer", "neuron"]].to_numpy(int)],
                "removal": -drawn["effect"],
                "writes": drawn["attribution"],
                "layer": [f"layer {layer}" for layer in drawn["layer"]],
            }
        ).sort_values("layer", kind="stable", ignore_index=True)
        which = "all" if len(drawn) == len(table) else f"the first {POINTS // 2} by either"
        group = "layer" if len(set(drawn["layer"])) < 6 else None
        figure = scatter(
            frame, x="writes", y="removal", x_axis="written to answer − wrong (logits)",
            y_axis="lost by removal (logits)", group=group,
            alt=f"What neurons write towards the answer against what their removal costs, {which}.",
        )  # fmt: skip
        section.figure(figure, f"Two rankings of neurons ({which})", name="rankings")


def show_removed_together(opening: Section, sets: pd.DataFrame) -> None:
    """What removing more and more neurons takes, beside random ones."""
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
    opening.figure(
        figure,
        "Neurons removed together. Bands: 95 % interval over prompts; of random sets, the least "
        "and the most",
        name="removed-together",
    )


def show_firing(report: Report, reading: Reading, shown: list[NeuronId]) -> None:
    section = report.section(
        "How they fire",
        f"On {reading.name}: {int(reading.stats['n'].iloc[0]):,} tokens. active: share of tokens "
        "above zero; kurtosis: excess over a Gaussian, large for a neuron that is rarely far from "
        "its mean (none for one that never changes).",
    )
    index = reading.stats.set_index(["layer", "neuron"])
    chosen = index.loc[shown].reset_index()
    section.table(chosen, "The neurons shown", name="chosen-firing")
    ordered = reading.stats.sort_values("kurtosis", ascending=False, kind="stable")
    caption = "All neurons, the sparsest first"
    section.table(ordered, caption, name="firing", rows=10)


def promoted_or_none(
    report: Report, model: HookedTransformer, shown: list[NeuronId]
) -> pd.DataFrame | None:
    """Tokens that neurons promote and suppress; None, and said, where they say none."""
    try:
        return promoted_tokens(model, shown, k=10)
    except ValueError as error:
        report.skip(f"Promoted tokens: {error}.")
        return None


def words_of(promoted: pd.DataFrame, neuron: NeuronId, side: str, most: int) -> str:
    """The first tokens of a neuron on one side, in quotes."""
    here = (promoted[["layer", "neuron"]] == neuron).all(axis=1) & (promoted["side"] == side)
    return listed([f"“{word.strip()}”" for word in promoted.loc[here, "token"].head(most)])


def show_writing(report: Report, promoted: pd.DataFrame, shown: list[NeuronId]) -> None:
    section = report.section(
        "What they say",
        "Logits that a neuron adds directly, per unit of activation and before the final norm "
        "divides by its scale; less the mean over the vocabulary.",
    )
    lines = [
        {"neuron": table_name(neuron)}
        | {side: words_of(promoted, neuron, side, WORDS) for side in ("promoted", "suppressed")}
        for neuron in shown
    ]
    # As objects: a token may be half a character, which no string column holds.
    section.table(
        pd.DataFrame(lines, dtype=object), "Promoted and suppressed most, in words", name="words"
    )
    section.table(promoted, "With their logits", name="promoted", rows=10)
    report.finding(
        f"Where it is positive, {neuron_name(*shown[0])} promotes {lines[0]['promoted']} most, "
        f"and suppresses {lines[0]['suppressed']}."
    )


def table_name(neuron: NeuronId) -> str:
    """As --neurons takes it, and as tables have it: layer.neuron."""
    return f"{neuron[0]}.{neuron[1]}"


def show_removal(
    report: Report,
    model: HookedTransformer,
    pairs: Pairs,
    reading: Reading,
    shown: list[NeuronId],
    config: TaskConfig,
) -> None:
    section = report.section(
        "What is lost without them",
        f"Each removed alone: zero, and its mean over all tokens. The task's logit difference, and "
        f"the loss (nats per token) on {reading.name}.",
    )
    asked: list[tuple[str, Pairs | Tokens, Metric]] = [("logit_diff", pairs, metric_of(pairs))]
    if model.cfg.causal:
        asked.append(("loss", reading.tokens, metrics.loss()))
    else:
        report.skip("The loss: this model attends both ways and predicts no next token.")
    effects: dict[tuple[str, Kind], np.ndarray] = {}
    rows = []
    kinds: tuple[Kind, ...] = ("zero", "mean")
    for name, tokens, metric in asked:
        for kind in kinds:
            effects[name, kind] = set_effects(
                model,
                tokens,
                [[neuron] for neuron in shown],
                kind,
                metric,
                journal=config.kept(f"{name}-{kind}"),
            )
            for neuron, values in zip(shown, effects[name, kind], strict=True):
                about = {"neuron": table_name(neuron), "edit": kind, "metric": name}
                rows.append(about | over_prompts(values))
    _kinds_finding(report, shown, effects["logit_diff", "zero"], effects["logit_diff", "mean"])
    section.table(pd.DataFrame(rows), "Zero and mean ablation, side by side", name="ablations")


def _kinds_finding(
    report: Report, shown: list[NeuronId], zero: np.ndarray, mean: np.ndarray
) -> None:
    """Neurons that zero and mean ablation [neuron prompt] judge differently, paired by prompt."""
    differing = []
    for neuron, by_zero, by_mean in zip(shown, zero, mean, strict=True):
        gap = by_zero - by_mean
        low, high = (float(bound) for bound in stats.mean(gap)[2:])
        size = max(abs(by_zero.mean()), abs(by_mean.mean()))
        if (low > 0 or high < 0) and abs(gap.mean()) > size / 2:
            pair = f"{signed(by_zero.mean())} and {signed(by_mean.mean())}"
            differing.append(f"{neuron_name(*neuron)} ({pair})")
    if differing:
        report.finding(
            f"Zero and mean ablation judge differently, paired by prompt: {listed(differing)}. "
            "There the task depends on the neuron's mean, or on its silence, more than on what it "
            "tells apart."
        )


def show_examples(
    report: Report, model: HookedTransformer, reading: Reading, shown: list[NeuronId], examples: int
) -> None:
    section = report.section(
        "On what they fire most",
        f"The {examples} texts of {reading.name} on which each fires most; the shade is its "
        "activation.",
    )
    tokens = reading.tokens
    strings = tokens.strings or [[str(i) for i in row] for row in tokens.ids.tolist()]
    strongest = top_activations(model, tokens, shown, examples)
    for count, (layer, neuron) in enumerate(shown, start=1):
        here = (strongest["layer"] == layer) & (strongest["neuron"] == neuron)
        rows = strongest.loc[here, "example"].tolist()
        texts = model.accept(tokens[rows])
        cache = finite_cache(model, texts, (SITE, layer), stop_at_layer=layer + 1)
        activation = cache[SITE, layer][:, :, neuron].double().cpu()
        words, values = [], []
        for at, row in enumerate(rows):
            real = texts.real[at].cpu()
            words.append([w for w, on in zip(strings[row], real.tolist(), strict=False) if on])
            values.append(activation[at][real].tolist())
        section.tokens(
            words,
            values,
            f"On what {neuron_name(layer, neuron)} fires",
            name=f"examples-{count}",
            unit="activation",
            diverging=any(value < 0 for row in values for value in row),
        )
    words = [strings[row][pos] for row, pos in strongest[["example", "pos"]].to_numpy(int)]
    strongest["token"] = pd.Series(words, dtype=object)
    section.table(strongest, "Where they fire most", name="top-tokens", rows=20)
