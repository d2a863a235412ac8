"""What an edit puts in place of an activation, counted by hand."""

from __future__ import annotations

import pytest
import torch

from interp import edits
from interp.core.tap import ActivationCache
from interp.core.tokens import Tokens
from interp.sweeps.edits import Rows

from .strategies import random_model, small_config

SITE = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


def rows(model, examples: int, node: int) -> Rows:
    return Rows(model.sites[SITE], torch.arange(examples), [node] * examples)


def drawn(model, reference: Tokens, tokens: Tokens, node: int, seed: int) -> list[int]:
    """Which row of the reference each example gets."""
    theirs = model.run_with_cache(reference, [SITE])[1][SITE]
    replace = edits.resample(reference, seed).bind(model, tokens, [SITE])
    new = replace(
        torch.zeros(len(tokens), *theirs.shape[1:]).to(theirs), rows(model, len(tokens), node)
    )
    same = (new[:, None] == theirs[None]).flatten(2).all(-1)
    assert (same.sum(1) == 1).all()
    return same.long().argmax(1).tolist()


def test_resampling_draws_for_every_example_and_every_node_anew(model):
    generator = torch.Generator().manual_seed(0)
    reference, tokens = (
        Tokens.of(torch.randint(model.cfg.d_vocab, (n, 4), generator=generator)) for n in (5, 24)
    )
    by_node = [drawn(model, reference, tokens, node, seed=3) for node in range(20)]
    assert all(len(set(one)) > 1 for one in by_node), "examples share a row"
    assert all(len({one[i] for one in by_node}) > 1 for i in range(24)), "nodes share a row"
    counts = torch.bincount(torch.tensor(by_node).flatten(), minlength=5)
    expected = 24 * 20 / 5
    assert ((counts - expected).abs() < 5 * (expected * 0.8) ** 0.5).all(), "uniform over the rows"
    assert drawn(model, reference, tokens, 7, seed=3) == by_node[7]
    assert drawn(model, reference, tokens, 7, seed=4) != by_node[7]


@pytest.mark.parametrize("per", ["all", "pos"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 4)])
def test_a_mean_is_the_sum_over_real_tokens_by_their_number(model, per, shape):
    """Also over a single row, and over a single token."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(model.cfg.d_vocab, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    if shape[0] > 1:
        mask[1, 0] = mask[2, 0] = mask[2, 1] = False
    reference = Tokens(ids, mask=mask)
    values = model.run_with_cache(reference, [SITE])[1][SITE]
    replace = edits.mean(reference, per=per).bind(model, reference, [SITE])
    new = replace(torch.zeros_like(values), rows(model, shape[0], 0))
    for pos in range(shape[1]):
        places = [(i, p) for i in range(shape[0]) for p in range(shape[1]) if mask[i, p]]
        of = [values[i, p] for i, p in places if per == "all" or p == pos]
        torch.testing.assert_close(new[:, pos], (sum(of) / len(of)).expand(shape[0], -1))


def test_a_cache_belongs_to_all_stacks_of_a_model(model):
    """One that saw fewer of them, or more, is another model's."""
    cache = model.run_with_cache(torch.tensor([[1, 2]]), [SITE])[1]
    other = random_model(small_config(), seed=1)
    (own,), (theirs,) = model.stacks, other.stacks
    assert cache.is_of([own])
    for stacks in ([], [own, theirs], [own, own], [theirs]):
        assert not cache.is_of(stacks)
    of_two = ActivationCache({SITE: cache[SITE]}, model.sites, cache.tokens, [own, theirs])
    assert of_two.is_of([own, theirs])
    for stacks in ([], [own], [theirs, own], [own, theirs, own]):
        assert not of_two.is_of(stacks)
