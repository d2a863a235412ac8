"""What steering does to a text: continuations with a direction, what they say, how fluently."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp import chance
from interp.core.finite import finite
from interp.core.tokens import Tokens
from interp.methods.directions import Direction
from interp.methods.stats import mean, wilson
from interp.model.generate import Generation
from interp.report.spine import number

STEERED = (
    "arm", "draw", "factor", "n", "positive", "positive_low", "positive_high", "negative",
    "negative_low", "negative_high", "positive_tokens", "negative_tokens", "loss", "loss_low",
    "loss_high", "perplexity",
)  # fmt: skip
SUMMARY = (
    "factor", "positive", "positive_low", "positive_high", "random_positive", "random_low",
    "random_high", "p", "negative", "perplexity", "random_perplexity",
)  # fmt: skip
UNSTEERED = "unsteered"


@dataclass(frozen=True)
class Plan:
    """How texts are continued."""

    factors: tuple[float, ...]
    step: float
    """Of factor 1, in units of the activations."""
    new_tokens: int
    samples: int
    temperature: float
    n_random: int
    seed: int


class Words(NamedTuple):
    """The tokens that are counted."""

    positive: Int[Tensor, " k"]
    negative: Int[Tensor, " m"]


class Told(NamedTuple):
    """Continuations, and how the unsteered model finds each of their tokens."""

    made: Generation
    log_probs: Float[Tensor, "batch new"]
    real: Bool[Tensor, "batch new"]


def steered(model: Any, direction: Direction, amount: float, vector: Tensor | None = None) -> Any:
    """A view of the model in which `amount` of the direction's unit (or of another vector) is added
    at every position that is read or written."""
    unit = direction.unit if vector is None else vector

    def add(x: Tensor, hook: Any) -> Tensor:
        return x + amount * unit.to(x)

    return model.with_hooks([(direction.site, add)]) if amount else model


@torch.no_grad()
def continued(model: Any, view: Any, prompts: Tokens, plan: Plan, temperature: float) -> Told:
    """Continuations of prompts by a view of the model, read by the model itself."""
    made = view.generate(
        prompts, plan.new_tokens, temperature=temperature, seed=plan.seed, stop_at_eos=True
    )
    new = made.new_ids
    real = made.tokens.real[:, made.n_prompt :]
    logits = finite(model(made.tokens), model, "the logits", made.tokens)
    logits = logits[:, made.n_prompt - 1 : -1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return Told(made, wide.gather(-1, new[..., None])[..., 0], real)


def measured(told: Told, words: Words) -> dict[str, float]:
    """Of continuations: the share that holds a counted word (Wilson interval), the share of their
    tokens that are counted, and the loss of the unsteered model per token, over continuations."""
    ids, real, n = told.made.new_ids, told.real, len(told.real)
    length = real.sum(1).clamp_min(1)
    row: dict[str, float] = {"n": n}
    for name, own in words._asdict().items():
        there = torch.isin(ids, own.to(ids)) & real
        hits = int(there.any(1).sum())
        (low,), (high,) = wilson(np.array([hits]), np.array([n]))
        row |= {name: hits / n, f"{name}_low": low, f"{name}_high": high}
        row[f"{name}_tokens"] = float((there.sum(1) / length).double().mean())
    own = -(told.log_probs.double() * real).sum(1) / length
    found = mean(own.cpu().numpy())
    return row | {
        "loss": float(found.value), "loss_low": float(found.low), "loss_high": float(found.high),
        "perplexity": float(np.exp(found.value)),
    }  # fmt: skip


def arms(direction: Direction, plan: Plan) -> Iterator[tuple[str, int, Tensor]]:
    """The direction, and directions at random, all of length one."""
    yield "found", 0, direction.unit
    for draw in range(plan.n_random):
        generator = chance.seeded(1_000_003 * plan.seed + draw)
        drawn = chance.normal(direction.width, generator=generator)
        yield "random", draw, drawn / drawn.norm()


def compared(
    model: Any, direction: Direction, prompts: Tokens, words: Words, plan: Plan
) -> pd.DataFrame:
    """Sampled continuations, unsteered and with every direction by every factor: `STEERED`."""
    every = prompts[torch.arange(len(prompts)).repeat_interleave(plan.samples)]
    plain = continued(model, model, every, plan, plan.temperature)
    rows = [{"arm": UNSTEERED, "draw": 0, "factor": 0.0, **measured(plain, words)}]
    for arm, draw, unit in arms(direction, plan):
        for factor in plan.factors:
            view = steered(model, direction, factor * plan.step, unit)
            told = continued(model, view, every, plan, plan.temperature)
            rows.append({"arm": arm, "draw": draw, "factor": factor, **measured(told, words)})
    return pd.DataFrame(rows, columns=list(STEERED))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per factor, the unsteered model's at 0. random_low, random_high: the middle 95 % of
    random directions; p: by rank among them of the change of `positive`, this one counted."""
    base = frame[frame["arm"] == UNSTEERED].iloc[0]
    rows = []
    for factor in sorted({0.0, *frame["factor"]}):
        if factor == 0:
            value = base["positive"]
            rows.append((0.0, value, base["positive_low"], base["positive_high"], value, value,
                         value, 1.0, base["negative"], base["perplexity"],
                         base["perplexity"]))  # fmt: skip
            continue
        some = frame[frame["factor"] == factor]
        own = some[some["arm"] == "found"].iloc[0]
        random = some[some["arm"] == "random"]
        change = (random["positive"] - base["positive"]).abs().to_numpy()
        reached = int((change >= abs(own["positive"] - base["positive"]) - 1e-12).sum())
        low, high = np.quantile(random["positive"], [0.025, 0.975])
        rows.append((
            factor, own["positive"], own["positive_low"], own["positive_high"],
            random["positive"].mean(), low, high, (1 + reached) / (1 + len(random)),
            own["negative"], own["perplexity"], float(np.exp(random["loss"].mean())),
        ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(SUMMARY))


def side_by_side(
    model: Any, direction: Direction, prompts: Tokens, texts: Sequence[str], plan: Plan
) -> tuple[pd.DataFrame, list[tuple[float, Told]]]:
    """A row per prompt and way of choosing, a column per factor; and the greedy continuations."""
    names = {factor: name_of(factor) for factor in (0.0, *plan.factors)}
    cells: dict[tuple[str, int], dict[str, str]] = {}
    greedy = []
    for factor, name in names.items():
        view = steered(model, direction, factor * plan.step)
        for how, temperature in (("greedy", 0.0), ("sampled", plan.temperature)):
            told = continued(model, view, prompts, plan, temperature)
            greedy += [(factor, told)] if how == "greedy" else []
            for i, text in enumerate(told.made.completions):
                cells.setdefault((how, i), {})[name] = text
    rows = [
        {"prompt": texts[i], "chosen": how, **cells[how, i]}
        for i in range(len(texts))
        for how in ("greedy", "sampled")
    ]
    return pd.DataFrame(rows), greedy


def name_of(factor: float) -> str:
    """Of a column: "unsteered", "+2 steps"."""
    return UNSTEERED if factor == 0 else f"{number(factor, '+g')} steps"


def shaded(
    model: Any, greedy: Sequence[tuple[float, Told]]
) -> tuple[list[list[str]], list[list[float | None]]]:
    """Per prompt and factor the tokens, and what each written one costs the unsteered model."""
    words, values = [], []
    for row in range(len(greedy[0][1].real)):
        for factor, told in greedy:
            before = told.made.tokens
            read = before.ids[row, : told.made.n_prompt][before.real[row, : told.made.n_prompt]]
            written = told.made.new_ids[row][told.real[row]]
            pieces = model.tokenizer.str_tokens([*read.tolist(), *written.tolist()])
            loss = (-told.log_probs[row][told.real[row]]).clamp_min(0).tolist()
            words.append([f"{name_of(factor)}: ", *pieces])
            values.append([None] * (1 + len(read)) + loss)
    return words, values
