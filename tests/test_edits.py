"""What an edit puts in place of an activation, counted by hand."""

from __future__ import annotations

import pytest
import torch

from interp import edits
from interp.core.tap import ActivationCache
from interp.core.tokens import Tokens
from interp.sweeps.edits import Edit, Rows

from .device.pretend import DEVICE
from .strategies import random_model, small_config

SITE = "blocks.1.hook_resid_post"

pytestmark = pytest.mark.usefixtures("one_thread")


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


# Every edit by hand -------------------------------------------------------------------------------

WIDTHS = {SITE: 32, "blocks.1.attn.hook_z": 8, "blocks.1.attn.hook_pattern": 5}
"""Sites with other axes, and the length of the last: a pattern counts positions on its third."""
NODES = [11, 12, 13]
"""One for each of three examples."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_ids(*shape: int, seed: int) -> Tokens:
    return Tokens.of(torch.randint(29, shape, generator=torch.Generator().manual_seed(seed)))


IDS, OTHER, REFERENCE = some_ids(3, 5, seed=1), some_ids(3, 5, seed=2), some_ids(6, 5, seed=3)


def cached(model, tokens: Tokens, site: str) -> torch.Tensor:
    return model.run_with_cache(tokens, [site])[1][site]


def at_nodes(model, site: str, examples: list[int], start: int = 0) -> Rows:
    """Rows of these examples, each under its node."""
    nodes = [NODES[i] for i in examples]
    return Rows(model.sites[site], torch.tensor(examples), nodes, start, numbers=nodes)


def of_each(width: int) -> Edit:
    """Two of them read another run."""
    return edits.each({11: edits.mean(OTHER), 12: edits.noise(0.5), 13: edits.patch(OTHER)})


EDITS = {
    "zero": (lambda width: edits.zero(), "ablate"),
    "set": (lambda width: edits.set_to(normal(3, width)), "steer"),
    "scale(-1.5)": (lambda width: edits.scale(-1.5), "steer"),
    "add(1)": (lambda width: edits.add(normal(width)), "steer"),
    "add(0.5)": (lambda width: edits.add(normal(3, width), 0.5), "steer"),
    "project_out": (lambda width: edits.project_out(normal(2, width)), "ablate"),
    "noise(0.5)": (lambda width: edits.noise(0.5), "steer"),
    "patch": (lambda width: edits.patch(OTHER), "patch"),
    "mean": (lambda width: edits.mean(REFERENCE), "ablate"),
    "mean per pos": (lambda width: edits.mean(REFERENCE, "pos"), "ablate"),
    "resample": (lambda width: edits.resample(REFERENCE), "ablate"),
    "each": (of_each, "steer"),
}  # fmt: skip


def per_example(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[batch, width] as it lies on [batch, …, width]."""
    return values.view(len(values), *[1] * (x.ndim - 2), values.shape[-1])


BY_HAND = {
    "zero": lambda x, site, model: torch.zeros_like(x),
    "set": lambda x, site, model: per_example(normal(3, WIDTHS[site]), x).expand_as(x),
    "scale(-1.5)": lambda x, site, model: x * -1.5,
    "add(1)": lambda x, site, model: x + normal(WIDTHS[site]),
    "add(0.5)": lambda x, site, model: x + 0.5 * per_example(normal(3, WIDTHS[site]), x),
    "project_out": lambda x, site, model: (
        x - x @ torch.linalg.pinv(normal(2, WIDTHS[site])) @ normal(2, WIDTHS[site])
    ),
    "patch": lambda x, site, model: cached(model, OTHER, site),
    "mean": lambda x, site, model: (
        cached(model, REFERENCE, site)
        .mean((0, model.sites[site].pos_axis), keepdim=True)
        .expand_as(x)
    ),
    "mean per pos": lambda x, site, model: cached(model, REFERENCE, site).mean(0).expand_as(x),
}


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize("name", BY_HAND)
def test_an_edit_puts_what_a_hand_puts(model, name, site):
    x = cached(model, IDS, site)
    replace = EDITS[name][0](WIDTHS[site]).bind(model, IDS, [site])
    new = replace(x, at_nodes(model, site, [0, 1, 2]))
    torch.testing.assert_close(new, BY_HAND[name](x, site, model), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("start", [0, 1, 3])
@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize("name", EDITS)
def test_some_rows_from_a_position_on_get_what_the_whole_run_gets(model, name, site, start):
    """In any order, one of them twice: an engine computes no more than it must."""
    x, axis = cached(model, IDS, site), model.sites[site].pos_axis
    replace = EDITS[name][0](WIDTHS[site]).bind(
        model, IDS, iter([site])
    )  # names, gone through once
    whole = replace(x, at_nodes(model, site, [0, 1, 2]))
    order = [2, 0, 1, 2]
    some = x[order].narrow(axis, start, 5 - start)
    new = replace(some, at_nodes(model, site, order, start))
    torch.testing.assert_close(new, whole[order].narrow(axis, start, 5 - start))
    assert new.shape == some.shape


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_says_what_it_is(name):
    make, direction = EDITS[name]
    edit = make(32)
    assert (edit.name, edit.direction) == (name, direction)
    assert edit.reference is (REFERENCE if name in ("mean", "mean per pos", "resample") else None)


@pytest.mark.parametrize("make", [edits.patch, edits.mean, edits.resample,
                                  lambda run: edits.mean(run, "pos")])  # fmt: skip
def test_a_cache_says_the_same_as_its_tokens(unchecked, model, make):
    """So does a list of ids."""
    cache = model.run_with_cache(OTHER, [SITE])[1]
    x = cached(model, IDS, SITE)
    ways = [make(source) for source in (OTHER, OTHER.ids.tolist(), cache)]
    first, *others = (
        edit.bind(model, IDS, [SITE])(x, at_nodes(model, SITE, [0, 1, 2])) for edit in ways
    )
    assert all(torch.equal(first, new) for new in others)
    if ways[0].reference is not None:
        assert [edit.reference.ids.tolist() for edit in ways] == [OTHER.ids.tolist()] * 3
    other = random_model(small_config(), seed=1)
    with pytest.raises(ValueError, match=r"taken on another model.*give the tokens"):
        ways[2].bind(other, IDS, [SITE])


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_on_another_device_puts_what_it_puts_on_the_cpu(model, name, site):
    """Vectors and tokens come from the CPU, the activations lie on a device of their own."""
    edit, elsewhere = EDITS[name][0](WIDTHS[site]), random_model(small_config()).to(DEVICE)
    x, order = cached(model, IDS, site), [2, 0, 1]
    expected = edit.bind(model, IDS, [site])(x[order], at_nodes(model, site, order))
    rows = at_nodes(model, site, order)
    rows = rows._replace(examples=rows.examples.to(DEVICE))
    new = edit.bind(elsewhere, IDS.to(DEVICE), [site])(x[order].to(DEVICE), rows)
    assert new.device == DEVICE
    torch.testing.assert_close(new.cpu(), expected)
    kept = elsewhere.run_with_cache(OTHER.to(DEVICE), [site], device="cpu")[1]
    assert kept[site].device.type == "cpu"
    patched = edits.patch(kept).bind(elsewhere, IDS.to(DEVICE), [site])(new, rows)
    torch.testing.assert_close(patched.cpu(), kept[site][order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_keeps_the_precision_of_the_activations(model, name, dtype):
    edit, narrow = EDITS[name][0](32), random_model(small_config()).to(dtype)
    x = cached(model, IDS, SITE)
    expected = edit.bind(model, IDS, [SITE])(x, at_nodes(model, SITE, [0, 1, 2]))
    new = edit.bind(narrow, IDS, [SITE])(x.to(dtype), at_nodes(model, SITE, [0, 1, 2]))
    assert new.dtype == dtype
    off = (new.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert off < 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: edits.set_to(float("nan")), "^value is not finite"),
        (lambda: edits.set_to([1.0, float("inf")]), "^value is not finite"),
        (lambda: edits.scale(float("-inf")), "^factor is not finite"),
        (lambda: edits.add(normal(4), float("nan")), "^factor is not finite"),
        (lambda: edits.add([0.0, float("-inf")]), "^direction is not finite"),
        (lambda: edits.noise(float("nan")), "^sigma is not finite"),
        (lambda: edits.noise(-0.5), r"^sigma=-0\.5: expected 0 or more"),
        (lambda: edits.noise(0.5, seed=0.5), r"^seed=0\.5: a float is not an index"),
        (lambda: edits.resample(IDS, seed=True), "^seed=True: a boolean is not an index"),
    ],
)
def test_what_an_edit_is_made_of_is_named_where_it_is_wrong(unchecked, make, message):
    with pytest.raises(ValueError, match=message):
        make()
    edits.noise(0.0)


def test_a_score_may_be_set_to_minus_infinity(model):
    site = "blocks.1.attn.hook_attn_scores"
    x = torch.zeros(3, 4, 5, 5, dtype=torch.float64)
    new = edits.set_to(float("-inf")).bind(model, IDS, [site])(x, at_nodes(model, site, [0, 1, 2]))
    assert new.shape == x.shape and new.isneginf().all()


def test_directions_of_another_width_are_told_the_width(model):
    replace = edits.project_out(normal(2, 32)).bind(model, IDS, [SITE])
    site = "blocks.1.attn.hook_z"
    with pytest.raises(ValueError, match=f"directions of 32 numbers at '{site}', .* of width 8$"):
        replace(cached(model, IDS, site), at_nodes(model, site, [0, 1, 2]))


@pytest.mark.parametrize("name", ["noise(0.5)", "resample"])
def test_every_row_needs_a_node(model, name):
    replace = EDITS[name][0](32).bind(model, IDS, [SITE])
    short = at_nodes(model, SITE, [0, 1, 2])._replace(nodes=NODES[:2])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        replace(cached(model, IDS, SITE), short)


# Noise, and an edit for each node -----------------------------------------------------------------


def noise(model, x: torch.Tensor, *, node: int = 5, seed: int = 3) -> torch.Tensor:
    return edits.noise(0.5, seed).bind(model, IDS, [SITE])(x, rows(model, len(x), node))


def test_noise_is_normal_and_new_for_every_example_node_and_seed(model):
    x = torch.zeros(3, 5, 32, dtype=torch.float64)
    by_node = torch.stack([noise(model, x, node=node) for node in range(20)])
    assert float(by_node.std()) == pytest.approx(0.5, rel=0.03)  # of 9600 numbers
    assert abs(float(by_node.mean())) < 0.02
    assert float((by_node.abs() < 0.5).double().mean()) == pytest.approx(0.6827, abs=0.02)
    draws = by_node.flatten(0, 1).flatten(1)
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.4
    assert torch.equal(noise(model, x), noise(model, x))
    assert not torch.equal(noise(model, x), noise(model, x, seed=4))
    moved = noise(model, x + 7) - noise(model, x)
    torch.testing.assert_close(moved, x + 7)


def test_a_seed_is_zero_unless_it_is_given(model):
    x = cached(model, IDS, SITE)
    for make in (lambda *seed: edits.noise(0.5, *seed), lambda *seed: edits.resample(OTHER, *seed)):
        usual, zero, one = (
            make(*seed).bind(model, IDS, [SITE])(x, at_nodes(model, SITE, [0, 1, 2]))
            for seed in ((), (0,), (1,))
        )
        assert torch.equal(usual, zero) and not torch.equal(usual, one)


def test_each_row_gets_its_edit(model):
    x = cached(model, IDS, SITE)
    edit = edits.each({11: edits.scale(2.0), 13: edits.zero(), 12: edits.add(1.0)}, "mine")
    assert (edit.name, edit.direction) == ("mine", "steer")
    new = edit.bind(model, IDS, [SITE])(x, at_nodes(model, SITE, [0, 1, 2]))
    torch.testing.assert_close(new, torch.stack([x[0] * 2, x[1] + 1, x[2] * 0]))
    zero, mean, patch = edits.zero(), edits.mean(OTHER), edits.patch(OTHER)
    for two, direction in (((zero, mean), "ablate"), ((patch, patch), "patch"),
                           ((zero, patch), "steer"), ((patch, mean), "steer")):  # fmt: skip
        assert edits.each(dict(enumerate(two))).direction == direction
    lacking = edits.each({11: edits.zero(), 10: edits.zero()}).bind(model, IDS, [SITE])
    with pytest.raises(ValueError, match=r"row 12 has no edit: there are some for \[10, 11\]"):
        lacking(x, at_nodes(model, SITE, [0, 2, 1]))


def test_some_of_the_rows_keep_their_examples_and_nodes(model):
    whole = Rows(model.sites[SITE], torch.tensor([4, 5, 6]), [7, 8, 9], 2, [1, 2, 3])
    some = whole.of([2, 0])
    assert some.examples.tolist() == [6, 4]
    assert (some.nodes, some.numbers, some.start, some.site) == ([9, 7], [3, 1], 2, whole.site)
