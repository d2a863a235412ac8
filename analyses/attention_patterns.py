"""Attention patterns: where does every head look, on your own prompts?

Shows all heads side by side, and finds those that look at the previous token, at the first token,
at themselves and, on random tokens that are said twice, behind the earlier occurrence (induction).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from analyses import main
from analyses._unknown import check_unknown
from interp import heads, tasks
from interp.core.finite import finite_cache
from interp.core.tokens import Tokens
from interp.data.prompt_file import BOTH, read_prompts
from interp.loading.needs import Needs
from interp.model import HookedTransformer
from interp.report import Report
from interp.report.attention import MEASURES, heads_table
from interp.report.provenance import provenance
from interp.report.spine import listed, part_name, percent

PROMPTS = (
    "When Mary and John went to the store, John gave a book to Mary.",
    "The capital city of Italy is called Rome. The capital city of France is called Paris.",
    "The princess told us that the book was for her.",
)
KINDS = {
    "previous_token": "previous token",
    "first_token": "first token",
    "itself": "itself",
    "induction": "induction",
}
PLACES = {
    "induction": "behind an earlier occurrence of the same token (induction)",
    "previous_token": "on the previous token",
    "first_token": "on the first token",
    "itself": "on the token itself",
}
MEASURED = ("previous_token", "first_token", "itself")
"""Places at which every prompt can be looked at."""
LOOKS_AT = {
    "previous_token": "at the previous token",
    "first_token": "at the first token",
    "itself": "at the token itself",
}
INDUCTION = ("induction", "induction_stderr", "same_distance")
NEEDS = Needs(text=True)
TABLES = {
    "attention": ("layer", "head", "label", *MEASURES, *INDUCTION),
    "loss": ("row", "pos", "token", "value (nats)?"),
}
HALF = 0.5
"""What a head must put on one place to be named after it."""
CLOSE = 0.3
"""What a head that looks everywhere alike may put on one place before the answer says so."""
ROWS = 20
"""Random rows of the induction score."""


@dataclass(frozen=True)
class Config:
    """What to read, with which model."""

    model: str = "tinyworld"
    """A bundled model, a local folder or a Hugging Face id."""
    prompt: tuple[str, ...] | None = None
    """Texts to look at, each in quotes; by default, and without --prompts, three sentences."""
    prompts: Path | None = None
    """A UTF-8 file of texts, one per line, or a CSV file with the column clean or text."""
    max_tokens: int = 128
    """A longer prompt is cut to its first so many tokens."""
    bos: bool | None = None
    """Whether prompts begin with the model's beginning-of-sequence token; by default as its
    tokenizer has it."""
    repeated: int = 12
    """Random tokens that are said twice, to find induction; 0: none."""
    seed: int = 0
    """Seed of the random tokens."""
    allow_unknown: bool = False
    """Whether to go on where more than 30 % of the tokens of a text are unknown to the model."""
    device: str | None = None
    """cpu, cuda, …; by default the best one at hand."""
    dtype: str = "auto"
    """auto (float32 for half-precision weights on a CPU, else that of the file), float32, float64,
    bfloat16 or float16."""
    out: Path = Path("reports/attention-patterns")
    """Directory of the report; an older report there is replaced."""

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens={self.max_tokens}: expected at least 2")
        if self.repeated < 0 or self.repeated == 1:
            raise ValueError(f"repeated={self.repeated}: expected 0 (none) or at least 2")
        if self.prompt == () and self.prompts is None and not self.repeated:
            raise ValueError("no prompts and repeated=0: there is nothing to look at")
        if self.prompt is not None and self.prompts is not None:
            raise ValueError(BOTH)


@dataclass(frozen=True, eq=False)
class Reading:
    """A prompt as the model read it."""

    tokens: list[str]
    pattern: np.ndarray
    """[layer head q_pos k_pos], float32."""
    loss: list[float | None]
    """Nats per token, none at the first; empty where the model predicts no next token."""


def run(model: HookedTransformer, config: Config) -> Report:
    """The report. Of an encoder–decoder the patterns are the encoder's.

    Raises ValueError where the model reads no text, or has no tokenizer for the prompts.
    """
    reader = model if getattr(model, "encoder", None) is None else model.encoder
    if reader.cfg.inputs != "tokens":
        raise ValueError(
            f"{model.name} reads {reader.cfg.inputs}, not text; section.attention() takes the "
            "patterns of its own inputs"
        )
    texts = _texts(reader, config)
    report = Report(
        f"Attention patterns in {model.name}",
        "Where does every head look: at the previous token, at the first, at itself, behind an "
        "earlier occurrence?",
        analysis="attention_patterns",
        provenance=provenance(config, model),
        tables=TABLES,
    )
    if texts:
        check_unknown(report, reader, texts, "the prompts", allowed=config.allow_unknown)
    if texts is None:
        report.skip("Prompts: this model has no tokenizer to read any; these are random tokens.")
    readings = [_read_prompt(report, reader, text, config) for text in texts or ()]
    found = None
    if config.repeated:
        example, found = _induction(reader, config)
        readings.append(example)
    frame = heads_table([reading.pattern for reading in readings])
    scores = frame[["layer", "head"]].assign(label=_labels(frame, found))
    if found is not None:
        scores = scores.join(found)
    shares = frame if found is None else frame.join(found)
    even = [_even(len(reading.tokens), reader.cfg.causal) for reading in readings]
    _say(report, shares, heads_table(even).iloc[0], readings, scores)
    _certainty(report, frame, found, readings, config)
    _doubts(report, model)
    _surprise(report, readings)
    return report


def _texts(model: HookedTransformer, config: Config) -> tuple[str, ...] | None:
    """The texts to look at; None where none are named and the model could not read them."""
    asked = config.prompt or config.prompts is not None
    if model.tokenizer is None and (asked or not config.repeated):
        raise ValueError(f"{model.name} has no tokenizer, so it cannot read prompts")
    if config.prompts is not None:
        return read_prompts(config.prompts)
    if config.prompt is not None:
        return config.prompt
    return PROMPTS if model.tokenizer is not None else None


def _read_prompt(report: Report, model: HookedTransformer, text: str, config: Config) -> Reading:
    tokens = model.to_tokens(text, bos=config.bos)
    length, most = tokens.shape[1], min(config.max_tokens, model.cfg.n_ctx)
    if length < 2:
        raise ValueError(f"“{text[:40]}” is 1 token; attention needs two or more")
    if length > most:
        report.skip(f"“{text[:40]}…” was cut to the first {most} of its {length} tokens.")
        tokens = Tokens(tokens.ids[:, :most], strings=[tokens.strings[0][:most]], bos=tokens.bos)
    return _read(model, tokens)


@torch.no_grad()
def _read(model: HookedTransformer, tokens: Tokens) -> Reading:
    """One row, by itself, so that nothing is padded."""
    predicts = model.cfg.head == "unembed" and model.cfg.causal
    names = ["pattern", *(["hook_logits"] if predicts else [])]
    cache = finite_cache(model, model.accept(tokens), names)
    layers = [cache["pattern", layer][0] for layer in range(model.cfg.n_layers)]
    strings = tokens.strings[0] if tokens.strings else [str(i) for i in tokens.ids[0].tolist()]
    loss: list[float | None] = []
    if predicts:
        logits = cache["hook_logits"]
        ids = tokens.ids[:, 1:, None].to(logits.device)
        log_probs = logits[:, :-1].float().log_softmax(-1).gather(-1, ids)
        loss = [None, *(-log_probs).flatten().tolist()]
    return Reading(list(strings), torch.stack(layers).float().cpu().numpy(), loss)


def _induction(model: HookedTransformer, config: Config) -> tuple[Reading, pd.DataFrame]:
    """An example of random tokens said twice, and per head, over `ROWS` rows: induction (attention
    behind the earlier occurrence), its standard error, and the control at the same distance where
    nothing is repeated."""
    length = min(config.repeated, (model.cfg.n_ctx - 2) // 2)
    rows = tasks.induction(model, ROWS, config.seed, bos=config.bos, length=length).clean
    return _read(model, rows[0]), heads.attention_scores(model, rows)[list(INDUCTION)]


def _labels(frame: pd.DataFrame, found: pd.DataFrame | None) -> list[str]:
    """What each head puts most on, where that is more than half; else "mixed"."""
    shares = frame if found is None else frame.join(found)
    names = [name for name in KINDS if name in shares]
    most = shares[names].max(axis=1)
    largest = shares[names].idxmax(axis=1).map(KINDS)
    return largest.where(most > HALF, "mixed").tolist()


def _say(
    report: Report,
    shares: pd.DataFrame,
    even: pd.Series,
    readings: list[Reading],
    scores: pd.DataFrame,
) -> None:
    """The answer with the viewer below it, and what was found; `even` is a head that looks
    everywhere alike."""
    report.answer(_answer(shares, even)).attention(
        [reading.pattern for reading in readings],
        [reading.tokens for reading in readings],
        "Attention of every head: queries downwards, keys to the right",
        scores=scores,
        name="attention",
    )
    if "induction" in shares:
        _closest_to_induction(report, shares, prompt=len(readings))
    for name in ("previous_token", "first_token", "itself"):
        _closest(report, shares, name, float(even[name]))
    for name in (name for name in PLACES if name in shares):
        control = (
            _at_the_same_distance(shares)
            if name == "induction"
            else f"A head that looks everywhere alike puts {even[name]:.2f} there."
        )
        report.finding(f"In all, {PLACES[name]}: {_most(shares, name)}. {control}", at="attention")


def _answer(shares: pd.DataFrame, even: pd.Series) -> str:
    """How many heads put more than half of their attention on each place, the most first."""
    names = [name for name in PLACES if name in shares]
    counts = {name: int((shares[name] > HALF).sum()) for name in names}
    held = sorted((name for name in names if counts[name]), key=lambda name: -counts[name])
    if not held:
        places = " or ".join(PLACES[name] for name in names)
        return f"No head puts more than half of its attention {places}."
    first, *others = held
    counted = [f"{counts[name]} {PLACES[name]}" for name in others]
    heads_put = "1 puts" if counts[first] == 1 else f"{counts[first]} put"
    whose = "its" if counts[first] == 1 else "their"
    start = f"{heads_put} more than half of {whose} attention {PLACES[first]}"
    chance = max(float(even[name]) for name in MEASURED)
    short = (
        f"; on prompts as short as these, looking everywhere alike gives up to {percent(chance)}"
        if chance > CLOSE
        else ""
    )
    return f"Of {len(shares)} heads, {listed([start, *counted])}{short}."


def _closest_to_induction(report: Report, shares: pd.DataFrame, prompt: int) -> None:
    """The head that looks most behind an earlier occurrence, opened at the repetition."""
    row = shares.loc[shares["induction"].idxmax()]
    name, there = part_name(row), percent(row["induction"])
    control = percent(row["same_distance"])
    clear = row["induction"] > max(HALF, 2 * row["same_distance"])
    report.finding(
        f"{name} looks most behind an earlier occurrence of the same token: {there} of its "
        f"attention, {control} where nothing is repeated."
        if clear
        else f"No head clearly looks behind an earlier occurrence: {name} comes closest, with "
        f"{there} there and {control} where nothing is repeated.",
        at="attention",
        links={name: f"{_in_the_viewer(row)}-prompt{prompt}"},
    )


def _closest(report: Report, shares: pd.DataFrame, place: str, even: float) -> None:
    """The head that looks most at a place, beside one that looks everywhere alike."""
    row = shares.loc[shares[place].idxmax()]
    if row[place] <= even:
        report.finding(
            f"No head looks {LOOKS_AT[place]} more than one that looks everywhere alike "
            f"({percent(even)}).",
            at="attention",
        )
        return
    name = part_name(row)
    report.finding(
        f"{name} looks most {LOOKS_AT[place]}: {percent(row[place])} of its attention; a head "
        f"that looks everywhere alike puts {percent(even)} there.",
        at="attention",
        links={name: _in_the_viewer(row)},
    )


def _in_the_viewer(row: pd.Series) -> str:
    return f"#head-L{int(row['layer'])}H{int(row['head'])}"


def _at_the_same_distance(shares: pd.DataFrame) -> str:
    row = shares.loc[shares["induction"].idxmax()]
    return (
        f"{part_name(row)} puts {row['same_distance']:.2f} at the same distance where nothing is "
        "repeated."
    )


def _most(shares: pd.DataFrame, name: str) -> str:
    largest = shares.nlargest(3, name)
    named = ", ".join(f"{part_name(row)} ({row[name]:.2f})" for _, row in largest.iterrows())
    count = int((shares[name] > HALF).sum())
    who = "no head puts" if not count else f"{count} of {len(shares)} heads put"
    return f"{who} more than half of {'its' if not count else 'their'} attention; most {named}"


def _even(n: int, causal: bool) -> np.ndarray:
    rows = np.tri(n) if causal else np.ones((n, n))
    return (rows / rows.sum(-1, keepdims=True))[None, None]


def _certainty(
    report: Report,
    frame: pd.DataFrame,
    found: pd.DataFrame | None,
    readings: list[Reading],
    config: Config,
) -> None:
    sizes = [len(reading.tokens) for reading in readings]
    first = sorted({reading.tokens[0] for reading in readings})
    report.sure(
        f"Shares are averages over {len(readings)} prompts of {min(sizes)} to {max(sizes)} tokens"
        f"{', the repeated one among them' if found is not None else ''}. They begin with "
        f"{', '.join(f'“{token[:20]}”' for token in first)}."
    )
    if found is not None:
        top = int(found["induction"].idxmax())
        report.sure(
            f"Induction of {part_name(frame.iloc[top])}: {found['induction'][top]:.2f} ± "
            f"{found['induction_stderr'][top]:.2f} (standard error over {ROWS} random rows, seed "
            f"{config.seed})."
        )


def _doubts(report: Report, model: HookedTransformer) -> None:
    report.doubt(
        "A weight says where a head reads, not that what it reads changes anything: the value may "
        "be small, or not be used. Ablation and patching measure that."
    )
    report.doubt(
        "Many heads rest on the first token when they have nothing to do, so attention there says "
        "little about that token. And what stands at a position is not only its own token: earlier "
        "layers have moved words there."
    )
    report.doubt(
        "A few prompts do not show all that a head does. Heads are named after what takes more "
        "than half of their attention here; on other texts they may look elsewhere."
    )
    if getattr(model, "encoder", None) is not None:
        report.doubt(
            "These are the encoder's heads; the decoder's and cross-attention are left out."
        )


def _surprise(report: Report, readings: list[Reading]) -> None:
    measured = [reading for reading in readings if reading.loss]
    if measured:
        text = "The loss of each token given those before it: what the model did not see coming."
        report.section("What surprised the model", text).tokens(
            [reading.tokens for reading in measured],
            [reading.loss for reading in measured],
            "Loss per token",
            name="loss",
        )


if __name__ == "__main__":
    sys.exit(main(sys.modules[__name__]))
