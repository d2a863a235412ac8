"""Metrics on logits that are written by hand, in every precision."""

from __future__ import annotations

import pytest
import torch

from interp import metrics
from interp.core.tokens import Tokens

from .strategies import random_model, small_config

LOGITS = [[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [4.0, 3.0, 2.0, 1.0]]
"""By example; the vocabulary has four tokens."""


def value(metric, logits: torch.Tensor, before: torch.Tensor | None = None) -> list[float]:
    """What a metric reads at the last of two positions of these logits [batch d_vocab]."""
    n, d_vocab = logits.shape
    model = random_model(small_config(d_vocab=d_vocab))
    tokens = Tokens.of(torch.zeros(n, 2, dtype=torch.long))
    out = torch.stack([logits.flip(-1), logits], 1)
    was = out if before is None else torch.stack([before.flip(-1), before], 1)
    bound = metric.bind(model, tokens, lambda reads: was)
    examples = torch.arange(n)
    return bound.measure(bound.pick(out, examples), examples).double().tolist()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [([0, 0, 0], [4, 4, 1]), ([1, 1, 1], [2, 4, 2]), ([2, 2, 2], [2, 4, 3]), ([3, 3, 3], [3, 4, 4]),
     ([[0, 3], [0, 1], [3, 2]], [3, 4, 3])],
)  # fmt: skip
def test_a_rank_counts_all_that_are_as_high(answer, expected):
    """Of tied tokens none is before the other; of several answers the best counts."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert (
            value(metrics.rank(torch.tensor(answer)), torch.tensor(LOGITS, dtype=dtype)) == expected
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["log_prob", "prob", "kl", "js", "rank"])
def test_a_softmax_is_never_taken_in_half_precision(name, dtype):
    """The value is that of the same rounded logits in float64, to float32's rounding."""
    generator = torch.Generator().manual_seed(0)
    rounded, before = (torch.randn(5, 700, generator=generator).mul(4).to(dtype) for _ in range(2))
    answer = torch.tensor([0, 600, 30, 41, 5])
    metric = getattr(metrics, name)(*([] if name in ("kl", "js") else [answer]))
    exact = value(metric, rounded.double(), before.double())
    near = value(metric, rounded, before)
    assert near == pytest.approx(exact, rel=2e-5, abs=1e-7)
    assert max(exact) - min(exact) > 1e-5


def test_ranks_past_what_half_precision_counts_are_exact():
    logits = torch.linspace(8, -8, 700, dtype=torch.bfloat16)[None]
    ids = torch.tensor([699])
    assert value(metrics.rank(ids), logits) == [700]
