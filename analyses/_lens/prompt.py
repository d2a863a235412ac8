"""The lenses over every position of one prompt, and the tokens that each layer would say."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pandas as pd
from torch import Tensor

from interp.data.tasks import Pairs
from interp.methods.lens import TunedLens, logit_lens, top_tokens
from interp.report import Report, Section
from interp.report.figures import heatmap

PLACES = ("lens", "layer", "pos", "token", "top_token", "top_prob", "entropy", "kl", "answer_rank")
CELLS = ("layer", "pos", "token", "top_token", "answer_rank", "log10_rank")
PROMPT_TABLES = {
    "top-tokens": ("lens", "layer", "first", "probability", ...),
    "ranks-over-the-prompt": CELLS,
    "ranks-over-the-prompt-tuned": CELLS,
    "top-tokens-over-the-prompt": ("layer", "pos", "token", "top_token", "top_prob"),
    "positions": PLACES,
}
ORDINALS = ("first", "second", "third", "fourth", "fifth")
WIDEST = 60
"""Positions of a heatmap; of a longer prompt the last ones are drawn."""


def prompt_section(
    report: Report, model: Any, pairs: Pairs, layers: list[int], lens: TunedLens | None
) -> None:
    """The first prompt: top tokens of each layer at the answer; heatmaps of layer × position."""
    one = pairs[0]
    section = report.section(
        "The first prompt, position by position",
        "What each layer would say behind each token. Only behind the last one is the answer "
        "expected; where it stands high before that, its kind or its word is prepared early.",
    )
    section.table(
        _likeliest(model, one, layers, lens), "The likeliest tokens of each layer, where the "
        "answer is expected", name="top-tokens", rows=40, formats={"probability": ".1%"},
    )  # fmt: skip
    frame = _positions(model, one, layers, lens)
    plain = frame[frame["lens"] == "plain"]
    names = {"pos": _names(model, one)}
    if lens is not None:
        ranks_figure(section, model, one, layers, lens)
    drawn = _fitting(plain)[["layer", "pos", "token", "top_token", "top_prob"]]
    sure = drawn.loc[drawn["top_prob"].idxmax()]
    figure = heatmap(
        drawn, rows="layer", columns="pos", value="top_prob", names=names, diverging=False,
        limit=1.0, axis="probability of each layer's top token (logit lens)",
        titles={"pos": "token that was read last"},
        alt=f"How sure each layer is behind each token of the first prompt: most at layer "
        f"{int(sure['layer'])}, position {int(sure['pos'])}, with {sure['top_prob']:.2f}. The "
        "tokens themselves are in the table behind.",
    )  # fmt: skip
    section.figure(figure, "How sure each layer is; its top token is in the table",
                   name="top-tokens-over-the-prompt")  # fmt: skip
    section.table(frame, "Every lens, layer and position of the first prompt", name="positions",
                  rows=12)  # fmt: skip


def _likeliest(model: Any, one: Pairs, layers: list[int], lens: TunedLens | None) -> pd.DataFrame:
    k = min(len(ORDINALS), model.cfg.d_vocab)
    frames = [top_tokens(model, one.clean, k, pos="end", layers=layers).assign(lens="plain")]
    if lens is not None:
        read = top_tokens(model, one.clean, k, pos="end", lens=lens)
        frames.append(read.assign(lens="tuned"))
    rows = []
    for key, own in pd.concat(frames).groupby(["lens", "layer"], sort=False):
        name, layer = cast(tuple, key)
        words = token_words(model, own["token"]).tolist()
        row = {"lens": name, "layer": layer, "first": words[0], "probability": own["prob"].iloc[0]}
        rows.append(row | dict(zip(ORDINALS[1:], words[1:], strict=False)))
    return pd.DataFrame(rows, dtype=object).astype({"layer": int, "probability": float})


def _positions(model: Any, one: Pairs, layers: list[int], lens: TunedLens | None) -> pd.DataFrame:
    readers = {"plain": logit_lens(model, one.clean, one.answer, layers=layers)}
    if lens is not None:
        readers["tuned"] = lens.read(model, one.clean, one.answer)
    frame = pd.concat([read.assign(lens=name) for name, read in readers.items()],
                      ignore_index=True)  # fmt: skip
    names = _names(model, one)
    frame["token"] = as_objects([names[at] for at in frame["pos"]], frame.index)
    frame["top_token"] = token_words(model, frame["top"])
    return frame.rename(columns={"rank": "answer_rank"})[list(PLACES)]


def ranks_figure(
    section: Section, model: Any, one: Pairs, layers: list[int], lens: TunedLens | None
) -> None:
    """The answer's rank behind each token of a prompt, by layer."""
    reader = "logit lens" if lens is None else "tuned lens"
    frame = _positions(model, one, layers, lens)
    drawn = _fitting(frame[frame["lens"] == ("plain" if lens is None else "tuned")])
    drawn = drawn.assign(log10_rank=np.log10(drawn["answer_rank"]))[list(CELLS)]
    last = drawn[drawn["pos"] == drawn["pos"].max()]
    figure = heatmap(
        drawn, rows="layer", columns="pos", value="answer_rank", names={"pos": _names(model, one)},
        ranks=True, axis="rank of the answer among all tokens (1: the likeliest)",
        titles={"pos": "token that was read last", "layer": "layers passed"},
        alt=f"Rank of the answer by layer and position in the first prompt, {reader}. Behind the "
        f"last token it goes from {int(last['answer_rank'].iloc[0]):,} to "
        f"{int(last['answer_rank'].iloc[-1]):,}.",
    )  # fmt: skip
    answer = "".join(token_words(model, one.answer.reshape(-1)[:1]).tolist()).strip()
    section.figure(
        figure, f"Rank of the answer “{answer}” in the first prompt, read by the {reader} behind "
        "each token; it is asked for behind the last",
        name="ranks-over-the-prompt" + ("" if lens is None else "-tuned"),
    )  # fmt: skip


def _fitting(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["pos"] > frame["pos"].max() - WIDEST]


def _names(model: Any, one: Pairs) -> list[str]:
    if one.clean.strings:
        return list(one.clean.strings[0])
    return token_words(model, pd.Series(one.clean.ids[0].tolist())).tolist()


def token_words(model: Any, ids: pd.Series | Tensor) -> pd.Series:
    """Each id as its piece of text; as its number where the model has no tokenizer."""
    ids = pd.Series(ids.tolist()) if isinstance(ids, Tensor) else ids
    distinct = ids.unique().tolist()
    pieces = map(str, distinct) if model.tokenizer is None else model.tokenizer.str_tokens(distinct)
    known = dict(zip(distinct, pieces, strict=True))
    return as_objects([known[one] for one in ids], ids.index)


def as_objects(words: list[str], index: pd.Index) -> pd.Series:
    """As objects: half a character, as some vocabularies have it, is no text to pandas."""
    return pd.Series(words, index=index, dtype=object)
