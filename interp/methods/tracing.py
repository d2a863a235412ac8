"""Causal tracing: noise the subject, restore one state, and see how much of the answer comes back.

The corrupted run reads e + σ ε at the subject's tokens, where e is what stands at hook_embed (the
word vector with its scale, before positions and any embedding norm). A state of the clean run is
then put back, at one position and layer, or in a window of layers. What of the lost answer returns
is the state's indirect effect (Meng et al. 2022, "Locating and editing factual associations").
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.core import chance
from interp.core.finite import check_model, finite_cache, traced
from interp.core.indices import Indices, indices
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.sweeps import edits, metrics
from interp.sweeps.engine import sweep
from interp.sweeps.metrics import Metric, Where, answer_ids, measured, one_position
from interp.sweeps.nodes import as_frame, stable_hash

SITES = ("hook_resid_post", "hook_attn_out", "hook_mlp_out")
"""What is restored: the residual stream behind a layer, what attention adds, what the MLP adds."""
PLACES = (
    "before the subject", "first subject token", "middle subject tokens", "last subject token",
    "first subsequent token", "further tokens", "last token", "behind the last token",
)  # fmt: skip
"""Where a token stands, seen from the subject and from where the answer is read ("last token")."""
TIMES = 3.0
"""σ in standard deviations of the subjects' embedding entries, by default (Meng et al. 2022)."""
ROWS = 64
"""Examples of one unedited run."""


@torch.no_grad()
def causal_trace(
    model: Any,
    tokens: Any,
    subject: str | Bool[Tensor, "batch pos"],
    answer: Tensor,
    wrong: Tensor | None = None,
    *,
    pos: Where = None,
    sites: Sequence[str] | None = None,
    layers: Indices | None = None,
    window: int | None = None,
    sigma: float | None = None,
    draws: int = 5,
    seed: int = 0,
    journal: str | os.PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Restore every state alone in a run whose subject is noised: metric example draw site layer
    pos place clean corrupted value effect.

    One row per state, example and draw of noise; effect = value − corrupted, the indirect effect,
    and clean − corrupted the total one. Metrics: "prob" is p(answer) at `pos` (default: the last
    real token), and with `wrong` "logit_diff" as well. `place` is one of `PLACES`. Pads are left
    out.

    subject: a role (its one token), or a mask of the noised tokens, as `subject_span` makes it.
    sites: of `SITES`, by default all that the model has. window: attention and MLP outputs are
    restored in that many layers around `layer` (fewer at the ends), by default a fifth of all; the
    residual stream in one. sigma: by default `TIMES` × `embedding_spread`. The noise of an example
    follows from (seed, draw, example). journal: a folder that keeps a file per sweep.

    Raises ValueError on an encoder–decoder, a model behind the bridge (it reads no vectors) or with
    hooks, and on a row without a subject.
    """
    tokens = _accepted(model, tokens)
    where, at = subject_mask(tokens, subject), one_position(pos, tokens)[:, 0]
    sigma = TIMES * embedding_spread(model, tokens, where) if sigma is None else float(sigma)
    window = default_window(model) if window is None else window
    _check_draws(draws)
    nodes, states = _states(model, tokens, sites, layers, window)
    clean = dict(_measured(model, tokens, answer, wrong, at))
    named, frames, costs = _places(tokens, where, at), [], []
    cache = finite_cache(model, tokens, list(map(tuple, nodes[["site", "layer"]].to_numpy())))
    for draw in range(draws):
        noisy = noised(model, tokens, where, sigma, seed=seed, draw=draw)
        for name, metric in _metrics(answer, wrong, at):
            found = sweep(
                model, noisy, nodes, edit=edits.patch(cache), metric=metric, reduce="none",
                allow_noop=True, journal=_file(journal, f"{name}-{draw}"), progress=progress,
            )  # fmt: skip
            costs.append(found.attrs)
            frames.append(_restored(found, states, named, clean[name]).assign(draw=draw))
            frames[-1].insert(0, "metric", name)
    frame = pd.concat(frames, ignore_index=True)
    frame.insert(2, "draw", frame.pop("draw"))
    frame.attrs = {"engine": costs[0]["engine"], "sigma": sigma, "window": window}
    for name in ("forward_equivalents", "naive_equivalents"):
        frame.attrs[name] = sum(one[name] for one in costs)
    return frame


def _restored(
    found: pd.DataFrame, states: pd.DataFrame, named: np.ndarray, clean: np.ndarray
) -> pd.DataFrame:
    """What one sweep found, a line per state and example, without pads."""
    found = found[~found.duplicated(["row", "example"])]  # a window has a line per layer
    example = found["example"].to_numpy()
    frame = states.loc[found["row"]].reset_index(drop=True)
    frame.insert(0, "example", example)
    frame["place"] = named[example, frame["pos"]]
    columns = {name: found[name].to_numpy() for name in ("baseline", "value", "effect")}
    frame = frame.assign(clean=clean[example], **columns).rename(columns={"baseline": "corrupted"})
    return frame[frame["place"] != ""]


@torch.no_grad()
def noise_effect(
    model: Any,
    tokens: Any,
    where: str | Bool[Tensor, "batch pos"],
    answer: Tensor,
    wrong: Tensor | None = None,
    *,
    pos: Where = None,
    sigma: float,
    draws: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """What noise at some tokens costs, with nothing restored: metric draw example clean corrupted
    effect. effect = clean − corrupted, the total effect; the rest is as in `causal_trace`."""
    tokens = _accepted(model, tokens)
    where, at = subject_mask(tokens, where), one_position(pos, tokens)[:, 0]
    _check_draws(draws)
    frames = []
    before = dict(_measured(model, tokens, answer, wrong, at))
    for draw in range(draws):
        noisy = noised(model, tokens, where, sigma, seed=seed, draw=draw)
        for name, values in _measured(model, noisy, answer, wrong, at):
            clean = before[name]
            frames.append(
                pd.DataFrame(
                    {
                        "metric": name,
                        "draw": draw,
                        "example": np.arange(len(tokens)),
                        "clean": clean,
                        "corrupted": values,
                        "effect": clean - values,
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


@torch.no_grad()
def noised(
    model: Any,
    tokens: Any,
    where: str | Bool[Tensor, "batch pos"],
    sigma: float,
    *,
    seed: int = 0,
    draw: int = 0,
) -> Tokens:
    """The tokens as input vectors, with N(0, σ²) added to every entry at some of them.

    Vectors are what the model has at hook_embed, so that σ = 0 is the same run. The noise of an
    example follows from (seed, draw, example): as many tokens elsewhere get the very same.
    """
    tokens = _accepted(model, tokens)
    if not 0 <= sigma < float("inf"):
        raise ValueError(f"sigma={sigma}: expected a number of 0 or more")
    mask, vectors = subject_mask(tokens, where), _embedded(model, tokens).clone()
    for example, row in enumerate(mask):
        generator = chance.seeded(stable_hash("noise", seed, draw, example))
        drawn = chance.normal(int(row.sum()), vectors.shape[-1], generator=generator)
        vectors[example, row] += sigma * drawn.to(vectors)
    return dataclasses.replace(tokens, ids=None, vectors=vectors)


def embedding_spread(model: Any, tokens: Any, where: str | Bool[Tensor, "batch pos"]) -> float:
    """The standard deviation of the entries of hook_embed at some tokens."""
    tokens = _accepted(model, tokens)
    chosen = _embedded(model, tokens)[subject_mask(tokens, where)]
    return float(chosen.double().std(unbiased=False))


def subject_span(pairs: Pairs, role: str | None = None) -> Bool[Tensor, "batch pos"]:
    """The tokens of the subject in the clean prompts.

    Of a role, whose position is that of its last token: all tokens of the words that a column
    role:<role> of the pairs' file has; without one, that token and those before it at which the two
    prompts differ. Without a role: all tokens at which they differ. Raises ValueError on a role
    that there is not.
    """
    clean = pairs.clean
    differs = (clean.ids != pairs.corrupted.ids.to(clean.device)) & clean.real
    if role is None:
        return differs
    if role not in clean.roles:
        raise ValueError(f"subject={role!r}: {pairs.name} has the roles {', '.join(clean.roles)}")
    column = f"role:{role}"
    told = pairs.table is not None and column in pairs.table and clean.strings is not None
    mask = torch.zeros_like(differs)
    for row, end in enumerate(clean.roles[role].tolist()):
        first = _first_of(clean.strings[row], end, pairs.table[column][row]) if told else None
        if first is None:
            first = end
            while first and bool(differs[row, first - 1]):
                first -= 1
        mask[row, first : end + 1] = True
    return mask


def elsewhere(
    model: Any,
    tokens: Any,
    subject: str | Bool[Tensor, "batch pos"],
    *,
    pos: Where = None,
    seed: int = 0,
) -> Bool[Tensor, "batch pos"]:
    """As many random other tokens: none of the subject's, no special token, not the one at `pos`.

    Raises ValueError where a row has too few.
    """
    tokens = _accepted(model, tokens)
    mask = subject_mask(tokens, subject)
    free = tokens.real & ~mask
    free[torch.arange(len(tokens)), one_position(pos, tokens)[:, 0]] = False
    special = () if model.tokenizer is None else model.tokenizer.special_ids
    if tokens.ids is not None and special:
        free &= ~torch.isin(tokens.ids, torch.tensor(sorted(special), device=tokens.device))
    chosen = torch.zeros_like(mask)
    for row in range(len(tokens)):
        count, at = int(mask[row].sum()), free[row].nonzero()[:, 0].cpu()
        if len(at) < count:
            raise ValueError(f"row {row} has {len(at)} other tokens for noise on {count}")
        rng = np.random.default_rng(stable_hash("elsewhere", seed, row))
        chosen[row, at[rng.permutation(len(at))[:count]]] = True
    return chosen


def subject_mask(
    tokens: Tokens, subject: str | Bool[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos"]:
    """A role or a mask, as a checked mask. Raises ValueError on a row without a subject, or with a
    pad in it."""
    if isinstance(subject, str):
        mask = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
        mask.scatter_(1, one_position(subject, tokens), True)
        return mask
    mask = torch.as_tensor(subject, device=tokens.device)
    if mask.dtype != torch.bool or mask.shape != tokens.shape:
        raise ValueError(
            f"a mask of {mask.dtype} {list(mask.shape)}: expected torch.bool {list(tokens.shape)}"
        )
    bad = ~mask.any(1) | (mask & ~tokens.real).any(1)
    if bool(bad.any()):
        raise ValueError(f"row {int(bad.nonzero()[0])}: no token is marked, or a pad is")
    return mask


def default_window(model: Any) -> int:
    """A fifth of the layers, as 10 of 48 in Meng et al. 2022; at least 1."""
    return max(1, round(model.cfg.n_layers / 5))


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"draws={draws}: expected at least 1 draw of noise")


def _accepted(model: Any, tokens: Any) -> Tokens:
    if model.opaque or model.fwd_hooks:
        raise ValueError(
            "causal tracing reads noised embeddings as input vectors, which needs a native model "
            f"without hooks: {model.opaque or 'this one has hooks'}"
        )
    if model.encoder is not None:
        raise ValueError(
            "causal tracing counts positions of one stack; of an encoder–decoder use "
            "interp.sweep with edits.noise at its encoder's hook_embed"
        )
    return model.accept(tokens)


def _embedded(model: Any, tokens: Tokens) -> Float[Tensor, "batch pos d_model"]:
    return finite_cache(model, tokens, "hook_embed", stop_at_layer=0)["hook_embed"]


def _states(
    model: Any,
    tokens: Tokens,
    sites: Sequence[str] | None,
    layers: Indices | None,
    window: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The nodes of a sweep, and what each stands for: by `row` site layer pos."""
    n = model.cfg.n_layers
    there = [site for site in SITES if any(one.local_name == site for one in model.sites)]
    chosen = there if sites is None else list(sites)
    for site in chosen:
        if site not in there:
            raise ValueError(f"site {site!r}: this model has {', '.join(there)}")
    if not 1 <= window <= n:
        raise ValueError(f"window={window}: expected 1 to {n} layers")
    if not chosen:
        raise ValueError(f"sites is empty: this model has {', '.join(there)}")
    wanted = range(n) if layers is None else indices(layers, n, "layers")
    lines, states = [], []
    for site in chosen:
        for layer in wanted:
            own = _window(layer, n, 1 if site == "hook_resid_post" else window)
            for pos in range(tokens.shape[1]):
                row = {"row": len(states), "site": site, "pos": pos}
                lines += [row | {"layer": one} for one in own]
                states.append({"site": site, "layer": layer, "pos": pos})
    return as_frame(lines), pd.DataFrame(states)


def _window(layer: int, n: int, width: int) -> range:
    """So many layers around one; of an even number one more lies before it."""
    return range(max(0, layer - width // 2), min(n, layer + (width + 1) // 2))


def _metrics(answer: Tensor, wrong: Tensor | None, at: Tensor) -> Iterator[tuple[str, Metric]]:
    yield "prob", metrics.prob(answer, pos=at)
    if wrong is not None:
        yield "logit_diff", metrics.logit_diff(answer, wrong, pos=at)


def _measured(
    model: Any, tokens: Tokens, answer: Tensor, wrong: Tensor | None, at: Tensor
) -> Iterator[tuple[str, np.ndarray]]:
    """The metrics of a run without edits, some rows at a time."""
    check_model(model, tokens)
    answer = answer_ids(answer, tokens, model)
    wrong = None if wrong is None else answer_ids(wrong, tokens, model)
    found: dict[str, list[Tensor]] = {}
    for rows in torch.arange(len(tokens), device=tokens.device).split(ROWS):
        part, every = tokens[rows], torch.arange(len(rows), device=tokens.device)
        logits = model(part)
        other = None if wrong is None else wrong[rows]
        for name, metric in _metrics(answer[rows], other, at[rows]):
            bound = metric.bind(model, part, lambda *_, logits=logits: logits)
            where = [f"{name} of example {int(row)}" for row in rows]
            with traced(model, part):
                values = measured(bound, bound.pick(logits, every), every, where)
            found.setdefault(name, []).append(values)
    for name, values in found.items():
        yield name, torch.cat(values).numpy()


def _places(tokens: Tokens, subject: Tensor, at: Tensor) -> np.ndarray:
    """[batch pos]: of `PLACES`; empty at pads."""
    real, mask, ends = (one.cpu().numpy() for one in (tokens.real, subject, at))
    named = np.full(mask.shape, "", dtype=object)
    for row, own in enumerate(mask):
        first, *_, last = [*own.nonzero()[0]] * 2
        index = np.arange(len(own))
        rules = (
            (index == first, 1), (index == last, 3), (own, 2), (index == ends[row], 6),
            (index < first, 0), (index > ends[row], 7), (index == last + 1, 4),
        )  # fmt: skip
        of_row = np.full(len(own), 5)
        if first == last:  # a subject of one token has a last one only
            rules = rules[1:]
        for mark, place in reversed(rules):  # the first that holds counts
            of_row[mark] = place
        named[row] = np.array(PLACES, dtype=object)[of_row]
    named[~real] = ""
    return named


def _first_of(strings: Sequence[str], end: int, words: str) -> int | None:
    """Where the tokens begin that together are these words and end at `end`."""

    def bare(text: str) -> str:
        return re.sub(r"\s|##", "", text).casefold()

    wanted = bare(re.sub(r"#[1-9]\d?$", "", str(words).strip()))
    for first in range(end, -1, -1):
        if bare("".join(strings[first : end + 1])) == wanted:
            return first
    return None


def _file(folder: str | os.PathLike | None, name: str) -> Path | None:
    if folder is None:
        return None
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder) / f"{name}.jsonl"
