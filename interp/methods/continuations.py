"""What steering does to a text: continuations with a direction added, what they say, how fluently.

A direction is added at every position that is read or written; beside it random directions of the
same length (Turner et al. 2023; Rimsky et al. 2023).

    frame = steer_texts(model, direction, tokens, Counted(she, he), Writing((-2.0, 2.0), step=1.0))
    summary(frame)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.core import chance
from interp.core.finite import finite
from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from interp.model.generate import Generation

from .directions import Direction
from .stats import mean, wilson

STEERED = (
    *("arm", "draw", "factor", "n", "positive", "positive_low", "positive_high"),
    *("negative", "negative_low", "negative_high", "positive_tokens", "negative_tokens"),
    *("loss", "loss_low", "loss_high", "perplexity"),
)
SUMMARY = (
    *("factor", "positive", "positive_low", "positive_high"),
    *("random_positive", "random_low", "random_high", "p"),
    *("negative", "perplexity", "random_perplexity"),
)
UNSTEERED = "unsteered"


@dataclass(frozen=True)
class Writing:
    """How texts are continued."""

    factors: tuple[float, ...]
    step: float
    """Of factor 1, in units of the activations."""
    new_tokens: int = 12
    samples: int = 12
    """Continuations of each prompt."""
    temperature: float = 1.0
    n_random: int = 19
    """Random directions, added by as much."""
    seed: int = 0


class Counted(NamedTuple):
    """The ids that are counted: those that the direction leads to, and away from."""

    positive: Int[Tensor, " k"]
    negative: Int[Tensor, " m"]


class Continued(NamedTuple):
    """Continuations, and how the unsteered model finds each of their tokens."""

    generation: Generation
    log_probs: Float[Tensor, "batch new"]
    real: Bool[Tensor, "batch new"]


def steered(
    model: HookedTransformer, direction: Direction, amount: float, vector: Tensor | None = None
) -> HookedTransformer:
    """A view of the model in which `amount` of the direction's unit (or of another vector) is added
    at every position that is read or written."""
    unit = direction.unit if vector is None else vector

    def add(x: Tensor, hook: object) -> Tensor:
        return x + amount * unit.to(x)

    return model.with_hooks([(direction.site, add)]) if amount else model


@torch.no_grad()
def continued(
    model: HookedTransformer,
    view: HookedTransformer,
    prompts: Tokens,
    writing: Writing,
    temperature: float,
) -> Continued:
    """Continuations of prompts by a view of the model, read by the model itself."""
    generation = view.generate(
        prompts, writing.new_tokens, temperature=temperature, seed=writing.seed, stop_at_eos=True
    )
    new = generation.new_ids
    real = generation.tokens.real[:, generation.n_prompt :]
    logits = finite(model(generation.tokens), model, "the logits", generation.tokens)
    logits = logits[:, generation.n_prompt - 1 : -1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return Continued(generation, wide.gather(-1, new[..., None])[..., 0], real)


def measured(text: Continued, counted: Counted) -> dict[str, float | int]:
    """Of continuations: the share that holds a counted word (Wilson interval), the share of their
    tokens that are counted, and the loss of the unsteered model per token, over continuations."""
    ids, real, n = text.generation.new_ids, text.real, len(text.real)
    length = real.sum(1).clamp_min(1)
    row: dict[str, float | int] = {"n": n}
    for name, wanted in counted._asdict().items():
        there = torch.isin(ids, wanted.to(ids)) & real
        hits = int(there.any(1).sum())
        (low,), (high,) = wilson(np.array([hits]), np.array([n]))
        row |= {name: hits / n, f"{name}_low": low, f"{name}_high": high}
        row[f"{name}_tokens"] = float((there.sum(1) / length).double().mean())
    cost = -(text.log_probs.double() * real).sum(1) / length
    loss = mean(cost.cpu().numpy())
    return row | {
        "loss": float(loss.value),
        "loss_low": float(loss.low),
        "loss_high": float(loss.high),
        "perplexity": float(np.exp(loss.value)),
    }


def arms(direction: Direction, writing: Writing) -> Iterator[tuple[str, int, Tensor]]:
    """The direction, and directions at random, all of length one."""
    yield "found", 0, direction.unit
    for draw in range(writing.n_random):
        generator = chance.seeded(1_000_003 * writing.seed + draw)
        drawn = chance.normal(direction.width, generator=generator)
        yield "random", draw, drawn / drawn.norm()


def steer_texts(
    model: HookedTransformer,
    direction: Direction,
    prompts: Tokens,
    counted: Counted,
    writing: Writing,
) -> pd.DataFrame:
    """Sampled continuations, unsteered and with every direction by every factor: `STEERED`."""
    every = prompts[torch.arange(len(prompts)).repeat_interleave(writing.samples)]
    plain = continued(model, model, every, writing, writing.temperature)
    rows = [{"arm": UNSTEERED, "draw": 0, "factor": 0.0, **measured(plain, counted)}]
    for arm, draw, unit in arms(direction, writing):
        for factor in writing.factors:
            view = steered(model, direction, factor * writing.step, unit)
            text = continued(model, view, every, writing, writing.temperature)
            rows.append({"arm": arm, "draw": draw, "factor": factor, **measured(text, counted)})
    return pd.DataFrame(rows, columns=list(STEERED))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per factor, the unsteered model's at 0. random_low, random_high: the middle 95 % of
    random directions; p: by rank among them of the change of `positive`, this one counted."""
    base = frame[frame["arm"] == UNSTEERED].iloc[0]
    last, rows = ("negative", "perplexity", "perplexity"), []
    for factor in sorted({0.0, *frame["factor"]}):
        if factor == 0:
            random = (*[base["positive"]] * 3, 1.0)
            rows.append((0.0, *_share(base), *random, *(base[name] for name in last)))
            continue
        tried = frame[frame["factor"] == factor]
        row, drawn = tried[tried["arm"] == "found"].iloc[0], tried[tried["arm"] == "random"]
        change = (drawn["positive"] - base["positive"]).abs().to_numpy()
        reached = int((change >= abs(row["positive"] - base["positive"]) - 1e-12).sum())
        low, high = np.quantile(drawn["positive"], [0.025, 0.975])
        random = (drawn["positive"].mean(), low, high, (1 + reached) / (1 + len(drawn)))
        price = float(np.exp(drawn["loss"].mean()))
        rows.append((factor, *_share(row), *random, row["negative"], row["perplexity"], price))
    return pd.DataFrame(rows, columns=list(SUMMARY))


def _share(row: pd.Series) -> tuple[float, float, float]:
    return row["positive"], row["positive_low"], row["positive_high"]


def side_by_side(
    model: HookedTransformer,
    direction: Direction,
    prompts: Tokens,
    texts: Sequence[str],
    writing: Writing,
) -> tuple[pd.DataFrame, list[tuple[float, Continued]]]:
    """A row per prompt and way of choosing, a column per factor; and the greedy continuations."""
    names = {factor: name_of(factor) for factor in (0.0, *writing.factors)}
    cells: dict[tuple[str, int], dict[str, str]] = {}
    greedy = []
    for factor, name in names.items():
        view = steered(model, direction, factor * writing.step)
        for how, temperature in (("greedy", 0.0), ("sampled", writing.temperature)):
            text = continued(model, view, prompts, writing, temperature)
            greedy += [(factor, text)] if how == "greedy" else []
            for i, completion in enumerate(text.generation.completions):
                cells.setdefault((how, i), {})[name] = completion
    rows = [
        {"prompt": texts[i], "chosen": how, **cells[how, i]}
        for i in range(len(texts))
        for how in ("greedy", "sampled")
    ]
    return pd.DataFrame(rows), greedy


def name_of(factor: float) -> str:
    """Of a column: "unsteered", "+2 steps"."""
    return UNSTEERED if factor == 0 else f"{factor:+g} steps".replace("-", "\u2212")


def shaded(
    model: HookedTransformer, greedy: Sequence[tuple[float, Continued]]
) -> tuple[list[list[str]], list[list[float | None]]]:
    """Per prompt and factor the tokens, and what each written one costs the unsteered model."""
    words, values = [], []
    for row in range(len(greedy[0][1].real)):
        for factor, text in greedy:
            before = text.generation.tokens
            read = before.ids[row, : text.generation.n_prompt][
                before.real[row, : text.generation.n_prompt]
            ]
            written = text.generation.new_ids[row][text.real[row]]
            pieces = model.tokenizer.str_tokens([*read.tolist(), *written.tolist()])
            loss = (-text.log_probs[row][text.real[row]]).clamp_min(0).tolist()
            words.append([f"{name_of(factor)}: ", *pieces])
            values.append([None] * (1 + len(read)) + loss)
    return words, values
