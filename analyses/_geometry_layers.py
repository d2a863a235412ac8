"""What the report on embedding geometry says layer by layer: shape, and likeness between layers."""

from __future__ import annotations

from typing import Any

import pandas as pd

import interp
from analyses._geometry_config import Config
from interp.methods.geometry import Places, alignment, at_tokens, of_texts, procrustes
from interp.report import Report
from interp.report.figures import curves, heatmap
from interp.report.spine import number

LEAST = 20
"""Places without which the layers are not measured."""
FOLDS = 2
"""Of the held-out rotations: each is made from half of the places."""
RATIO = "participation ratio"


def depth_section(
    report: Report, model: Any, texts: list[str], config: Config
) -> tuple[Places | None, pd.DataFrame | None]:
    """Anisotropy and effective dimension of the vectors of words in texts, layer by layer.

    Returns the places, and `layer measure value control` of their effective dimension; None for
    what could not be measured.
    """
    try:
        places = at_tokens(model, texts, config.places, config.seed, config.layers)
    except ValueError as error:
        report.skip(f"Layers: {error}.")
        return None, None
    n, d = places.vectors.shape[1:]
    if n < LEAST:
        report.skip(f"Layers: the texts have {n} places that can be read here, {LEAST} needed.")
        return None, None
    removed = tuple(k for k in (1, 3) if k < min(d, n - 1))
    cosines, sizes, bad = [], [], []
    for layer in places.layers:
        table = places.embedding(layer)
        try:
            cosines.append(table.anisotropy(removed, config.seed).assign(layer=layer))
            sizes.append(table.dimension(config.seed).assign(layer=layer))
        except ValueError:
            bad.append(layer)
    if bad:
        report.skip(f"Shape of layer {', '.join(map(str, bad))}: its vectors do not differ.")
    if not sizes:
        return places, None
    section = report.section(
        "From layer to layer",
        f"{n} places of {len(texts)} texts, the same in every layer: the residual stream that a "
        f"layer reads (0: the first; {max(places.layers)}: what that many layers leave), before "
        "any final norm. Gaussian vectors of the same shape are the control.",
    )
    _anisotropy(report, section, pd.concat(cosines, ignore_index=True))
    by_layer = pd.concat(sizes, ignore_index=True)
    _dimension(report, section, by_layer, n, d)
    report.sure(
        f"By layer: {n} places drawn from {len(texts)} texts (seed {config.seed}), all pairs of "
        "them. Few vectors cannot fill many dimensions; the control says how far so many can."
    )
    return places, by_layer


def _anisotropy(report: Report, section: Any, frame: pd.DataFrame) -> None:
    frame = frame[["layer", *(one for one in frame if one != "layer")]]
    curve = frame.rename(columns={"mean_cosine": "mean cosine", "treatment": "vectors"})
    columns = ["layer", "mean cosine", "vectors"]
    plain = frame[frame["treatment"] == "as they are"].reset_index(drop=True)
    control = plain.assign(vectors="Gaussian", **{"mean cosine": plain["control"]})
    drawn = pd.concat([curve[columns], control[columns]], ignore_index=True)
    top = plain.loc[plain["mean_cosine"].abs().idxmax()]
    first, last = plain.iloc[0], plain.iloc[-1]
    figure = curves(
        drawn,
        x="layer",
        value="mean cosine",
        low="mean cosine",
        high="mean cosine",
        group="vectors",
        x_axis="layer (0: what the first one reads)",
        axis="mean cosine of two places",
        alt=f"Mean cosine of two places by layer: as they are {number(first['mean_cosine'])} at "
        f"layer {first['layer']}, {number(last['mean_cosine'])} at layer {last['layer']}; "
        "centred, without the first components and for Gaussian vectors about 0.",
    )
    section.figure(figure, "Anisotropy by layer", name="anisotropy-by-layer-figure")
    section.table(
        frame,
        "The cosine of two places, over all pairs",
        name="anisotropy-by-layer",
        formats=dict.fromkeys(frame.columns[3:], ".4f"),
        rows=8,
    )
    report.finding(
        f"In texts, two places have a mean cosine of {number(first['mean_cosine'])} at layer "
        f"{first['layer']} and {number(last['mean_cosine'])} at layer {last['layer']}, largest "
        f"at layer {top['layer']} ({number(top['mean_cosine'])}); Gaussian vectors "
        f"{number(top['control'])}."
    )


def _dimension(report: Report, section: Any, frame: pd.DataFrame, n: int, d: int) -> None:
    frame = frame[["layer", *(one for one in frame if one != "layer")]]
    own = frame[frame["measure"] == RATIO].reset_index(drop=True)
    drawn = pd.concat(
        [
            own[["layer"]].assign(**{RATIO: own[column], "vectors": name})
            for column, name in (("value", "places in texts"), ("control", "Gaussian"))
        ],
        ignore_index=True,
    )
    low, high = own.loc[own["value"].idxmin()], own.loc[own["value"].idxmax()]
    figure = curves(
        drawn,
        x="layer",
        value=RATIO,
        low=RATIO,
        high=RATIO,
        group="vectors",
        x_axis="layer (0: what the first one reads)",
        axis=f"{RATIO} (of {d} dimensions)",
        alt=f"Participation ratio by layer: lowest {low['value']:.1f} at layer {low['layer']}, "
        f"highest {high['value']:.1f} at layer {high['layer']}; Gaussian vectors of the same shape "
        f"{high['control']:.0f}.",
    )
    section.figure(figure, "Effective dimension by layer", name="dimension-by-layer-figure")
    section.table(
        frame,
        "Effective dimension and norms",
        name="dimension-by-layer",
        formats={"value": ",.2f", "control": ",.2f"},
        rows=10,
    )
    report.finding(
        f"The vectors of {n} places fill between {low['value']:.1f} (layer {low['layer']}) and "
        f"{high['value']:.1f} (layer {high['layer']}) of {d} dimensions by participation ratio; "
        f"Gaussian vectors of the same shape {high['control']:.0f}."
    )


def alignment_section(report: Report, places: Places | None, config: Config) -> None:
    """How alike the layers are."""
    if places is None or len(places.layers) < 2:
        report.skip("Likeness of layers: it takes two layers with places in texts.")
        return
    layers = places.by_layer()
    try:
        frame = alignment(layers, seed=config.seed)
    except ValueError as error:
        report.skip(f"Likeness of layers: {error}.")
        return
    apart = frame[frame["layer"] < frame["other"]]
    least = apart.loc[apart["cka"].idxmin()]
    steps = [*zip(places.layers, places.layers[1:], strict=False)]
    if len(places.layers) > 2:
        steps.append((places.layers[0], places.layers[-1]))
    rotated = pd.DataFrame([_rotated(layers, one, two, config) for one, two in steps])
    section = report.section(
        "How alike the layers are",
        "Linear CKA compares the similarities between places that two layers hold, whatever their "
        "directions: 1 for a rotated copy. The estimate is the unbiased one, 0 on average for "
        "unrelated vectors. Procrustes asks more: whether one rotation, made from half of the "
        "places, carries the other half of one layer onto the next. Controls shuffle the places.",
    )
    section.figure(
        _heatmap(frame, "this model"), "Linear CKA of two layers", name="alignment-figure"
    )
    section.table(
        frame,
        "CKA and its control",
        name="alignment",
        formats={"cka": ".3f", "control": ".3f"},
        rows=8,
    )
    section.table(
        rotated,
        "Held-out Procrustes similarity",
        name="procrustes",
        formats={"similarity": ".3f", "control": ".3f"},
    )
    step = apart[apart["other"].to_numpy() == apart["layer"].map(dict(steps[: len(layers) - 1]))]
    jump = step.loc[step["cka"].idxmin()]
    report.finding(
        f"Layers {least['layer']:.0f} and {least['other']:.0f} are least alike (CKA "
        f"{number(least['cka'])}; shuffled at most "
        f"{number(frame['control'].abs().max())} in size); of neighbouring layers, "
        f"{jump['layer']:.0f} and {jump['other']:.0f} ({number(jump['cka'])}). A rotation "
        f"carries one layer onto the next with {number(rotated['similarity'].min())} to "
        f"{number(rotated['similarity'].max())} on places held out (shuffled at most "
        f"{number(rotated['control'].abs().max())} in size)."
    )
    report.doubt(
        "CKA is ruled by the directions of largest variance: two layers that differ only in small "
        "ones look alike, and one outlying dimension can make layers look alike or apart."
    )


def _rotated(layers: dict, one: int, two: int, config: Config) -> dict[str, float]:
    x, y = layers[one], layers[two]
    order = pd.Series(range(len(y))).sample(frac=1, random_state=config.seed).to_numpy()
    return {
        "layer": one,
        "other": two,
        "similarity": procrustes(x, y, FOLDS, config.seed),
        "control": procrustes(x, y[order], FOLDS, config.seed),
    }


def _heatmap(frame: pd.DataFrame, other: str) -> Any:
    drawn = frame[["layer", "other", "cka"]].assign(cka=frame["cka"].clip(0.0, 1.0))
    low, high = drawn.loc[drawn["cka"].idxmin()], drawn.loc[drawn["cka"].idxmax()]
    return heatmap(
        drawn,
        rows="layer",
        columns="other",
        value="cka",
        diverging=False,
        limit=1.0,
        axis="linear CKA, debiased (1: a rotated copy; below 0 drawn as 0)",
        titles={"layer": "layer", "other": f"layer of {other}"},
        alt=f"Linear CKA of each layer with each layer of {other}: between {low['cka']:.2f} "
        f"(layers {low['layer']:.0f} and {low['other']:.0f}) and {high['cka']:.2f} (layers "
        f"{high['layer']:.0f} and {high['other']:.0f}).",
    )


def compare_section(report: Report, model: Any, texts: list[str], config: Config) -> None:
    """How alike the layers are to those of a second model."""
    if config.compare is None:
        return
    other = interp.load(config.compare, device=config.device, dtype=config.dtype)
    kept = texts[: config.places]
    left = of_texts(model, kept, config.layers).by_layer()
    right = of_texts(other, kept).by_layer()
    frame = alignment(left, right, seed=config.seed)
    best = frame.loc[frame["cka"].idxmax()]
    section = report.section(
        f"How alike {model.name} and {other.name} are",
        f"Linear CKA (debiased) between their layers, on the mean vectors of {len(kept)} texts, "
        "which need no common tokenizer.",
    )
    section.figure(
        _heatmap(frame, other.name), "Linear CKA between the models", name="compare-figure"
    )
    section.table(
        frame,
        "CKA and its control",
        name="compare",
        formats={"cka": ".3f", "control": ".3f"},
        rows=8,
    )
    report.finding(
        f"Layer {best['layer']:.0f} of {model.name} and layer {best['other']:.0f} of {other.name} "
        f"are most alike (CKA {number(best['cka'])} on {len(kept)} texts; shuffled at most "
        f"{number(frame['control'].abs().max())} in size)."
    )
