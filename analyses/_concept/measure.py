"""What is measured of a concept's directions: how they separate texts, what they change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from analyses._concepts import METHODS, Ask, Concept, Halves, Method, find
from interp.core.tokens import Tokens
from interp.data.activations import vectors_at
from interp.methods.directions import Direction
from interp.methods.stats import Z, reach, wilson
from interp.methods.steering import causal_check
from interp.sweeps.metrics import Bound, Metric, answer_ids, one_position

SEPARATION = (
    "layer", "method", "n", "auroc", "auroc_low", "auroc_high", "accuracy", "accuracy_low",
    "accuracy_high", "random", "shuffled", "p_random", "p_shuffled",
)  # fmt: skip
SUMMARY = (
    "layer", "method", "action", "factor", "step", "effect", "low?", "high?", "size",
    "random_size", "covariance_size", "p_random", "p_covariance", "off_target?", "off_random?", "n",
)  # fmt: skip
EVEN = 0.95
"""What is told of controls: the size that this share of them stays below."""
SURE = 0.05
HUGE = -1e30


@dataclass(frozen=True, eq=False)
class Found:
    """The directions of all layers and methods, and the activations they were found in."""

    concept: Concept
    halves: Halves
    layers: tuple[int, ...]
    sites: dict[int, str]
    x: dict[int, Float[Tensor, "n d"]]
    directions: dict[tuple[int, Method], Direction] = field(default_factory=dict)
    failed: list[tuple[int, Method, str]] = field(default_factory=list)

    def methods(self, layer: int) -> list[Method]:
        """Those that found something there."""
        return [method for at, method in self.directions if at == layer]


def find_all(model: Any, concept: Concept, site: str, layers: tuple[int, ...], seed: int) -> Found:
    """Every method in every layer, on the fitted half."""
    halves = concept.halves(seed)
    sites = {layer: model.sites[site, layer].name for layer in layers}
    x = {
        layer: vectors_at(model, concept.tokens, name, concept.pos).double()
        for layer, name in sites.items()
    }
    found = Found(concept, halves, layers, sites, x)
    for layer in layers:
        for method in METHODS:
            if method == "pca" and not concept.paired:
                continue
            try:
                own = find(method, x[layer], concept, halves.fit, sites[layer], model.name)
                found.directions[layer, method] = own
            except ValueError as error:
                found.failed.append((layer, method, str(error)))
    return found


def separation(found: Found, n_null: int, seed: int) -> pd.DataFrame:
    """How each direction separates the held-out half: `SEPARATION`, one row per layer and method.

    auroc: of the projections, with an interval (`auroc_interval`). accuracy: cut halfway between
    the means of the fitted half, Wilson interval. random, shuffled: the AUROC that 95 % of
    `n_null` random directions (turned on the fitted half) and of directions of shuffled labels stay
    below; p: by rank among them, this one counted.
    """
    concept, halves = found.concept, found.halves
    y = concept.labels.numpy()
    rows = []
    for layer in found.layers:
        x = found.x[layer].numpy()
        rng = np.random.default_rng([seed, layer])
        drawn = rng.normal(size=(n_null, x.shape[1]))
        drawn *= np.where(_apart(x, y, halves.fit, drawn) < 0, -1, 1)[:, None]
        random = auroc(x[halves.held] @ drawn.T, y[halves.held])
        labels = [concept.shuffled(rng) for _ in range(n_null)]
        for method in found.methods(layer):
            unit = found.directions[layer, method].unit.numpy()
            value, hits = _scored(x, y, halves, unit)
            null = _shuffled(found, layer, method, labels)
            ones = int((y[halves.held] == 1).sum())
            low, high = auroc_interval(value, ones, len(halves.held) - ones)
            n = len(halves.held)
            (first,), (last,) = wilson(np.array([hits]), np.array([n]))
            rows.append((
                layer, METHODS[method], n, value, low, high, hits / n, first, last,
                np.quantile(random, EVEN), np.quantile(null, EVEN), _rank(value, random),
                _rank(value, null),
            ))  # fmt: skip
    return pd.DataFrame(rows, columns=list(SEPARATION))


def auroc(scores: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each column of scores [n k] for labels y [n]: P(a row of 1 lies above one of 0)."""
    ones = int((y == 1).sum())
    ranks = rankdata(scores, axis=0)[y == 1].sum(0)
    return (ranks - ones * (ones + 1) / 2) / (ones * (len(y) - ones))


def auroc_interval(value: float, ones: int, zeros: int) -> tuple[float, float]:
    """95 %: the values whose own standard error (Hanley & McNeil 1982) reaches as far as this one,
    which holds at 1, too (Newcombe 2006)."""

    def error(a: np.ndarray) -> np.ndarray:
        first, second = a / (2 - a), 2 * a * a / (1 + a)
        spread = a * (1 - a) + (ones - 1) * (first - a * a) + (zeros - 1) * (second - a * a)
        return np.sqrt(spread.clip(0) / (ones * zeros))

    grid = np.linspace(0, 1, 20_001)
    inside = grid[np.abs(grid - value) <= Z * error(grid)]
    return min(inside.min(initial=value), value), max(inside.max(initial=value), value)


def _scored(x: np.ndarray, y: np.ndarray, halves: Halves, unit: np.ndarray) -> tuple[float, int]:
    """AUROC on the held-out half, and how many lie on their side of the middle."""
    along = x @ unit
    cut = np.mean([along[halves.fit][y[halves.fit] == one].mean() for one in (0, 1)])
    held = along[halves.held]
    hits = int(((held > cut) == (y[halves.held] == 1)).sum())
    return float(auroc(held[:, None], y[halves.held])[0]), hits


def _apart(x: np.ndarray, y: np.ndarray, rows: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    own, labels = x[rows], y[rows]
    return drawn @ (own[labels == 1].mean(0) - own[labels == 0].mean(0))


def _shuffled(found: Found, layer: int, method: Method, labels: list[Tensor]) -> np.ndarray:
    """The AUROC of directions of labels dealt out anew, for these labels; ½ where there is none."""
    held, x = found.halves.held, found.x[layer]
    values = []
    for own in labels:
        y = own.numpy()
        try:
            made = find(method, x, found.concept, found.halves.fit, found.sites[layer], "", own)
            values.append(auroc((x[held] @ made.unit)[:, None].numpy(), y[held])[0])
        except ValueError:  # such as one class only in a half
            values.append(0.5)
    return np.nan_to_num(np.array(values), nan=0.5)


def _rank(value: float, null: np.ndarray) -> float:
    return (1 + int((null >= value - 1e-12).sum())) / (1 + len(null))


def choose_layer(
    model: Any, found: Found, ask: Ask, method: Method, where: Any, progress: bool
) -> tuple[int, pd.Series]:
    """The layer in which a step of one standard deviation changes the metric most, on prompts that
    nothing else is measured on; and the change by layer. The model's last layer, behind which
    only the unembedding reads, is chosen where it is the only one."""
    effects = {}
    for layer in found.layers:
        if (layer, method) in found.directions:
            own = found.directions[layer, method]
            frame = causal_check(model, ask.tokens, own, ask.metric, factors=(1.0,), n_random=1,
                                 pos=where, step=own.scale or None, progress=progress)  # fmt: skip
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

    def bind(model: Any, tokens: Tokens, base: Callable[[str], Tensor]) -> Bound:
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
    for _, some in frame.groupby(["action", "factor"], sort=False):
        own = some[some["arm"] == "found"].iloc[0]
        sizes = {
            arm: float(some.loc[some["arm"] == arm, "size"].quantile(EVEN))
            for arm in ("random", "covariance")
        }
        reach = Z * own["stderr"]
        rows.append((
            layer, METHODS[method], own["action"], own["factor"], own["step"], own["effect"],
            own["effect"] - reach, own["effect"] + reach, own["size"], sizes["random"],
            sizes["covariance"], own["p_random"], own["p_covariance"], own["off_value"],
            float(some.loc[some["arm"] == "random", "off_value"].mean()), int(own["n"]),
        ))  # fmt: skip
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
