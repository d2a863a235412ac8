"""Probes by layer: what do a model's layers hold about a label, and how sure is that?

A linear probe is asked about texts that it has not learned from, at every layer and site, beside
what the same probe reads from the embedding, from a copy with random weights, from random features,
from the words alone, from shuffled labels, and on a control task that can only be learned by heart
(Hewitt & Liang 2019; Voita & Titov 2020).
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from analyses import main
from analyses._probe_figures import PROBE_TABLES, evidence
from analyses._probe_texts import Config, read_texts
from analyses._probe_words import answer_of, doubts, findings
from analyses._unknown import check_unknown
from interp.core.indices import indices
from interp.core.sites import UnknownSite
from interp.loading.needs import Needs
from interp.methods.probes.compare import Compared, compare_probes
from interp.methods.probes.texts import TextExamples
from interp.model import HookedTransformer
from interp.report import Report
from interp.report.provenance import provenance
from interp.report.spine import listed

NEEDS = Needs(text=True, tokenizer=True, one_stack=True)
TABLES = PROBE_TABLES
"""The CSV files of the report and their columns."""


def run(model: HookedTransformer, config: Config) -> Report:
    """The report. Raises ValueError on texts, labels or groups that cannot be used, naming the
    line, and on a model that does not read text."""
    if model.cfg.inputs != "tokens":
        raise ValueError(f"{model.name} reads {model.cfg.inputs}: these probes are about texts")
    if getattr(model, "encoder", None) is not None:
        raise ValueError(
            f"{model.name} is an encoder–decoder, which reads two texts: pass its model.encoder"
        )
    read = read_texts(model, config)
    report = Report(
        f"Probes for {read.what} in {model.name}",
        f"What do the layers of {model.name} hold about “{read.what}”, and how sure is that?",
        analysis="probe_layers",
        provenance=provenance(config, model),
    )
    name = "the texts" if config.data is not None else "the sentences of tinyworld"
    texts = read.frame["text"].tolist()
    check_unknown(report, model, texts, name, allowed=config.allow_unknown)
    examine(report, model, read, config)
    return report


def examine(
    report: Report, model: HookedTransformer, read: TextExamples, config: Config
) -> Compared:
    """Everything below the title; the examples may be anybody's."""
    names = site_names(report, model, config)
    compared = compare_probes(
        model,
        _enough(read, config),
        names,
        C=config.C,
        folds=config.folds,
        shuffles=config.shuffles,
        random=config.random,
        seed=config.seed,
    )
    opening = report.answer(answer_of(compared, config))
    findings(report, compared, config)
    evidence(report, opening, compared)
    doubts(report, compared, config)
    return compared


def site_names(report: Report, model: HookedTransformer, config: Config) -> list[str]:
    """The full names of the sites; says which of them the model has not."""
    n = model.cfg.n_layers
    layers = range(n) if config.layers is None else indices(config.layers, n, "layers")
    chosen: list[str] = []
    for site in config.sites:
        try:
            own = model.sites.select(site)
        except UnknownSite as error:
            if site not in Config.sites:
                raise
            report.skip(f"{site}: {error}")
            continue
        for name in own:
            axes, layer = model.sites[name].axes, model.sites[name].layer
            if len(axes) != 3 or axes[:2] != ("batch", "pos") or axes[2] == "one":
                raise ValueError(f"{name!r} is {' '.join(axes)}: expected one vector per position")
            if layer is None:
                raise ValueError(f"{name!r} is outside the layers")
            if layer in layers:
                chosen.append(name)
    if not chosen:
        raise ValueError(f"sites={config.sites}: {model.name} has none of them")
    return list(dict.fromkeys(chosen))


def _enough(read: TextExamples, config: Config) -> TextExamples:
    """Without classes that are too rare for the folds; texts that stand several times as groups."""
    frame = read.frame
    if "group" not in frame and frame["text"].duplicated().any():
        frame = frame.assign(group=frame["text"])
        together = "Some texts stand in several rows, which are held out together."
        read = replace(read, frame=frame, left_out=(*read.left_out, together))
    if read.regression or "side" in frame:
        return read
    has = frame.groupby("label")["group" if "group" in frame else "line"].nunique()
    rare = sorted(map(str, has.index[has < config.folds]))
    if not rare:
        return read
    kept = np.flatnonzero(~frame["label"].isin(rare))
    if len(set(frame["label"].iloc[kept])) < 2:
        raise ValueError(
            f"{read.what}: of {len(has)} labels {len(has) - len(rare)} stand in {config.folds} "
            f"rows or groups or more, as many as there are folds, and two are needed; rare: "
            f"{listed(rare, 5)}"
        )
    return read.some(
        kept,
        f"Labels with fewer than {config.folds} rows or groups, one for each fold: "
        f"{listed(rare)} ({len(frame) - len(kept)} rows).",
    )


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
