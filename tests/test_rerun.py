"""The partial rerun gives the naive engine's numbers, for less work."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

import interp
from interp import edits, metrics
from interp.core.sites import stack_config
from interp.core.tokens import Tokens
from interp.loading import reference
from interp.model.block import Block
from interp.sweeps import rerun
from interp.sweeps.naive import run as whole_run
from interp.sweeps.nodes import counted_by, read_nodes
from interp.sweeps.rerun import cross, plan, walk
from interp.sweeps.rerun.rows import NO_LINES, Lines, PassRows
from interp.sweeps.rerun.stages import Entry
from interp.sweeps.rerun.tap import LineTap

from .strategies import configs, pair_configs, random_model, small_config

BATCHES = (
    [[1, 2, 3, 4, 5, 6], [6, 7, 8, 9, 10, 1], [3, 3, 1, 4, 2, 0]],
    [[1, 2, 3, 4, 5, 6], [6, 7, 8], [9, 1]],
)
SOURCES = (
    [[1, 2, 3, 4, 5, 6, 7], [6, 7, 8, 9, 10, 1, 2], [3, 3, 1, 4, 2, 0, 1]],
    [[1, 2, 3, 4, 5, 6, 7], [6, 7, 8], [9, 1, 5, 4]],
)
OTHER = torch.tensor([[1, 2, 9, 4, 5, 6], [6, 7, 8, 9, 3, 1], [3, 3, 1, 4, 2, 0]])


@st.composite
def frames(draw, model, tokens) -> pd.DataFrame:
    """A few nodes anywhere, some of several parts."""
    lines = []
    for row in range(draw(st.integers(1, 6))):
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            site = draw(st.sampled_from(list(model.sites)))
            line = {"row": row, "site": site.local_name, "layer": site.layer}
            if draw(st.booleans()):
                where = st.integers(0, counted_by(site, tokens).shape[1] - 1)
                line |= draw(st.sampled_from([{"pos": draw(where)}, {"role": "here"}]))
            if "head" in site.axes or "kv_head" in site.axes:
                cfg = stack_config(site, model.cfg)
                n = cfg.n_kv_heads if "kv_head" in site.axes else cfg.n_heads
                line["head"] = draw(st.sampled_from([None, *range(n)]))
            if "k_pos" in site.axes and draw(st.booleans()):
                n_keys = counted_by(site, tokens, "k_pos").shape[1]
                line["k_pos"] = draw(st.integers(0, n_keys - 1))
            if "d_mlp" in site.axes and draw(st.booleans()):
                d_mlp = stack_config(site, model.cfg).d_mlp
                line["neuron"] = draw(st.integers(0, d_mlp - 1))
            if "expert" in site.axes and draw(st.booleans()):
                experts = stack_config(site, model.cfg).n_experts
                line["expert"] = draw(st.integers(0, experts - 1))
            lines.append(line)
    return pd.DataFrame(lines)


def unpadded(tokens: Tokens) -> Tokens:
    """The same ids, all of them real, in both stacks: rows to draw from."""
    source = tokens.source and dataclasses.replace(tokens.source, mask=None)
    return dataclasses.replace(tokens, mask=None, source=source)


def mixes_inputs_and_norm(frame) -> bool:
    """Nodes that the model refuses: a head's own input with an edit of the shared norm."""
    for _, node in frame.groupby("row"):
        inputs = node["site"].str.endswith("_input")
        if inputs.any() and node["site"].str.contains(r"(?:^|\.)ln1\.").any():
            return True
    return False


@settings(max_examples=50, deadline=None)
@given(cfg=configs(), data=st.data())
def test_rerun_equals_naive_everywhere(cfg, data):
    """Random architectures, nodes, edits, metrics and paddings, in float64."""
    compare_engines(random_model(cfg), data)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(cfg=configs(), data=st.data())
def test_rerun_equals_naive_everywhere_many_times(cfg, data):
    compare_engines(random_model(cfg), data)


FAMILIES = st.sampled_from(
    [name for name in reference.families() if "input_ids" in reference.reference(name).inputs]
)
"""Every family that reads words, by the tiny model that is recorded of it: one that comes later is
drawn too."""


@settings(max_examples=12, deadline=None)
@given(family=FAMILIES, data=st.data())
def test_rerun_equals_naive_in_every_family(family, data):
    """Family × nodes × edit × metric × padding."""
    compare_engines(reference.reference_model(family), data, 1e-10)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(family=FAMILIES, data=st.data())
def test_rerun_equals_naive_in_every_family_many_times(family, data):
    compare_engines(reference.reference_model(family), data, 1e-10)


@settings(max_examples=50, deadline=None)
@given(cfg=pair_configs(), data=st.data())
def test_rerun_equals_naive_on_both_stacks(cfg, data):
    """Encoder–decoders: nodes anywhere, in one stack or with parts in both."""
    compare_engines(random_model(cfg), data)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(cfg=pair_configs(), data=st.data())
def test_rerun_equals_naive_on_both_stacks_many_times(cfg, data):
    compare_engines(random_model(cfg), data)


def nth_token(tokens: Tokens, counts: tuple[int, ...]) -> torch.Tensor:
    """Where the n-th real token of each row stands, counted round and round."""
    real = [row.nonzero().flatten() for row in tokens.real]
    return torch.stack([at[n % len(at)] for at, n in zip(real, counts, strict=True)])


def compare_engines(model, data, tolerance=1e-9):
    cfg = model.cfg
    rows = data.draw(st.sampled_from(BATCHES))
    tokens = Tokens.from_rows(rows, side=data.draw(st.sampled_from(["left", "right"])))
    tokens = dataclasses.replace(tokens, roles={"here": nth_token(tokens, (4, 3, 5))})
    other = Tokens(OTHER, mask=tokens.mask)
    if cfg.encoder is not None:
        read = Tokens.from_rows(
            data.draw(st.sampled_from(SOURCES)), side=data.draw(st.sampled_from(["left", "right"]))
        )
        read = dataclasses.replace(read, roles={"here": nth_token(read, (0, 6, 2))})
        tokens = dataclasses.replace(tokens, source=read)
        same = data.draw(st.booleans())
        own = read if same else Tokens(read.ids.flip(1), mask=read.mask)
        other = dataclasses.replace(other, source=own)
    frame = data.draw(frames(model, tokens))
    if mixes_inputs_and_norm(frame):
        return
    edit = data.draw(
        st.sampled_from(
            [
                edits.zero(),
                edits.scale(1.3),
                edits.set_to(0.5),
                edits.noise(0.5),
                edits.mean(other),
                edits.mean(other, per="pos"),
                edits.resample(unpadded(other)),
                edits.patch(other),
            ]
        )
    )
    answer = torch.tensor([1, 2, 3])
    choices = [
        metrics.pooled_cosine(torch.randn(3, cfg.d_model, dtype=torch.float64)),
        metrics.cosine(torch.ones(cfg.d_model), pos="here"),
        metrics.function(lambda x, examples: x[:, -1].sum(-1), "sum", of="residual"),
    ]
    if cfg.head != "none":
        choices = [
            *choices[:1],
            metrics.logit_diff(answer, answer + 4),
            metrics.log_prob(answer),
            metrics.loss(),
            metrics.kl(),
            metrics.js("all"),
            metrics.accuracy(answer),
            metrics.logit_diff(answer, answer + 4, pos=tokens.roles["here"]),
        ]
    metric = data.draw(st.sampled_from(choices))
    late = frame["site"].str.startswith(("ln_final", "hook_logits")).any()
    if late and metric.name in ("pooled_cosine", "cosine", "sum"):
        return
    options = {
        "edit": edit,
        "metric": metric,
        "reduce": "none",
        "allow_noop": True,
        "progress": False,
    }
    try:
        naive = interp.sweep(model, tokens, frame, engine="naive", **options)
    except ValueError:  # a scale set to zero: both engines say so
        with pytest.raises(ValueError, match="not finite"):
            interp.sweep(model, tokens, frame, engine="rerun", **options)
        return
    fast = interp.sweep(model, tokens, frame, engine="rerun", **options)
    numbers = ["value", "baseline", "effect"]
    assert naive.drop(columns=numbers).equals(fast.drop(columns=numbers))
    scale = max(1.0, naive["value"].abs().max())
    for column in numbers:
        assert np.allclose(fast[column], naive[column], rtol=0, atol=tolerance * scale), column


def test_noise_on_a_square_of_positions_is_drawn_from_position_0():
    """The query axis of a pattern is cut short in a late pass; the draw must not notice."""
    model, tokens = random_model(small_config()), Tokens.of(BATCHES[0])
    for site in ("attn_scores", "z"):
        frame = interp.nodes(model, site, by=("layer", "pos"), tokens=tokens)
        run = [
            interp.sweep(model, tokens, frame, edit=edits.noise(0.5), metric=metrics.kl(),
                         engine=engine, progress=False)
            for engine in ("rerun", "naive")
        ]  # fmt: skip
        assert np.allclose(run[0]["value"], run[1]["value"], rtol=0, atol=1e-10)
        assert run[0].attrs["forward_equivalents"] < run[1].attrs["forward_equivalents"]


def test_small_passes_change_no_number(monkeypatch):
    model = random_model(small_config())
    tokens = Tokens.of(BATCHES[0])
    frame = pd.concat(
        [
            interp.nodes(model, site, by=("layer", "pos"), tokens=tokens)
            for site in ("resid_pre", "z", "mlp.hook_post", "pattern")
        ],
        ignore_index=True,
    ).assign(row=lambda f: range(len(f)))
    options = {"edit": edits.zero(), "metric": metrics.loss(), "progress": False}
    whole = interp.sweep(model, tokens, frame, **options)
    monkeypatch.setattr(rerun.plan, "TOKENS_PER_PASS", 7)
    monkeypatch.setattr(rerun.plan, "VALUES_AT_ONCE", 50)
    small = interp.sweep(model, tokens, frame, **options)
    assert np.allclose(whole["value"], small["value"], atol=1e-12)


def test_inputs_and_norms_are_edited_in_passes_of_their_own():
    """One run refuses them together; nodes of one sweep are runs of their own."""
    model, tokens = random_model(small_config()), Tokens.of(BATCHES[0])
    nodes = pd.DataFrame([
        {"row": 0, "site": "hook_q_input", "layer": 0},
        {"row": 1, "site": "attn.hook_result", "layer": 0},
        {"row": 1, "site": "ln1.hook_scale", "layer": 0},
    ])  # fmt: skip
    options = {"edit": edits.scale(1.3), "metric": metrics.loss(), "progress": False}
    a, b = (interp.sweep(model, tokens, nodes, engine=e, **options) for e in ("rerun", "naive"))
    assert np.allclose(a["value"], b["value"], rtol=0, atol=1e-10)


class CountProducts(TorchFunctionMode):
    """Multiply-adds of the products with weights, as they happen."""

    total = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear:
            x, weight = args[:2]
            self.total += x.numel() // x.shape[-1] * weight.numel()
        if func is torch.Tensor.matmul and args[1].shape[-1] == 1:
            self.total += args[0].numel()  # columns of the unembedding, each times one vector
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "site",
    ["hook_embed", "resid_pre", "k", "z", "ln2.hook_scale", "mlp.hook_post", "ln_final.hook_scale"],
)
@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({}, metrics.loss()),
        ({}, metrics.logit_diff(torch.ones(3).long(), torch.zeros(3).long(), pos=4)),
        ({}, metrics.rank(torch.ones(3).long())),
        ({"causal": False}, metrics.log_prob(torch.ones(3).long(), pos=2)),
        ({"parallel": True}, metrics.loss()),
    ],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_what_a_sweep_is_said_to_cost_is_what_it_multiplies(site, changes, metric):
    model = random_model(small_config(**changes))
    count_products(model, site, Tokens.of(BATCHES[0]), Tokens.of(OTHER), metric)


@pytest.mark.parametrize(
    "site",
    [
        "encoder.hook_embed",
        "encoder_blocks.resid_pre",
        "encoder_blocks.z",
        "encoder_blocks.mlp.hook_post",
        "encoder.ln_final.hook_scale",
        "hook_embed",
        "decoder_blocks.attn.z",
        "decoder_blocks.resid_mid",
        "cross_attn.k",
        "cross_attn.q",
        "cross_attn.z",
        "resid_mid_cross",
        "decoder_blocks.mlp.hook_post",
    ],
)
@pytest.mark.parametrize(
    "metric",
    [metrics.loss(), metrics.logit_diff(torch.ones(3).long(), torch.zeros(3).long(), pos=4)],
    ids=lambda value: str(getattr(value, "name", value)),
)
def test_what_a_sweep_of_two_stacks_is_said_to_cost_is_what_it_multiplies(site, metric):
    encoder = small_config(n_layers=2, n_heads=2, d_mlp=48, causal=False, head="none")
    model = random_model(small_config(encoder=encoder, n_kv_heads=2))
    source, other = (torch.tensor(one) for one in (SOURCES[0], SOURCES[0][::-1]))
    tokens = Tokens(torch.tensor(BATCHES[0]), source=Tokens(source))
    count_products(model, site, tokens, Tokens(OTHER, source=Tokens(other)), metric)


def count_products(model, site, tokens, other, metric):
    """Of each pass, and of one whole forward."""
    sites = [model.sites[name] for name in model.sites.select(site)]
    by = ("pos",) if sites[0].layer is None else ("layer", "pos")
    frame = interp.nodes(model, site, by=by, tokens=tokens)
    edit = edits.patch(other)
    chosen = read_nodes(frame, model, tokens)
    base = rerun.base_run(model, tokens, chosen)
    bound = metric.bind(model, tokens, lambda reads: model(tokens))
    replace = edit.bind(model, tokens, [model.sites[name].name for name in model.sites.names])
    work = rerun.Rerun(model, tokens, base, replace, bound)
    source = 0 if tokens.source is None else tokens.source.shape[1]
    rows = rerun.plan_rows(model, tokens, chosen, replace, base)
    packed = rerun.passes(rows, 6, source=source)
    assert packed
    for rows in packed:
        with CountProducts() as count:
            work.measure(rows)
        assert count.total == rerun.multiplies(model, tokens, rows, bound)
    with CountProducts() as count:
        whole_run(model, tokens, bound.reads)
    assert count.total == rerun.forward_multiplies(model, tokens, bound)


def test_the_rerun_spends_what_the_bound_says():
    """By hand, for resid_pre at each layer and position, and a metric of the last position."""
    model = random_model(small_config())  # per token 4 d² in attention, 4 d² in the MLP
    tokens, square = Tokens.of(BATCHES[0]), 32 * 32
    frame = interp.nodes(model, "resid_pre", by=("layer", "pos"), tokens=tokens)
    metric = metrics.logit_diff(torch.ones(3).long(), torch.zeros(3).long())
    options = {"progress": False, "metric": metric}
    result = interp.sweep(model, tokens, frame, edit=edits.zero(), **options)
    total = 0
    for layer in range(3):
        for suffix in range(1, 7):
            total += 3 * square  # queries, keys and values of the changed position
            total += (2 - layer) * suffix * 5 * square  # the rest of a block before the last one
            total += (2 - layer) * suffix * 3 * square  # queries, keys and values of the next block
            total += 5 * square + 2 * 32  # the position read, and two dot products
    whole = 6 * (3 * 8 * square + 29 * 32)
    assert result.attrs["forward_equivalents"] == pytest.approx(1 + total / whole)
    assert result.attrs["naive_equivalents"] == 19
    # A patch that changes nothing left of position 2 (and nothing in row 2) is not run there:
    # at layer 0 the runs differ at positions 2 and 4 alone, later from 2 on.
    clean = edits.patch(Tokens.of(OTHER))
    patched = interp.sweep(model, tokens, frame, edit=clean, **options)
    assert patched.attrs["noop_nodes"] == 4 + 2 + 2
    naive = interp.sweep(model, tokens, frame, edit=clean, engine="naive", **options)
    assert np.allclose(patched["value"], naive["value"], atol=1e-10)


def test_float32_agrees_within_rounding():
    model = random_model(small_config(n_kv_heads=2, positions="rotary", norm="rmsnorm")).float()
    for p in model.parameters():
        p.mul_(0.3)
    tokens = Tokens.of(BATCHES[0])
    frame = interp.nodes(model, "z", by=("layer", "head", "pos"), tokens=tokens)
    options = {"edit": edits.zero(), "metric": metrics.loss(), "progress": False}
    a, b = (interp.sweep(model, tokens, frame, engine=e, **options) for e in ("rerun", "naive"))
    assert np.allclose(a["value"], b["value"], rtol=1e-5, atol=1e-5)


def one_too_early(self, layer, k, v):
    examples, (_, keys, values) = self.examples, self.base.placed[max(layer - 1, 0)]
    return (
        torch.cat([keys[examples, : self.start], k], dim=1),
        torch.cat([values[examples, : self.start], v], dim=1),
    )


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (walk.BasePrefix, "extend", one_too_early),
        (walk.Walk, "_filling", lambda self, wanted: lambda x, base: base[
            self.examples[wanted.row], wanted.pos]),
        (walk.Walk, "_join", lambda self, at, x, sites, join=walk.Walk._join: join(
            self, Entry(at.layer - 1, at.stage) if at.layer else at, x, sites)),
        (PassRows, "only_read", lambda self, lines, positions: NO_LINES),
        (PassRows, "read", lambda self, rows, positions: Lines(
            rows, np.maximum(3, self.starts[rows]))),
        (LineTap, "_edited", lambda self, site, x, edits: x),
        (plan, "_changes", lambda *a, changes=plan._changes: changes(*a).roll(1, dims=1)),
    ],
    ids=["prefix", "filling", "stage", "last block", "position read", "edit", "changes"],
)  # fmt: skip
def test_mutants_of_the_rerun_are_seen(unchecked, monkeypatch, where, name, mutant):
    """The comparison can fail."""
    model = random_model(small_config())
    tokens = Tokens.of(BATCHES[0])
    frame = pd.concat(
        [interp.nodes(model, site, by=("layer", "pos"), tokens=tokens) for site in ("z", "mlp_out")]
    ).assign(row=lambda frame: range(len(frame)))
    options = {"edit": edits.patch(Tokens.of(OTHER)), "progress": False,
               "metric": metrics.log_prob(torch.tensor([1, 2, 3]))}  # fmt: skip
    naive = interp.sweep(model, tokens, frame, engine="naive", **options)["value"]

    def differs():
        try:
            fast = interp.sweep(model, tokens, frame, engine="rerun", **options)["value"]
        except (RuntimeError, IndexError, ValueError):
            return True
        return np.abs(fast - naive).max() > 1e-3

    assert not differs()
    monkeypatch.setattr(where, name, mutant)
    assert differs()


def pair_of_stacks():
    encoder = small_config(n_layers=2, causal=False, head="none")
    model = random_model(small_config(encoder=encoder))
    source, other = (torch.tensor(one) for one in (SOURCES[0], SOURCES[0][::-1]))
    tokens = Tokens(torch.tensor(BATCHES[0]), source=Tokens(source))
    return model, tokens, Tokens(OTHER, source=Tokens(other))


@pytest.mark.parametrize("length", [1, 7, 20])
@pytest.mark.parametrize(
    "site", ["encoder_blocks.z", "cross_attn.z", "cross_attn.pattern", "decoder_blocks.resid_mid"]
)
def test_the_bytes_of_a_base_run_are_those_that_it_keeps(site, length):
    """Those of the source too, however long it is."""
    model, tokens, _ = pair_of_stacks()
    ids = torch.arange(len(tokens) * length).view(len(tokens), length) % 29
    tokens = Tokens(tokens.ids, source=Tokens(ids))
    chosen = read_nodes(interp.nodes(model, site, by=("layer",)), model, tokens)
    base = rerun.base_run(model, tokens, chosen)
    kept = [base.encoded.resid, *(t for pair in base.encoded.keys_values.values() for t in pair)]
    for run in (base, base.source):
        kept += [*run.values.values(), *(t for placed in run.placed.values() for t in placed)]
    assert rerun.base_bytes(model, tokens, chosen) == 8 * sum(t.numel() for t in kept)


def test_the_rerun_of_two_stacks_spends_what_the_bound_says():
    """By hand, for the encoder's resid_pre at each layer and position."""
    model, tokens, _ = pair_of_stacks()
    square, width, behind = 32 * 32, 6, 7
    frame = interp.nodes(model, "encoder_blocks.resid_pre", by=("layer", "pos"), tokens=tokens)
    metric = metrics.logit_diff(torch.ones(3).long(), torch.zeros(3).long())
    options = {"progress": False, "metric": metric, "edit": edits.zero()}
    result = interp.sweep(model, tokens, frame, **options)
    total = 0
    for layer in range(2):
        first = 3 * square + behind * 5 * square  # q, k, v of one position; then all
        later = (1 - layer) * behind * 8 * square
        # In the decoder: keys and values of all layers; the first from its cross-attention on.
        memory_read = 3 * behind * 2 * square
        decoder = width * 6 * square + width * 10 * square
        last = width * 3 * square + 7 * square + 2 * 32  # the one position that is read
        total += first + later + memory_read + decoder + last
    whole = behind * 2 * 8 * square + behind * 3 * 2 * square
    whole += width * (3 * 10 * square + 29 * 32)
    assert result.attrs["forward_equivalents"] == pytest.approx(1 + behind * total / whole)
    assert result.attrs["engine"] == "rerun"
    assert result.attrs["naive_equivalents"] == 15
    alone = interp.explain(model, tokens, frame, edits.zero(), metric)
    assert alone["forward_equivalents"] == result.attrs["forward_equivalents"]
    assert alone["bytes"] > 0


def test_a_decoder_sweep_leaves_the_encoder_alone():
    model, tokens, _ = pair_of_stacks()
    frame = interp.nodes(model, "decoder_blocks.attn.z", by=("layer", "head"), tokens=tokens)
    calls = []
    to_qkv = Block.to_qkv

    def counted(self, *args, **kwargs):
        calls.append(self.name)
        return to_qkv(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Block, "to_qkv", counted)
        interp.ablate(model, tokens, "decoder_blocks.attn.z", kind="zero",
                      metric=metrics.loss(), progress=False)  # fmt: skip
    of_encoder = [name for name in calls if name.startswith("encoder")]
    assert of_encoder == ["encoder_blocks.0", "encoder_blocks.1"]  # the base run
    assert len(calls) > 5
    assert len(frame) == 12


def test_an_encoder_is_swept_alone_too():
    model, tokens, _ = pair_of_stacks()
    source = tokens.source
    frame = interp.nodes(model.encoder, "z", by=("layer", "head", "pos"), tokens=source)
    options = {"edit": edits.zero(), "metric": metrics.pooled_cosine(), "progress": False}
    a, b = (interp.sweep(model.encoder, source, frame, engine=e, **options)
            for e in ("rerun", "naive"))  # fmt: skip
    assert np.allclose(a["value"], b["value"], rtol=0, atol=1e-10)
    assert b["effect"].abs().max() > 1e-3


keys_values = cross.CrossReader._keys_values


def of_the_base_run(self, attn, run, tap):
    return keys_values(self, attn, run._replace(reencoded=False), tap)


def of_the_row_before(self, attn, run, tap):
    return tuple(x.roll(1, dims=0) for x in keys_values(self, attn, run, tap))


def in_another_order(self, rows, encoded=rerun.Rerun._encoded):
    resid = encoded(self, rows)
    return None if resid is None else resid.roll(1, dims=0)


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (cross.CrossReader, "_keys_values", of_the_base_run),
        (cross.CrossReader, "_keys_values", of_the_row_before),
        (rerun.Rerun, "_encoded", in_another_order),
        (walk.Walk, "_crossed", lambda self, layer, block, x, of=walk.Walk._crossed: (
            of(self, layer, block, x) if layer else x)),
        (plan, "_reached", lambda site, where, width: where[:, :width]),
    ],
    ids=["memory", "rows", "order", "first cross-attention", "reach of keys and values"],
)  # fmt: skip
def test_mutants_of_the_rerun_of_two_stacks_are_seen(unchecked, monkeypatch, where, name, mutant):
    model, tokens, other = pair_of_stacks()
    sites = ("encoder_blocks.z", "cross_attn.v", "resid_mid_cross")
    frame = pd.concat(
        [interp.nodes(model, site, by=("layer", "pos"), tokens=tokens) for site in sites]
    ).assign(row=lambda frame: range(len(frame)))
    options = {"edit": edits.patch(other), "progress": False, "metric": metrics.loss()}
    naive = interp.sweep(model, tokens, frame, engine="naive", **options)["value"]

    def differs():
        try:
            fast = interp.sweep(model, tokens, frame, engine="rerun", **options)["value"]
        except (RuntimeError, IndexError, ValueError):
            return True
        return np.abs(fast - naive).max() > 1e-3

    assert not differs()
    monkeypatch.setattr(where, name, mutant)
    assert differs()


def test_engines_are_chosen_and_named():
    model = random_model(small_config())
    view = model.with_hooks([("z", lambda z, hook: z * 0.5)])
    options = {"metric": metrics.loss(), "kind": "zero", "progress": False}
    ids = BATCHES[0]
    assert interp.ablate(model, ids, "z", **options).attrs["engine"] == "rerun"
    assert interp.ablate(view, ids, "z", **options).attrs["engine"] == "naive"
    with pytest.raises(ValueError, match="without hooks"):
        interp.ablate(view, ids, "z", engine="rerun", **options)
    with pytest.raises(ValueError, match="lies before 'ln_final"):
        interp.sweep(
            model,
            ids,
            pd.DataFrame({"site": ["ln_final.hook_scale"]}),
            progress=False,
            edit=edits.zero(),
            metric=metrics.pooled_cosine(),
        )
