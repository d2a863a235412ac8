"""What `probe_layers` is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


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
