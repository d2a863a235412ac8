"""Generation: one forward over the prompt, then one per token on the key-value cache.

Hooks are active in every step. After the last block only the last position is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.core import chance
from interp.core.finite import NotFinite, check_model, is_finite, place
from interp.core.sites import SiteFilter
from interp.core.tap import SILENT, ActivationCache, Tap
from interp.core.tokenizer import past
from interp.core.tokens import Tokens

from .text import Input
from .transformer import Transformer


class Step(NamedTuple):
    """One generated token per row."""

    ids: Int[Tensor, " batch"]
    cache: ActivationCache | None
    """The sites asked for, in this step: the whole prompt in the first, one position after. Those
    of an encoder, and what cross-attention makes of its output, are in the first alone."""


@dataclass(frozen=True, eq=False)
class Generation:
    """What `generate` returns. `str()` of it is the text of the first row."""

    tokens: Tokens
    """Prompt and continuation, prompts padded on the left; what follows a stop is masked."""
    n_prompt: int
    """Columns of the prompt."""
    texts: list[str]
    """Prompt and continuation of each row (empty without a tokenizer); of an encoder–decoder what
    follows the start token."""
    completions: list[str]
    """The continuation alone."""
    caches: list[ActivationCache] = field(default_factory=list)
    """One per step where `names_filter` was given."""

    @property
    def new_ids(self) -> Int[Tensor, "batch new"]:
        """The generated ids."""
        return self.tokens.ids[:, self.n_prompt :]

    def __str__(self) -> str:
        return self.texts[0] if self.texts else str(self.tokens.ids[0].tolist())


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; temperature 0 takes the most probable one."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}: expected a number ≥ 0 (0: greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: expected at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: expected a number in (0, 1]")

    def choose(
        self, logits: Float[Tensor, "batch d_vocab"], draws: Float[Tensor, " batch"] | None
    ) -> Int[Tensor, " batch"]:
        """The next id of each row; `draws` are uniform in [0, 1)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        wide = torch.promote_types(logits.dtype, torch.float32)
        k = min(self.top_k or logits.shape[-1], logits.shape[-1])
        best, order = (logits.to(wide) / self.temperature).topk(k)
        probability = best.softmax(-1)
        reached = probability.cumsum(-1)
        if self.top_p is not None:  # the fewest tokens that hold top_p (Holtzman et al. 2020)
            probability = probability * (reached - probability < self.top_p)
            reached = probability.cumsum(-1)
        target = draws.to(reached)[:, None] * reached[:, -1:]
        rank = (reached <= target).sum(-1, keepdim=True).clamp(max=k - 1)
        return order.gather(-1, rank)[:, 0]


@torch.no_grad()
def stream(
    model: Transformer,
    prompt: Tokens,
    max_new_tokens: int,
    sampling: Sampling,
    names_filter: SiteFilter = None,
    keep: bool = False,
) -> Iterator[Step]:
    """One Step per new token, without end but max_new_tokens. Nothing stays in the model."""
    check_model(model, prompt)
    capacity = prompt.shape[1] + max_new_tokens
    prefix = model.new_prefix(len(prompt), capacity)
    # One generator per row: a row draws the same numbers alone and in a batch.
    generators = [chance.seeded(sampling.seed + i) for i in range(len(prompt))]
    real = prompt.real.sum(1, keepdim=True)
    tokens, seen = prompt, prompt
    for step in range(max_new_tokens):
        if step and _turns(model, real + step):  # keys before were turned by the short factors
            tokens, prefix = seen, model.new_prefix(len(prompt), capacity)
        looking = keep or bool(model.fwd_hooks)
        goes_on = prefix.encoded is not None
        tap = model.make_tap(names_filter, reading=keep, goes_on=goes_on) if looking else SILENT
        logits = model.last_logits(tokens, tap, prefix)
        if looking:
            tap.check_fired()
        # A hook may forbid tokens by −∞; nothing else that is not finite is meant.
        if not is_finite(logits.nan_to_num(neginf=0, nan=torch.nan) if model.fwd_hooks else logits):
            raise NotFinite(f"the logits of step {step} are not finite", place(model, seen))
        draws = None
        if sampling.temperature > 0:
            draws = torch.stack(
                [chance.uniform(generator=g, dtype=torch.float32) for g in generators]
            )
        ids = sampling.choose(logits, draws)
        yield Step(ids, _cache(model, tap, tokens, seen) if keep else None)
        positions = None if prompt.mask is None else real + step
        tokens = Tokens(ids[:, None], positions=positions)
        seen = _followed(seen, ids)


def _cache(model: Transformer, tap: Tap, tokens: Tokens, seen: Tokens) -> ActivationCache:
    """What was read in a step, which knows where its tokens stand among all those seen so far."""
    start, end = seen.shape[1] - tokens.shape[1], seen.shape[1]
    kept = dict.fromkeys(tap.values, tuple(range(start, end))) if start else {}
    return ActivationCache(tap.values, model.sites, tokens, model.stacks, kept)


def _turns(model: Transformer, lengths: Int[Tensor, "batch 1"]) -> bool:
    """Whether a row of so many tokens is the first to pass the context at which longrope turns all
    positions anew."""
    contexts = {
        scaling.original_n_ctx
        for scaling in model.cfg.rotary_scalings
        if scaling is not None and scaling.kind == "longrope"
    }
    return any(bool((lengths == context + 1).any()) for context in contexts)


def _followed(tokens: Tokens, ids: Int[Tensor, " batch"]) -> Tokens:
    mask = tokens.mask
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return Tokens(torch.cat([tokens.ids, ids[:, None]], 1), mask=mask)


def prepare(model: Transformer, prompt: Input, max_new_tokens: int) -> Tokens:
    """The prompt padded on the left, checked against what the model can do."""
    cfg = model.cfg
    if not cfg.causal or cfg.head != "unembed":
        raise ValueError(
            f"generation needs causal=True and head='unembed'; this model has causal={cfg.causal} "
            f"and head={cfg.head!r}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: expected at least 1")
    tokens = model.accept(prompt)
    if tokens.ids is None:
        raise ValueError(
            "generation continues token ids; vectors, images and trajectories have none"
        )
    check_rows(tokens)
    if tokens.mask is not None:
        rows = [ids[real].tolist() for ids, real in zip(tokens.ids, tokens.mask, strict=True)]
        left = Tokens.from_rows(rows, side="left").to(tokens.device)
        tokens = dataclasses.replace(left, source=tokens.source)
    if tokens.shape[1] + max_new_tokens > cfg.n_ctx:
        raise ValueError(
            f"a prompt of {tokens.shape[1]} tokens and max_new_tokens={max_new_tokens} pass the "
            f"context of this model, n_ctx={cfg.n_ctx}"
        )
    return tokens


def check_rows(tokens: Tokens) -> None:
    """Raise ValueError on a row of nothing but pads."""
    if tokens.mask is not None and not bool(tokens.mask.any(1).all()):
        row = int(tokens.mask.any(1).long().argmin())
        raise ValueError(f"row {row} has no token that is not a pad; leave such rows out")


def generate(
    model: Transformer,
    prompt: Input,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str],
    names_filter: SiteFilter,
    stop_at_eos: bool,
) -> Generation:
    """Collect a stream until every row has met a stop string or the end-of-sequence token."""
    tokens = prepare(model, prompt, max_new_tokens)
    _check_stop(model, stop)
    ends = model.end_ids if stop_at_eos else frozenset()
    prompts = _prompts(model, tokens)
    lengths = [0] * len(tokens)  # tokens that count, per row; fixed once the row is done
    done = [False] * len(tokens)
    new, caches = [], []
    keep = names_filter is not None
    for step in stream(model, tokens, max_new_tokens, sampling, names_filter, keep):
        new.append(step.ids)
        caches += [step.cache] if keep else []
        if not ends and not stop:
            continue
        for row, ids in enumerate(torch.stack(new, 1).tolist()):
            if not done[row]:
                lengths[row] = len(ids)
                done[row] = ids[-1] in ends or (
                    bool(stop) and _written(model.tokenizer, prompts[row], ids, stop).stopped
                )
        if all(done):
            break
    ids = torch.stack(new, 1)
    lengths = [n if d else ids.shape[1] for n, d in zip(lengths, done, strict=True)]
    return _generation(model, tokens, ids, lengths, stop, ends, caches)


def _check_stop(model: Transformer, stop: Sequence[str]) -> None:
    if stop and model.tokenizer is None:
        raise ValueError("stop strings need a tokenizer, and this model has none")
    for text in stop:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop={text!r}: expected a text of at least one character")


def _prompts(model: Transformer, prompt: Tokens) -> list[list[int]]:
    """The ids of each row that its text shows: neither pads, nor what a decoder starts with."""
    rows = [ids[real].tolist() for ids, real in zip(prompt.ids, prompt.real, strict=True)]
    starts = prompt.source is not None
    start = model.cfg.decoder_start_token_id if starts else None
    return [row[1:] if starts and row[:1] == [start] else row for row in rows]


class Written(NamedTuple):
    """The text of a row, up to a stop string."""

    text: str
    """Prompt and continuation, decoded together: a piece may lose its leading space when it stands
    alone, and bytes of one character may be several tokens."""
    n_prompt: int
    """Characters of it that the prompt alone gives."""
    stopped: bool


def _written(tokenizer: Any, prompt: list[int], ids: list[int], stop: Sequence[str]) -> Written:
    """Stop strings count where they begin behind the prompt."""
    text = tokenizer.decode(prompt + ids)
    n_prompt = len(text) - len(past(tokenizer.decode(prompt), text))
    places = [at for at in (text.find(one, n_prompt) for one in stop) if at >= 0]
    return Written(text[: min(places, default=len(text))], n_prompt, bool(places))


def _generation(
    model: Transformer,
    prompt: Tokens,
    new: Tensor,
    lengths: list[int],
    stop: Sequence[str],
    ends: frozenset[int],
    caches: list[ActivationCache],
) -> Generation:
    counts = torch.tensor(lengths, device=new.device)[:, None]
    mask = torch.cat([prompt.real, torch.arange(new.shape[1], device=new.device) < counts], dim=1)
    all_ids = torch.cat([prompt.ids, new], dim=1)
    mask = None if bool(mask.all()) else mask
    tokens = Tokens(all_ids, mask=mask, source=prompt.source, bos=prompt.bos)
    texts, completions = [], []
    if model.tokenizer is not None:
        rows = zip(_prompts(model, prompt), new.tolist(), lengths, strict=True)
        for before, ids, n in rows:
            ids = ids[:n]
            shown = ids[:-1] if ids and ids[-1] in ends else ids
            written = _written(model.tokenizer, before, shown, stop)
            texts.append(written.text)
            completions.append(written.text[written.n_prompt :])
    return Generation(tokens, prompt.shape[1], texts, completions, caches)
