"""Texts with labels as a probe gets them: read, sampled, cut to the context, and where to look."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses._labelled import read_labelled
from analyses._probes.config import Config
from analyses._text import tokens_of_rows
from interp import files
from interp.core.finite import finite_cache
from interp.core.occurrence import bare_word, word_span
from interp.core.tokens import Tokens
from interp.report.spine import listed
from interp.zoo import tinyworld

BUNDLED = {"sentiment": "sentiment", "number": "agreement", "gender": "gender"}
"""Labels of the language of tinyworld, and the kind of sentence in which each is read."""
SIDES = {
    **dict.fromkeys(("test", "true", "1", "1.0"), "test"),
    **dict.fromkeys(("train", "false", "0", "0.0"), "train"),
}
NUMBERS = 10
"""Labels that are numbers are a regression where there are more different ones than this."""
BATCH = 64


@dataclass(frozen=True, eq=False)
class Read:
    """Examples, one a row of everything."""

    frame: pd.DataFrame
    """line text label read, and where they were given group, word, side (train or test). `read`:
    the token, or how many, that the probe looks at. Labels of a regression are numbers."""
    tokens: Tokens
    weight: Float[Tensor, "n pos"]
    """1 at the position that is read, or a share of 1 at each."""
    what: str
    """What the label is called."""
    left_out: tuple[str, ...] = ()
    """Sentences on what is not among the examples, or not whole."""

    @property
    def regression(self) -> bool:
        return bool(pd.api.types.is_float_dtype(self.frame["label"]))

    def __len__(self) -> int:
        return len(self.frame)

    def some(self, rows: np.ndarray, *left_out: str) -> Read:
        """The examples of these rows."""
        index = torch.from_numpy(rows)
        return replace(
            self, frame=self.frame.iloc[rows].reset_index(drop=True), tokens=self.tokens[index],
            weight=self.weight[index], left_out=(*self.left_out, *left_out),
        )  # fmt: skip


def read_texts(model: Any, config: Config) -> Read:
    """The examples of a config. Raises ValueError, naming the line, on a label or a word that does
    not fit, and on a model that reads no texts."""
    frame, left_out = _rows(config)
    what = config.label_column if config.data is not None else config.bundled
    frame = _typed(frame, what, config.task)
    key = [name for name in ("text", "word", "label") if name in frame]
    whole, frame = len(frame), frame.drop_duplicates(key, ignore_index=True)
    if whole > len(frame):
        left_out.append(f"{whole - len(frame)} rows that repeat another row's text and label.")
    if len(frame) > config.n:
        rows = np.random.default_rng([config.seed, 7]).permutation(len(frame))[: config.n]
        frame = frame.iloc[np.sort(rows)].reset_index(drop=True)
        if config.data is not None:
            left_out.append(f"{whole:,} rows are there; {config.n} of them, at random, were read.")
    return _placed(model, frame, what, left_out, config)


def _rows(config: Config) -> tuple[pd.DataFrame, list[str]]:
    """line text label, and group, word, side where they are given."""
    if config.data is None:
        return _bundled(config), []
    more = ["word"] if config.position == "word" else []
    more += [config.split_column] if config.split_column else []
    frame = read_labelled(
        config.data,
        text=config.text_column,
        label=config.label_column,
        group=config.group_column,
        more=more,
    )
    if config.split_column:
        sides = frame[config.split_column].str.lower().map(SIDES)
        if sides.isna().any():
            row = frame[sides.isna()].iloc[0]
            raise ValueError(
                f"{config.data}, line {row['line']}: {config.split_column} is "
                f"{row[config.split_column]!r}; expected train or test (or 0 and 1, false and true)"
            )
        frame = frame.drop(columns=config.split_column).assign(side=sides)
    return frame, []


def _bundled(config: Config) -> pd.DataFrame:
    """Sentences of tinyworld by the first of their words that has the label."""
    made = tinyworld.sentences(BUNDLED[config.bundled], config.n, config.seed)
    rows = []
    for line, one in enumerate(made, 1):
        found = [(i, told[config.bundled]) for i, told in one.labels.items()
                 if config.bundled in told]  # fmt: skip
        if found:
            index, label = found[0]
            rows.append((line, one.text, label, f"{one.words[index]}#1"))
    frame = pd.DataFrame(rows, columns=["line", "text", "label", "word"])
    return frame if config.position == "word" else frame.drop(columns="word")


def _number(label: str) -> float:
    """The number that a label is (`files.number`); NaN where it is none."""
    try:
        return files.number(label)
    except ValueError:
        return float("nan")


def _typed(frame: pd.DataFrame, what: str, task: str) -> pd.DataFrame:
    """Labels as numbers where they are a regression."""
    numbers = frame["label"].map(_number).astype(float)
    strange = numbers.isna()
    some_words = bool(strange.any())
    if task == "auto":
        several = len(set(frame["label"])) > NUMBERS
        task = "regression" if several and not bool(np.isnan(numbers).any()) else "classification"
    if task == "classification":
        return frame
    if some_words:
        row = frame[strange].iloc[0]
        raise ValueError(
            f"line {row['line']}: {what} is {row['label']!r}, which is no number; a regression "
            "needs numbers, and --task classification takes any label"
        )
    return frame.assign(label=numbers)


def _placed(
    model: Any, frame: pd.DataFrame, what: str, left_out: list[str], config: Config
) -> Read:
    """The tokens of every text, cut, and the positions that are read."""
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, so it cannot read texts")
    width = min(config.width or model.cfg.n_ctx, model.cfg.n_ctx)
    rows, spans, kept, cut, several, lost = [], [], [], 0, [], []
    for i, row in enumerate(frame.to_dict("records")):
        lead, bare, tail = _parts(model.tokenizer, str(row["text"]), config.bos)
        room = max(1, width - len(lead) - len(tail))
        if not bare:
            raise ValueError(f"line {row['line']}: the text {row['text']!r} has no tokens")
        at = _span(model.tokenizer, row, bare, config.position, room)
        if at is None:
            lost.append(row["line"])
            continue
        if config.position == "word" and at[1] - at[0] > 1:
            several.append(bare_word(row["word"]))
        cut += len(bare) > room
        start = at[0] if config.position == "mean" else at[1] - 1
        rows.append([*lead, *bare[:room], *tail])
        spans.append((len(lead) + start, len(lead) + at[1]))
        kept.append(i)
    if not rows:
        raise ValueError(f"no word can be read: all lie behind the first {width} tokens")
    if cut:
        left_out.append(f"{cut} of {len(frame)} texts are longer than {width} tokens and were cut.")
    if lost:
        left_out.append(
            f"{len(lost)} rows whose word lies behind the first {width} tokens, or melts with what "
            f"follows it; the first in line {lost[0]}."
        )
    if several:
        left_out.append(
            f"Of {len(several)} words that are several tokens here ("
            f"{listed(dict.fromkeys(several), 3)}) the last token is read."
        )
    tokens = tokens_of_rows(model, rows)
    weight = torch.zeros(tokens.shape)
    for i, (start, end) in enumerate(spans):
        weight[i, start:end] = 1 / (end - start)
    strings = tokens.strings or []
    seen = [strings[i][end - 1] if end - start == 1 else f"the mean of {end - start} tokens"
            for i, (start, end) in enumerate(spans)]  # fmt: skip
    frame = frame.iloc[kept].reset_index(drop=True).assign(read=seen)
    return Read(frame, tokens, weight, what, tuple(left_out))


def _parts(tokenizer: Any, text: str, bos: bool | None) -> tuple[list[int], list[int], list[int]]:
    """What the tokenizer puts before a text, the text, and what it puts behind."""
    bare, ids = tokenizer.encode(text, bos=False), tokenizer.encode(text, bos=bos)
    own = len(ids) - len(bare)
    at = next((i for i in range(own + 1) if ids[i : i + len(bare)] == bare), 0)
    return ids[:at], bare, ids[at + len(bare) :]


def _span(
    tokenizer: Any, row: dict[Any, Any], bare: list[int], position: str, room: int
) -> tuple[int, int] | None:
    """The tokens of the text, or of its word; None where they are not the word's own, or cut."""
    if position != "word":
        return 0, min(len(bare), room)
    start, end = _find(row)
    part = tokenizer.encode(row["text"][:end], bos=False)
    if bare[: len(part)] != part or not 0 < len(part) <= room:
        return None
    before = tokenizer.encode(row["text"][:start].rstrip(), bos=False)
    own = len(before) if bare[: len(before)] == before and len(before) < len(part) else 0
    return (own or len(part) - 1), len(part)


def _find(row: dict[Any, Any]) -> tuple[int, int]:
    """Where the word of a row stands in its text, in any case."""
    try:
        return word_span(row["text"], row["word"], fold=True)
    except ValueError as error:
        raise ValueError(f"line {row['line']}: {error}") from None


def word_types(frame: pd.DataFrame) -> np.ndarray | None:
    """The word of each row, which a control task gives one label wherever it stands."""
    if "word" not in frame:
        return None
    return np.array([bare_word(word).casefold() for word in frame["word"]])


@torch.no_grad()
def activations(model: Any, read: Read, names: list[str]) -> dict[str, Float[Tensor, "n d"]]:
    """What stands at these sites where the probe looks, on the CPU; short texts run together."""
    layers = [model.sites[name].layer for name in names]
    stop = None if model.opaque else max(layers) + 1
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    order = read.tokens.real.sum(1).cpu().argsort(stable=True)
    for rows in order.split(BATCH):
        tokens, weight = read.tokens[rows], read.weight[rows]
        if tokens.mask is not None and tokens.ids is not None:  # padded on the right
            longest = int(tokens.mask.sum(1).max())
            tokens = Tokens(tokens.ids[:, :longest], mask=tokens.mask[:, :longest])
            weight = weight[:, :longest]
        cache = finite_cache(model, model.accept(tokens), names, stop_at_layer=stop)
        for name in names:
            value = cache[name]
            value = value if value.dtype == torch.float64 else value.float()
            own = weight.to(value)[..., None]
            parts[name].append((value * own).sum(1).cpu())
    home = order.argsort()
    return {name: torch.cat(found)[home] for name, found in parts.items()}


def word_counts(read: Read, most: int = 1000) -> Float[Tensor, "n token"] | None:
    """How often each token stands in each text: those in at least two texts, the commonest `most`.

    None where there are none, or the tokens are no words.
    """
    if read.tokens.ids is None:
        return None
    ids, real = read.tokens.ids.cpu(), read.tokens.real.cpu()
    names, index = torch.unique(ids, return_inverse=True)
    counts = torch.zeros(len(read), len(names))
    counts.scatter_add_(1, index, real.float())
    texts = (counts > 0).sum(0)
    wanted = (texts > 1) & (counts != counts[:1]).any(0)
    ranked = torch.argsort(texts * wanted, descending=True, stable=True)
    chosen = ranked[: min(most, int(wanted.sum()))]
    return counts[:, chosen] if len(chosen) else None
