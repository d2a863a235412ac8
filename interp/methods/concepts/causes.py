"""What a concept's directions cause, and what all numbers of one direction allow to say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import torch
from torch import Tensor

from interp.core.tokens import Tokens
from interp.model import HookedTransformer
from interp.sweeps.metrics import Bound, Metric, Where, answer_ids, one_position

from ..stats import Z, reach
from ..steering import causal_check
from .finding import METHODS, Directions, Method
from .separation import EVEN
from .texts import Ask

SUMMARY = (
    *("layer", "method", "action", "factor", "step", "effect", "low?", "high?", "size"),
    *("random_size", "covariance_size", "p_random", "p_covariance"),
    *("off_target?", "off_random?", "n"),
)
SURE = 0.05
HUGE = -1e30


def choose_layer(
    model: HookedTransformer,
    found: Directions,
    ask: Ask,
    method: Method,
    where: Where | Literal["all"],
    progress: bool,
) -> tuple[int, pd.Series]:
    """The layer in which a step of one standard deviation changes the metric most, on prompts that
    nothing else is measured on; and the change by layer. The model's last layer, behind which
    only the unembedding reads, is chosen where it is the only one."""
    effects = {}
    for layer in found.layers:
        if (layer, method) in found.directions:
            direction = found.directions[layer, method]
            frame = causal_check(
                model,
                ask.tokens,
                direction,
                ask.metric,
                factors=(1.0,),
                n_random=1,
                pos=where,
                step=direction.scale or None,
                progress=progress,
            )
            row = frame[(frame["arm"] == "found") & (frame["action"] == "steer")]
            effects[layer] = float(row["effect"].iloc[0])
    table = pd.Series(effects)
    inner = table[table.index < model.cfg.n_layers - 1]
    sizes = (inner if len(inner) else table).abs().to_numpy()
    return int((inner if len(inner) else table).index[sizes.argmax()]), table


def other_tokens(ask: Ask) -> Metric | None:
    """KL(unedited ‖ edited) over all tokens but those asked for, renormalised, where they are
    asked: what else a direction changes, in nats. None where no tokens are asked for."""
    toward, away = ask.toward, ask.away
    if toward is None or away is None:
        return None

    def bind(model: HookedTransformer, tokens: Tokens, base: Callable[[str], Tensor]) -> Bound:
        every = torch.arange(len(tokens), device=tokens.device)
        ids = torch.cat([answer_ids(ids, tokens, model) for ids in (toward, away)], 1)
        reads = Bound(lambda x, examples: x, positions=one_position(ask.pos, tokens))

        def rest(logits: Tensor, examples: Tensor) -> Tensor:
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            # A finite number: 0 · (∞ − ∞) would be none.
            return wide.scatter(-1, ids[examples][:, None], HUGE).log_softmax(-1)

        before = rest(reads.pick(base("logits"), every), every)

        def measure(x: Tensor, examples: Tensor) -> Tensor:
            p, q = before[examples], rest(x, examples)
            return (p.exp() * (p - q)).sum(-1)[:, 0]

        return Bound(measure, positions=reads.positions)

    return Metric("other_tokens", bind, (toward, away, ask.pos))


def summary(frame: pd.DataFrame, layer: int, method: Method) -> pd.DataFrame:
    """Of a causal check what the found direction did, beside what 95 % of controls stay below."""
    rows = []
    for _, tried in frame.groupby(["action", "factor"], sort=False):
        row = tried[tried["arm"] == "found"].iloc[0]
        sizes = [
            float(tried.loc[tried["arm"] == arm, "size"].quantile(EVEN))
            for arm in ("random", "covariance")
        ]
        half = Z * row["stderr"]
        effect = (row["effect"], row["effect"] - half, row["effect"] + half, row["size"])
        off = (row["off_value"], float(tried.loc[tried["arm"] == "random", "off_value"].mean()))
        rows.append(
            (
                *(layer, METHODS[method], row["action"], row["factor"], row["step"], *effect),
                *(*sizes, row["p_random"], row["p_covariance"], *off, int(row["n"])),
            )
        )
    return pd.DataFrame(rows, columns=[one.removesuffix("?") for one in SUMMARY])


@dataclass(frozen=True)
class Verdict:
    """What the numbers of one direction allow to say."""

    readable: bool
    """Held-out texts are separated better than by chance and than with shuffled labels. That random
    directions do so as well does not speak against it: the concept is then all over the place."""
    used: bool
    """Ablating it changes more than ablating random directions of both kinds does."""
    moves: bool
    """So does adding it, by the largest factor."""
    plain: bool
    """Beyond those uniform on the sphere, at least: ablated or added."""
    testable: bool = True
    """Whether there are enough random directions and shuffles for a p-value to be small."""

    @property
    def words(self) -> str:
        if not self.testable:
            return "not settled, since no p-value can be small enough"
        if not self.readable:
            return "not found" + (", though adding it acts" if self.moves else "")
        if self.used:
            return "readable and used" if self.moves else "readable, and needed"
        if self.moves:
            return "readable, and acts when added, but not needed"
        if self.plain:
            return "readable, but acts no more than what the data vary along anyway"
        return "readable but not used"


def verdict(
    separated: pd.Series, causal: pd.DataFrame, n_random: int, noise: float = 0.0
) -> Verdict:
    """From a row of `separation` and the summary of one direction, each p-value a rank among
    `n_random`. Effects up to `noise` are rounding."""
    readable = bool(separated["auroc_low"] > 0.5 and separated["p_shuffled"] <= SURE)
    kinds = ["p_random", "p_covariance"]
    ablated = causal[causal["action"] == "ablate"].iloc[0]
    steered = causal[causal["action"] == "steer"]
    added = steered.loc[steered["factor"].idxmax()]
    real = [row for row in (ablated, added) if row["size"] > noise]
    beyond = [row["size"] > noise and bool((row[kinds] <= SURE).all()) for row in (ablated, added)]
    plain = any(bool(row["p_random"] <= SURE) for row in real)
    testable = reach(n_random, correction="none").alone <= SURE
    return Verdict(readable, *map(bool, beyond), plain, testable)
