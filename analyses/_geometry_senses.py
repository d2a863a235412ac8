"""Words with two senses, for the report on embedding geometry: in which texts, and in which layer
their senses lie apart.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pandas as pd

from analyses._geometry_config import Config
from analyses._labelled import read_labelled
from interp.core.occurrence import bare_word
from interp.methods.geometry import Senses, at_words, disambiguation, separable
from interp.methods.geometry.reading import reader
from interp.report import Report, Section
from interp.report.figures import Figure, curves
from interp.report.spine import listed, number, percent
from interp.zoo import tinyworld
from interp.zoo.tinyworld.lexicon import tables

DRAWN = 3000
"""Sentences drawn of the bundled language; most are drawn more than once, and each is kept once."""
BEFORE, AFTER, OWN = "cue before", "cue behind", "your texts"
SHUFFLED = {BEFORE: "cue before, shuffled", AFTER: "cue behind, shuffled", OWN: "shuffled"}
SHOWN = ("bank", "mole", "ring", "bat")
"""Words that lead the table of words."""
LEVELS = ("accuracy", "low", "high", "null", "null_low", "null_high")
SHARES = dict.fromkeys(LEVELS, ".0%")
SENSES = ("texts", "layer", "words", "n", *LEVELS, "p")
COSINES = ("texts", "layer", "within", "between", "gap")
WORDS = ("texts", "word", "layer", "n", *LEVELS, "gap")


def users_senses(config: Config) -> dict[str, pd.DataFrame]:
    """The rows of --data: text word sense, and group where the config names one."""
    assert config.data is not None
    found = read_labelled(
        config.data,
        text=config.text_column,
        label=config.label_column,
        group=config.group_column,
        more=(config.word_column,),
    )
    found = found.rename(columns={config.word_column: "named", "label": "sense"})
    return {OWN: found.assign(word=found["named"].map(bare_word).str.lower())}


def default_senses(model: Any, config: Config) -> dict[str, pd.DataFrame]:
    """Sentences of the bundled language with exactly one cue (a word that goes with one sense),
    before or behind the word: text word sense group.

    Each ends before its answer, which names the sense; `group` is the cue. Sentences with a token
    that the tokenizer does not know are left out.
    """
    frame = _bundled(config.seed)
    frame = frame[[_known(model, text) for text in frame["text"]]]
    return {side: frame[frame["texts"] == side].reset_index(drop=True) for side in (BEFORE, AFTER)}


@cache
def _bundled(seed: int) -> pd.DataFrame:
    """texts text word sense group named, for any tokenizer."""
    words = tables()["senses"].columns
    cues: dict[str, set[str]] = {}
    for word, kind, *some in zip(
        *(words[c] for c in ("word", "category", "c1", "c2", "c3")), strict=True
    ):
        cues[f"{word}: {kind}"] = {*some}
    rows = []
    for split in ("trained", "held-out template"):
        for one in tinyworld.sentences("sense", n=DRAWN, seed=seed, split=split):
            ((index, label),) = one.labels.items()
            end = len(one.ids) if one.answer is None else one.answer
            there = [i for i, word in enumerate(one.words[:end]) if word in cues[label["sense"]]]
            if len(there) == 1 and index < end:
                text = tinyworld.tokenizer().decode(one.ids[:end])
                side = BEFORE if there[0] < index else AFTER
                rows.append((side, text, one.words[index], label["sense"], one.words[there[0]]))
    frame = pd.DataFrame(rows, columns=["texts", "text", "word", "sense", "group"])
    frame = frame.drop_duplicates().assign(named=frame["word"])
    return frame.sort_values(["word", "sense", "group", "text"], ignore_index=True)


def _known(model: Any, text: str) -> bool:
    tokenizer = model.tokenizer
    return tokenizer.unknown_ids.isdisjoint(tokenizer.encode(text, bos=False))


def senses_section(
    report: Report, model: Any, known: dict[str, pd.DataFrame], config: Config
) -> dict[str, Senses]:
    """In which layer the senses of a word lie apart; returns what was found, by kind of text. The
    figure of it is the caller's to place (`senses_figure`)."""
    found: dict[str, Senses] = {}
    for side, table in known.items():
        words, left = separable(table)
        if len(left):
            section = report.section("Words whose senses cannot be compared")
            section.table(left, "With the reason", name="senses-left-out")
            report.skip(f"{len(left)} words have no two senses with two texts or groups each.")
        if words:
            rows = pd.concat([table.iloc[word.rows] for word in words], ignore_index=True)
            places = at_words(model, rows["text"].tolist(), rows["named"].tolist(), config.layers)
            found[side] = disambiguation(places.by_layer(), rows, config.seed, config.draws)
    if not found:
        report.skip(
            "Senses of words by layer: no word with two senses can be read here"
            + (
                f"; the tokenizer of {model.name} does not know the bundled sentences, and --data "
                "takes your own."
                if config.data is None
                else "."
            )
        )
        return {}
    causal = reader(model).cfg.causal
    section = report.section("Words with two senses", _about(found, causal))
    _tables(section, found)
    for side, one in found.items():
        _tell(report, side, one, causal)
    _doubts(report, found, config)
    return found


def _tables(section: Section, found: dict[str, Senses]) -> None:
    pooled, by_word = (
        pd.concat([one[i].assign(texts=side) for side, one in found.items()], ignore_index=True)
        for i in (1, 0)
    )
    section.table(
        pooled[list(SENSES)],
        "All words together",
        name="senses",
        formats=SHARES | {"p": ".3f"},
        rows=40,
    )
    section.table(
        pooled[list(COSINES)],
        "Cosines within and between senses",
        name="senses-cosines",
        formats=dict.fromkeys(COSINES[2:], ".3f"),
        rows=40,
    )
    best = pooled.loc[pooled["accuracy"].idxmax(), "layer"]
    rank = {word: number for number, word in enumerate(SHOWN)}
    order = by_word.assign(
        other=by_word["layer"] != best, rank=by_word["word"].map(rank).fillna(len(rank))
    ).sort_values(["other", "rank"], kind="stable")
    section.table(
        by_word.loc[order.index, list(WORDS)],
        f"Word by word, layer {best} first",
        name="senses-by-word",
        formats=SHARES | {"gap": ".3f"},
        rows=12,
    )


def _about(found: dict[str, Senses], causal: bool) -> str:
    control = {
        True: "The model reads from left to right, so a cue behind the word cannot be known there: "
        "these texts are a control.",
        False: "The model reads both ways, so a cue on either side can be known at the word.",
    }[causal]
    return (
        "The vector at a word's last token is given to the nearest of the centroids of its senses, "
        "made of the texts of other cues or groups only. Layer 0 is what the first layer reads, "
        "the word without its context. The control shuffles the senses of each word. "
        + (control if AFTER in found else "")
    ).rstrip()


def senses_figure(found: dict[str, Senses]) -> Figure:
    """The share of places given to their sense, layer by layer, beside shuffled senses."""
    frames, told = [], []
    for side, one in found.items():
        own = one.pooled
        frames.append(own[["layer", "accuracy", "low", "high"]].assign(texts=side))
        null = own[["layer", "null", "null_low", "null_high"]].set_axis(
            ["layer", "accuracy", "low", "high"], axis=1
        )
        frames.append(null.assign(texts=SHUFFLED[side]))
        first, last = own.iloc[0], own.iloc[-1]
        told.append(
            f"{side}: {percent(first['accuracy'])} at layer {first['layer']:.0f}, "
            f"{percent(last['accuracy'])} at layer {last['layer']:.0f}"
        )
    return curves(
        pd.concat(frames, ignore_index=True),
        x="layer",
        value="accuracy",
        low="low",
        high="high",
        group="texts",
        x_axis="layer (0: what the first one reads)",
        axis="share given to the right sense",
        limits=(0.0, 1.02),
        alt=f"Share of places given to the sense that they have, by layer. {'; '.join(told)}; "
        "with shuffled senses beside it.",
    )


def _tell(report: Report, side: str, found: Senses, causal: bool) -> None:
    pooled = found.pooled
    first, last = pooled.iloc[0], pooled.iloc[-1]
    best = pooled.loc[pooled["accuracy"].idxmax()]
    at_best = found.by_word[found.by_word["layer"] == best["layer"]]
    clear = at_best[at_best["low"] > at_best["null"]]

    def share(row: Any) -> str:
        return f"{percent(row['accuracy'])} ({percent(row['low'])} to {percent(row['high'])})"

    known = side != AFTER or not causal
    report.finding(
        f"Senses, {side}: {share(first)} of {first['n']:.0f} places of {first['words']:.0f} words "
        f"are given to their sense at layer {first['layer']:.0f}, {share(last)} at layer "
        f"{last['layer']:.0f}, most at layer {best['layer']:.0f} with {share(best)}; shuffled "
        f"senses there give {percent(best['null_low'])} to {percent(best['null_high'])} (p = "
        f"{best['p']:.3f}). The mean cosine of two vectors of one sense is there "
        f"{number(best['gap'], 'z.3f')} above that of two senses. "
        + (
            f"{len(clear)} of {len(at_best)} words by themselves have an interval above the mean "
            "of their shuffles."
            if known
            else "A left-to-right model cannot know the sense here."
        )
    )


def _doubts(report: Report, found: dict[str, Senses], config: Config) -> None:
    sizes = listed(f"{one.pooled['n'].iloc[0]:.0f} places ({side})" for side, one in found.items())
    report.sure(
        f"Senses: {sizes}; 95 % Wilson intervals over places, {config.draws} shuffles (seed "
        f"{config.seed}), so that no p lies below {1 / (1 + config.draws):.3f}. The best layer "
        "is chosen after the fact; the figure shows all."
    )
    report.doubt(
        "Places that share a word, a cue or a sentence pattern are not independent, so these "
        "intervals are narrower than they should be; the shuffles of whole groups are not."
    )
    report.doubt(
        "Vectors of one sense may lie together because their cues are alike, not because the sense "
        "was worked out: a model that only copies a trace of its neighbours would do so too."
    )
