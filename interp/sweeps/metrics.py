"""What is measured of a run: one number per example. Averaging is the sweep's business.

A metric says what it reads (positions and columns of the logits, or the residual stream), so that
an engine computes no more than that. Logarithms are natural: losses and divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.core.calls import Portable, Second, second_argument
from interp.core.finite import NotFinite, is_finite
from interp.core.indices import Indices, id_tensor, index_tensor
from interp.core.precision import wide
from interp.core.sites import SiteFilter
from interp.core.tokens import Tokens
from interp.core.vectors import Numbers, numbers, vector
from interp.model import HookedTransformer

Where = Indices | str | None
"""A position for all rows, a role, one position per row, or None: the last real token. Negative
ones count from the end of the row, pads included; a pad is refused."""


Reads = Literal["logits", "residual", "cache"]
Base = Callable[..., Any]
"""(reads, sites of a cache) → the output of the unedited run."""


@dataclass(frozen=True, eq=False)
class Bound:
    """A metric tied to the tokens of one run."""

    measure: Callable[[Any, Int[Tensor, " rows"]], Tensor]
    """(what is read [rows, n, k], or a cache; example of each row) → one number per row."""
    reads: Reads = "logits"
    positions: Int[Tensor, "batch n"] | None = None
    """The n positions read, per example; None: all."""
    ids: Int[Tensor, "batch n k"] | None = None
    """The logits read at each of these positions; None: all."""
    log_probs: bool = False
    """Whether log-probabilities of `ids` are read in place of their logits."""
    sites: tuple[str, ...] = ()
    """The sites of the cache that is read."""

    def pick(self, out: Any, examples: Int[Tensor, " rows"]) -> Any:
        """What the metric reads of a whole output [rows pos width]; of a cache, which has no
        positions or ids, all."""
        if self.positions is not None:
            at = self.positions[examples][:, :, None].expand(-1, -1, out.shape[-1])
            out = out.gather(1, at)
        if self.ids is None:
            return out
        read = out.gather(2, self.ids[examples])
        return wide(read) - wide(out).logsumexp(-1, keepdim=True) if self.log_probs else read


@dataclass(frozen=True, eq=False)
class Metric(Portable):
    """A named measure; `bind(model, tokens, base)` ties it to a run, whose output is `base`.

    It can be pickled, if `bind` can.
    """

    name: str
    bind: Callable[[Any, Tokens, Base], Bound] = field(repr=False)
    """(model, tokens, base) → Bound; base("logits" | "residual") is the unedited run's output."""
    made_of: tuple = field(default=(), repr=False)
    """What the metric was made with, where `bind` does not say it. A journal tells metrics apart by
    both."""
    whole: str | None = None
    """Why every node needs a whole run, with all its examples; None: any rows will do."""
    answer: Indices = field(default=None, repr=False)
    """The ids that it asks for, [batch] or [batch k], where it asks for some."""


def logit_diff(answer: Tensor, wrong: Tensor, pos: Where = None) -> Metric:
    """logit(answer) − logit(wrong) at `pos`; sets of ids [batch k] count with their mean logit."""
    bind = partial(_bind_logit_diff, answer=answer, wrong=wrong, pos=pos)
    return Metric("logit_diff", bind, answer=answer)


def log_prob(answer: Tensor, pos: Where = None) -> Metric:
    """ln p(answer) at `pos`; for sets of ids [batch k], of the set."""
    bind = partial(_bind_set, answer=answer, pos=pos, measure=_log_of_sum)
    return Metric("log_prob", bind, answer=answer)


def prob(answer: Tensor, pos: Where = None) -> Metric:
    """p(answer) at `pos`; for sets of ids [batch k], of the set."""
    bind = partial(_bind_set, answer=answer, pos=pos, measure=_sum)
    return Metric("prob", bind, answer=answer)


def rank(answer: Tensor, pos: Where = None) -> Metric:
    """Tokens with at least the answer's logit at `pos`, itself included: 1 is the top."""
    bind = partial(_bind_all, answer=answer, pos=pos, measure=_rank)
    return Metric("rank", bind, answer=answer)


def accuracy(answer: Tensor, pos: Where = None) -> Metric:
    """1 where the most probable token at `pos` is (among) the answer, else 0."""
    bind = partial(_bind_all, answer=answer, pos=pos, measure=_is_top)
    return Metric("accuracy", bind, answer=answer)


def kl(pos: Where | Literal["all"] = None) -> Metric:
    """KL(unedited ‖ edited) at `pos`, summed over the vocabulary; "all": mean over real tokens.

    At the unedited run it is stationary: a gradient of it there is zero.
    """
    return Metric("kl", partial(_bind_divergence, pos=pos, divergence=_kl))


def js(pos: Where | Literal["all"] = None) -> Metric:
    """Jensen–Shannon divergence between the unedited and the edited run; positions as for `kl`."""
    return Metric("js", partial(_bind_divergence, pos=pos, divergence=_js))


def loss() -> Metric:
    """Mean next-token cross-entropy of each example, over its real tokens."""
    return Metric("loss", _bind_loss)


def cosine(direction: Numbers, pos: Where = None) -> Metric:
    """Cosine of the last residual stream at `pos` with one direction [d_model], which must not be
    zero."""
    given = vector(direction, "direction")
    return Metric("cosine", partial(_bind_cosine, direction=given, pos=pos))


def pooled_cosine(target: Numbers | None = None) -> Metric:
    """Cosine of each example's mean-pooled last residual stream with `target`, one vector per
    example [batch, d_model]; by default with its own in the unedited run (1: nothing moved)."""
    given = None if target is None else numbers(target, "target")
    if given is not None and not bool(given.any(-1).all()):
        raise ValueError("target holds a vector that is zero, and zero is no direction")
    return Metric("pooled_cosine", partial(_bind_pooled_cosine, target=given))


def function(
    fn: Callable[..., Tensor],
    name: str | None = None,
    of: Literal["logits", "residual"] = "logits",
) -> Metric:
    """Any function of the output that returns one number per row of it.

    fn(output, examples), with a second parameter or one of that name, gets rows [rows pos width]
    and which example each of them is [rows]: any of them, in any order and number, one example
    perhaps under several nodes, so that what is known of an example is looked up as
    `labels[examples]`. fn(output) gets the whole output [batch pos width], example by example, and
    so takes engine="naive": one whole run per node, as the frame's attrs say. Raises ValueError on
    a function that can be called in neither way.
    """
    if of not in ("logits", "residual"):
        raise ValueError(f"of={of!r}: expected 'logits' or 'residual'")
    second = _second(fn, "output")
    bind = partial(_bind_function, fn=fn, second=second, of=of)
    by_row = second in ("named", "required")
    why = "fn(output) needs all examples at once (fn(output, examples) would not)"
    return Metric(_name(fn, name, "function"), bind, whole=None if by_row else why)


def cache_function(fn: Callable[..., Tensor], sites: SiteFilter, name: str | None = None) -> Metric:
    """Any function of a cache of the edited run (those sites of it), with all its examples in
    order: one number per example.

    Each node takes a whole run: engine="naive".
    """
    bind = partial(_bind_cache_function, fn=fn, second=_second(fn, "cache"), sites=sites)
    name = _name(fn, name, "cache_function")
    return Metric(name, bind, whole="the metric reads a cache")


def checked(value: Any, where: Sequence[str]) -> Float[Tensor, " rows"]:
    """What a metric gave for rows, in float64 on the CPU; `where` names each row.

    Raises ValueError unless it is one number per row, and NotFinite where it is not finite.
    """
    if not isinstance(value, Tensor) or value.shape != (len(where),):
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the metric gave {got} at {where[0]}: expected one number per example")
    _check_finite(value, where)
    return value.double().cpu()


def measured(
    bound: Bound, read: Any, examples: Int[Tensor, " rows"], where: Sequence[str]
) -> Float[Tensor, " rows"]:
    """What a metric makes of what it reads [rows n k], or of a cache, as `checked` gives it.

    A rank, an argmax or a count of NaN is a plausible number: what is read must be finite too.
    """
    if isinstance(read, Tensor):
        _check_finite(read, where)
    return checked(bound.measure(read, examples), where)


def _check_finite(x: Tensor, where: Sequence[str]) -> None:
    if not is_finite(x):
        row = (
            int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
            if x.ndim > 1
            else int((~x.isfinite()).nonzero()[0])
        )
        raise NotFinite(f"the metric is not finite at {where[row]}")


def _bind_logit_diff(
    model: HookedTransformer,
    tokens: Tokens,
    base: Base,
    *,
    answer: Tensor,
    wrong: Tensor,
    pos: Where,
) -> Bound:
    right, other = answer_ids(answer, tokens, model), answer_ids(wrong, tokens, model)
    n = right.shape[1]

    def measure(x: Tensor, examples: Tensor) -> Tensor:
        return x[:, 0, :n].mean(-1) - x[:, 0, n:].mean(-1)

    ids = torch.cat([right, other], dim=1)[:, None]
    return Bound(measure, positions=one_position(pos, tokens), ids=ids)


def _bind_set(
    model: HookedTransformer,
    tokens: Tokens,
    base: Base,
    *,
    answer: Tensor,
    pos: Where,
    measure: Callable[[Tensor], Tensor],
) -> Bound:
    """Of the log-probabilities [rows k] of the answers at one position."""
    return Bound(
        lambda x, examples: measure(x[:, 0]),
        positions=one_position(pos, tokens),
        ids=answer_ids(answer, tokens, model)[:, None],
        log_probs=True,
    )


def _log_of_sum(log_probs: Float[Tensor, "rows k"]) -> Float[Tensor, " rows"]:
    return log_probs.logsumexp(-1)


def _sum(log_probs: Float[Tensor, "rows k"]) -> Float[Tensor, " rows"]:
    return log_probs.exp().sum(-1)


def _bind_all(
    model: HookedTransformer,
    tokens: Tokens,
    base: Base,
    *,
    answer: Tensor,
    pos: Where,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> Bound:
    """Of all logits [rows d_vocab] at one position, and the answers."""
    ids = answer_ids(answer, tokens, model)
    return Bound(
        lambda x, examples: measure(wide(x[:, 0]), ids[examples]),
        positions=one_position(pos, tokens),
    )


def _rank(logits: Float[Tensor, "rows d_vocab"], ids: Int[Tensor, "rows k"]) -> Tensor:
    best = logits.gather(-1, ids).amax(-1, keepdim=True)
    return (logits >= best).sum(-1)


def _is_top(logits: Float[Tensor, "rows d_vocab"], ids: Int[Tensor, "rows k"]) -> Tensor:
    return (logits.argmax(-1, keepdim=True) == ids).any(-1)


def _bind_divergence(
    model: HookedTransformer,
    tokens: Tokens,
    base: Base,
    *,
    pos: Any,
    divergence: Callable[[Tensor, Tensor], Tensor],
) -> Bound:
    everywhere = isinstance(pos, str) and pos == "all"
    positions = None if everywhere else one_position(pos, tokens)
    real = tokens.real

    def measure(x: Tensor, examples: Tensor) -> Tensor:
        per_position = divergence(before[examples], wide(x).log_softmax(-1))
        if not everywhere:
            return per_position[:, 0]
        counted = real[examples]
        return (per_position * counted).sum(1) / counted.sum(1)

    bound = Bound(measure, positions=positions)
    before = wide(bound.pick(base("logits"), torch.arange(len(tokens)))).log_softmax(-1)
    return bound


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Of log-probabilities, over the last axis."""
    return (p.exp() * (p - q)).sum(-1)


def _js(p: Tensor, q: Tensor) -> Tensor:
    """Of log-probabilities, over the last axis."""
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype))
    return ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2


def _bind_loss(model: HookedTransformer, tokens: Tokens, base: Base) -> Bound:
    if tokens.ids is None:
        raise ValueError("loss needs token ids to predict; these tokens are vectors")
    real = tokens.real
    counted = real[:, 1:] & real[:, :-1]
    if not bool(counted.any(1).all()):
        raise ValueError("loss needs at least two real tokens in every row")

    def measure(x: Tensor, examples: Tensor) -> Tensor:
        mask = counted[examples]
        return -(x[:, :-1, 0] * mask).sum(1) / mask.sum(1)

    following = tokens.ids.roll(-1, dims=1)[..., None]  # of the last position nothing is read
    return Bound(measure, ids=following, log_probs=True)


def _bind_cosine(
    model: HookedTransformer,
    tokens: Tokens,
    base: Base,
    *,
    direction: Float[Tensor, " d"],
    pos: Where,
) -> Bound:
    if len(direction) != model.cfg.d_model:
        raise ValueError(f"the direction has {len(direction)} of {model.cfg.d_model} entries")

    def measure(x: Tensor, examples: Tensor) -> Tensor:
        return torch.cosine_similarity(x[:, 0], direction.to(x)[None])

    return Bound(measure, reads="residual", positions=one_position(pos, tokens))


def _bind_pooled_cosine(
    model: HookedTransformer, tokens: Tokens, base: Base, *, target: Float[Tensor, "..."] | None
) -> Bound:
    real = tokens.real[..., None]

    def pooled(x: Tensor, examples: Tensor) -> Tensor:
        return (x * real[examples]).sum(1)  # of a cosine the length does not matter

    every = torch.arange(len(tokens))
    aim = pooled(base("residual"), every) if target is None else target.to(model.like)
    if aim.shape != (len(tokens), model.cfg.d_model):
        raise ValueError(f"target has shape {list(aim.shape)}, expected one vector per example")

    def measure(x: Tensor, examples: Tensor) -> Tensor:
        return torch.cosine_similarity(pooled(x, examples), aim[examples])

    return Bound(measure, reads="residual")


def _bind_function(
    model: HookedTransformer, tokens: Tokens, base: Base, *, fn: Callable, second: Second, of: Reads
) -> Bound:
    return Bound(partial(_called, fn, second), reads=of)


def _bind_cache_function(
    model: HookedTransformer,
    tokens: Tokens,
    base: Base,
    *,
    fn: Callable,
    second: Second,
    sites: SiteFilter,
) -> Bound:
    names = tuple(model.sites.select(sites))
    return Bound(partial(_called, fn, second), reads="cache", sites=names)


def _second(fn: Callable[..., Any], first: str) -> Second:
    """How a function of the user's takes the examples; raises ValueError where it cannot."""
    if not callable(fn):
        raise ValueError(f"fn is {fn!r}, not a function")
    try:
        return second_argument(fn, "examples")
    except TypeError as error:
        raise ValueError(f"fn: {error}; expected fn({first}) or fn({first}, examples)") from None


def _called(fn: Callable[..., Any], second: Second, read: Any, examples: Tensor) -> Any:
    if second == "named":
        return fn(read, examples=examples)
    return fn(read, examples) if second == "required" else fn(read)


def _name(fn: Callable[..., Any], name: str | None, otherwise: str) -> str:
    return name or getattr(fn, "__name__", otherwise)


def single_answer(answer: Indices) -> bool:
    """Whether all examples have one and the same answer [batch], or set of answers [batch k]."""
    given = answer if isinstance(answer, Tensor) else torch.as_tensor(np.asarray(answer))
    sets = given.reshape(len(given), -1).sort(1).values
    return bool((sets == sets[:1]).all())


def answer_ids(answer: Indices, tokens: Tokens, model: HookedTransformer) -> Int[Tensor, "batch k"]:
    """The ids of every row [batch] or [batch k], checked against the vocabulary."""
    ids = id_tensor(answer, model.cfg.d_vocab, "answer ids").to(tokens.device)
    ids = ids[:, None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or ids.shape[0] != len(tokens) or not ids.numel():
        raise ValueError(
            f"ids of shape {list(ids.shape)}: expected one row per example ({len(tokens)})"
        )
    return ids


def one_position(pos: Where, tokens: Tokens) -> Int[Tensor, "batch 1"]:
    """One position per example, of a real token."""
    batch, width = tokens.shape
    if pos is None:
        index = torch.arange(width, device=tokens.device)
        return torch.where(tokens.real, index, -1).amax(1, keepdim=True)
    if isinstance(pos, str):
        if pos not in tokens.roles:
            known = ", ".join(tokens.roles) or "none"
            raise ValueError(f"pos={pos!r}: these tokens have the roles {known}")
        return tokens.roles[pos][:, None]
    at = index_tensor(pos, width, "pos").to(tokens.device)
    if at.shape not in ((), (batch,)):
        raise ValueError(
            f"pos has the shape {list(at.shape)}: expected one position, or one for each of "
            f"{batch} rows"
        )
    at = at.expand(batch)[:, None]
    pads = ~tokens.real.gather(1, at)
    if bool(pads.any()):
        row = int(pads.nonzero()[0, 0])
        raise ValueError(
            f"pos: position {int(at[row])} of row {row} is a pad; pos=None reads the last real "
            "token of each row"
        )
    return at
