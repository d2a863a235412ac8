"""What a rerun plans: which rows run, what the base run keeps for them, which run together, and
what that takes; by hand, from whole runs, and by counting what happens."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp import edits, metrics
from interp.core.tokens import Tokens
from interp.sweeps import rerun
from interp.sweeps.nodes import as_frame, counted_by, read_nodes
from interp.sweeps.rerun import plan
from tests.strategies import random_model, small_config
from tests.test_rerun import count_products

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.tensor([[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 1], [3, 3, 1, 4, 2, 0]])
OTHER = torch.tensor([[1, 2, 9, 4, 5, 6], [6, 7, 8, 9, 3, 1], [3, 3, 1, 4, 2, 0]])
"""Differs in position 2 of the first row and in position 4 of the second."""
SOURCE = torch.tensor(
    [[1, 2, 3, 4, 5, 6, 7, 8], [6, 7, 8, 9, 10, 1, 2, 3], [3, 3, 1, 4, 2, 0, 1, 2]]
)
ANSWER = torch.tensor([1, 2])


def stack_pair(**changes):
    encoder = small_config(n_layers=2, n_heads=2, d_mlp=48, causal=False, head="none")
    return random_model(small_config(encoder=encoder, **changes))


def pair_tokens(ids=IDS, source=SOURCE):
    return Tokens(ids, source=Tokens(source))


def planned(model, tokens, frame, edit):
    """The nodes, what the base run keeps for them, and the rows that have to run."""
    nodes = read_nodes(as_frame(frame), model, tokens)
    base = rerun.base_run(model, tokens, nodes)
    replace = edit.bind(model, tokens, edits.edited_positions(nodes, model, tokens))
    return nodes, base, rerun.plan_rows(model, tokens, nodes, replace, base)


# Which rows ----------------------------------------------------------------------------------


def where_it_differs(model, nodes, tokens, other):
    """Which positions of each (node, example) a patch changes, from whole runs."""
    names = list({part.site for node in nodes for part in node.parts})
    caches = [model.run_with_cache(each, names)[1] for each in (tokens, other)]
    places = {}
    for node in nodes:
        for part in node.parts:
            site = model.sites[part.site]
            differs = caches[0][part.site] != caches[1][part.site]
            picked = torch.zeros_like(differs)
            named = {"pos": part.pos, "q_pos": part.pos, "head": part.head, "kv_head": part.head,
                     "k_pos": part.k_pos, "d_mlp": part.neuron}  # fmt: skip
            wanted = (named.get(axis) for axis in site.axes)
            index = tuple(slice(None) if w is None else slice(w, w + 1) for w in wanted)
            picked[index] = differs[index]
            by_pos = picked.movedim(site.axes.index("q_pos" if "q_pos" in site.axes else "pos"), 1)
            for example, changed in enumerate(by_pos.flatten(2).any(-1)):
                of_source = counted_by(site, tokens) is not tokens
                key = node.row, example, "source" if of_source and site.in_encoder else "own"
                places.setdefault(key, set()).update(
                    range(tokens.shape[1]) if bool(changed.any()) and of_source
                    and not site.in_encoder else changed.nonzero()[:, 0].tolist()
                )  # fmt: skip
    return {key: sorted(changed) for key, changed in places.items() if changed}


ONE_STACK = [
    ("hook_embed", ("pos",)),
    ("resid_pre", ("layer", "pos")),
    ("k", ("layer", "head")),
    ("z", ("layer", "pos", "head")),
    ("pattern", ("layer", "pos")),
    ("pattern", ("layer", "k_pos")),
    ("attn_scores", ("layer", "head")),
    ("mlp.hook_post", ("layer",)),
    ("mlp.hook_post", ("layer", "pos")),
    ("ln_final.hook_scale", ("pos",)),
]


@pytest.mark.parametrize("at_once", [1, 2**22])
@pytest.mark.parametrize("changes", [{}, {"causal": False}, {"parallel": True, "n_kv_heads": 2}])
@pytest.mark.parametrize(("site", "by"), ONE_STACK)
def test_rows_are_those_whose_edit_changes_something(site, by, changes, at_once, monkeypatch):
    monkeypatch.setattr(plan, "VALUES_AT_ONCE", at_once)
    model, tokens = random_model(small_config(n_layers=2, **changes)), Tokens(IDS)
    frame = interp.nodes(model, site, by=by, tokens=tokens)
    nodes, _, rows = planned(model, tokens, frame, edits.patch(Tokens(OTHER)))
    expected = where_it_differs(model, nodes, tokens, Tokens(OTHER))
    assert 0 < len(expected) < len(nodes) * len(tokens)
    assert [(row.node.row, row.example, "own") for row in rows] == list(expected)
    whole = model.cfg.parallel  # what its MLP reads of a position is not kept
    for row, changed in zip(rows, expected.values(), strict=True):
        assert row.start == (changed[0] if model.cfg.causal else 0)
        assert list(row.changed) == (list(range(row.start, 6)) if whole else changed)
        assert row.source is None


@pytest.mark.parametrize("at_once", [1, 2**22])
def test_a_node_of_several_parts_changes_what_any_of_them_does(at_once, monkeypatch):
    monkeypatch.setattr(plan, "VALUES_AT_ONCE", at_once)
    model, tokens = random_model(small_config()), Tokens(IDS)
    frame = [
        {"row": 3, "site": "attn.hook_z", "layer": 1, "pos": 4, "head": 1},
        {"row": 3, "site": "attn.hook_z", "layer": 1, "pos": 2},
        {"row": 3, "site": "attn.hook_z", "layer": 1, "pos": 0},
        {"row": 7, "site": "attn.hook_z", "layer": 1, "pos": 1},
        {"row": 9, "site": "hook_resid_mid", "layer": 0, "pos": 5},
        {"row": 9, "site": "attn.hook_z", "layer": 1, "pos": 3},
    ]
    nodes, _, rows = planned(model, tokens, frame, edits.patch(Tokens(OTHER)))
    expected = where_it_differs(model, nodes, tokens, Tokens(OTHER))
    found = {(row.node.row, row.example, "own"): list(row.changed) for row in rows}
    assert found == expected
    assert found == {(3, 0, "own"): [2, 4], (3, 1, "own"): [4], (9, 0, "own"): [3, 5],
                     (9, 1, "own"): [5]}  # fmt: skip


TWO_STACKS = ["encoder.hook_embed", "encoder_blocks.z", "encoder_blocks.resid_mid",
              "decoder_blocks.attn.z", "cross_attn.q", "cross_attn.k", "cross_attn.pattern",
              "decoder_blocks.mlp.hook_post"]  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"n_kv_heads": 2}])
@pytest.mark.parametrize("by", [(), ("pos",)])
@pytest.mark.parametrize("site", TWO_STACKS)
def test_rows_of_two_stacks_know_what_changes_in_either(site, by, changes):
    """A decoder reads what changes in its source, or in its keys and values, everywhere."""
    model = stack_pair(**changes)
    tokens = pair_tokens()
    other_source = SOURCE.clone()
    other_source[1, 3], other_source[2, 6] = 11, 12
    other = pair_tokens(OTHER, other_source)
    by = (("layer",) if model.sites[model.sites.select(site)[0]].layer is not None else ()) + by
    frame = interp.nodes(model, site, by=by, tokens=tokens)
    nodes, _, rows = planned(model, tokens, frame, edits.patch(other))
    expected = where_it_differs(model, nodes, tokens, other)
    assert expected
    assert [(row.node.row, row.example) for row in rows] == [key[:2] for key in expected]
    for row, ((*_, kind), changed) in zip(rows, expected.items(), strict=True):
        if kind == "source":
            assert (row.source.node, row.source.example) == (row.node, row.example)
            assert (row.source.start, list(row.source.changed)) == (0, changed)
            assert (row.start, list(row.changed)) == (0, [*range(6)])
        else:
            assert row.source is None and row.start == changed[0]
            whole = site == "cross_attn.pattern"
            assert list(row.changed) == ([*range(row.start, 6)] if whole else changed)


def test_a_node_in_both_stacks():
    model, tokens = stack_pair(), pair_tokens()
    source = SOURCE.clone()
    source[1, 3] = 11
    frame = [
        {"row": 0, "site": "encoder_blocks.attn.hook_z", "layer": 1},
        {"row": 0, "site": "decoder_blocks.attn.hook_z", "layer": 2, "pos": 4},
    ]
    _, _, rows = planned(model, tokens, frame, edits.patch(pair_tokens(OTHER, source)))
    seen = [(row.example, row.start, list(row.changed), row.source is not None) for row in rows]
    # In row 0 the decoder's z alone differs; row 2 is the same throughout.
    assert seen == [(0, 4, [4], False), (1, 0, [*range(6)], True)]


# What the base run keeps -----------------------------------------------------------------------


def names(text, layer=None):
    return {f"blocks.{layer}.{name}" if layer is not None else name for name in text.split()}


KEPT = {
    "hook_embed": (0, names("hook_embed")),
    "resid_pre 1": (1, set()),
    "attn.hook_k 1": (1, names("attn.hook_k", 1)),
    "attn.hook_z 1": (1, names("attn.hook_z", 1)),
    "hook_attn_out 1": (1, names("attn.hook_z hook_attn_out", 1)),
    "hook_resid_mid 1": (1, names("hook_resid_mid", 1)),
    "ln2.hook_scale 2": (2, names("hook_resid_mid ln2.hook_scale", 2)),
    "mlp.hook_post 1": (1, names("hook_resid_mid mlp.hook_post", 1)),
    "hook_mlp_out 2": (2, names("hook_resid_mid mlp.hook_post hook_mlp_out", 2)),
    "hook_resid_post 1": (1, names("hook_resid_mid mlp.hook_post hook_resid_post", 1)),
    "ln_final.hook_scale": (3, names("ln_final.hook_scale")),
    "hook_logits": (3, names("hook_logits")),
}
"""By the site edited: the first layer that is entered, and what is kept besides the residual
streams from there on and behind the last block."""


def entered(*cases):
    frame = [
        {"row": i, "site": site, "layer": int(layer[0]) if layer else None}
        for i, (site, *layer) in enumerate(case.replace("resid_pre", "hook_resid_pre").split()
                                           for case in cases)
    ]  # fmt: skip
    first = min(KEPT[case][0] for case in cases)
    kept = set().union(*(KEPT[case][1] for case in cases)) | {"blocks.2.hook_resid_post"}
    return frame, first, kept | {f"blocks.{layer}.hook_resid_pre" for layer in range(first, 3)}


@pytest.mark.parametrize(
    "cases",
    [*((case,) for case in KEPT), ("attn.hook_z 1", "hook_mlp_out 2"),
     ("ln_final.hook_scale", "attn.hook_z 1"), ("hook_logits", "hook_embed")],
)  # fmt: skip
def test_the_base_run_keeps_what_its_rows_enter_by_and_edit(cases):
    model, tokens = random_model(small_config()), Tokens(IDS)
    frame, first, kept = entered(*cases)
    nodes = read_nodes(as_frame(frame), model, tokens)
    base = rerun.base_run(model, tokens, nodes)
    assert set(base.values) == kept
    assert sorted(base.placed) == list(range(first, 3))
    _, cache = model.run_with_cache(tokens, None)
    for name, value in base.values.items():
        assert torch.allclose(value, cache[name], atol=1e-10), name
    for layer, placed in base.placed.items():
        for value, name in zip(placed, "qkv", strict=True):
            assert torch.allclose(value, cache[f"blocks.{layer}.attn.hook_{name}"], atol=1e-10)
    assert torch.allclose(base.residual, cache["blocks.2.hook_resid_post"], atol=1e-10)
    assert base.source is None


def numbers(base) -> int:
    """How many numbers a base run keeps of its own stack."""
    placed = (tensor for three in base.placed.values() for tensor in three)
    return sum(tensor.numel() for tensor in [*base.values.values(), *placed])


ARCHITECTURES = {
    "grouped, gated": {"n_kv_heads": 2, "mlp_gated": True, "d_head": 6},
    "experts": {"n_experts": 4, "experts_per_token": 2},
    "both sides": {"causal": False, "head": "mlm"},
    "attention only": {"d_mlp": 0},
    "parallel": {"parallel": True},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bytes_of_a_base_run_are_those_it_keeps_at_any_site(architecture):
    model = random_model(small_config(n_layers=2, **ARCHITECTURES[architecture]))
    dtype = torch.float32 if model.cfg.parallel else torch.float64
    model, tokens = model.to(dtype), Tokens(IDS)
    for site in model.sites:
        nodes = read_nodes(as_frame([{"site": site.name}]), model, tokens)
        base = rerun.base_run(model, tokens, nodes)
        assert rerun.base_bytes(model, tokens, nodes) == numbers(base) * dtype.itemsize, site.name


# Which run together ----------------------------------------------------------------------------


def kind_of(row):
    """What must not be mixed: where inputs are edited, norms cannot be; results and inputs take
    more memory; squares need all queries; late edits all positions."""
    sites = [part.site for part in row.node.parts]
    return (
        any(site.endswith("_input") for site in sites),
        any(site.endswith("hook_result") for site in sites),
        any(site.endswith(("hook_pattern", "hook_attn_scores")) for site in sites),
        any(site.startswith(("ln_final", "hook_logits")) for site in sites),
        row.source is not None,
    )


SITES = ["hook_embed", "hook_q_input", "attn.hook_result", "attn_scores", "pattern", "z",
         "ln1.hook_scale", "mlp.hook_post", "ln_final.hook_scale", "hook_logits"]  # fmt: skip


def assert_packed(packed, rows, width, limit, source=0):
    """Every row once, of one kind and in the order in which they are entered, as many as fit."""
    sizes = {id(row): width - row.start + (source if row.source else 0) for row in rows}
    assert sorted(id(row) for row in itertools.chain(*packed)) == sorted(sizes)
    by_kind = {}
    for some in packed:
        (kind,) = {kind_of(row) for row in some}
        most = limit // 4 if kind[0] or kind[1] else limit
        size = sum(sizes[id(row)] for row in some)
        assert size <= most or len(some) == 1
        if kind in by_kind:
            assert by_kind[kind][1] + sizes[id(some[0])] > most, "the pass before was full"
        entries = [((row.source or row).entry, row.entry, row.start) for row in some]
        assert by_kind.get(kind, [()])[0] <= entries[0] and entries == sorted(entries)
        by_kind[kind] = entries[-1], size
    return by_kind


@pytest.mark.parametrize("limit", [3, 24, 49, None])
def test_rows_that_run_together_are_of_one_kind_and_fill_a_pass(limit):
    model, tokens = random_model(small_config()), Tokens(IDS)
    frames = [
        interp.nodes(model, site, by=("pos",) if model.sites[model.sites.select(site)[0]].layer
                     is None else ("layer", "pos"), tokens=tokens)
        for site in SITES
    ]  # fmt: skip
    frame = pd.concat(frames, ignore_index=True).assign(row=lambda f: range(len(f)))
    both = [  # one row, of two kinds at once
        {"row": 1000, "site": "attn.hook_result", "layer": 1},
        {"row": 1000, "site": "hook_logits", "pos": 2},
    ]
    frame = pd.concat([frame, as_frame(both)], ignore_index=True)
    _, _, rows = planned(model, tokens, frame, edits.scale(1.3))
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    packed = rerun.passes(rows, 6, limit)
    kinds = assert_packed(packed, rows, 6, limit or plan.TOKENS_PER_PASS)
    assert len(kinds) == 6
    assert rerun.passes(iter(rows), 6, limit) == packed
    if limit is None:
        assert len(packed) == 6


@pytest.mark.parametrize("limit", [5, 40, 1000])
def test_rows_with_a_source_run_together_and_count_its_positions(limit):
    model, tokens = stack_pair(), pair_tokens()
    sites = [
        "encoder_blocks.z",
        "encoder_blocks.resid_pre",
        "cross_attn.k",
        "decoder_blocks.attn.z",
    ]
    frames = [interp.nodes(model, site, by=("layer", "pos"), tokens=tokens) for site in sites]
    frame = pd.concat(frames, ignore_index=True).assign(row=lambda f: range(len(f)))
    _, _, rows = planned(model, tokens, frame, edits.scale(1.3))
    kinds = assert_packed(rerun.passes(rows, 6, limit, 8), rows, 6, limit, 8)
    assert len(kinds) == 2


# What it takes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric",
    [
        metrics.loss(),
        metrics.kl(),
        metrics.logit_diff(ANSWER, ANSWER + 4, pos=2),
        metrics.pooled_cosine(torch.ones(2, 32)),
        metrics.cosine(torch.ones(32), pos=3),
    ],
    ids=lambda metric: metric.name,
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_said_to_be_multiplied_is(architecture, metric):
    """Whatever the architecture, for sites of every stage (of experts not their neurons: where
    those are edited, experts that are not chosen are computed too, and not counted)."""
    model = random_model(small_config(n_layers=2, **ARCHITECTURES[architecture]))
    sites = ["resid_pre", "pattern", "z", "resid_mid", "mlp.hook_post"]
    for site in sites[:-1] if model.cfg.n_experts else sites:
        if any(name.endswith(site) for name in model.sites.names):
            count_products(model, site, Tokens(IDS[:2, :5]), Tokens(OTHER[:2, :5]), metric)


@pytest.mark.parametrize("free", [None, 10**12])
@pytest.mark.parametrize(("device", "most"), [("cpu", 2048), ("cuda", 8192)])
def test_a_pass_has_so_many_lines_where_memory_is_plenty(device, most, free):
    model = random_model(small_config())
    pretended = SimpleNamespace(cfg=model.cfg, dtype=model.dtype, device=torch.device(device))
    assert rerun.lines_that_fit(pretended, 6, free) == most


def test_lines_are_halved_until_a_pass_fits():
    model = random_model(small_config())
    for lines in (2048, 1024, 512, 8):
        needed = rerun.pass_bytes(model, lines)
        assert rerun.lines_that_fit(model, 6, needed) == lines
        assert rerun.lines_that_fit(model, 6, needed - 1) == lines // 2
    four = rerun.pass_bytes(model, 4)
    assert rerun.lines_that_fit(model, 4, four) == 4
    assert rerun.lines_that_fit(model, 4, four - 1) is None, "not even a row"
    assert rerun.lines_that_fit(model, 5, four - 1) is None
    assert rerun.lines_that_fit(model, 3, four - 1) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("changes", "encoder", "per_line"),
    [
        # Two residual streams and one of each stack (d_model = 32), and the widest of: three times
        # queries, keys and values; neurons before and behind the activation, two more if gated.
        ({}, None, 3 * 32 + 3 * (4 + 4 + 4) * 8),
        ({"n_kv_heads": 2}, None, 3 * 32 + 3 * (4 + 2 + 2) * 8),
        ({"n_kv_heads": 1, "d_mlp": 160}, None, 3 * 32 + 2 * 160),
        ({"d_mlp": 160, "mlp_gated": True}, None, 3 * 32 + 4 * 160),
        ({}, {"d_mlp": 200}, 4 * 32 + 2 * 200),
        ({"d_mlp": 200}, {}, 4 * 32 + 2 * 200),
        ({}, {"n_heads": 2, "d_head": 30}, 4 * 32 + 3 * (2 + 2 + 2) * 30),
    ],
)
def test_the_bytes_of_a_pass(changes, encoder, per_line, dtype):
    if encoder is not None:
        encoder = small_config(**encoder, causal=False, head="none")
    model = random_model(small_config(**changes, encoder=encoder)).to(dtype)
    looked_at = 4 * plan.VALUES_AT_ONCE
    for lines in (0, 1, 100):
        assert rerun.pass_bytes(model, lines) == (lines * per_line + looked_at) * dtype.itemsize
