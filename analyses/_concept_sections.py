"""What the report on a concept's direction shows and says of the direction itself: how it separates
texts, how methods and layers agree, what it says to the unembedding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from interp.methods.concepts import METHODS, Directions, Method
from interp.methods.concepts.causes import SURE
from interp.methods.directions import Direction, cosines, promoted_tokens
from interp.methods.stats import wilson
from interp.report import Report
from interp.report.figures import bars, curves, heatmap
from interp.report.spine import listed, number, out_of_reach, percent, signed

COSINES = ("layer_a", "method_a", "layer_b", "method_b", "cosine", "chance")
TOKENS = ("side", "rank", "token", "logit", "z")
BINS = 12
NAMES = 24
"""Directions of one heatmap whose names can still be read."""


def separation_section(
    report: Report,
    found: Directions,
    frame: pd.DataFrame,
    layer: int,
    method: Method,
    n_random: int,
) -> None:
    """Held-out separation by layer and method, and the projections at the chosen layer."""
    first, second = found.concept.classes
    section = report.section(
        "Can it be read?",
        f"Each direction is found on {len(found.halves.fit)} texts; how it separates {second} from "
        f"{first} is measured on {len(found.halves.held)} others. Controls: directions at random, "
        "and directions found the same way from shuffled labels.",
    )
    section.figure(_by_layer(frame, found), "AUROC by layer", name="separation-by-layer")
    share = ("accuracy", "accuracy_low", "accuracy_high")
    section.table(
        frame,
        "Separation of held-out texts",
        name="separation",
        rows=24,
        formats=dict.fromkeys(share, ".0%"),
    )
    section.figure(
        _histogram(found, found.directions[layer, method], layer),
        "Held-out texts along it",
        name="projections",
    )
    own = _row(frame, layer, method)
    interval = f"{percent(own['auroc_low'])} to {percent(own['auroc_high'])}"
    report.finding(
        f"At layer {layer} the {METHODS[method]} puts {second} above {first} in "
        f"{percent(own['auroc'], 'z.1f')} of held-out comparisons (AUROC; 95 % interval "
        f"{interval}) and is right about {percent(own['accuracy'])} of "
        f"{int(own['n'])} texts. 95 % of random directions stay below {percent(own['random'])}, of "
        f"shuffled labels below {percent(own['shuffled'])} (p = {own['p_shuffled']:.2f})."
    )
    good = frame[(frame["auroc_low"] > 0.5) & (frame["p_shuffled"] <= SURE)]
    told = [
        f"{name} in {listed(sorted(some['layer']))}"
        for name, some in good.groupby("method", sort=False)
    ]
    short = out_of_reach(n_random, 1, "direction", "shuffles", "n-random", "none")
    report.finding(
        "Layers in which held-out texts are separated better than with shuffled labels: "
        + (f"none can be told; {short}." if short else f"{'; '.join(told) or 'none'}.")
    )


def _by_layer(frame: pd.DataFrame, found: Directions) -> Any:
    control = frame[frame["method"] == frame["method"].iloc[0]]
    drawn = pd.concat(
        [
            frame.rename(columns={"auroc": "value", "auroc_low": "low", "auroc_high": "high"}),
            control.assign(
                method="shuffled labels (95 %)",
                value=control["shuffled"],
                low=control["shuffled"],
                high=control["shuffled"],
            ),
        ],
        ignore_index=True,
    )[["layer", "method", "value", "low", "high"]]
    best = frame.loc[frame["auroc"].idxmax()]
    return curves(
        drawn,
        x="layer",
        value="value",
        low="low",
        high="high",
        group="method",
        x_axis="layer",
        axis="AUROC on held-out texts (bands: 95 %)",
        alt=f"AUROC on held-out texts by layer and method; highest {best['auroc']:.2f} at layer "
        f"{best['layer']} ({best['method']}). Of shuffled labels 95 % stay below "
        f"{control['shuffled'].max():.2f}. Concept: {found.concept.name}.",
    )


def _histogram(found: Directions, direction: Direction, layer: int) -> Any:
    held = found.halves.held
    along = direction.along(found.x[layer])[held].numpy()
    along = along / (direction.scale or 1.0)
    y = found.concept.labels.numpy()[held]
    edges = np.linspace(along.min(), along.max() + 1e-9, BINS + 1)
    if edges[-1] - edges[0] < 1e-6:
        edges = edges[0] + np.linspace(-0.5, 0.5, BINS + 1)
    rows = []
    for i in range(BINS):
        inside = (along >= edges[i]) & (along < edges[i + 1])
        for one, name in enumerate(found.concept.classes):
            hits, n = int((inside & (y == one)).sum()), int((y == one).sum())
            (low,), (high,) = wilson(np.array([hits]), np.array([n]))
            label = f"{signed(edges[i])} to {signed(edges[i + 1])}"
            rows.append((label, f"{one} {name}", hits / n, low, high))
    data = pd.DataFrame(rows, columns=["along", "class", "share", "low", "high"])
    means = [along[y == one].mean() for one in (0, 1)]
    return bars(
        data,
        label="along",
        value="share",
        low="low",
        high="high",
        group="class",
        axis="share of the class (rows: standard deviations along the direction)",
        alt=f"Histogram of held-out texts along the direction: {found.concept.classes[0]} lie at "
        f"{signed(means[0])} on average, {found.concept.classes[1]} at {signed(means[1])} standard "
        "deviations.",
    )


def cosine_section(report: Report, found: Directions, layer: int, method: Method) -> None:
    """Every pair of directions of all layers and methods."""
    if len(found.directions) < 2:
        report.skip("Cosines: one direction alone was found.")
        return
    named = {f"L{at} {METHODS[how]}": key for key in found.directions for at, how in [key]}
    frame = cosines({name: found.directions[key] for name, key in named.items()})
    parts = {
        f"{what}_{side}": [named[name][i] for name in frame[side]]
        for side in "ab"
        for i, what in enumerate(("layer", "method"))
    }
    table = pd.DataFrame(parts).replace({f"method_{side}": dict(METHODS) for side in "ab"})
    table = table.assign(cosine=frame["cosine"], chance=frame["chance"])[list(COSINES)]
    section = report.section(
        "Do methods and layers agree?",
        f"Cosines of all pairs of directions; 95 % of pairs of random directions of that width "
        f"stay within ±{frame['chance'].iloc[0]:.2f}.",
    )
    shown = [*named] if len(named) <= NAMES else [n for n, key in named.items() if key[1] == method]
    units = torch.stack([found.directions[named[name]].unit for name in shown])
    grid = pd.DataFrame(
        [
            (a, b, float(units[i] @ units[j]))
            for i, a in enumerate(shown)
            for j, b in enumerate(shown)
        ],
        columns=["direction", "other", "cosine"],
    )
    apart = grid[grid["direction"] != grid["other"]]["cosine"]
    section.figure(
        heatmap(
            grid,
            rows="direction",
            columns="other",
            value="cosine",
            axis="cosine",
            limit=1.0,
            titles={"direction": "", "other": ""},
            alt=f"Cosines of {len(shown)} directions, from {apart.min():.2f} to {apart.max():.2f}.",
        ),
        "Cosines of directions",
        name="cosines-map",
    )
    section.table(table, "Cosines", name="cosines", rows=12)
    own = table[(table["layer_a"] == layer) & (table["layer_b"] == layer)]
    told = [
        f"{a} and {b} {c:.2f}"
        for a, b, c in zip(own["method_a"], own["method_b"], own["cosine"], strict=True)
    ]
    if told:
        report.finding(
            f"Cosines of the methods at layer {layer}: {'; '.join(told)} (by chance within "
            f"±{frame['chance'].iloc[0]:.2f})."
        )


def tokens_section(report: Report, model: Any, direction: Direction, layer: int, k: int) -> None:
    """What the direction itself says to the unembedding."""
    try:
        frame = promoted_tokens(model, direction, min(k, model.cfg.d_vocab))
    except ValueError as error:
        report.skip(f"Tokens that the direction promotes: {error}.")
        return
    section = report.section(
        "What it says by itself",
        "Logits of the direction read by the unembedding directly, less their mean; z in standard "
        "deviations over the vocabulary.",
    )
    section.table(
        frame[list(TOKENS)],
        "Tokens promoted and suppressed",
        name="tokens",
        formats={"logit": "+.3f", "z": "+.1f"},
    )
    up, down = (frame[frame["side"] == side] for side in ("promoted", "suppressed"))
    report.finding(
        f"Read by the unembedding directly, the direction of layer {layer} raises "
        f"{_quoted(up)} most (z up to {number(up['z'].iloc[0], '.1f')}) and lowers "
        f"{_quoted(down)} most (z down to {number(down['z'].iloc[0], '.1f')}); later "
        "layers may do more with it."
    )


def _quoted(frame: pd.DataFrame) -> str:
    return listed(f"“{token.strip()[:30]}”" for token in frame["token"].head(4))


def _row(frame: pd.DataFrame, layer: int, method: Method) -> pd.Series:
    return frame[(frame["layer"] == layer) & (frame["method"] == METHODS[method])].iloc[0]
