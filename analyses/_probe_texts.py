"""The labelled texts of the report on probes: what is asked of which, and the reading of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from analyses._labelled import read_labelled
from interp import files
from interp.methods.probes.texts import TextExamples, text_examples
from interp.model import HookedTransformer
from interp.zoo import tinyworld

BUNDLED = {"sentiment": "sentiment", "number": "agreement", "gender": "gender"}
"""Labels of the language of tinyworld, and the kind of sentence in which each is read."""
SIDES = {
    **dict.fromkeys(("test", "true", "1", "1.0"), "test"),
    **dict.fromkeys(("train", "false", "0", "0.0"), "train"),
}
NUMBERS = 10
"""Labels that are numbers are a regression where there are more different ones than this."""


@dataclass(frozen=True)
class Config:
    """A model, texts with labels, and where to look."""

    model: str = "tinyworld"
    """A bundled model, a local folder or a Hugging Face id."""
    bundled: Literal["sentiment", "number", "gender"] = "sentiment"
    """Sentences of the language of tinyworld, whose labels are known: the sentiment of a review,
    the number of a subject, the gender of a name. Not used where --data is given."""
    data: Path | None = None
    """Your own texts: a CSV, TSV or JSON-lines file with a text and a label in each row."""
    text_column: str = "text"
    """Column of --data with the text."""
    label_column: str = "label"
    """Column of --data with the label: a class, or a number."""
    group_column: str | None = None
    """Column of --data that says which texts belong together (the same author, film, source): no
    probe is asked about a group that it has learned from. By default texts are by themselves, and
    rows with the same text belong together."""
    split_column: str | None = None
    """Column of --data that says which rows are train and which are test (or 0 and 1); by default
    every row is held out once."""
    task: Literal["auto", "classification", "regression"] = "auto"
    """What labels are; auto takes more than ten different numbers for a regression."""
    position: Literal["last", "mean", "word"] = "last"
    """Where to look: the last token of the text, the mean over its tokens (special tokens around
    it left out of both), or the last token of the word in the column `word` of --data; "bank#2" is
    its second place in the text."""
    sites: tuple[str, ...] = ("resid_post", "attn_out", "mlp_out")
    """Sites with one vector per position, in every layer."""
    layers: tuple[int, ...] | None = None
    """Layers to look at; by default all."""
    C: tuple[float, ...] | None = None
    """Inverse strength of the probe's penalty; of several each fold chooses within its training
    part. By default 0.1 for classes; for numbers eight from 0.000001 to 10."""
    folds: int = 5
    """Parts of the data that are held out in turn."""
    shuffles: int = 99
    """Shuffled labellings of the null."""
    random: bool = True
    """Whether a copy of the model with random weights is probed as well."""
    n: int = 200
    """Texts at most; of a longer file, so many at random."""
    width: int | None = None
    """Tokens of a text that are read; by default as many as fit the context."""
    bos: bool | None = None
    """Whether texts begin with the model's beginning-of-sequence token; by default as its
    tokenizer has it."""
    seed: int = 0
    """Seed of the sample, the folds, the shuffles, the control tasks and the random weights."""
    allow_unknown: bool = False
    """Whether to go on where more than 30 % of the tokens of a text are unknown to the model."""
    device: str | None = None
    """cpu, cuda, …; by default the best one at hand."""
    dtype: str = "auto"
    """auto (float32 for half-precision weights on a CPU, else that of the file), float32, float64,
    bfloat16 or float16."""
    out: Path = Path("reports/probe-layers")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        for name, least in (("n", 10), ("folds", 2), ("shuffles", 19), ("width", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: expected at least {least}")
        for name in ("sites", "layers", "C"):
            if getattr(self, name) is not None and not len(getattr(self, name)):
                raise ValueError(f"{name}=(): expected one at least; leave it out for the default")
        if not all(0 < one < float("inf") for one in self.C or ()):
            raise ValueError(f"C={self.C}: expected positive numbers")
        if self.data is None and (
            self.split_column or self.group_column or self.task == "regression"
        ):
            raise ValueError(
                "split_column, group_column and task=regression are for your own texts: give them "
                "with data"
            )


def read_texts(model: HookedTransformer, config: Config) -> TextExamples:
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
    examples = text_examples(
        model, frame, what, position=config.position, width=config.width, bos=config.bos
    )
    return replace(examples, left_out=(*left_out, *examples.left_out))


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
    sentences = tinyworld.sentences(BUNDLED[config.bundled], config.n, config.seed)
    rows = []
    for line, sentence in enumerate(sentences, 1):
        labels = ((i, kinds.get(config.bundled)) for i, kinds in sentence.labels.items())
        index, label = next(((i, kind) for i, kind in labels if kind is not None), (0, None))
        if label is not None:
            rows.append((line, sentence.text, label, f"{sentence.words[index]}#1"))
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
