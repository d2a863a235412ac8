"""What shape do a model's word vectors have, and what do its layers make of words with two senses?

Spectrum, anisotropy, near-orthogonality and clusters of the table of word vectors; then, layer by
layer, the vectors of words in texts: their anisotropy and dimension, whether the senses of one word
lie apart, and how alike the layers are. Each number stands beside the same number for vectors that
have no structure, or whose structure was shuffled away.
"""

from __future__ import annotations

import sys
from typing import Any

from analyses import main
from analyses._geometry_config import Config
from analyses._geometry_first import Shape, first_screen
from analyses._geometry_layers import alignment_section, compare_section, depth_section
from analyses._geometry_senses import (
    COSINES,
    SENSES,
    WORDS,
    default_senses,
    senses_section,
    users_senses,
)
from analyses._geometry_table import (
    clusters_section,
    cosine_section,
    neighbours_section,
    spectrum_section,
)
from analyses._unknown import check_unknown
from interp.core.indices import indices
from interp.loading.needs import Needs
from interp.methods.geometry import embedding
from interp.methods.geometry.reading import reader
from interp.report import Report
from interp.report.provenance import provenance
from interp.zoo import tinyworld

TREATED = ("treatment", "removed", "mean_cosine", "deviation", "control", "control_deviation")
NEEDS = Needs(text=True, tokenizer=True)
TABLES = {
    "spectrum-figure": ("component", "variance held", "vectors"),
    "spectrum": ("component", "variance", "share", "cumulative", "control_cumulative"),
    "dimension": ("measure", "value", "control"),
    "anisotropy": TREATED,
    "cosines-figure": ("cosine", "share", "of"),
    "cosine-quantiles": ("quantile", "cosine", "centred", "random"),
    "orthogonality": ("vectors", "within", "share", "random", "normal", "could_hold"),
    "clusters-figure": ("word", "x", "y", "category"),
    "clusters": ("word", "label", "cluster", "silhouette"),
    "clusters-controls": ("method", "measure", "value", "control_low", "control_high"),
    "neighbours-side-by-side": ("vectors", "rank", ...),
    "neighbours": ("vectors", "word", "rank", "token", "score"),
    "anisotropy-by-layer-figure": ("layer", "mean cosine", "vectors"),
    "anisotropy-by-layer": ("layer", *TREATED),
    "dimension-by-layer-figure": ("layer", "participation ratio", "vectors"),
    "dimension-by-layer": ("layer", "measure", "value", "control"),
    "senses-figure": ("layer", "accuracy", "low", "high", "texts"),
    "senses": SENSES,
    "senses-cosines": COSINES,
    "senses-by-word": WORDS,
    "senses-left-out": ("word", "reason"),
    "alignment-figure": ("layer", "other", "cka"),
    "alignment": ("layer", "other", "cka", "control"),
    "procrustes": ("layer", "other", "similarity", "control"),
    "compare-figure": ("layer", "other", "cka"),
    "compare": ("layer", "other", "cka", "control"),
}
"""The CSV files of the report and their columns."""


def run(model: Any, config: Config) -> Report:
    """The report. Of an encoder–decoder the layers are the encoder's.

    Raises ValueError where the model has no word vectors, no tokenizer, or no such layer, and where
    a row of --data cannot be read (`at_words`).
    """
    reads = reader(model)
    if reads.cfg.inputs != "tokens":
        raise ValueError(
            f"{model.name} reads {reads.cfg.inputs}, so it has no word vectors to look at"
        )
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, so its vectors have no words")
    last = reads.cfg.n_layers
    if config.layers is not None:
        indices(config.layers, last + 1, "layers")  # raises before anything is measured
    report = Report(
        f"Embedding geometry of {model.name}",
        "What shape do the word vectors have, how does it change from layer to layer, and where do "
        "the senses of a word come apart?",
        analysis="embedding_geometry",
        provenance=provenance(config, model),
    )
    table = embedding(model)
    texts, known = _texts(model, config)
    name = "the texts" if config.data is not None else "the sentences of tinyworld"
    check_unknown(report, model, texts, name, allowed=config.allow_unknown)
    sizes = spectrum_section(report, table, config)
    cosine_section(report, table, config)
    clusters_section(report, table, config)
    neighbours_section(report, model, table, texts, config)
    places, by_layer = depth_section(report, model, texts, config)
    senses = senses_section(report, model, known, config)
    alignment_section(report, places, config)
    compare_section(report, model, texts, config)
    width = table.vectors.shape[1]
    first_screen(report, Shape(width, sizes, by_layer, senses, reads.cfg.causal))
    _certainty(report, model, table, config)
    return report


def _texts(model: Any, config: Config) -> tuple[list[str], Any]:
    """Texts for the layers, and the tables of words with their senses in texts."""
    if config.data is not None:
        known = users_senses(config)
        return list(dict.fromkeys(next(iter(known.values()))["text"])), known
    every = tinyworld.sentences(n=500, seed=config.seed)
    return list(dict.fromkeys(one.text for one in every)), default_senses(model, config)


def _certainty(report: Report, model: Any, table: Any, config: Config) -> None:
    n, d = table.vectors.shape
    report.sure(
        f"The table has {n:,} rows of {d} numbers; means over all pairs of rows are exact, cosines "
        f"in the histogram are of {config.pairs:,} random pairs (seed {config.seed})."
    )
    report.doubt(
        "Every row of the table counts alike: word pieces, rare and unused tokens as much as words "
        "in use. Measures weighted by how often tokens occur can differ."
    )
    if config.data is None:
        report.doubt(
            "The texts are made sentences of a small language, that of tinyworld. Other texts give "
            "other vectors, and so other numbers by layer; --data takes your own."
        )
    report.doubt(
        "Geometry says what lies where, not what the model uses. A direction or cluster counts for "
        "the model's output only if changing it changes that output."
    )


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
