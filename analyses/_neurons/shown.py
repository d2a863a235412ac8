"""Neurons one by one: how they fire, what they say, what is lost without them, on which texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analyses._neurons.parts import INTERVAL, edit_of, name_of, numbers, removed
from analyses._task import TaskConfig
from interp import metrics, stats
from interp.core.finite import finite_cache
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods.baseline import metric_of
from interp.methods.neurons import SITE, NeuronId, neuron_nodes, promoted_tokens, top_activations
from interp.report import Report
from interp.report.spine import listed, signed

MOST = 20
"""Neurons that are shown one by one."""
WORDS = 6
"""Words of a neuron on one line."""
EXAMPLE = ("row", "pos", "token", "value (activation)?")
FIRES = ("layer", "neuron", "n", "mean", "sd", "active", "kurtosis?", "min", "max")
ABLATIONS = ("neuron", "edit", "metric", "n", "effect", *INTERVAL)
PROMOTED = ("layer", "neuron", "side", "rank", "id", "token", "value")
TOP = ("layer", "neuron", "rank", "example", "pos", "value", "token")
TABLES = {
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


def show_firing(report: Report, reading: Reading, shown: list[NeuronId]) -> None:
    section = report.section(
        "How they fire",
        f"On {reading.name}: {int(reading.stats['n'].iloc[0]):,} tokens. active: share of tokens "
        "above zero; kurtosis: excess over a Gaussian, large for a neuron that is rarely far from "
        "its mean (none for one that never changes).",
    )
    index = reading.stats.set_index(["layer", "neuron"])
    chosen = index.loc[shown].reset_index()
    section.table(chosen, "The neurons shown", name="chosen-firing", missing=("kurtosis",))
    ordered = reading.stats.sort_values("kurtosis", ascending=False, kind="stable")
    caption = "All neurons, the sparsest first"
    section.table(ordered, caption, name="firing", missing=("kurtosis",), rows=10)


def show_writing(report: Report, model: Any, shown: list[NeuronId]) -> None:
    try:
        frame = promoted_tokens(model, shown, k=10)
    except ValueError as error:
        report.skip(f"Promoted tokens: {error}.")
        return
    section = report.section(
        "What they say",
        "Logits that a neuron adds directly, per unit of activation and before the final norm "
        "divides by its scale; less the mean over the vocabulary.",
    )
    lines = []
    for neuron in shown:
        own = frame[(frame["layer"] == neuron[0]) & (frame["neuron"] == neuron[1])]
        words = {
            str(side): listed([f"“{word.strip()}”" for word in rows["token"].head(WORDS)])
            for side, rows in own.groupby("side")
        }
        lines.append({"neuron": name_of(neuron), **words})
    # As objects: a token may be half a character, which no string column holds.
    section.table(
        pd.DataFrame(lines, dtype=object), "Promoted and suppressed most, in words", name="words"
    )
    section.table(frame, "With their logits", name="promoted", rows=10)
    report.finding(
        f"Where it is positive, neuron {lines[0]['neuron']} promotes {lines[0]['promoted']} most, "
        f"and suppresses {lines[0]['suppressed']}."
    )


def show_removal(
    report: Report,
    model: Any,
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
    nodes, rows = neuron_nodes(model, [[neuron] for neuron in shown]), []
    found: dict[tuple[str, str], np.ndarray] = {}
    asked: list[tuple[str, Any, metrics.Metric]] = [("logit_diff", pairs, metric_of(pairs))]
    if model.cfg.causal:
        asked.append(("loss", reading.tokens, metrics.loss()))
    else:
        report.skip("The loss: this model attends both ways and predicts no next token.")
    for metric, tokens, measure in asked:
        reference = tokens.both if isinstance(tokens, Pairs) else tokens
        for kind in ("zero", "mean"):
            edit, name = edit_of(kind, reference), f"{metric}-{kind}"
            effects = removed(model, tokens, nodes, edit, measure, config, name)
            found[metric, kind] = effects
            for neuron, own in zip(shown, effects, strict=True):
                about = {"neuron": name_of(neuron), "edit": kind, "metric": metric}
                rows.append(about | numbers(own))
    frame = pd.DataFrame(rows)
    _kinds_finding(report, shown, *(found["logit_diff", kind] for kind in ("zero", "mean")))
    section.table(
        frame, "Zero and mean ablation, side by side", name="ablations",
        missing=("stderr", "low", "high"),
    )  # fmt: skip


def _kinds_finding(
    report: Report, shown: list[NeuronId], zero: np.ndarray, mean: np.ndarray
) -> None:
    """Neurons that zero and mean ablation [neuron prompt] judge differently, paired by prompt."""
    told = []
    for neuron, one, other in zip(shown, zero, mean, strict=True):
        _, _, low, high = stats.mean(one - other)
        size = max(abs(one.mean()), abs(other.mean()))
        if (low > 0 or high < 0) and abs((one - other).mean()) > size / 2:
            pair = f"{signed(one.mean())} and {signed(other.mean())}"
            told.append(f"{name_of(neuron)} ({pair})")
    if told:
        report.finding(
            f"Zero and mean ablation judge differently, paired by prompt: {listed(told)}. There "
            "the task depends on the neuron's mean, or on its silence, more than on what it tells "
            "apart."
        )


def show_examples(
    report: Report, model: Any, reading: Reading, shown: list[NeuronId], examples: int
) -> None:
    section = report.section(
        "On what they fire most",
        f"The {examples} texts of {reading.name} on which each fires most; the shade is its "
        "activation.",
    )
    tokens = reading.tokens
    strings = tokens.strings or [[str(i) for i in row] for row in tokens.ids.tolist()]
    found = top_activations(model, tokens, shown, examples)
    for number, (layer, neuron) in enumerate(shown, start=1):
        mine = found[(found["layer"] == layer) & (found["neuron"] == neuron)]
        rows = mine["example"].tolist()
        part = tokens[rows]
        part = model.accept(part)
        cache = finite_cache(model, part, (SITE, layer), stop_at_layer=layer + 1)
        fired = cache[SITE, layer][:, :, neuron].double().cpu()
        words, values = [], []
        for at, row in enumerate(rows):
            real = part.real[at].cpu()
            words.append([w for w, on in zip(strings[row], real.tolist(), strict=False) if on])
            values.append(fired[at][real].tolist())
        section.tokens(
            words, values, f"Neuron {layer}.{neuron}", name=f"examples-{number}",
            unit="activation", diverging=any(v < 0 for own in values for v in own),
        )  # fmt: skip
    words = [strings[row][pos] for row, pos in found[["example", "pos"]].to_numpy(int)]
    found["token"] = pd.Series(words, dtype=object)
    section.table(found, "Where they fire most", name="top-tokens", rows=20)
