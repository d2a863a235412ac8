"""The measurements behind the report on probes: the sweep with its baselines, then the best place
against its rivals, example by example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control
from torch import Tensor

from analyses._probes.config import Config
from analyses._probes.texts import Read, activations, word_counts, word_types
from interp import stats
from interp.methods.probes import held_out_predictions, probe_sweep, random_copy
from interp.report.spine import number

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


@dataclass(frozen=True, eq=False)
class Measured:
    """What the probes found."""

    read: Read
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
    shuffled: str
    """What the null shuffled: examples, groups, or within groups."""

    @property
    def model(self) -> pd.DataFrame:
        """The rows of the model itself."""
        return self.sweep[self.sweep["source"] == MODEL]

    @property
    def best(self) -> Any:
        """The best place; of equally good ones the first."""
        return self.model.loc[self.model["score"].idxmax()]

    @property
    def found(self) -> bool:
        """Whether the best place beats shuffled labels, corrected for the number of places."""
        return bool(self.best["p_adjusted"] <= LEVEL)

    def of(self, source: str) -> pd.DataFrame:
        """The rows of one source."""
        return self.sweep[self.sweep["source"] == source]

    def form(self, value: float) -> str:
        """A score in words: an accuracy in per cent, an R² as a number."""
        return number(value) if self.read.regression else f"{100 * value:.1f} %"


def score_name(measured: Measured) -> str:
    """What the main score is."""
    return "R²" if measured.read.regression else "accuracy"


def place_name(row: Any) -> str:
    """As places are called: resid_post of layer 2."""
    site = str(row["site"]).rpartition(".")[2].removeprefix("hook_")
    return site if pd.isna(row["layer"]) else f"{site} of layer {int(row['layer'])}"


def measure(model: Any, read: Read, names: list[str], config: Config) -> Measured:
    """Probes at these sites of the model and at the baselines, and the rivals of the best one."""
    kept, silent, skipped = _sources(model, read, names, config)
    if not kept[MODEL]:
        raise ValueError(
            f"{model.name}: at none of the sites does anything vary from text to text at the "
            f"{config.position!r} position; take --position mean, or texts that do not end alike"
        )
    options = _options(read, config)
    baselines = {name: own for name, own in kept.items() if name != MODEL and own}
    frame, shuffled = _swept(kept[MODEL], baselines, read, options, config, skipped)
    frame = _tidy(frame, read.regression)
    measured = Measured(
        read, frame, pd.DataFrame(), pd.DataFrame(), tuple(silent), tuple(skipped), shuffled
    )
    del options["texts"]
    predicted = _Predicted(measured, kept, options)
    return Measured(
        read, frame, _rivals(measured, predicted), predicted.told(), tuple(silent),
        tuple(skipped), shuffled,
    )  # fmt: skip


def _sources(
    model: Any, read: Read, names: list[str], config: Config
) -> tuple[dict[str, dict[str, Tensor]], list[str], list[str]]:
    """Activations by source and place, without what does not vary; what is silent; what is left
    out."""
    found = {MODEL: activations(model, read, names)}
    skipped = []
    if EMBEDDED in model.sites:
        found[EMBEDDING] = activations(model, read, [EMBEDDED])
    else:
        skipped.append(f"The embedding: this model has no site {EMBEDDED}.")
    counts = word_counts(read)
    if counts is not None:
        found[WORDS] = {"token counts": counts}
    if not config.random:
        skipped.append("The copy with random weights (--no-random).")
    elif model.opaque:
        skipped.append(f"A copy with random weights: {model.opaque}.")
    else:
        found[RANDOM] = activations(random_copy(model, config.seed), read, names)
    silent, kept = [], {}
    for source, own in found.items():
        kept[source] = {name: x for name, x in own.items() if _varies(x)}
        if not kept[source]:
            silent.append(source)
        elif len(kept[source]) < len(own):
            silent += [f"{name} ({source})" for name in own if name not in kept[source]]
    return kept, silent, skipped


def _varies(x: Tensor) -> bool:
    spread = (x - x[:1]).abs().amax(0)
    return bool((spread > VARIES * x.abs().amax(0).clamp_min(1e-30)).any())


def _options(read: Read, config: Config) -> dict[str, Any]:
    """What the sweep and the single predictions are both told."""
    frame = read.frame
    return {
        "kind": "ridge" if read.regression else "logistic",
        "C": config.C or ("cv" if read.regression else OF_CLASSES),
        "cv": config.folds,
        "split": frame["side"].to_numpy() if "side" in frame else None,
        "groups": frame["group"].to_numpy() if "group" in frame else None,
        "texts": frame["text"].tolist(),
        "seed": config.seed,
    }


def _swept(
    model: dict, baselines: dict, read: Read, options: dict, config: Config, skipped: list[str]
) -> tuple[pd.DataFrame, str]:
    """The sweep; without a control task where the types give none."""
    y, types = read.frame["label"].to_numpy(), word_types(read.frame)
    given = {
        **options, "baselines": baselines, "n_shuffles": config.shuffles, "shuffle": _shuffle(read)
    }  # fmt: skip
    if types is None:
        skipped.append(
            "The control task: it gives every word type a label of its own, and this label is "
            "about whole texts (--position word reads a word)."
        )
        return _with_note(probe_sweep(model, y, **given))
    try:
        return _with_note(probe_sweep(model, y, types=types, **given))
    except ValueError as error:
        if not str(error).startswith("types:"):
            raise
        skipped.append(f"The control task; {error}.")
        return _with_note(probe_sweep(model, y, **given))


def _with_note(frame: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    return frame, str(frame.attrs["shuffle"])


def _shuffle(read: Read) -> Any:
    """Examples where most of them share one label within their group, though groups are mixed: a
    shuffle within groups would then leave nearly all labels where they are."""
    if "group" not in read.frame:
        return "auto"
    kinds = read.frame.groupby("group")["label"].transform("nunique")
    return "examples" if 0 < float(np.mean(kinds > 1)) < 0.5 else "auto"


def _tidy(frame: pd.DataFrame, regression: bool) -> pd.DataFrame:
    """The main score first, under one name; columns without a number left out."""
    frame = frame.rename(columns={
        "r2" if regression else "accuracy": "score",
        "control_r2" if regression else "control_accuracy": "control",
    })  # fmt: skip
    adjusted = frame.groupby("source")["p"].transform(false_discovery_control)
    frame = frame.assign(p_adjusted=adjusted, site=frame["site"].str.replace("hook_", ""))
    frame = frame.drop(columns=["pos", "head"])
    if "auroc" in frame and bool(frame["auroc"].isna().any()):  # no fold has both classes
        frame = frame.drop(columns="auroc")
    first = [name for name in (*FIRST, *THEN) if name in frame]
    return pd.DataFrame(frame[[*first, *(name for name in frame if name not in first)]])


class _Predicted:
    """Predictions at single places, made once each."""

    def __init__(self, measured: Measured, kept: dict, options: dict) -> None:
        self.measured, self.kept, self.options = measured, kept, options
        self.labels = measured.read.frame["label"].to_numpy()

    def at(self, row: Any) -> pd.DataFrame:
        """The predictions at one row of the sweep."""
        for name, x in self.kept[row["source"]].items():
            site, layer = _split(name)
            if site == row["site"] and (layer is None or layer == row["layer"]):
                return held_out_predictions(x, self.labels, **self.options)
        raise AssertionError(f"{row['source']} {row['site']} was never read")

    def told(self) -> pd.DataFrame:
        """Those of the best place, with what is known of each example."""
        measured = self.measured
        frame = self.at(measured.best)
        known = measured.read.frame.drop(columns="label")
        types = word_types(known)
        known = (known if types is None else known.assign(word=types)).iloc[frame.pop("example")]
        frame = pd.concat([known.reset_index(drop=True), frame], axis=1)
        if measured.read.regression:
            return frame.assign(error=frame["predicted"] - frame["label"])
        return frame.assign(right=frame["predicted"] == frame["label"])


def _split(name: str) -> tuple[str, int | None]:
    """The local name of a site, as the sweep's table has it, and its layer."""
    parts = name.split(".", 2)
    if len(parts) < 3 or not parts[1].isdigit():
        return name.replace("hook_", ""), None
    return parts[2].replace("hook_", ""), int(parts[1])


def _rivals(measured: Measured, predicted: _Predicted) -> pd.DataFrame:
    """The neighbours of the best layer, and the best of each baseline."""
    best, model = measured.best, measured.model
    site = model[model["site"] == best["site"]].sort_values("layer").reset_index(drop=True)
    at = int((site["layer"] == best["layer"]).to_numpy().argmax())
    rows = [(f"layer {int(site['layer'][i])}, same site", site.iloc[i])
            for i in (at - 1, at + 1) if 0 <= i < len(site)]  # fmt: skip
    for source in (EMBEDDING, RANDOM, WORDS):
        own = measured.of(source)
        if len(own):
            rows.append((source, own.loc[own["score"].idxmax()]))
    mine, found = predicted.at(best), []
    for name, row in rows:
        other = predicted.at(row)
        gain = _gain(mine, other, measured.read)
        bounds = (float(one) for one in (gain.value, gain.low, gain.high))
        found.append((name, row["score"], *bounds, len(mine)))
    return pd.DataFrame(found, columns=[name.removesuffix("?") for name in RIVALS])


def _gain(mine: pd.DataFrame, other: pd.DataFrame, read: Read) -> stats.Estimate:
    """The difference of both scores over the same examples; members of a group go together."""
    groups = mine["example"].to_numpy()
    if "group" in read.frame:
        groups = read.frame["group"].to_numpy()[groups]
    if not read.regression:
        right = [(one["predicted"] == one["label"]).to_numpy() for one in (mine, other)]
        return stats.paired_difference_of_shares(*right, groups)
    squares = [((one["predicted"] - one["label"]) ** 2).to_numpy() for one in (mine, other)]
    spread = ((mine["label"] - mine["label"].mean()) ** 2).mean()
    return stats.clustered_mean((squares[1] - squares[0]) / spread, groups)


def by_group(measured: Measured, column: str) -> pd.DataFrame:
    """`column` n score low high of the predictions at the best place: accuracy with its interval,
    of a regression the mean absolute error with that of the mean."""
    rows = []
    for name, own in measured.predictions.groupby(column, sort=True):
        if measured.read.regression:
            found = stats.mean(own["error"].abs().to_numpy())
            value, low, high = (float(one) for one in (found.value, found.low, found.high))
        else:
            low, high = (
                float(one[0])
                for one in stats.wilson(np.array([own["right"].sum()]), np.array([len(own)]))
            )
            value = float(own["right"].mean())
        rows.append((name, len(own), value, low, high))
    score = "mean_error" if measured.read.regression else "accuracy"
    frame = pd.DataFrame(rows, columns=[column, "n", score, "low", "high"])
    return frame.sort_values(score, ascending=not measured.read.regression, kind="stable")


def confusion(measured: Measured) -> pd.DataFrame:
    """label predicted count share, of the label's examples."""
    own = measured.predictions
    names = sorted(set(own["label"]) | set(own["predicted"]))
    counts = pd.crosstab(own["label"], own["predicted"]).reindex(
        index=names, columns=names, fill_value=0
    )
    total = counts.sum(axis=1)
    rows = [
        (label, predicted, int(counts.loc[label, predicted]),
         float(counts.loc[label, predicted] / max(1, total[label])))
        for label in names for predicted in names
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["label", "predicted", "count", "share"])
