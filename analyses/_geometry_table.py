"""What the report on embedding geometry says of the table of word vectors."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analyses._geometry_config import Config
from interp.methods.geometry import Embedding, embedding
from interp.report import Report
from interp.report.figures import curves, plane
from interp.report.spine import listed, number, percent

LEAST = 3
"""Words of a category that is looked for."""
NEIGHBOURS = 6
WITHIN = 0.1
"""|cosine| up to which two directions are called nearly orthogonal in the findings."""


def spectrum_section(report: Report, table: Embedding, config: Config) -> pd.DataFrame:
    """Variance along the principal components, effective dimension, norms, anisotropy.

    Returns the effective dimension and norms (`Embedding.dimension`).
    """
    spectrum, sizes = table.spectrum(config.seed), table.dimension(config.seed)
    d = table.vectors.shape[1]
    removed = tuple(k for k in (1, 3, max(d // 100, 1)) if k < min(d, len(table) - 1))
    cosines = table.anisotropy(tuple(sorted(set(removed))), config.seed)
    measure = sizes.set_index("measure")
    ratio, many, norm = (measure.loc[one] for one in measure.index[[0, 1, 3]])
    section = report.section(
        "How the vectors fill their space",
        "Gaussian vectors of the same shape are the control: they fill every dimension alike, as "
        "far as so many vectors can.",
    )
    held = {"this table": spectrum["cumulative"], "Gaussian": spectrum["control_cumulative"]}
    drawn = pd.concat(
        [
            pd.DataFrame(
                {"component": spectrum["component"], "variance held": share, "vectors": name}
            )
            for name, share in held.items()
        ],
        ignore_index=True,
    )
    figure = curves(
        drawn,
        x="component",
        value="variance held",
        low="variance held",
        high="variance held",
        group="vectors",
        x_axis="principal component",
        axis="share of variance held so far",
        limits=(0.0, 1.02),
        alt=f"Share of variance that the first components hold together. {many['value']:.0f} of "
        f"{d} hold 90 % of it in this table, {many['control']:.0f} in Gaussian vectors.",
    )
    section.figure(figure, "Variance held by the first components", name="spectrum-figure")
    section.table(
        sizes,
        "Effective dimension and norms",
        name="dimension",
        formats={"value": ",.2f", "control": ",.2f"},
    )
    section.table(
        cosines,
        "The cosine of two rows, over all pairs",
        name="anisotropy",
        formats=dict.fromkeys(cosines.columns[2:], ".4f"),
    )
    section.table(spectrum, "The spectrum", name="spectrum", rows=8)
    plain, centred = cosines.iloc[0], cosines.iloc[1]
    last = cosines.iloc[-1]
    report.finding(
        f"Two rows of the table have a mean cosine of {number(plain['mean_cosine'], 'z.3f')} "
        f"(deviation {plain['deviation']:.3f}); centred {number(centred['mean_cosine'], 'z.3f')} "
        f"({centred['deviation']:.3f}); without the first {last['removed']} "
        f"component{'s' if last['removed'] > 1 else ''} {number(last['mean_cosine'], 'z.3f')} "
        f"({last['deviation']:.3f}). Gaussian vectors have {number(plain['control'], 'z.3f')} "
        f"({plain['control_deviation']:.3f})."
    )
    report.finding(
        f"Of {d} dimensions the table uses as many as {ratio['value']:.0f} equal ones would be "
        f"(participation ratio; Gaussian {ratio['control']:.0f}); 90 % of its variance lie in "
        f"{many['value']:.0f} (Gaussian {many['control']:.0f}). Norms are {norm['value']:.2f} on "
        f"average, with a deviation of {measure.iloc[4]['value']:.2f} (Gaussian "
        f"{measure.iloc[4]['control']:.2f})."
    )
    return sizes


def cosine_section(report: Report, table: Embedding, config: Config) -> None:
    """Cosines of random pairs beside those of random directions."""
    own = {"pairs": config.pairs, "seed": config.seed}
    frames, near = [], []
    for name, centre in (("as they are", False), ("centred", True)):
        found = table.cosine_histogram(centre=centre, **own)
        frames.append(_drawn(found, "share", name))
        near.append(table.orthogonality(centre=centre, **own).assign(vectors=name))
        if centre:
            frames.append(_drawn(found, "random", "random directions"))
            frames.append(_drawn(found, "normal", "theory: N(0, 1/d)"))
    both = pd.concat(near, ignore_index=True)
    both = both[["vectors", *(one for one in both if one != "vectors")]]
    d = table.vectors.shape[1]
    told = {name: some.set_index("within").loc[WITHIN] for name, some in both.groupby("vectors")}
    plain, centred = told["as they are"], told["centred"]
    section = report.section(
        "How nearly orthogonal",
        f"In {d} dimensions two random directions have a cosine of about N(0, 1/{d}): most pairs "
        "are nearly orthogonal with no structure at all. What differs from that is structure.",
    )
    figure = curves(
        pd.concat(frames, ignore_index=True),
        x="cosine",
        value="share",
        low="share",
        high="share",
        group="of",
        x_axis="cosine of two rows",
        axis="pairs, per unit of cosine",
        alt=f"Densities of the cosine of random pairs of rows as they are and centred, of random "
        f"directions, and of theory. Within ±{WITHIN} lie {percent(plain['share'])}, "
        f"{percent(centred['share'])} and {percent(plain['random'])} of pairs.",
    )
    section.figure(figure, "Cosines of random pairs", name="cosines-figure")
    quantiles = table.cosine_quantiles(**own)
    quantiles.insert(2, "centred", table.cosine_quantiles(centre=True, **own)["cosine"])
    section.table(
        quantiles,
        "Quantiles of these cosines",
        name="cosine-quantiles",
        formats=dict.fromkeys(("cosine", "centred", "random"), ".3f"),
    )
    section.table(
        both,
        "Shares of pairs within a bound, and how many directions could certainly be there "
        "with all pairs within it (an argument of Johnson and Lindenstrauss' kind, a lower bound; "
        "no count of what is here)",
        name="orthogonality",
        formats=dict.fromkeys(("share", "random", "normal"), ".1%") | {"could_hold": ",.0f"},
    )
    centrally = percent(centred["share"], "z.1f")
    report.finding(
        f"{percent(plain['share'], 'z.1f')} of pairs of rows lie within ±{WITHIN} of orthogonal as "
        f"they are, {centrally} centred; of random directions in {d} dimensions "
        f"{percent(plain['random'], 'z.1f')} (theory {percent(plain['normal'], 'z.1f')})."
    )


def _drawn(found: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    """A curve of density, since bins of the two histograms differ in width."""
    width = found["high"] - found["low"]
    middle = (found["low"] + found["high"]) / 2
    return pd.DataFrame({"cosine": middle, "share": found[column] / width, "of": name})


def clusters_section(report: Report, table: Embedding, config: Config) -> None:
    """Whether words of a category lie together."""
    kept, lost = _known(table, config)
    if lost:
        report.skip(
            f"{len(lost)} of the words of the categories are not one token here: {listed(lost, 6)}."
        )
    if len(kept) < 2:
        report.skip(
            f"Clusters: {len(kept)} of {len(config.groups)} categories have {LEAST} words that are "
            "one token, and two are needed."
        )
        return
    words = [word for some in kept.values() for word in some]
    labels = [name for name, some in kept.items() for _ in some]
    own = {"labels": labels, "seed": config.seed, "draws": max(config.draws // 5, 10)}
    found = {
        method: table.clusters(words, method=method, **own)
        for method in ("kmeans", "agglomerative")
    }
    controls = pd.DataFrame(
        [row for method, frame in found.items() for row in _controls(method, frame)],
        columns=["method", "measure", "value", "control_low", "control_high"],
    )
    place = table.plane(words, seed=config.seed)
    across, up = place.attrs["explained"]
    main = found["kmeans"].attrs
    section = report.section(
        "Words by category",
        f"{len(words)} words of {len(kept)} categories, sorted into as many clusters of centred "
        "unit vectors without being told the categories. The silhouette says how far apart the "
        "clusters are, the adjusted Rand index how well they agree with the categories (1: "
        "entirely, 0: as by chance). Controls: each dimension shuffled over the words; categories "
        "shuffled.",
    )
    figure = plane(
        place.drop(columns="explained").assign(category=labels),
        label="word",
        x="x",
        y="y",
        group="category",
        x_axis=f"first component ({percent(across)} of the variance)",
        y_axis=f"second component ({percent(up)} of the variance)",
        alt=f"{len(words)} words in the plane of their first two components, "
        f"{percent(across + up)} of their variance, a colour for each of {listed(kept)}.",
    )
    section.figure(figure, "Words in the plane that shows most of them", name="clusters-figure")
    section.table(
        controls,
        "Clusters and their controls",
        name="clusters-controls",
        formats=dict.fromkeys(controls.columns[2:], ".2f"),
    )
    section.table(
        found["kmeans"], "Which cluster k-means puts each word in", name="clusters", rows=8
    )
    low, high = main["control"]
    rand_low, rand_high = main["rand_control"]
    report.finding(
        f"k-means on {len(words)} words finds their {len(kept)} categories with an adjusted Rand "
        f"index of {main['rand']:.2f} (shuffled categories {number(rand_low)} to "
        f"{number(rand_high)}); the mean silhouette is {number(main['silhouette'])} "
        f"(shuffled dimensions {number(low)} to {number(high)})."
    )


def _known(table: Embedding, config: Config) -> tuple[dict[str, list[str]], list[str]]:
    """Category to words that are one token of their own, and the other words."""
    kept: dict[str, list[str]] = {}
    lost, rows = [], set()
    for name, words in config.groups.items():
        for word in words:
            try:
                row = table.row(word)
            except ValueError:
                row = None
            if row is None or row in rows:
                lost.append(word)
                continue
            rows.add(row)
            kept.setdefault(name, []).append(word)
    return {name: words for name, words in kept.items() if len(words) >= LEAST}, lost


def _controls(method: str, frame: pd.DataFrame) -> list[tuple]:
    own = frame.attrs
    return [
        (method, "mean silhouette", own["silhouette"], *own["control"]),
        (method, "adjusted Rand index", own["rand"], *own["rand_control"]),
    ]


def neighbours_section(
    report: Report, model: Any, table: Embedding, texts: list[str], config: Config
) -> None:
    """The neighbours of chosen words among what is read, predicted, and made of words in texts."""
    tables = {"W_E": table}
    if model.cfg.head == "none":
        report.skip(f"Neighbours by W_U: {model.name} has no unembedding.")
    elif not model.cfg.tied:
        tables["W_U"] = embedding(model, side="unembed")
    last = model.cfg.n_layers if getattr(model, "encoder", None) is None else None
    depth = (last or model.encoder.cfg.n_layers) - 1
    try:
        tables[f"in texts, behind layer {depth}"] = embedding(model, layer=depth, texts=texts)
    except ValueError as error:
        report.skip(f"Neighbours in texts: {error}.")
    frames, lost = [], []
    for name, one in tables.items():
        for word in dict.fromkeys(config.words):
            try:
                found = one.neighbors(word, k=NEIGHBOURS)
                frames.append(found.assign(vectors=name, word=word))
            except ValueError:
                lost.append(f"{word} ({name})")
    if lost:
        report.skip(f"Neighbours of words that are no single token there: {listed(lost, 6)}.")
    if not frames:
        return
    frame = pd.concat(frames, ignore_index=True)[["vectors", "word", "rank", "token", "score"]]
    section = report.section(
        "Nearest neighbours",
        "By cosine, centred, the word itself left out. In texts: a word's mean over its places, "
        "among the words of the same texts.",
    )
    first = frame[(frame["vectors"] == "W_E") & (frame["rank"] <= 3)]
    told = "; ".join(
        f"{word}: {', '.join(one.strip() for one in some)}"
        for word, some in first.groupby("word", sort=False)["token"]
    )
    wide = frame.pivot(index=["vectors", "rank"], columns="word", values="token")
    order = [word for word in dict.fromkeys(config.words) if word in wide]
    wide = wide.loc[[*dict.fromkeys(frame["vectors"])], order].fillna("").reset_index()
    section.table(wide, "Neighbours of the chosen words", name="neighbours-side-by-side")
    section.table(frame, "The same with cosines", name="neighbours", rows=4)
    if told:
        report.finding(f"Nearest by W_E – {told}.")
