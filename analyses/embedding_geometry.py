"""What shape do a model's word vectors have, and what do its layers make of words with two senses?

Spectrum, anisotropy, near-orthogonality and clusters of the table of word vectors; then, layer by
layer, the vectors of words in texts: their anisotropy and dimension, whether the senses of one word
lie apart, and how alike the layers are. Each number stands beside the same number for vectors that
have no structure, or whose structure was shuffled away.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analyses import main
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
from interp.geometry import embedding
from interp.geometry.reading import reader
from interp.provenance import provenance
from interp.report import Report
from interp.zoo import tinyworld

CATEGORIES = (
    "royalty=king queen prince princess duke duchess",
    "family=father mother brother sister son daughter uncle aunt",
    "countries=France Germany Italy Spain England Japan China Egypt",
    "jobs=doctor lawyer teacher judge farmer writer soldier artist",
    "animals=cat dog horse pig sheep cow bird fish",
)
MOST = 5
"""Categories of a figure, which have a colour each."""
TREATED = ("treatment", "removed", "mean_cosine", "deviation", "control", "control_deviation")
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


@dataclass(frozen=True)
class Config:
    """Which model, which words, and which texts."""

    model: str = "minilm"
    """A bundled model, a local folder or a Hugging Face id."""
    words: tuple[str, ...] = ("king", "woman", "doctor", "France", "dog")
    """Words whose neighbours are listed."""
    categories: tuple[str, ...] = CATEGORIES
    """Groups of words to look for, each as name=word word …; five at most."""
    data: Path | None = None
    """Your own texts, a CSV or JSON-lines file with a text, a word of it and its sense there per
    row. By default sentences of the language of tinyworld, whose senses are known."""
    text: str = "text"
    """Column of --data with the text."""
    label: str = "sense"
    """Column of --data with the sense."""
    word: str = "word"
    """Column of --data with the word; “bank#2” is its second occurrence in the text."""
    group: str | None = None
    """Column of --data that says which texts belong together (the same cue, the same source): they
    are left out together when one of them is judged. By default each text is by itself."""
    compare: str | None = None
    """A second model, read on the same texts, to compare layers with."""
    layers: tuple[int, ...] | None = None
    """Layers to look at, 0 (what the first one reads) to the number of layers; by default all."""
    places: int = 800
    """Places in texts whose vectors are measured, in every layer."""
    pairs: int = 100_000
    """Random pairs of rows of the table whose cosines are drawn."""
    draws: int = 100
    """Shuffles of the controls for senses; a fifth as many for clusters."""
    seed: int = 0
    """Seed of the controls, of the pairs, and of what is drawn from the texts."""
    device: str | None = None
    """cpu, cuda, …; by default the best one at hand."""
    dtype: str | None = None
    """float32, float64, bfloat16 or float16; by default that of the file."""
    out: Path = Path("reports/embedding-geometry")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        if self.layers is not None and not self.layers:
            raise ValueError("layers=(): expected one or more, or none given for all of them")
        for name, least in (("places", 20), ("pairs", 1000), ("draws", 20)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if len(self.categories) > MOST:
            raise ValueError(f"{len(self.categories)} categories: expected at most {MOST}")
        taken: set[str] = set()
        for name, words in self.groups.items():
            if len(set(words)) < len(words) or taken & {*words}:
                raise ValueError(f"categories: a word of {name!r} is there twice")
            taken |= {*words}

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Category to words."""
        found = {}
        for one in self.categories:
            name, sign, words = one.partition("=")
            if not sign or not name.strip() or not words.split() or name.strip() in found:
                raise ValueError(
                    f"categories: {one!r}: expected name=word word …, each name once, such as "
                    "“colors=red green blue”"
                )
            found[name.strip()] = tuple(words.split())
        return found


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
    if config.layers is not None and not {*config.layers} <= {*range(last + 1)}:
        raise ValueError(f"layers={config.layers}: expected some of 0 … {last} of {model.name}")
    report = Report(
        f"Embedding geometry of {model.name}",
        "What shape do the word vectors have, how does it change from layer to layer, and where do "
        "the senses of a word come apart?",
        analysis="embedding_geometry",
        provenance=provenance(config, model),
    )
    table = embedding(model)
    texts, known = _texts(model, config)
    spectrum_section(report, table, config)
    cosine_section(report, table, config)
    clusters_section(report, table, config)
    neighbours_section(report, model, table, texts, config)
    places = depth_section(report, model, texts, config)
    senses_section(report, model, known, config)
    alignment_section(report, places, config)
    compare_section(report, model, texts, config)
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
