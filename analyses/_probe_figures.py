"""What the report on probes shows: curves by layer, held-out examples, tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analyses._probe_words import form_of, place_name, score_name
from interp.methods.probes.compare import (
    EMBEDDING,
    FIRST,
    RANDOM,
    RIVALS,
    WORDS,
    Compared,
    confusion,
    scores_by,
)
from interp.report import Report, Section
from interp.report.figures import curves, heatmap, scatter

DRAWN = ("curve", "layer", "score", "low", "high")
PROBE_TABLES = {
    **{f"{site}-figure": DRAWN for site in ("resid-post", "attn-out", "mlp-out")},
    "controls-figure": DRAWN,
    "compression-figure": DRAWN,
    "by-layer": (*(f"{one}?" if one == "layer" else one for one in FIRST), ...),
    "rivals": RIVALS,
    "confusion-figure": ("label", "predicted", "count", "share"),
    "confusion": ("label", "predicted", "count", "share"),
    "predictions-figure": ("label", "predicted"),
    "wrong": ("line", "text", ...),
    "examples": ("line", "text", ...),
    "by-word": ("word", "n", ...),
    "by-group": ("group", "n", ...),
}
"""The CSV files of the report and their columns."""
MOST_CLASSES = 40
"""Classes of a confusion table that is drawn."""
MOST_NAMED = 20
"""Wrong examples, words and groups that the page shows."""
NULL = "shuffled labels"


def evidence(report: Report, opening: Section, compared: Compared) -> None:
    """Figures and tables; the site of the best place stands in the opening section."""
    section = report.section(
        "By layer and site",
        "Each site stands beside the same probe on a copy with random weights, on the embedding "
        f"(one place, drawn across), and beside {NULL} and a constant answer. Layer l is "
        "what stands there after the block, or what its attention or MLP adds.",
    )
    for site, own in compared.model.groupby("site", sort=False):
        at_best = site == compared.best["site"]
        _draw_site(opening if at_best else section, compared, str(site), own)
    _draw_controls(section, compared)
    _draw_bits(section, compared)
    section.table(
        compared.sweep,
        "Every place of every source; p_adjusted is corrected for the places of a "
        "source, and C is the penalty chosen",
        name="by-layer",
        missing=("layer",),
    )
    section.table(
        compared.rivals,
        f"{place_name(compared.best)} less each rival, over the same examples",
        name="rivals",
        missing=("low", "high"),
    )
    _held_out(report, compared)


def _curve(rows: pd.DataFrame, label: str, columns: tuple[str, str, str]) -> pd.DataFrame:
    value, low, high = (rows[name].to_numpy(float) for name in columns)
    found = {"curve": label, "layer": rows["layer"].to_numpy(int)}
    return pd.DataFrame({**found, "score": value, "low": low, "high": high})


def _across(layers: np.ndarray, row: pd.Series, label: str) -> pd.DataFrame:
    """One place, drawn over all layers."""
    columns = {name: np.full(len(layers), float(row[name])) for name in ("score", "low", "high")}
    return pd.DataFrame({"curve": label, "layer": layers, **columns})


def _axis(compared: Compared) -> str:
    return f"{score_name(compared)} (95 %)"


def _limits(compared: Compared) -> tuple[float, float] | None:
    return None if compared.examples.regression else (0.0, 1.02)


def _draw_site(section: Section, compared: Compared, site: str, own: pd.DataFrame) -> None:
    own = own.sort_values("layer")
    layers, drawn = own["layer"].to_numpy(int), [_curve(own, site, ("score", "low", "high"))]
    for source in (RANDOM, EMBEDDING):
        rows = compared.of(source)
        rows = rows[rows["site"] == site] if source == RANDOM else rows
        if len(rows) and source == RANDOM:
            drawn.append(_curve(rows.sort_values("layer"), source, ("score", "low", "high")))
        elif len(rows):
            drawn.append(_across(layers, rows.iloc[0], source))
    drawn.append(_curve(own, NULL, ("null_mean", "null_low", "null_high")))
    drawn.append(_curve(own, "constant answer", ("constant",) * 3))
    data = pd.concat(drawn, ignore_index=True)[list(DRAWN)]
    top = own.loc[own["score"].idxmax()]
    figure = curves(
        data,
        x="layer",
        value="score",
        low="low",
        high="high",
        group="curve",
        x_axis="layer",
        axis=_axis(compared),
        limits=_limits(compared),
        alt=f"{score_name(compared).capitalize()} of {compared.examples.what} by layer at {site}, "
        f"highest at layer {int(top['layer'])} with {form_of(compared)(top['score'])}, beside "
        f"{', '.join(dict.fromkeys(data['curve'].iloc[len(own) :]))}.",
    )
    section.figure(
        figure,
        f"{score_name(compared).capitalize()} by layer at {site}, beside its controls. Bands are "
        "95 % intervals.",
        name=f"{site}-figure",
    )


def _draw_controls(section: Section, compared: Compared) -> None:
    site = compared.best["site"]
    own = compared.model[compared.model["site"] == site].sort_values("layer")
    drawn = [_curve(own, str(site), ("score", "low", "high"))]
    if "control" in own:
        drawn.append(_curve(own, "control task", ("control",) * 3))
    layers = own["layer"].to_numpy(int)
    words = compared.of(WORDS)
    if len(words):
        drawn.append(_across(layers, words.iloc[0], WORDS))
    drawn.append(_curve(own, "random features", ("random_features",) * 3))
    data = pd.concat(drawn, ignore_index=True)[list(DRAWN)]
    figure = curves(
        data,
        x="layer",
        value="score",
        low="low",
        high="high",
        group="curve",
        x_axis="layer",
        axis=_axis(compared),
        limits=_limits(compared),
        alt=f"{score_name(compared).capitalize()} by layer at {site} beside "
        f"{', '.join(dict.fromkeys(data['curve'].iloc[len(own) :]))}.",
    )
    section.figure(figure, f"{site} beside what needs no model", name="controls-figure")


def _draw_bits(section: Section, compared: Compared) -> None:
    if "compression" not in compared.sweep:
        return
    groups = [*compared.model.groupby("site", sort=False)][:3]
    drawn = [_curve(own, str(site), ("compression",) * 3) for site, own in groups]
    site = compared.best["site"]
    rows = compared.of(RANDOM)
    rows = rows[rows["site"] == site]
    if len(rows):
        drawn.append(_curve(rows, RANDOM, ("compression",) * 3))
    if len(compared.of(EMBEDDING)):
        layers = groups[0][1]["layer"].to_numpy(int)
        value = float(compared.of(EMBEDDING)["compression"].iloc[0])
        row = pd.Series(dict.fromkeys(("score", "low", "high"), value))
        drawn.append(_across(layers, row, EMBEDDING))
    data = pd.concat(drawn, ignore_index=True)[list(DRAWN)]
    figure = curves(
        data,
        x="layer",
        value="score",
        low="low",
        high="high",
        group="curve",
        x_axis="layer",
        axis="compression (1: nothing is saved)",
        alt="Compression of the labels by layer, highest "
        f"{data['score'].max():.2f} ({data.loc[data['score'].idxmax(), 'curve']}).",
    )
    section.figure(
        figure,
        "How many times fewer bits the labels take (online code, Voita & Titov 2020); it "
        "counts how surely and from how few examples they are read",
        name="compression-figure",
    )


def _held_out(report: Report, compared: Compared) -> None:
    own, where = compared.predictions, place_name(compared.best)
    section = report.section(
        f"Held-out examples at {where}",
        "Each is predicted by a probe that has not learned from it.",
    )
    if compared.examples.regression:
        data = own[["label", "predicted"]].astype(float)
        figure = scatter(
            data,
            x="label",
            y="predicted",
            x_axis=compared.examples.what,
            y_axis=f"{compared.examples.what}, predicted",
            alt=f"Predicted against true {compared.examples.what} of {len(own)} examples.",
        )
        section.figure(figure, "Predicted against true", name="predictions-figure")
        wrong = own.loc[own["error"].abs().sort_values(ascending=False, kind="stable").index]
        caption = "The largest errors"
    else:
        _confusion(section, compared)
        wrong = pd.DataFrame(own[~own["right"]])
        if "decision" in wrong:
            order = wrong["decision"].abs().sort_values(ascending=False, kind="stable").index
            wrong = wrong.loc[order]
        caption = "What is wrong" + (", the surest first" if "decision" in wrong else "")
    if len(wrong):
        section.table(wrong.head(1000), caption, name="wrong", rows=MOST_NAMED)
    for column in ("word", "group"):
        if column in own and len(set(own[column])) > 1:
            score = "mean_error" if compared.examples.regression else "accuracy"
            frame = scores_by(compared, column)
            frame = frame.sort_values(
                [score, "n"], ascending=[not compared.examples.regression, False], kind="stable"
            )
            holes = ("low", "high") if compared.examples.regression else ()
            section.table(
                frame,
                f"By {column}, the worst first",
                name=f"by-{column}",
                rows=MOST_NAMED,
                missing=holes,
            )
    section.table(own, "All of them", name="examples", rows=10)


def _confusion(section: Section, compared: Compared) -> None:
    frame = confusion(compared.predictions)
    if len(set(frame["label"])) <= MOST_CLASSES:
        figure = heatmap(
            frame,
            rows="label",
            columns="predicted",
            value="share",
            diverging=False,
            limit=1.0,
            axis="share of the label's examples",
            titles={"label": "true label"},
            alt="Share of each label's examples by predicted label; on the diagonal "
            + ", ".join(
                f"{row.label} {row.share:.0%}"
                for row in frame.itertuples()
                if row.label == row.predicted
            )
            + ".",
        )
        section.figure(
            figure, "Rows: what it is; columns: what the probe says", name="confusion-figure"
        )
    counted = frame[frame["count"] > 0].sort_values("count", ascending=False, kind="stable")
    section.table(counted, "The same in numbers", name="confusion", formats={"share": ".1%"})
