"""Steering: what does the model write when a concept's direction is added, and at what price?

Continuations with and without the direction, side by side; how often they name the concept, beside
random directions of equal norm; and how unlikely the unsteered model finds them (Turner et al.
2023; Rimsky et al. 2023).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses import main
from analyses._concepts import of_labelled
from analyses._steering_sections import first_screen, said, say_findings, show
from analyses._task import TASKS, Task
from analyses._unknown import check_unknown
from interp.core.indices import index
from interp.core.tokens import Tokens
from interp.data.activations import vectors_at
from interp.data.prompt_file import BOTH, read_prompts
from interp.loading.needs import Needs
from interp.methods.concepts import METHODS, Concept, Method, find, of_pairs, of_words
from interp.methods.continuations import (
    STEERED,
    SUMMARY,
    Counted,
    Writing,
    side_by_side,
    steer_texts,
    summary,
)
from interp.methods.directions import Direction, promoted_tokens
from interp.report import Report
from interp.report.provenance import provenance
from interp.report.spine import listed

PROMPTS = (
    "Once there was a",
    "The princess told us that the book was for",
    "Everyone in town likes Mary because",
    "Everyone in town likes Peter because",
)
NEEDS = Needs(text=True, tokenizer=True, continues=True, one_stack=True)
TABLES = {
    "summary": SUMMARY,
    "share-by-factor": ("factor", "added", "share", "low", "high"),
    "perplexity-by-factor": ("factor", "added", "perplexity", "low", "high"),
    "continuations": ("prompt", "chosen", "unsteered", ...),
    "fluency": ("row", "pos", "token", "value (nats)?"),
    "steered": STEERED,
    "counted": ("side", "token", "id"),
}
CLOSE = 10
"""Tokens of each side that are counted where no words are given."""


@dataclass(frozen=True)
class Config:
    """A direction, the texts that are continued with it, and how far it is added."""

    model: str = "tinyworld"
    """A bundled model, a local folder or a Hugging Face id."""
    prompt: tuple[str, ...] = PROMPTS
    """Texts to continue, each in quotes; not used where --prompts is given."""
    prompts: Path | None = None
    """A UTF-8 file of texts to continue, one per line, or a CSV file with the column clean or
    text."""
    direction: Path | None = None
    """A saved direction (Direction.save); by default one is found."""
    data: Path | None = None
    """Texts with two labels, as a CSV or JSON-lines file: the direction leads from the label that
    is first by name to the other."""
    text_column: str = "text"
    """The column of --data that holds the texts."""
    label_column: str = "label"
    """The column of --data that holds the labels."""
    positive: str = ""
    """Words, separated by commas: counted, and, unless --direction or --data is given, what the
    direction leads to."""
    negative: str = ""
    """Words, separated by commas: counted, and what the direction then leads away from, the first
    paired with the first of --positive where there are as many."""
    task: Task = "gendered-pronoun"
    """Where neither words, nor --data nor --direction are given: the bundled pairs of prompts whose
    two classes the direction is found from; their answers are counted."""
    n: int = 80
    """Pairs of that task."""
    method: Method = "means"
    """How the direction is found."""
    layer: int | None = None
    """Where it is found and added; by default the middle layer, or that of --direction."""
    site: str = "resid_post"
    """The site of that layer."""
    factors: tuple[float, ...] = (-2.0, -1.0, 1.0, 2.0)
    """How many steps of it are added, at every position; 0 is always there."""
    step: float | None = None
    """Length of one step; by default the standard deviation along the direction, of what it was
    found on."""
    new_tokens: int = 12
    """Tokens that are written."""
    samples: int = 12
    """Sampled continuations of each prompt that are counted."""
    temperature: float = 1.0
    """Of sampling."""
    n_random: int = 19
    """Random directions, added by as much."""
    bos: bool | None = None
    """Whether prompts begin with the model's beginning-of-sequence token; by default as its
    tokenizer has it."""
    seed: int = 0
    """Seed of the samples, the random directions and the pairs."""
    allow_unknown: bool = False
    """Whether to go on where more than 30 % of the tokens of a text are unknown to the model."""
    device: str | None = None
    """cpu, cuda, …; by default the best one at hand."""
    dtype: str = "auto"
    """auto (float32 for half-precision weights on a CPU, else that of the file), float32, float64,
    bfloat16 or float16."""
    out: Path = Path("reports/steering")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        for name in ("n", "new_tokens", "samples", "n_random"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if not self.prompt or not all(prompt.strip() for prompt in self.prompt):
            raise ValueError("prompt: expected texts to continue, and none empty")
        if self.prompts is not None and self.prompt != PROMPTS:
            raise ValueError(BOTH)
        if self.prompts is None:
            self.check_samples(self.prompt)
        factors = self.factors
        if not factors or 0 in factors or len(set(factors)) < len(factors):
            raise ValueError(f"factors={factors}: expected one or more, each once, and no 0")
        if not np.isfinite(factors).all() or not 0 < self.temperature < np.inf:
            raise ValueError(
                f"factors={factors}, temperature={self.temperature}: expected finite numbers, and "
                "a temperature above 0 (greedy continuations are shown anyway)"
            )
        if self.step is not None and not 0 < self.step < np.inf:
            raise ValueError(f"step={self.step}: expected a length above 0")
        if self.direction is not None and self.data is not None:
            raise ValueError("give --direction or --data, not both")
        if (self.direction is None and self.data is None) and (
            bool(self.words("positive")) != bool(self.words("negative"))
        ):
            raise ValueError("a direction between words needs both --positive and --negative")

    def check_samples(self, texts: Sequence[str]) -> None:
        """Raises ValueError where so many prompts give one continuation."""
        if self.samples * len(texts) < 2:
            raise ValueError("one continuation has no interval: raise samples, or add a prompt")

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts to continue."""
        if self.prompts is None:
            return self.prompt
        texts = read_prompts(self.prompts)
        self.check_samples(texts)
        return texts

    def words(self, side: str) -> list[str]:
        """The words of a side."""
        return [word.strip() for word in getattr(self, side).split(",") if word.strip()]


def run(model: Any, config: Config) -> Report:
    """The report. Raises ValueError on a model that cannot continue a text: without logits, with
    attention both ways, an encoder–decoder, or without a tokenizer."""
    _check_writes(model)
    report = Report(
        f"Steering {model.name}",
        "What does the model write when a concept's direction is added, and at what price?",
        analysis="steering",
        provenance=provenance(config, model),
    )
    check_unknown(report, model, config.texts, "the prompts", allowed=config.allow_unknown)
    named = {side: _ids(report, model, config.words(side)) for side in ("positive", "negative")}
    direction, told = _direction(report, model, config)
    counted = _counted(report, model, direction, named, config)
    examine(report, model, direction, counted, told, config)
    return report


def _check_writes(model: Any) -> None:
    cfg = model.cfg
    other = "analyses.concept_direction measures a direction in such a model"
    if cfg.head != "unembed":
        raise ValueError(f"{model.name} has head={cfg.head!r}: it writes no next token; {other}")
    if not cfg.causal:
        raise ValueError(
            f"{model.name} attends both ways (causal=False): it continues no text; {other}"
        )
    if getattr(model, "encoder", None) is not None:
        raise ValueError(f"{model.name} is an encoder–decoder: only decoders are steered here")
    if model.tokenizer is None:
        raise ValueError(f"{model.name} has no tokenizer, so it cannot read the prompts")


def _direction(report: Report, model: Any, config: Config) -> tuple[Direction, str]:
    """The direction, and in words where it comes from."""
    if config.direction is not None:
        own = Direction.load(config.direction)
        layer = model.sites[own.site].layer if config.layer is None else config.layer
        site = own.site if config.layer is None else model.sites[config.site, layer].name
        own.check(model, site)
        if own.model and own.model != model.name:
            report.warn(f"The direction was found in {own.model}, and is added to {model.name}.")
        kept = Direction(own.vector, site, own.origin, own.model, own.seed, own.mean, own.scale)
        return kept, f"{own.origin}, saved in {config.direction.name}"
    concept = _concept(model, config)
    if concept.texts:
        name = f"the texts of {concept.name}" if config.data is not None else concept.name
        check_unknown(report, model, concept.texts, name, allowed=config.allow_unknown)
    layer = _layer(model, config)
    site = model.sites[config.site, layer].name
    x = vectors_at(model, concept.tokens, site, concept.pos).double()
    own = find(config.method, x, concept, np.arange(len(x)), site, model.name)
    first, second = concept.classes
    return own, f"{METHODS[config.method]} from {first} to {second}, {concept.name}"


def _concept(model: Any, config: Config) -> Concept:
    if config.data is not None:
        return of_labelled(
            model, config.data, config.text_column, config.label_column, bos=config.bos
        )
    if config.words("positive"):
        both = (config.words(side) for side in ("negative", "positive"))
        return of_words(model, *both, bos=config.bos)
    return of_pairs(model, TASKS[config.task](model, config.n, config.seed, bos=config.bos))[0]


def _layer(model: Any, config: Config) -> int:
    n = model.cfg.n_layers
    return n // 2 if config.layer is None else index(config.layer, n, "layer")


def _counted(
    report: Report, model: Any, direction: Direction, found: dict[str, torch.Tensor], config: Config
) -> Counted:
    """The ids of the words given; of a task its answers; else what the direction promotes."""
    plain = config.direction is None and config.data is None
    if plain and not len(found["positive"]):
        pairs = TASKS[config.task](model, config.n, config.seed, bos=config.bos)
        ask = of_pairs(model, pairs)[1]
        return Counted(ask.toward.unique(), ask.away.unique())
    if not len(found["positive"]) or not len(found["negative"]):
        top = promoted_tokens(model, direction, min(CLOSE, model.cfg.d_vocab // 2))
        for side, kind in (("positive", "promoted"), ("negative", "suppressed")):
            if not len(found[side]):
                found[side] = torch.tensor(top.loc[top["side"] == kind, "id"].to_numpy())
                report.sure(
                    f"No {side} words were given: counted are the {len(found[side])} tokens that "
                    f"the direction itself has {kind} most at the unembedding."
                )
    return Counted(found["positive"], found["negative"])


def _ids(report: Report, model: Any, words: list[str]) -> torch.Tensor:
    """Every single token that is one of the words, with a space before it or without."""
    found, missing = set(), []
    for word in words:
        own = set()
        for form in (f" {word}", word):
            try:
                own.add(model.to_single_token(form))
            except ValueError:
                continue
        own -= model.tokenizer.unknown_ids
        found |= own
        missing += [] if own else [word]
    if missing:
        report.skip(f"Not single tokens here, so not counted: {listed(missing)}.")
    if words and not found:
        raise ValueError(f"none of the words {listed(words)} is a single token of {model.name}")
    return torch.tensor(sorted(found), dtype=torch.long)


def examine(
    report: Report, model: Any, direction: Direction, counted: Counted, told: str, config: Config
) -> pd.DataFrame:
    """All of it, for any direction and any tokens that are counted; returns the summary."""
    step = config.step or direction.scale or float(direction.vector.norm())
    writing = Writing(
        tuple(sorted(config.factors)),
        step,
        config.new_tokens,
        config.samples,
        config.temperature,
        config.n_random,
        config.seed,
    )
    prompts = _prompts(model, config)
    frame = steer_texts(model, direction, prompts, counted, writing)
    short = summary(frame)
    beside, greedy = side_by_side(model, direction, prompts, config.texts, writing)
    saying = said(model, short, counted, writing.n_random)
    first_screen(report, saying, beside, greedy, counted, told)
    say_findings(report, saying, direction, told)
    show(report, model, short, frame, beside, greedy, counted)
    _certainty(report, frame, writing, direction, config)
    return short


def _prompts(model: Any, config: Config) -> Tokens:
    tokens = model.to_tokens(list(config.texts), bos=config.bos)
    if tokens.shape[1] + config.new_tokens > model.cfg.n_ctx:
        raise ValueError(
            f"a prompt of {tokens.shape[1]} tokens and new_tokens={config.new_tokens} pass the "
            f"context of {model.name}, {model.cfg.n_ctx}"
        )
    return tokens


def _certainty(
    report: Report, frame: pd.DataFrame, writing: Writing, direction: Direction, config: Config
) -> None:
    n = int(frame["n"].iloc[0])
    report.sure(
        f"Each factor: {n} sampled continuations ({len(config.texts)} prompts, {writing.samples} "
        f"each, temperature {writing.temperature:g}, seed {writing.seed}) of {writing.new_tokens} "
        f"tokens. One step is {writing.step:.3g} along the direction, at {direction.site}."
    )
    report.sure(
        f"Controls: {writing.n_random} random directions of the same length; p is a rank among "
        f"them and never below {1 / (1 + writing.n_random):.3f}. All factors are told, uncorrected."
    )
    report.doubt(
        "Intervals are over continuations of these prompts; other prompts may be steered otherwise."
    )
    report.doubt(
        "The share of a few words is a narrow measure: a text may be about the concept without "
        "them, and repeat them without being about it. Read the continuations."
    )
    report.doubt(
        "A random direction of the same length is a weak control where activations vary along few "
        "directions; analyses.concept_direction has one drawn as the data vary."
    )


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
