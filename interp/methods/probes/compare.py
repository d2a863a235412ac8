"""Probes of a model's layers beside those of what needs no layers, and the best place against each.

The same probe reads the embedding, a copy of the model with random weights, and the counted tokens
of the texts; then the best place of the model is compared with every rival, example by example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
from torch import Tensor

from interp.model import HookedTransformer

from .. import stats
from .controls import random_copy
from .heldout import held_out_predictions
from .sweep import probe_sweep
from .texts import TextExamples, activations, word_counts, word_types

MODEL, RANDOM, EMBEDDING, WORDS = "model", "random weights", "embedding", "words alone"
EMBEDDED = "blocks.0.hook_resid_pre"
"""What the first layer reads: word and position, before any context."""
LEVEL = 0.05
OF_CLASSES = 0.1
"""The penalty of a classifier, where none is given."""
VARIES = 1e-6
"""A feature of which all values are this near, next to its size, is the same in every text."""
FIRST = ("source", "site", "layer", "score", "low", "high")
THEN = (
    *("constant", "random_features", "null_mean", "null_low", "null_high", "p", "p_adjusted"),
    *("control", "selectivity", "bits", "compression"),
)
RIVALS = ("rival", "score", "difference", "low?", "high?", "n")

Features = dict[str, Tensor]
"""Activations by the name of their site."""


@dataclass(frozen=True, eq=False)
class Compared:
    """What the probes of `compare_probes` say."""

    examples: TextExamples
    sweep: pd.DataFrame
    """One row per source and place, `FIRST` and the controls; p_adjusted is corrected for the
    places of a source."""
    rivals: pd.DataFrame
    """`RIVALS`: the best place less each rival, over the same examples."""
    predictions: pd.DataFrame
    """Of the best place: line label predicted right (or error), and what else is known."""
    silent: tuple[str, ...]
    """Places where all texts are alike."""
    skipped: tuple[str, ...]
    """Sentences on what could not be measured."""
    shuffled: str
    """What the null shuffled: examples, groups, or within groups."""

    @property
    def model(self) -> pd.DataFrame:
        """The rows of the model itself."""
        return self.of(MODEL)

    @property
    def best(self) -> Any:
        """The row of the best place; of equally good ones the first."""
        return self.model.loc[self.model["score"].idxmax()]

    @property
    def found(self) -> bool:
        """Whether the best place beats shuffled labels, corrected for the number of places."""
        return bool(self.best["p_adjusted"] <= LEVEL)

    def of(self, source: str) -> pd.DataFrame:
        """The rows of one source."""
        return self.sweep[self.sweep["source"] == source]


def compare_probes(
    model: HookedTransformer,
    examples: TextExamples,
    names: Sequence[str],
    *,
    C: Sequence[float] | None = None,
    folds: int = 5,
    shuffles: int = 99,
    random: bool = True,
    seed: int = 0,
) -> Compared:
    """Probes at these sites (full names) of the model and at the baselines, and the best place
    against its rivals: the layers beside it and the best place of each baseline.

    C: inverse strength of the penalty, of several each fold chooses within its training part; by
    default 0.1 for classes, a choice of eight for numbers. random: whether a copy of the model with
    random weights is probed as well. Everything random takes `seed`. Raises ValueError where at no
    site anything varies from text to text.
    """
    kept, silent, skipped = _sources(model, examples, [*names], random, seed)
    if not kept[MODEL]:
        raise ValueError(
            f"{model.name}: at none of the sites does anything vary from text to text at the "
            f"{examples.position!r} position; take --position mean, or texts that do not end alike"
        )
    frame = examples.frame
    options = {
        "kind": "ridge" if examples.regression else "logistic",
        "C": C or ("cv" if examples.regression else OF_CLASSES),
        "cv": folds,
        "split": frame["side"].to_numpy() if "side" in frame else None,
        "groups": frame["group"].to_numpy() if "group" in frame else None,
        "seed": seed,
    }
    given = options | {"n_shuffles": shuffles, "texts": frame["text"].tolist()}
    swept, shuffled = _swept(kept, examples, given, skipped)
    swept = _tidy(swept, examples.regression)
    predicted = _Predicted(examples, kept, options)
    known = Compared(
        examples, swept, pd.DataFrame(), pd.DataFrame(), tuple(silent), tuple(skipped), shuffled
    )
    return Compared(
        examples,
        swept,
        _rivals(known, predicted),
        predicted.described(known.best),
        tuple(silent),
        tuple(skipped),
        shuffled,
    )


def _sources(
    model: HookedTransformer, examples: TextExamples, names: list[str], random: bool, seed: int
) -> tuple[dict[str, Features], list[str], list[str]]:
    """Activations by source and place, without what does not vary; what is silent; what is left
    out."""
    sources = {MODEL: activations(model, examples, names)}
    skipped = []
    if EMBEDDED in model.sites:
        sources[EMBEDDING] = activations(model, examples, [EMBEDDED])
    else:
        skipped.append(f"The embedding: this model has no site {EMBEDDED}.")
    counts = word_counts(examples)
    if counts is not None:
        sources[WORDS] = {"token counts": counts}
    if not random:
        skipped.append("The copy with random weights (--no-random).")
    elif model.opaque:
        skipped.append(f"A copy with random weights: {model.opaque}.")
    else:
        sources[RANDOM] = activations(random_copy(model, seed), examples, names)
    silent, kept = [], {}
    for source, features in sources.items():
        kept[source] = {name: x for name, x in features.items() if _varies(x)}
        if not kept[source]:
            silent.append(source)
        elif len(kept[source]) < len(features):
            silent += [f"{name} ({source})" for name in features if name not in kept[source]]
    return kept, silent, skipped


def _varies(x: Tensor) -> bool:
    spread = (x - x[:1]).abs().amax(0)
    return bool((spread > VARIES * x.abs().amax(0).clamp_min(1e-30)).any())


def _swept(
    kept: dict[str, Features], examples: TextExamples, options: dict, skipped: list[str]
) -> tuple[pd.DataFrame, str]:
    """The sweep, and what its null shuffled; without a control task where the types give none."""
    baselines = {source: x for source, x in kept.items() if source != MODEL and x}
    y, types = examples.frame["label"].to_numpy(), word_types(examples.frame)
    given = options | {"baselines": baselines, "shuffle": _shuffle(examples)}
    frame = None
    if types is None:
        skipped.append(
            "The control task: it gives every word type a label of its own, and this label is "
            "about whole texts (--position word reads a word)."
        )
    else:
        try:
            frame = probe_sweep(kept[MODEL], y, types=types, **given)
        except ValueError as error:
            if not str(error).startswith("types:"):
                raise
            skipped.append(f"The control task; {error}.")
    if frame is None:
        frame = probe_sweep(kept[MODEL], y, **given)
    return frame, str(frame.attrs["shuffle"])


def _shuffle(examples: TextExamples) -> Literal["auto", "examples"]:
    """Examples where most of them share one label within their group, though groups are mixed: a
    shuffle within groups would then leave nearly all labels where they are."""
    if "group" not in examples.frame:
        return "auto"
    kinds = examples.frame.groupby("group")["label"].transform("nunique")
    return "examples" if 0 < float(np.mean(kinds > 1)) < 0.5 else "auto"


def _tidy(frame: pd.DataFrame, regression: bool) -> pd.DataFrame:
    """The main score first, under one name; columns without a number left out."""
    scores = {
        "r2" if regression else "accuracy": "score",
        "control_r2" if regression else "control_accuracy": "control",
    }
    frame = frame.rename(columns=scores)
    adjusted = frame.groupby("source")["p"].transform(false_discovery_control)
    frame = frame.assign(p_adjusted=adjusted, site=frame["site"].str.replace("hook_", ""))
    frame = frame.drop(columns=["pos", "head"])
    if "auroc" in frame and bool(frame["auroc"].isna().any()):  # no fold has both classes
        frame = frame.drop(columns="auroc")
    first = [name for name in (*FIRST, *THEN) if name in frame]
    return pd.DataFrame(frame[[*first, *(name for name in frame if name not in first)]])


class _Predicted:
    """Held-out predictions at single places."""

    def __init__(
        self, examples: TextExamples, kept: dict[str, Features], options: dict[str, Any]
    ) -> None:
        self.examples, self.kept, self.options = examples, kept, options
        self.labels = examples.frame["label"].to_numpy()

    def at(self, row: Any) -> pd.DataFrame:
        """The predictions at one row of the sweep."""
        for name, x in self.kept[row["source"]].items():
            site, layer = _split(name)
            if site == row["site"] and (layer is None or layer == row["layer"]):
                return held_out_predictions(x, self.labels, **self.options)
        raise AssertionError(f"{row['source']} {row['site']} was never read")

    def described(self, row: pd.Series) -> pd.DataFrame:
        """The same with what is known of each example."""
        frame, known = self.at(row), self.examples.frame.drop(columns="label")
        types = word_types(known)
        known = (known if types is None else known.assign(word=types)).iloc[frame.pop("example")]
        frame = pd.concat([known.reset_index(drop=True), frame], axis=1)
        if self.examples.regression:
            return frame.assign(error=frame["predicted"] - frame["label"])
        return frame.assign(right=frame["predicted"] == frame["label"])


def _split(name: str) -> tuple[str, int | None]:
    """The local name of a site, as the sweep's table has it, and its layer."""
    parts = name.split(".", 2)
    if len(parts) < 3 or not parts[1].isdigit():
        return name.replace("hook_", ""), None
    return parts[2].replace("hook_", ""), int(parts[1])


def _rivals(compared: Compared, predicted: _Predicted) -> pd.DataFrame:
    """The neighbours of the best layer, and the best of each baseline."""
    best, model = compared.best, compared.model
    site = model[model["site"] == best["site"]].sort_values("layer").reset_index(drop=True)
    at = int((site["layer"] == best["layer"]).to_numpy().argmax())
    rivals = [
        (f"layer {int(site['layer'][i])}, same site", site.iloc[i])
        for i in (at - 1, at + 1)
        if 0 <= i < len(site)
    ]
    for source in (EMBEDDING, RANDOM, WORDS):
        places = compared.of(source)
        if len(places):
            rivals.append((source, places.loc[places["score"].idxmax()]))
    at_best, rows = predicted.at(best), []
    for name, row in rivals:
        gain = score_gain(at_best, predicted.at(row), compared.examples)
        bounds = (float(bound) for bound in (gain.value, gain.low, gain.high))
        rows.append((name, row["score"], *bounds, len(at_best)))
    return pd.DataFrame(rows, columns=[name.removesuffix("?") for name in RIVALS])


def score_gain(
    predictions: pd.DataFrame, rival: pd.DataFrame, examples: TextExamples
) -> stats.Estimate:
    """The difference of the scores of two tables of `held_out_predictions` over the same examples;
    members of a group go together."""
    groups = predictions["example"].to_numpy()
    if "group" in examples.frame:
        groups = examples.frame["group"].to_numpy()[groups]
    both = (predictions, rival)
    if not examples.regression:
        right = [(frame["predicted"] == frame["label"]).to_numpy() for frame in both]
        return stats.paired_difference_of_shares(*right, groups)
    squares = [((frame["predicted"] - frame["label"]) ** 2).to_numpy() for frame in both]
    spread = ((predictions["label"] - predictions["label"].mean()) ** 2).mean()
    return stats.clustered_mean((squares[1] - squares[0]) / spread, groups)


def scores_by(compared: Compared, column: str) -> pd.DataFrame:
    """`column` n score low high of the predictions at the best place: accuracy with its interval,
    of a regression the mean absolute error with that of the mean."""
    regression, rows = compared.examples.regression, []
    for name, frame in compared.predictions.groupby(column, sort=True):
        if regression:
            error = stats.mean(frame["error"].abs().to_numpy())
            value, low, high = (float(bound) for bound in (error.value, error.low, error.high))
        else:
            value = float(frame["right"].mean())
            (low,), (high,) = stats.wilson(np.array([frame["right"].sum()]), np.array([len(frame)]))
        rows.append((name, len(frame), value, float(low), float(high)))
    score = "mean_error" if regression else "accuracy"
    table = pd.DataFrame(rows, columns=[column, "n", score, "low", "high"])
    return table.sort_values(score, ascending=not regression, kind="stable")


def confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """label predicted count share, of the label's examples."""
    names = sorted(set(predictions["label"]) | set(predictions["predicted"]))
    counts = pd.crosstab(predictions["label"], predictions["predicted"]).reindex(
        index=names, columns=names, fill_value=0
    )
    total = counts.sum(axis=1)
    rows = [
        (label, predicted, int(count), float(count / max(1, total[label])))
        for label in names
        for predicted, count in counts.loc[label].items()
    ]
    return pd.DataFrame(rows, columns=["label", "predicted", "count", "share"])
