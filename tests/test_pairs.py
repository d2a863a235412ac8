"""Encoder–decoders: two stacks, one model, and every verb works on both."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from interp import edits, metrics
from interp.core.config import ConfigError, TransformerConfig
from interp.core.sites import UnknownSite
from interp.core.tap import EditError
from interp.core.tokens import Tokens
from interp.loading.info import info
from interp.model import GrowingPrefix
from interp.sweeps import rerun
from interp.sweeps.journal import JournalError
from interp.sweeps.nodes import read_nodes

from .strategies import random_model, small_config
from .vocabularies import numbers_as_words

START = 2
SOURCES = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
TARGETS = [[START, 4, 5], [START, 6, 7]]


def pair_config(**changes) -> TransformerConfig:
    """T5-like, the stacks of different sizes."""
    both = {
        "d_model": 32, "d_head": 6, "n_heads": 4, "d_vocab": 29, "n_ctx": 24, "norm": "rmsnorm",
        "positions": "relative", "relative_buckets": 8, "relative_max_distance": 10,
    }  # fmt: skip
    encoder = TransformerConfig(
        **(both | {"n_layers": 2, "n_heads": 3, "d_mlp": 48, "causal": False, "head": "none"})
    )
    own = {"n_layers": 3, "d_mlp": 40, "encoder": encoder, "decoder_start_token_id": START}
    return TransformerConfig(**(both | own | changes))


def tokens(source_side="right", target_side="right") -> Tokens:
    target = Tokens.from_rows(TARGETS, side=target_side)
    source = Tokens.from_rows(SOURCES, side=source_side)
    return Tokens(target.ids, mask=target.mask, source=source)


def test_a_config_of_two_survives_json_and_names_contradictions():
    cfg = pair_config()
    assert TransformerConfig.from_dict(json.loads(json.dumps(cfg.to_dict()))) == cfg
    encoder = cfg.encoder
    for changes, parts in (
        ({"encoder": encoder.replace(d_model=24)}, ["encoder.d_model=24", "d_model=32"]),
        ({"encoder": encoder.replace(causal=True)}, ["encoder.causal", "False"]),
        ({"encoder": encoder.replace(head="unembed")}, ["encoder.head", "none"]),
        ({"encoder": cfg}, ["encoder.causal"]),
        ({"encoder": 7}, ["encoder=7"]),
        ({"parallel": True}, ["parallel=True", "encoder"]),
        ({"qk_norm": "head"}, ["qk_norm='head'", "encoder"]),
        ({"causal": False}, ["causal=False", "encoder"]),
        ({"encoder": None}, ["decoder_start_token_id=2", "encoder"]),
        ({"decoder_start_token_id": 29}, ["decoder_start_token_id=29", "d_vocab=29"]),
        ({"relative_max_distance": 3}, ["relative_buckets=8", "relative_max_distance=3"]),
    ):
        with pytest.raises(ConfigError) as error:
            cfg.replace(**changes)
        for part in parts:
            assert part in str(error.value)


def test_names_of_two_stacks():
    sites = random_model(pair_config()).sites
    assert sites["encoder_blocks.1.attn.hook_z"].local_name == "encoder_blocks.attn.hook_z"
    assert sites["cross_attn.z", 2].name == "decoder_blocks.2.cross_attn.hook_z"
    assert sites["hook_embed"].name == "hook_embed"  # a full name is one site
    assert sites.select("embed") == ["encoder.hook_embed", "hook_embed"]
    assert len(sites.select("z")) == 2 + 3 + 3
    assert len(sites.select(("pattern", 1))) == 3
    assert sites.select("encoder_blocks.z") == sites.select("encoder_blocks.attn.hook_z")
    names = r"encoder_blocks.attn.hook_z, decoder_blocks.attn.hook_z, decoder_blocks.cross_attn"
    with pytest.raises(UnknownSite, match=names):
        sites["z", 1]
    with pytest.raises(ValueError, match=names):
        interp.nodes(random_model(pair_config()), "z")
    alone = interp.HookedTransformer(small_config()).sites
    assert not any("encoder" in name or "cross" in name for name in alone.names)


def test_a_cache_knows_which_positions_its_axes_count():
    model = random_model(pair_config())
    _, cache = model.run_with_cache(tokens())
    for site in model.sites:
        if site.name not in cache:
            continue
        for axis, word in enumerate(site.axes):
            if word in ("pos", "q_pos", "k_pos"):
                assert cache[site.name].shape[axis] == (6 if word in site.source else 3), site
    _, last = model.run_with_cache(tokens(), ["encoder_blocks.z", "cross_attn.k"], pos=-1)
    for name, value in last.items():
        assert torch.allclose(value, cache[name][:, -1:], atol=1e-12)
    with pytest.raises(UnknownSite, match="names 3 sites"):
        cache["pattern", 1]
    assert cache.stack("cross_attn.pattern").shape == (3, 2, 4, 3, 6)


@pytest.mark.parametrize("stop", [0, 2, 3])
def test_a_run_may_stop_in_the_decoder(stop):
    model, given = random_model(pair_config()), tokens()
    _, cache = model.run_with_cache(given, "resid_post")
    out, early = model.run_with_cache(given, stop_at_layer=stop)
    if stop:
        assert torch.allclose(out, cache[f"decoder_blocks.{stop - 1}.hook_resid_post"], atol=1e-10)
    assert len([n for n in early if n.startswith("encoder_blocks.1.")]) > 5
    assert not [n for n in early if n.startswith(f"decoder_blocks.{stop}.")]


def test_what_has_no_source_is_the_source():
    model = random_model(pair_config())
    source = Tokens.from_rows(SOURCES)
    begun = Tokens(torch.full((2, 1), START), source=source)
    assert torch.equal(model(source), model(begun))
    assert torch.equal(model(SOURCES), model(begun))
    vectors = torch.randn(2, 5, 32, dtype=torch.float64)
    spoken = Tokens(begun.ids, source=Tokens(None, vectors=vectors))
    assert torch.equal(model(vectors), model(spoken))
    assert not torch.equal(model(vectors), model(vectors.flip(1)))
    with pytest.raises(ValueError, match="decoder_start_token_id=None"):
        random_model(pair_config(decoder_start_token_id=None))(SOURCES)
    with pytest.raises(ValueError, match="a source of 2 rows for 1 rows"):
        model(Tokens(begun.ids[:1], source=source))
    with pytest.raises(ValueError, match="token id 99 is outside"):
        model(Tokens(begun.ids, source=Tokens(torch.full((2, 3), 99))))
    with pytest.raises(ValueError, match="has no encoder"):
        random_model(small_config())(begun)


def test_rows_and_devices_carry_the_source():
    given = tokens()
    assert torch.equal(given[1].source.ids, given.source.ids[1:])
    assert given.to("meta").source.ids.is_meta
    assert "source=Tokens(batch=2, pos=6" in repr(given)


def test_a_source_of_pads_alone_is_refused():
    model, ids = random_model(pair_config()), torch.tensor([[1, 2, 3]])
    source = Tokens(ids, mask=torch.zeros_like(ids, dtype=torch.bool))
    with pytest.raises(ValueError, match="row 0 holds nothing but pads"):
        model(Tokens(torch.tensor([[START]]), source=source))


def test_generation_is_whole_forwards():
    model = random_model(pair_config())
    for side in ("left", "right"):
        source = Tokens.from_rows(SOURCES, side=side)
        done = model.generate(source, 6)
        for row, own in enumerate(SOURCES):
            ids = [START]
            for _ in range(6):
                run = Tokens(torch.tensor([ids]), source=Tokens(torch.tensor([own])))
                ids.append(int(model(run)[0, -1].argmax()))
            assert done.tokens.ids[row].tolist() == ids
        assert torch.equal(model(done.tokens).argmax(-1)[:, :-1], done.new_ids)
    # A decoder that has begun to write, in rows of unequal length.
    begun = Tokens.from_rows([[START, 4, 5], [START, 9]], side="right")
    done = model.generate(Tokens(begun.ids, mask=begun.mask, source=source), 3)
    alone = model.generate(Tokens(torch.tensor([[START, 9]]), source=source[1]), 3)
    assert torch.equal(done.new_ids[1:], alone.new_ids)


def test_hooks_on_the_source_act_once_in_a_generation():
    model, calls = random_model(pair_config()), []

    def halve(x, hook):
        calls.append(hook.name)
        return x * 0.5

    view = model.with_hooks([(["encoder_blocks.z", "cross_attn.v", "cross_attn.z"], halve)])
    done = view.generate(SOURCES, 4)
    times = [calls.count(name) for name in dict.fromkeys(calls)]
    assert sorted(times) == [1] * 5 + [4] * 3
    ids = torch.full((2, 1), START)
    for _ in range(4):
        logits = view(Tokens(ids, source=Tokens.from_rows(SOURCES)))
        ids = torch.cat([ids, logits[:, -1].argmax(-1)[:, None]], 1)
    assert torch.equal(done.tokens.ids, ids)
    with_source_alone = model.with_hooks([("encoder_blocks.resid_pre", halve)])
    assert with_source_alone.generate(SOURCES, 3).new_ids.shape == (2, 3)
    # A site that a later step should meet and does not is still an error.
    tap = model.make_tap("cross_attn.q", reading=True, goes_on=True)
    with pytest.raises(EditError, match="did not reach"):
        tap.check_fired()


def test_activations_of_a_generation():
    model = random_model(pair_config())
    done = model.generate(SOURCES, 3, names_filter=["encoder_blocks.z", "cross_attn.pattern"])
    first, *later = done.caches
    assert len(first) == 2 + 3 and [len(cache) for cache in later] == [3, 3]
    _, whole = model.run_with_cache(done.tokens, "cross_attn.pattern")
    steps = torch.cat([cache["cross_attn.pattern", 1] for cache in done.caches], dim=2)
    assert torch.allclose(steps, whole["cross_attn.pattern", 1][:, :, :-1], atol=1e-12)


def test_the_word_embedding_is_one():
    model = random_model(pair_config())
    assert model.encoder.W_E is model.W_E
    assert not any(name.startswith("encoder.embed.W_E") for name in model.state_dict())
    again = copy.deepcopy(model)
    again.W_E.zero_()
    assert again.encoder.W_E.abs().max() == 0 and model.encoder.W_E.abs().max() > 0
    assert model.float().encoder.dtype == torch.float32
    assert model.num_params(by="component").sum() == model.num_params()
    assert interp.num_params(model.cfg) == model.num_params()
    assert model.num_params(by="component")["pos_embed"] == 8 * (3 + 4)
    assert model.num_params(by="component")["W_Q"] == 33 * 6 * (2 * 3 + 3 * 4 * 2)


def test_what_a_model_is_without_its_weights(tmp_path):
    """T5-small: its parameters as published, and both stacks on the page."""
    values = {"model_type": "t5", "d_model": 512, "d_ff": 2048, "d_kv": 64, "num_layers": 6,
              "num_heads": 8, "vocab_size": 32128, "decoder_start_token_id": 0}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    page = info(tmp_path / "config.json")
    assert page.n_params == 60_506_624
    rows = [line.split() for line in str(page).splitlines()]
    assert ["encoder.positions", "relative"] in rows
    assert ["decoder_blocks.cross_attn.hook_z", "0–5", "batch", "pos", "head", "d_head"] in rows
    assert page.cache_bytes(10) > page.cache_bytes(9)


def test_the_bytes_that_a_base_run_keeps_are_predicted():
    model, given = random_model(pair_config()), tokens()
    frame = pd.concat(
        [interp.nodes(model, site, by=("layer",)) for site in
         ("encoder_blocks.z", "cross_attn.z", "decoder_blocks.resid_mid", "resid_mid_cross")]
    ).assign(row=lambda f: range(len(f)))  # fmt: skip
    chosen = read_nodes(frame, model, given)
    base = rerun.base_run(model, given, chosen)
    kept = [base.encoded.resid, *(t for pair in base.encoded.keys_values.values() for t in pair)]
    for one in (base, base.source):
        kept += [*one.values.values(), *(t for placed in one.placed.values() for t in placed)]
    assert rerun.base_bytes(model, given, chosen) == 8 * sum(t.numel() for t in kept)


def test_the_encoder_is_a_model_of_its_own():
    model, given = random_model(pair_config()), tokens()
    _, cache = model.run_with_cache(given)
    _, own = model.encoder.run_with_cache(given.source)
    assert list(own) == [name for name in cache if name.startswith("encoder")]
    assert all(torch.equal(own[name], cache[name]) for name in own)
    assert model.encoder.check_identities(given.source)["holds"].all()
    pooled = model.pool(given)
    assert torch.equal(pooled, model.encoder.pool(given.source))
    halved = model.with_hooks([("encoder_blocks.resid_post", lambda x, hook: x * 0.5)])
    assert torch.allclose(halved.pool(given), model.encoder.with_hooks(
        [("resid_post", lambda x, hook: x * 0.5)]).pool(given.source))  # fmt: skip
    assert not torch.allclose(halved.pool(given), pooled)


def test_identities_count_the_tokens_of_their_stack():
    """The sinks of an encoder take their share of its own keys, which are not the decoder's."""
    cfg = pair_config()
    cfg = cfg.replace(attn_sinks=True, encoder=cfg.encoder.replace(attn_sinks=True))
    model, given = random_model(cfg), tokens("left", "right")
    assert given.shape[1] != given.source.shape[1]
    assert model.check_identities(given)["holds"].all()


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_folding_both_stacks(norm):
    cfg = pair_config()
    cfg = cfg.replace(norm=norm, encoder=cfg.encoder.replace(norm=norm))
    model, given = random_model(cfg), tokens("left", "right")
    folded = model.folded()
    ours, theirs = (one(given).log_softmax(-1)[given.real] for one in (folded, model))
    assert torch.allclose(ours, theirs, atol=1e-9)
    for block in [*folded.blocks, *folded.encoder.blocks]:
        assert bool((block.ln1.w == 1).all())
    assert bool((folded.encoder.ln_final.w == 1).all() and (folded.blocks[0].ln_cross.w == 1).all())
    assert folded.check_identities(given)["holds"].all()
    post = cfg.encoder.replace(norm_position="post")
    with pytest.raises(ValueError, match="norm_position='post'"):
        random_model(cfg.replace(encoder=post)).folded()


def test_fused_and_stepwise_attention_agree_under_every_mask():
    model = random_model(pair_config())
    for a in ("left", "right"):
        for b in ("left", "right"):
            given = tokens(a, b)
            looked_at, _ = model.run_with_cache(given, "attn_scores")
            assert torch.allclose(model(given), looked_at, atol=1e-12)


def by_hand(model, given: Tokens, name: str, change) -> torch.Tensor:
    """The output with one site changed by a hook."""
    return model.run_with_hooks(given, [(name, lambda x, hook: change(x))])


def test_naive_sweeps_on_both_stacks():
    """Each node is what a hook does, at the positions that its site counts."""
    model, given = random_model(pair_config()), tokens()
    metric = metrics.function(lambda logits: logits[:, -1].sum(-1), "sum")

    def halved(*index):
        def change(x):
            x[index] *= 0.5

        return change

    nodes = pd.DataFrame([
        {"site": "encoder_blocks.attn.hook_z", "layer": 1, "head": 2, "pos": 5},
        {"site": "cross_attn.hook_pattern", "layer": 2, "head": 1, "pos": 2, "k_pos": 4},
        {"site": "cross_attn.hook_k", "layer": 0, "head": 3, "pos": 5},
        {"site": "decoder_blocks.mlp.hook_post", "layer": 1, "neuron": 39, "pos": 0},
        {"site": "encoder_blocks.mlp.hook_post", "layer": 1, "neuron": 47, "pos": 4},
        {"site": "encoder.hook_embed", "pos": 3},
        {"site": "hook_embed", "pos": 1},
    ])  # fmt: skip
    every = slice(None)
    changes = [
        ("encoder_blocks.1.attn.hook_z", halved(every, 5, 2)),
        ("decoder_blocks.2.cross_attn.hook_pattern", halved(every, 1, 2, 4)),
        ("decoder_blocks.0.cross_attn.hook_k", halved(every, 5, 3)),
        ("decoder_blocks.1.mlp.hook_post", halved(every, 0, 39)),
        ("encoder_blocks.1.mlp.hook_post", halved(every, 4, 47)),
        ("encoder.hook_embed", halved(every, 3)),
        ("hook_embed", halved(every, 1)),
    ]
    frame = interp.sweep(
        model, given, nodes, edit=edits.scale(0.5), metric=metric, reduce="none",
        engine="naive", progress=False,
    )  # fmt: skip
    plain = model(given)[:, -1].sum(-1)
    for row, (name, change) in enumerate(changes):
        expected = by_hand(model, given, name, change)[:, -1].sum(-1) - plain
        found = frame[frame["row"] == row]["effect"].to_numpy()
        assert np.allclose(found, expected.numpy(), atol=1e-9), name
        assert np.abs(found).max() > 1e-6, name
    for bad, message in (
        ({"site": "cross_attn.hook_z", "layer": 0, "pos": 3}, "pos=3"),
        ({"site": "encoder_blocks.attn.hook_z", "layer": 0, "head": 3}, "head=3"),
        ({"site": "encoder_blocks.attn.hook_z", "layer": 0, "role": "end"}, "role='end'"),
    ):
        with pytest.raises(ValueError, match=message):
            interp.sweep(model, given, [bad], edit=edits.zero(), metric=metric, progress=False)


def test_edits_from_other_runs_count_the_positions_of_each_stack():
    model, given = random_model(pair_config()), tokens()
    other = Tokens(given.ids, source=Tokens(given.source.ids.flip(1), mask=given.source.mask))
    whole = Tokens(given.ids, source=Tokens(given.source.ids.flip(1)))
    options = {"metric": metrics.loss(), "progress": False}
    for site in ("encoder_blocks.hook_resid_pre", "cross_attn.hook_v", "decoder_blocks.resid_mid"):
        frame = interp.nodes(model, site, by=("layer", "pos"), tokens=given)
        assert frame["pos"].max() == (2 if "decoder" in site else 5)
        for edit in (edits.patch(other), edits.mean(other), edits.mean(other, per="pos"),
                     edits.resample(whole, seed=1), edits.noise(0.3)):  # fmt: skip
            found = interp.sweep(model, given, frame, edit=edit, allow_noop=True, **options)
            assert np.isfinite(found["value"]).all()
    short = Tokens(given.ids, source=Tokens(given.source.ids[:, :4]))
    nodes = interp.nodes(model, "encoder_blocks.z", by=("layer",))
    for engine in ("rerun", "naive"):
        with pytest.raises(ValueError, match="a row of the reference has a pad"):
            interp.sweep(
                model, given, nodes, edit=edits.resample(other), engine=engine, **options
            )  # fmt: skip
    for edit in (edits.patch(short), edits.mean(short, per="pos"), edits.resample(short)):
        with pytest.raises(ValueError, match="6"):
            interp.sweep(model, given, nodes, edit=edit, **options)
    # Into the state of another source: the whole memory patched is the other run.
    keys_values = pd.DataFrame(
        [{"row": 0, "site": f"cross_attn.hook_{part}"} for part in ("k", "v")]
    )
    done = interp.sweep(model, given, keys_values, edit=edits.patch(other), **options)
    whole = interp.sweep(
        model, other, nodes, edit=edits.scale(1.0), allow_noop=True, **options
    )  # fmt: skip
    assert done["value"][0] == pytest.approx(whole["baseline"][0], abs=1e-10)


def test_a_sweep_of_another_source_does_not_resume(tmp_path):
    model, given, file = random_model(pair_config()), tokens(), tmp_path / "sweep.journal"
    nodes = interp.nodes(model, "encoder_blocks.z", by=("layer", "head"))
    options = {"metric": metrics.loss(), "edit": edits.zero(), "progress": False, "journal": file}
    first = interp.sweep(model, given, nodes, **options)
    assert interp.sweep(model, given, nodes, **options).equals(first)
    other = Tokens(given.ids, source=Tokens(given.source.ids + 1, mask=given.source.mask))
    with pytest.raises(JournalError, match="tokens"):
        interp.sweep(model, other, nodes, **options)


def test_a_hooked_view_goes_on_from_a_prefix():
    model, given = random_model(pair_config()), tokens()
    view = model.with_hooks([(["encoder_blocks.z", "cross_attn.z"], lambda z, hook: z * 0.5)])
    whole = view(given)
    prefix = GrowingPrefix(model.cfg, 2, 3, like=model.W_E)
    steps = [view(Tokens(given.ids[:, :1], source=given.source), prefix=prefix)]
    steps += [view(given.ids[:, i : i + 1], prefix=prefix) for i in (1, 2)]
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-12)


COMPILE = """
import torch
from tests.strategies import random_model
from tests.test_pairs import pair_config, tokens

model, given = random_model(pair_config()), tokens("left")
compiled = torch.compile(model, fullgraph=True)
assert torch.allclose(compiled(given), model(given), atol=1e-10)
"""


def test_compiles_without_a_graph_break():
    """In a process of its own: the shape checks of the test run are not traceable."""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_cache_of_another_encoder_is_refused():
    model, given = random_model(pair_config()), tokens()
    other = copy.deepcopy(model)
    other.encoder.blocks[0].attn.out_weight.mul_(2)
    _, cache = other.run_with_cache(given)
    nodes = interp.nodes(model, "cross_attn.z", by=("layer",))
    with pytest.raises(ValueError, match="another model"):
        interp.sweep(model, given, nodes, edit=edits.patch(cache), metric=metrics.loss())


def test_relative_bias_in_a_model_of_one_stack():
    """It is a kind of positions like all others: with pads, prefixes and windows."""
    cfg = pair_config()
    alone = cfg.replace(encoder=None, decoder_start_token_id=None, sliding_window=(None, 2, 3))
    model = random_model(alone)
    assert model.W_rel.shape == (8, 4)
    rows = [[3, 1, 4, 1, 5], [9, 2]]
    for side in ("left", "right"):
        done = model.generate(Tokens.from_rows(rows, side=side), 5)
        for i, row in enumerate(rows):
            ids = list(row)
            for _ in range(5):
                ids.append(int(model([ids])[0, -1].argmax()))
            assert done.tokens.ids[i][done.tokens.real[i]].tolist() == ids
    frame = interp.nodes(model, "resid_pre", by=("layer", "pos"), tokens=Tokens.of(rows[:1]))
    options = {"edit": edits.zero(), "metric": metrics.loss(), "progress": False}
    a, b = (interp.sweep(model, rows[:1], frame, engine=e, **options) for e in ("rerun", "naive"))
    assert np.allclose(a["value"], b["value"], atol=1e-10)
    with pytest.raises(ValueError, match="no W_rel"):
        random_model(small_config()).W_rel  # noqa: B018


def test_text_in_and_out():
    model = random_model(pair_config())
    model.tokenizer = numbers_as_words(29)
    given = model.to_tokens(["5 6 7", "8"], target=["3 4", "9"])
    assert given.source.ids.tolist() == [[5, 6, 7, 1], [8, 1, 0, 0]]
    assert given.ids.tolist() == [[START, 3, 4], [START, 9, 0]]
    assert given.source.strings[1][0] == "8" and given.strings[0][1] == "3"
    assert torch.equal(model("5 6 7"), model([[5, 6, 7, 1]]))
    done = model.generate(["5 6 7", "8"], 3, stop_at_eos=False)
    assert done.texts[0] == " ".join(map(str, done.new_ids[0].tolist()))
    assert done.completions == done.texts
    with pytest.raises(ValueError, match="1 targets for 2 sources"):
        model.to_tokens(["5", "6"], target="7")
    alone = random_model(small_config())
    alone.tokenizer = numbers_as_words(29)
    with pytest.raises(ValueError, match="no encoder"):
        alone.to_tokens("5", target="6")
