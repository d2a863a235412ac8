"""Where a run is edited, and where the other run that an edit reads has values for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from interp import edits
from interp.core.tap import ActivationCache
from interp.core.tokens import Tokens
from interp.sweeps.edits import Rows
from interp.sweeps.nodes import as_frame, read_nodes

from .device.pretend import DEVICE
from .strategies import random_model, small_config
from .test_edits import IDS, SITE, cached, normal, rows, some_ids

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


def positions_edited(model, tokens: Tokens, lines: list[dict]) -> dict[str, list[list[int]]]:
    nodes = read_nodes(as_frame(lines), model, tokens)
    found = edits.edited_positions(nodes, model, tokens)
    assert all(mask.dtype == torch.bool and mask.device == tokens.device for mask in found.values())
    return {name: [row.nonzero().flatten().tolist() for row in mask]
            for name, mask in found.items()}  # fmt: skip


def test_the_positions_that_are_edited_are_those_of_all_nodes(model):
    tokens = Tokens(IDS.ids, roles={"verb": torch.tensor([1, 3, 0])})
    lines = [
        {"row": 0, "site": "z", "layer": 1, "pos": 2},
        {"row": 0, "site": "z", "layer": 1, "pos": 4, "head": 1},
        {"row": 1, "site": "z", "layer": 1, "role": "verb"},
        {"row": 1, "site": "z", "layer": 0, "role": "verb"},
        {"row": 2, "site": "resid_pre", "layer": 2},
        {"row": 3, "site": "pattern", "layer": 2, "pos": 0, "k_pos": 3},
    ]
    found = positions_edited(model, tokens, lines)
    assert found == positions_edited(model, tokens.to(DEVICE), lines)
    assert found == {
        "blocks.1.attn.hook_z": [[1, 2, 4], [2, 3, 4], [0, 2, 4]],
        "blocks.0.attn.hook_z": [[1], [3], [0]],
        "blocks.2.hook_resid_pre": [[0, 1, 2, 3, 4]] * 3,
        "blocks.2.attn.hook_pattern": [[0]] * 3,
    }


@pytest.fixture(scope="module")
def pair():
    """An encoder–decoder."""
    encoder = small_config(n_layers=1, causal=False, head="none")
    return random_model(small_config(n_layers=1, encoder=encoder, decoder_start_token_id=1))


KEYS, QUERIES = "decoder_blocks.0.cross_attn.hook_k", "decoder_blocks.0.cross_attn.hook_q"


def read_by(ids: Tokens, source: Tokens) -> Tokens:
    return Tokens(ids.ids, source=source)


def test_positions_of_the_source_are_counted_along_it(pair):
    source = Tokens(some_ids(2, 6, seed=0).ids, roles={"verb": torch.tensor([5, 2])})
    tokens = read_by(some_ids(2, 3, seed=1), source)
    lines = [{"site": "cross_attn.k", "layer": 0, "role": "verb"},
             {"site": "cross_attn.q", "layer": 0, "pos": 2}]  # fmt: skip
    assert positions_edited(pair, tokens, lines) == {KEYS: [[5], [2]], QUERIES: [[2], [2]]}


def test_runs_of_a_pair_must_fit_where_they_are_read(unchecked, pair):
    """Its decoder reads three tokens in both runs, its encoder six in one and four in the other."""
    ours, theirs = (read_by(some_ids(2, 3, seed=n), some_ids(2, n, seed=n)) for n in (6, 4))
    for other, message in ((theirs, r"\[2, 4\].*\[2, 6\]: patching needs equal"),
                           (read_by(some_ids(2, 2, seed=0), ours.source), r"\[2, 2\].*\[2, 3\]"),
                           (ours[[0, 1, 1]], r"\[3, 3\] \[batch pos\], this one \[2, 3\]"),
                           ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            edits.patch(other).bind(pair, ours, [QUERIES])
    for make, why in ((lambda run: edits.mean(run, "pos"), "use per='all'"),
                      (edits.resample, "resampling needs equal length")):  # fmt: skip
        make(theirs).bind(pair, ours, [QUERIES])
        with pytest.raises(ValueError, match=f"4 positions at '{KEYS}', this run 6: .*{why}"):
            make(theirs).bind(pair, ours, [QUERIES, KEYS])
    edits.mean(theirs).bind(pair, ours, [KEYS])


def test_a_mean_over_the_source_is_over_its_real_tokens(pair):
    source = Tokens.from_rows([[1, 2, 3, 4], [5, 6]])
    run = read_by(some_ids(2, 3, seed=1), source)
    keys = cached(pair, run, KEYS)
    new = edits.mean(run).bind(pair, run, [KEYS])(keys, Rows(pair.sites[KEYS], torch.arange(2), []))
    expected = keys[source.real].mean(0)
    torch.testing.assert_close(new, expected.expand_as(keys))


def test_a_cache_of_a_pair_counts_the_source_where_the_site_does(pair):
    run = read_by(some_ids(2, 3, seed=1), some_ids(2, 6, seed=2))
    cache = pair.run_with_cache(run, [KEYS, QUERIES])[1]
    for site in (KEYS, QUERIES):
        rows = Rows(pair.sites[site], torch.tensor([1, 0]), [])
        new = edits.patch(cache).bind(pair, run, [KEYS, QUERIES])(cache[site], rows)
        assert torch.equal(new, cache[site][[1, 0]])


USABLE = {
    "patch": (edits.patch, lambda real, i: real[i], "the same example"),
    "each": (lambda run: edits.each({0: edits.patch(run)}), lambda real, i: real[i], "the same"),
    "mean": (lambda run: edits.mean(run, "pos"), lambda real, i: real.any(0), "every row"),
    "resample": (edits.resample, lambda real, i: real.all(0), "a row of the reference"),
}


def masks(*shape: int):
    """With a real token in every row."""
    rows = st.lists(st.booleans(), min_size=shape[1], max_size=shape[1]).filter(any)
    return st.lists(rows, min_size=shape[0], max_size=shape[0]).map(torch.tensor)


@pytest.mark.parametrize("name", sorted(USABLE))
@settings(max_examples=15, deadline=None)
@given(ours=masks(2, 3), theirs=masks(2, 3), edited=st.none() | masks(2, 3))
@example(
    ours=torch.ones(2, 3).bool(),
    theirs=torch.tensor([[True, False, True], [True, False, False]]),
    edited=None,
)
def test_values_are_missed_where_a_real_token_is_edited_and_there_are_none(
    model, name, ours, theirs, edited
):
    make, usable, whose = USABLE[name]
    ids = some_ids(2, 3, seed=0).ids
    tokens, other = Tokens(ids, mask=ours), Tokens(ids, mask=theirs)
    lacking = [
        (i, p) for i in range(2) for p in range(3)
        if ours[i, p] and not usable(theirs, i)[p] and (edited is None or edited[i, p])
    ]  # fmt: skip
    sites = [SITE] if edited is None else {SITE: edited}
    if not lacking:
        make(other).bind(model, tokens, sites)
        return
    row, pos = lacking[0]
    with pytest.raises(ValueError, match=f"position {pos} of example {row} .*{SITE}.*{whose}"):
        make(other).bind(model, tokens, sites)


def test_a_mean_where_no_token_is_real_is_a_number(model):
    """It is put nowhere, and must not spoil what is computed beside it."""
    tokens = Tokens(IDS.ids, mask=torch.arange(5) < torch.tensor([[3], [2], [3]]))
    replace = edits.mean(tokens, "pos").bind(model, tokens, {SITE: tokens.real})
    assert replace(cached(model, IDS, SITE), rows(model, 3, 0)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("per", ["all", "pos"])
def test_a_mean_in_half_precision_is_summed_in_single(model, dtype, per):
    """Sums past 65504 overflow float16, and bfloat16 counts no further than 256."""
    tokens = some_ids(300, 2, seed=0)
    values = (normal(300, 2, 32) * 100 + 60000).to(dtype)
    cache = ActivationCache({SITE: values}, model.sites, tokens, model.stacks)
    new = edits.mean(cache, per).bind(model, tokens, [SITE])(values, rows(model, 300, 0))
    exact = values.double().mean((0, 1) if per == "all" else 0).expand(300, 2, 32)
    assert new.dtype == dtype
    assert ((new.double() - exact).abs() <= torch.finfo(dtype).eps * exact.abs()).all()


def test_a_mean_is_over_all_or_per_position(unchecked):
    with pytest.raises(ValueError, match="per='rows': expected 'all' or 'pos'"):
        edits.mean(IDS, "rows")


@pytest.mark.parametrize(
    ("pos", "message"),
    [([4, 3, 2, 1, 0], r"has 5 of 5 positions at .*, in the order \[4, 3, 2, 1, 0\]: it was"),
     ([1, 3], r"has 2 of 5 positions at 'blocks\.1\.hook_resid_post': it was taken with pos=")],
)  # fmt: skip
def test_a_cache_of_some_positions_says_which(unchecked, model, pos, message):
    cache = model.run_with_cache(IDS, [SITE], pos=pos)[1]
    with pytest.raises(ValueError, match=message):
        edits.patch(cache).bind(model, IDS, [SITE])
