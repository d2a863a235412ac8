"""What is measured of a run: one number per example. Averaging is the sweep's business.

A metric says what it reads (positions and columns of the logits, or the residual stream), so that
an engine computes no more than that. Logarithms are natural: losses and divergences are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .finite import NotFinite, is_finite
from .indices import Indices, id_tensor, index_tensor
from .precision import wide as _wide
from .tap import ActivationCache
from .tokens import Tokens

Where = Indices | str | None
"""A position for all rows, a role, one position per row, or None: the last real token. Negative
ones count from the end of the row, pads included; a pad is refused."""


Reads = Literal["logits", "residual", "cache"]


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
        """What the metric reads of a whole output [rows pos width]; of a cache, all."""
        if self.reads == "cache":
            return out
        if self.positions is not None:
            at = self.positions[examples][:, :, None].expand(-1, -1, out.shape[-1])
            out = out.gather(1, at)
        if self.ids is None:
            return out
        read = out.gather(2, self.ids[examples])
        return _wide(read) - _wide(out).logsumexp(-1, keepdim=True) if self.log_probs else read


@dataclass(frozen=True, eq=False)
class Metric:
    """A named measure; `bind(model, tokens, base)` ties it to a run, whose output is `base`."""

    name: str
    bind: Callable[[Any, Tokens, Callable[[str], Tensor]], Bound] = field(repr=False)
    """(model, tokens, base) → Bound; base("logits" | "residual") is the unedited run's output."""
    made_of: tuple = field(default=(), repr=False)
    """What the metric was made with. A journal tells metrics apart by it."""
    of_cache: bool = False
    """Whether it reads a cache, for which every node needs a whole run."""
    answer: Indices = field(default=None, repr=False)
    """The ids that it asks for, [batch] or [batch k], where it asks for some."""


def logit_diff(answer: Tensor, wrong: Tensor, pos: Where = None) -> Metric:
    """logit(answer) − logit(wrong) at `pos`; sets of ids [batch k] count with their mean logit."""

    def bind(model: Any, tokens: Tokens, base: Callable) -> Bound:
        right, other = answer_ids(answer, tokens, model), answer_ids(wrong, tokens, model)
        n = right.shape[1]

        def measure(x: Tensor, examples: Tensor) -> Tensor:
            return x[:, 0, :n].mean(-1) - x[:, 0, n:].mean(-1)

        ids = torch.cat([right, other], dim=1)[:, None]
        return Bound(measure, positions=one_position(pos, tokens), ids=ids)

    return Metric("logit_diff", bind, (answer, wrong, pos), answer=answer)


def log_prob(answer: Tensor, pos: Where = None) -> Metric:
    """ln p(answer) at `pos`; for sets of ids [batch k], of the set."""
    return _of_set("log_prob", answer, pos, lambda log_probs: log_probs.logsumexp(-1))


def prob(answer: Tensor, pos: Where = None) -> Metric:
    """p(answer) at `pos`; for sets of ids [batch k], of the set."""
    return _of_set("prob", answer, pos, lambda log_probs: log_probs.exp().sum(-1))


def rank(answer: Tensor, pos: Where = None) -> Metric:
    """Tokens with at least the answer's logit at `pos`, itself included: 1 is the top."""

    def measure(logits: Tensor, ids: Tensor) -> Tensor:
        best = logits.gather(-1, ids).amax(-1, keepdim=True)
        return (logits >= best).sum(-1).to(logits)

    return _of_all("rank", answer, pos, measure)


def accuracy(answer: Tensor, pos: Where = None) -> Metric:
    """1 where the most probable token at `pos` is (among) the answer, else 0."""

    def measure(logits: Tensor, ids: Tensor) -> Tensor:
        return (logits.argmax(-1, keepdim=True) == ids).any(-1).to(logits)

    return _of_all("accuracy", answer, pos, measure)


def kl(pos: Where | Literal["all"] = None) -> Metric:
    """KL(unedited ‖ edited) at `pos`, summed over the vocabulary; "all": mean over real tokens.

    At the unedited run it is stationary: a gradient of it there is zero.
    """
    return _divergence("kl", pos, lambda p, q: (p.exp() * (p - q)).sum(-1))


def js(pos: Where | Literal["all"] = None) -> Metric:
    """Jensen–Shannon divergence between the unedited and the edited run; positions as for `kl`."""

    def divergence(p: Tensor, q: Tensor) -> Tensor:
        middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype))
        return ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)) / 2

    return _divergence("js", pos, divergence)


def loss() -> Metric:
    """Mean next-token cross-entropy of each example, over its real tokens."""

    def bind(model: Any, tokens: Tokens, base: Callable) -> Bound:
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

    return Metric("loss", bind)


def cosine(direction: Float[Tensor, " d_model"], pos: Where = None) -> Metric:
    """Cosine of the last residual stream at `pos` with a direction."""

    def bind(model: Any, tokens: Tokens, base: Callable) -> Bound:
        if direction.shape[-1] != model.cfg.d_model:
            raise ValueError(
                f"the direction has {direction.shape[-1]} of {model.cfg.d_model} entries"
            )

        def measure(x: Tensor, examples: Tensor) -> Tensor:
            return torch.cosine_similarity(x[:, 0], direction.to(x)[None], dim=-1)

        return Bound(measure, reads="residual", positions=one_position(pos, tokens))

    return Metric("cosine", bind, (direction, pos))


def pooled_cosine(target: Float[Tensor, "batch d_model"] | None = None) -> Metric:
    """Cosine of each example's mean-pooled last residual stream with `target`, one vector per
    example; by default with its own in the unedited run (1: nothing moved)."""

    def bind(model: Any, tokens: Tokens, base: Callable) -> Bound:
        weights = tokens.real.to(model.dtype)[..., None]

        def pooled(x: Tensor, examples: Tensor) -> Tensor:
            own = weights[examples]
            return (x * own).sum(1) / own.sum(1)

        every = torch.arange(len(tokens), device=tokens.device)
        aim = pooled(base("residual"), every) if target is None else target.to(model.like)
        if aim.shape != (len(tokens), model.cfg.d_model):
            raise ValueError(f"target has shape {list(aim.shape)}, expected one vector per example")

        def measure(x: Tensor, examples: Tensor) -> Tensor:
            return torch.cosine_similarity(pooled(x, examples), aim[examples], dim=-1)

        return Bound(measure, reads="residual")

    return Metric("pooled_cosine", bind, (target,))


def function(
    fn: Callable[[Tensor], Tensor],
    name: str | None = None,
    of: Literal["logits", "residual"] = "logits",
) -> Metric:
    """Any function of the whole output [rows pos width] that returns one number per row."""
    own = name or getattr(fn, "__name__", "function")

    def bind(model: Any, tokens: Tokens, base: Callable) -> Bound:
        return Bound(lambda x, examples: fn(x), reads=of)

    return Metric(own, bind, (fn, of))


def cache_function(
    fn: Callable[[ActivationCache], Tensor], sites: str | Sequence[str], name: str | None = None
) -> Metric:
    """Any function of a cache of the edited run (those sites of it): one number per example.

    Each node takes a whole run: engine="naive".
    """
    own = name or getattr(fn, "__name__", "cache_function")
    names = (sites,) if isinstance(sites, str) else tuple(sites)

    def bind(model: Any, tokens: Tokens, base: Callable) -> Bound:
        return Bound(lambda cache, examples: fn(cache), reads="cache", sites=names)

    return Metric(own, bind, (fn, names), of_cache=True)


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


def _of_set(name: str, answer: Tensor, pos: Where, measure: Callable[[Tensor], Tensor]) -> Metric:
    """Of the log-probabilities [rows k] of the answers at one position."""

    def bind(model: Any, tokens: Tokens, base: Callable) -> Bound:
        return Bound(
            lambda x, examples: measure(x[:, 0]),
            positions=one_position(pos, tokens),
            ids=answer_ids(answer, tokens, model)[:, None],
            log_probs=True,
        )

    return Metric(name, bind, (answer, pos), answer=answer)


def _of_all(
    name: str, answer: Tensor, pos: Where, measure: Callable[[Tensor, Tensor], Tensor]
) -> Metric:
    """Of all logits [rows d_vocab] at one position, and the answers."""

    def bind(model: Any, tokens: Tokens, base: Callable) -> Bound:
        ids = answer_ids(answer, tokens, model)
        return Bound(
            lambda x, examples: measure(_wide(x[:, 0]), ids[examples]),
            positions=one_position(pos, tokens),
        )

    return Metric(name, bind, (answer, pos), answer=answer)


def _divergence(name: str, pos: Any, divergence: Callable[[Tensor, Tensor], Tensor]) -> Metric:
    def bind(model: Any, tokens: Tokens, base: Callable) -> Bound:
        everywhere = isinstance(pos, str) and pos == "all"
        positions = None if everywhere else one_position(pos, tokens)
        reads = Bound(lambda x, examples: x, positions=positions)
        every = torch.arange(len(tokens), device=tokens.device)
        before = _wide(reads.pick(base("logits"), every)).log_softmax(-1)
        real = tokens.real

        def measure(x: Tensor, examples: Tensor) -> Tensor:
            per_position = divergence(before[examples], _wide(x).log_softmax(-1))
            if not everywhere:
                return per_position[:, 0]
            weights = real[examples].to(per_position)
            return (per_position * weights).sum(1) / weights.sum(1)

        return Bound(measure, positions=positions)

    return Metric(name, bind, (pos,))


def single_answer(answer: Indices) -> bool:
    """Whether all examples have one and the same answer [batch], or set of answers [batch k]."""
    given = answer if isinstance(answer, Tensor) else torch.as_tensor(np.asarray(answer))
    sets = given.reshape(len(given), -1).sort(1).values
    return bool((sets == sets[:1]).all())


def answer_ids(answer: Indices, tokens: Tokens, model: Any) -> Int[Tensor, "batch k"]:
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
        return tokens.roles[pos].to(tokens.device)[:, None]
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
