"""Sweeps: nodes and edits are what they say, effects are what a hand loop finds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import edits, metrics
from interp.core.tokens import Tokens
from interp.sweeps import engine as sweeps_engine
from interp.sweeps import rerun
from interp.sweeps.nodes import as_frame, read_nodes

from .strategies import configs, random_model, small_config

CLEAN = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [3, 3, 1, 4, 2]])
CORRUPTED = torch.tensor([[1, 9, 3, 4, 5], [6, 2, 8, 9, 10], [3, 8, 1, 4, 2]])
ANSWER, WRONG = torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])
DIFF = metrics.logit_diff(ANSWER, WRONG)


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(n_kv_heads=2))


def hand_diff(logits):
    last = logits[:, -1]
    return (last.gather(1, ANSWER[:, None]) - last.gather(1, WRONG[:, None]))[:, 0]


def test_nodes_enumerate_what_by_names(model):
    frame = interp.nodes(model, "z", by=("layer", "head"))
    assert list(frame.columns) == [
        "row",
        "site",
        "layer",
        "pos",
        "role",
        "head",
        "k_pos",
        "neuron",
        "expert",
    ]
    assert len(frame) == 12 and frame["row"].tolist() == list(range(12))
    assert frame["site"].unique().tolist() == ["attn.hook_z"]
    assert len(interp.nodes(model, "k", by=("layer", "head"))) == 6  # key-value heads
    assert len(interp.nodes(model, "mlp.hook_post", by=("layer", "neuron"), layers=[1])) == 64
    two = interp.nodes(model, "resid_pre", by=("pos",), positions=[0, -1], layers=[0, 2])
    assert two["row"].tolist() == [0, 1, 0, 1]  # the layers of one position go together
    roles = interp.nodes(model, "resid_pre", by=("layer", "pos"), positions=["subject", 3])
    assert roles["role"].tolist()[:1] == ["subject"] and roles["pos"].tolist()[1] == 3
    tokens = model.accept(CLEAN)
    assert len(interp.nodes(model, "pattern", by=("layer", "head", "pos", "k_pos"),
                            tokens=tokens)) == 12 * 25  # fmt: skip


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"site": "zz"}, "did you mean"),
        ({"site": "scale"}, "several sites"),
        ({"site": "resid_pre", "by": ("head",)}, "by='head'"),
        ({"site": "z", "by": ("layer", "pos")}, "positions="),
        ({"site": "z", "by": ("head",), "heads": [4]}, "heads=4: expected 0 to 3"),
        ({"site": "z", "layers": [3]}, "layers=3: expected 0 to 2"),
        ({"site": "hook_embed", "layers": [0]}, "in none of them"),
    ],
)
def test_bad_nodes_are_named(unchecked, model, kwargs, message):
    with pytest.raises(ValueError, match=message):
        interp.nodes(model, **kwargs)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"site": "z", "layer": 7}, "no layer 7"),
        ({"site": "z", "layer": 0, "head": 9}, "head=9"),
        ({"site": "resid_pre", "layer": 0, "pos": 5}, "pos=5"),
        ({"site": "resid_pre", "layer": 0, "head": 1}, "no such axis"),
        ({"site": "resid_pre", "layer": 0, "role": "subject"}, "the roles none"),
        ({"site": "z", "colour": 1}, "'colour'"),
        ({"site": "z", "head": 1.5}, "head=1.5: a float is not an index"),
        ({"layer": 1}, "column 'site'"),
        ({"site": None}, "must not be blank"),
    ],
)
def test_bad_frames_are_named(unchecked, model, row, message):
    with pytest.raises(ValueError, match=message):
        interp.sweep(model, CLEAN, pd.DataFrame([row]), edit=edits.zero(), metric=DIFF)
    with pytest.raises(ValueError, match="empty"):
        interp.sweep(model, CLEAN, pd.DataFrame(columns=["site"]), edit=edits.zero(), metric=DIFF)


def test_a_sweep_is_the_hand_loop(model):
    frame = interp.ablate(model, CLEAN, "z", kind="zero", metric=DIFF, progress=False)
    base = hand_diff(model(CLEAN))
    for line in frame.itertuples():

        def silence(z, hook, head=line.head):
            z[:, :, head] = 0

        value = hand_diff(model.run_with_hooks(CLEAN, [(("z", int(line.layer)), silence)]))
        assert line.value == pytest.approx(float(value.mean()), abs=1e-12)
        assert line.effect == pytest.approx(float((value - base).mean()), abs=1e-12)
        assert line.stderr == pytest.approx(float((value - base).std() / 3**0.5), abs=1e-12)
    assert frame["n"].unique().tolist() == [3]
    assert frame["direction"].unique().tolist() == ["ablate"]
    assert frame.attrs["engine"] == "rerun" and frame.attrs["naive_equivalents"] == 13
    long = interp.ablate(model, CLEAN, "z", kind="zero", metric=DIFF, reduce="none", progress=False)
    means = long.groupby("row")["effect"].mean().to_numpy()
    assert np.allclose(means, frame["effect"]) and len(long) == 36


@settings(max_examples=25, deadline=None)
@given(cfg=configs(head="unembed"), data=st.data())
def test_patching_a_run_into_itself_changes_nothing(cfg, data):
    model = random_model(cfg)
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    site = data.draw(st.sampled_from(list(model.sites)))
    frame = pd.DataFrame({"site": [site.local_name], "layer": [site.layer]})
    _, cache = model.run_with_cache(ids, model.sites.names)
    metric = metrics.logit_diff(torch.tensor([1, 2]), torch.tensor([3, 4]))
    # Bit for bit where only this site is read: reading scores unfuses attention, which rounds.
    _, own = model.run_with_cache(ids, site.name)
    with pytest.raises(ValueError, match="changes nothing"):
        interp.sweep(model, ids, frame, edit=edits.patch(own), metric=metric, progress=False)
    frame = interp.sweep(
        model, ids, frame, edit=edits.patch(cache), metric=metric, allow_noop=True, progress=False
    )
    assert frame["effect"].abs().max() < 1e-8


def test_patching_a_cut_set_reproduces_the_other_run(model):
    frame = interp.nodes(model, "resid_pre")  # all positions of one layer cut the model in two
    clean, corrupted = hand_diff(model(CLEAN)), hand_diff(model(CORRUPTED))
    result = interp.sweep(model, CORRUPTED, frame, edit=edits.patch(model.accept(CLEAN)),
                          metric=DIFF, progress=False)  # fmt: skip
    assert np.allclose(result["value"], float(clean.mean()), atol=1e-9)
    assert result["baseline"].iloc[0] == pytest.approx(float(corrupted.mean()))
    assert result["direction"].unique().tolist() == ["patch"]


def test_rows_that_share_row_are_edited_together(model):
    frame = pd.DataFrame({"row": [0, 0, 1], "site": "z", "layer": [0, 1, 0], "head": [1, 2, 1]})
    result = interp.sweep(model, CLEAN, frame, edit=edits.zero(), metric=DIFF, progress=False)

    def silence(head):
        def hook(z, _):
            z[:, :, head] = 0

        return hook

    both = model.run_with_hooks(CLEAN, [(("z", 0), silence(1)), (("z", 1), silence(2))])
    assert result["value"].iloc[0] == pytest.approx(float(hand_diff(both).mean()), abs=1e-12)
    assert result["value"].iloc[0] == result["value"].iloc[1]  # one value, on both lines
    assert result["value"].iloc[2] != result["value"].iloc[0]


def test_roles_are_positions_per_example(model):
    tokens = Tokens(CLEAN, roles={"subject": torch.tensor([1, 3, 0])})
    frame = pd.DataFrame({"site": ["resid_mid"], "layer": [1], "role": ["subject"]})
    result = interp.sweep(model, tokens, frame, edit=edits.zero(), metric=DIFF, progress=False)

    def silence(x, hook):
        x[torch.arange(3), tokens.roles["subject"]] = 0

    value = hand_diff(model.run_with_hooks(CLEAN, [(("resid_mid", 1), silence)]))
    assert result["value"].iloc[0] == pytest.approx(float(value.mean()), abs=1e-12)


EDITS = {
    "zero": (edits.zero(), lambda x: torch.zeros_like(x)),
    "set": (edits.set_to(2.0), lambda x: torch.full_like(x, 2.0)),
    "scale": (edits.scale(-1.5), lambda x: -1.5 * x),
    "add": (edits.add(torch.arange(32.0), 0.1), lambda x: x + 0.1 * torch.arange(32.0).to(x)),
    "project_out": (
        edits.project_out(torch.eye(32)[:2] * 3),
        lambda x: torch.cat([torch.zeros_like(x[..., :2]), x[..., 2:]], -1),
    ),
    "mean": (edits.mean(Tokens.of(CORRUPTED)), None),
    "mean per pos": (edits.mean(Tokens.of(CORRUPTED), per="pos"), None),
    "patch": (edits.patch(Tokens.of(CORRUPTED)), None),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_put_what_they_say(model, name):
    edit, by_hand = EDITS[name]
    _, other = model.run_with_cache(CORRUPTED, "resid_mid")
    reference = other["resid_mid", 1]
    by_hand = (
        by_hand
        or {
            "mean": lambda x: reference.mean((0, 1), keepdim=True).expand_as(x),
            "mean per pos": lambda x: reference.mean(0, keepdim=True).expand_as(x),
            "patch": lambda x: reference,
        }[name]
    )
    frame = pd.DataFrame({"site": ["resid_mid"], "layer": [1], "pos": [-1]})
    result = interp.sweep(model, CLEAN, frame, edit=edit, metric=DIFF, progress=False)

    def hook(x, _):
        x[:, -1] = by_hand(x)[:, -1]

    value = hand_diff(model.run_with_hooks(CLEAN, [(("resid_mid", 1), hook)]))
    assert result["value"].iloc[0] == pytest.approx(float(value.mean()), abs=1e-10)


def test_what_is_random_follows_from_seed_node_and_example(model):
    frame = interp.nodes(model, "z", by=("layer", "head"))
    other = Tokens.of(CORRUPTED)

    def run(edit, some):
        result = interp.sweep(model, CLEAN, some, edit=edit, metric=DIFF, progress=False)
        return result.set_index("row")["value"]

    for edit in (edits.resample(other, seed=3), edits.noise(0.5, seed=3)):
        whole, some = run(edit, frame), run(edit, frame.iloc[[7, 2]])
        assert whole[7] == pytest.approx(some[7], abs=1e-9)
        assert whole[2] == pytest.approx(some[2], abs=1e-9)
    a, b = (interp.ablate(model, CLEAN, "z", kind="resample", reference=other, seed=seed,
                          metric=DIFF, progress=False)["value"] for seed in (0, 1))  # fmt: skip
    assert not np.allclose(a, b)


def test_metrics_by_hand(model):
    logits = model(CLEAN)
    logp = logits.log_softmax(-1)
    tokens = model.accept(CLEAN)
    at = torch.arange(3)

    def measured(metric):
        frame = pd.DataFrame({"site": ["resid_pre"], "layer": [2], "pos": [0]})
        result = interp.sweep(model, tokens, frame, edit=edits.scale(2.0), metric=metric,
                              reduce="none", progress=False)  # fmt: skip
        return torch.tensor(result["baseline"].to_numpy()), torch.tensor(result["value"].to_numpy())

    hook = [(("resid_pre", 2), lambda x, _: torch.cat([x[:, :1] * 2, x[:, 1:]], 1))]
    edited = model.run_with_hooks(CLEAN, hook).log_softmax(-1)
    right = logp[at, -1, ANSWER]
    assert torch.allclose(measured(metrics.log_prob(ANSWER))[0], right)
    assert torch.allclose(measured(metrics.prob(ANSWER))[0], right.exp())
    ranks = (logp[:, -1] >= right[:, None]).sum(-1).double()
    assert torch.equal(measured(metrics.rank(ANSWER))[0], ranks)
    top = logp[:, -1].argmax(-1)
    assert measured(metrics.accuracy(top))[0].tolist() == [1.0, 1.0, 1.0]
    nll = -logp[:, :-1].gather(-1, CLEAN[:, 1:, None])[..., 0].mean(1)
    assert torch.allclose(measured(metrics.loss())[0], nll)
    p, q = logp[:, -1], edited[:, -1]
    before, after = measured(metrics.kl())
    assert torch.allclose(after, (p.exp() * (p - q)).sum(-1)) and before.abs().max() < 1e-12
    both = (p.exp() + q.exp()) / 2
    js = ((p.exp() * (p - both.log())).sum(-1) + (q.exp() * (q - both.log())).sum(-1)) / 2
    assert torch.allclose(measured(metrics.js())[1], js)
    everywhere = (logp.exp() * (logp - edited)).sum(-1).mean(1)
    assert torch.allclose(measured(metrics.kl("all"))[1], everywhere)
    own = metrics.function(lambda x: x[:, 0, 5], "five")
    assert torch.allclose(measured(own)[0], logits[:, 0, 5])
    resid = model(CLEAN, stop_at_layer=3)
    aim = torch.arange(32.0, dtype=torch.float64)
    assert torch.allclose(measured(metrics.cosine(aim, pos=1))[0],
                          torch.cosine_similarity(resid[:, 1], aim[None], dim=-1))  # fmt: skip
    before, after = measured(metrics.pooled_cosine())
    assert torch.allclose(before, torch.ones(3, dtype=torch.float64)) and after.max() < 1


def test_padded_batches_measure_as_single_rows(model):
    rows = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 1]]
    frame = interp.nodes(model, "z", by=("layer", "head"))
    options = {"edit": edits.zero(), "reduce": "none", "progress": False}
    for side in ("left", "right"):
        tokens = Tokens.from_rows(rows, side=side)
        for make in (metrics.loss, lambda: metrics.kl("all"), metrics.kl):
            whole = interp.sweep(model, tokens, frame, metric=make(), **options)
            for i, row in enumerate(rows):
                alone = interp.sweep(model, [row], frame, metric=make(), **options)
                mine = whole[whole["example"] == i]["value"].to_numpy()
                assert np.allclose(mine, alone["value"].to_numpy(), atol=1e-9)


def test_encoders_are_studied_by_their_vectors():
    model = random_model(small_config(causal=False, norm_position="post", head="none"))
    frame = interp.ablate(model, CLEAN, "z", metric=metrics.pooled_cosine(), progress=False)
    assert (frame["effect"] < 0).all()
    with pytest.raises(ValueError, match="no logits"):
        interp.ablate(model, CLEAN, "z", metric=metrics.loss(), progress=False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: {"metric": metrics.function(lambda x: x[:, 0, 0] / 0 * 0)}, "not finite at the"),
        (lambda m: {"metric": metrics.function(lambda x: x.mean())}, "one number per example"),
        (
            lambda m: {"metric": metrics.log_prob(torch.tensor([1, 2]))},
            r"one row per example \(3\)",
        ),
        (
            lambda m: {"metric": metrics.log_prob(torch.tensor([1, 2, 99]))},
            "answer ids=99: expected 0 to 28",
        ),
        (lambda m: {"metric": metrics.log_prob(ANSWER, pos="end")}, "pos='end'"),
        (lambda m: {"metric": metrics.log_prob(ANSWER, pos=9)}, "pos=9"),
        (lambda m: {"edit": edits.scale(1.0)}, "changes nothing at any of the 12 nodes"),
        (lambda m: {"edit": edits.patch(m.accept(CLEAN[:2]))}, "needs equal batch and length"),
        (lambda m: {"edit": edits.patch(m.accept(CLEAN[:, :4]))}, "needs equal batch and length"),
        (lambda m: {"edit": edits.patch(m.run_with_cache(CORRUPTED, "v")[1])}, "was not cached"),
        (lambda m: {"edit": edits.add(torch.ones(5))}, "a vector of 5 for a site of width 8"),
        (lambda m: {"edit": edits.mean(m.accept(CLEAN[:, :3]), per="pos")}, "use per='all'"),
        (lambda m: {"edit": edits.resample(m.accept(CLEAN[:, :3]))}, "needs equal length"),
        (lambda m: {"reduce": "sum"}, "reduce='sum'"),
    ],
)
def test_bad_sweeps_are_named(unchecked, model, call, message):
    frame = interp.nodes(model, "z", by=("layer", "head"))
    options = {"edit": edits.zero(), "metric": DIFF, "progress": False} | call(model)
    with pytest.raises(ValueError, match=message):
        interp.sweep(model, CLEAN, frame, **options)


def test_a_nan_names_its_node(model):
    frame = interp.nodes(model, "z", by=("layer", "head"))
    bad = edits.Edit("nan", "steer", lambda *_: lambda x, rows: x * float("nan"))
    with pytest.raises(ValueError, match=r"not finite at node blocks\.0\.attn\.hook_z head=0"):
        interp.sweep(model, CLEAN, frame, edit=bad, metric=DIFF, progress=False)


def test_hooks_of_a_view_stay_active(model):
    view = model.with_hooks([(("resid_pre", 1), lambda x, hook: x * 0.5)])
    frame = interp.ablate(view, CLEAN, "z", kind="zero", metric=DIFF, progress=False)
    assert frame["baseline"].iloc[0] == pytest.approx(float(hand_diff(view(CLEAN)).mean()))
    assert frame["baseline"].iloc[0] != pytest.approx(float(hand_diff(model(CLEAN)).mean()))


def test_a_cache_of_another_model_or_of_some_positions_is_refused():
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    model, same, other = (random_model(small_config(), seed) for seed in (0, 0, 1))
    options = {"metric": metrics.loss(), "progress": False}
    frame = interp.nodes(model, "z", by=("layer",))
    _, cache = same.run_with_cache(ids + 1)
    interp.sweep(model, ids, frame, edit=edits.patch(cache), **options)  # the same weights
    _, cache = model.with_hooks([("z", lambda z, hook: z * 2)]).run_with_cache(ids + 1)
    interp.sweep(model, ids, frame, edit=edits.patch(cache), **options)  # a view of the model
    _, cache = other.run_with_cache(ids + 1)
    for make in (edits.patch, edits.mean, edits.resample):
        with pytest.raises(ValueError, match="taken on another model"):
            interp.sweep(model, ids, frame, edit=make(cache), **options)
    del other
    with pytest.raises(ValueError, match="or on one that is gone"):
        interp.sweep(model, ids, frame, edit=edits.patch(cache), **options)
    _, cache = model.run_with_cache(ids, pos=-1)
    with pytest.raises(ValueError, match=f"has 1 of {ids.shape[1]} positions.*taken with pos="):
        interp.sweep(model, ids, frame, edit=edits.patch(cache), **options)


def test_nodes_as_data(tmp_path):
    """CSV or JSON in, the same sweep out; what a sweep wrote can go in again."""
    model, ids = random_model(small_config()), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    frame = interp.nodes(model, "z", by=("layer", "head"))
    options = {"edit": edits.zero(), "metric": metrics.loss(), "progress": False}
    result = interp.sweep(model, ids, frame, **options)
    result.to_csv(tmp_path / "nodes.csv", index=False)
    frame.to_json(tmp_path / "nodes.json", orient="records")
    for file in (tmp_path / "nodes.csv", str(tmp_path / "nodes.json")):
        assert interp.sweep(model, ids, file, **options).equals(result)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("n.json", '{"site": "z"}', "expected a list of objects"),
        ("n.json", "[1]", "expected a list of objects"),
        ("n.json", "[{", "n.json: not valid JSON"),
        ("n.json", '[{"site": "z", "site": "q"}]', "the key 'site' stands there twice"),
        ("n.json", '[{"site": "z", "layer": NaN}]', "NaN is not a number of JSON"),
        ("n.json", '[{"site": "z", "layer": true}]', "layer=True: a boolean is not an index"),
        ("n.json", '[{"site": "z", "layer": 1.5}]', "layer=1.5: a float is not an index"),
        ("n.json", '[{"sit": "z"}]', "nodes have no column 'sit'"),
        ("n.json", "[]", "is empty"),
        ("n.csv", "", "n.csv: the file is empty; expected a header such as site"),
        ("n.csv", "site,layer\n", "no rows below the header"),
        ("n.csv", "site,layer\n,1\n", "n.csv, line 2: 'site' must not be blank"),
        ("n.txt", "", "read from .csv or .json"),
    ],
)
def test_broken_files_of_nodes(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        as_frame(tmp_path / name)


def test_explain_says_what_a_sweep_spends():
    model, ids = random_model(small_config()), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    other = Tokens.of(torch.tensor([[1, 2, 9, 4], [5, 6, 7, 1]]))
    frame = interp.nodes(model, "z", by=("layer", "head", "pos"), tokens=Tokens.of(ids))
    for engine in ("rerun", "naive"):
        arguments = {"edit": edits.patch(other), "metric": metrics.loss(), "engine": engine}
        told = interp.explain(model, ids, frame, **arguments)
        attrs = interp.sweep(model, ids, frame, progress=False, **arguments).attrs
        assert told["nodes"] == len(frame) and told["passes"] > 0 and told["bytes"] > 0
        for name in ("engine", "forward_equivalents", "naive_equivalents"):
            assert told[name] == attrs[name]
        assert told["noop_nodes"] == (attrs["noop_nodes"] if engine == "rerun" else None)


def test_what_the_base_run_keeps_is_predicted():
    for changes in ({}, {"n_kv_heads": 2, "positions": "rotary", "mlp_gated": True}):
        model, tokens = random_model(small_config(**changes)), Tokens.of(torch.ones(2, 5).long())
        for site in ("z", "resid_pre", "mlp.hook_post", "pattern", "ln_final.hook_normalized"):
            chosen = read_nodes(interp.nodes(model, site, by=()), model, tokens)
            base = rerun.base_run(model, tokens, chosen)
            kept = [*base.values.values(), *(t for qkv in base.placed.values() for t in qkv)]
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
            assert rerun.base_bytes(model, tokens, chosen) == pytest.approx(
                sum(storages.values()), rel=0.01
            )


def test_the_engine_is_chosen_by_memory_and_says_so(monkeypatch):
    model, ids = random_model(small_config()), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    options = {"metric": metrics.loss(), "kind": "zero", "progress": False}
    usual = interp.ablate(model, ids, "z", **options)
    assert usual.attrs["engine"] == "rerun" and "why" not in usual.attrs
    monkeypatch.setattr(sweeps_engine, "free_bytes", lambda device: 1000)
    tight = interp.ablate(model, ids, "z", **options)
    assert tight.attrs["engine"] == "naive" and "1,000 are free" in tight.attrs["why"]
    assert np.allclose(usual["value"], tight["value"], atol=1e-10)
    monkeypatch.setattr(rerun.plan, "VALUES_AT_ONCE", 4)
    base = rerun.base_bytes(model, Tokens.of(ids), read_nodes(
        interp.nodes(model, "z"), model, Tokens.of(ids)))  # fmt: skip
    room = base + rerun.pass_bytes(model, 64)
    monkeypatch.setattr(sweeps_engine, "free_bytes", lambda device: room)
    frame = interp.nodes(model, "z", by=("layer", "head"))
    told = interp.explain(model, ids, frame, edits.zero(), metrics.loss())
    assert told["engine"] == "rerun" and told["passes"] > 1 and told["bytes"] <= room
    assert np.allclose(interp.ablate(model, ids, "z", **options)["value"], usual["value"])


def test_a_pass_that_does_not_fit_goes_in_two(monkeypatch):
    model, ids = random_model(small_config()), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    options = {"metric": metrics.loss(), "kind": "zero", "progress": False}
    usual = interp.ablate(model, ids, "z", **options)
    measure = rerun.Rerun._measured

    def tight(self, rows):
        if len(rows) > 5:
            raise torch.OutOfMemoryError
        return measure(self, rows)

    monkeypatch.setattr(rerun.Rerun, "_measured", tight)
    halved = interp.ablate(model, ids, "z", **options)
    assert halved.attrs["halved_passes"] > 0 and "halved_passes" not in usual.attrs
    assert np.allclose(usual["value"], halved["value"], rtol=0, atol=1e-12)

    def too_tight(self, rows):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(rerun.Rerun, "_measured", too_tight)
    with pytest.raises(torch.OutOfMemoryError):  # not even one row
        interp.ablate(model, ids, "z", **options)


def test_a_metric_of_a_cache_takes_whole_runs():
    model, ids = random_model(small_config()), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    frame = interp.nodes(model, "z", by=("layer", "head"), layers=[0])
    metric = metrics.cache_function(lambda cache: cache["pattern", 2][:, 0, -1, 0], "pattern")
    options = {"edit": edits.zero(), "metric": metric, "progress": False, "reduce": "none"}
    result = interp.sweep(model, ids, frame, **options)
    assert result.attrs["engine"] == "naive" and "cache" in result.attrs["why"]
    _, cache = model.run_with_cache(ids, "pattern")
    assert result["baseline"].tolist()[:2] == cache["pattern", 2][:, 0, -1, 0].tolist()

    def without_head_1(z, hook):
        z[:, :, 1] = 0

    _, cache = model.with_hooks([(("z", 0), without_head_1)]).run_with_cache(ids, "pattern")
    of_head_1 = result[result["head"] == 1]["value"]
    assert np.allclose(of_head_1, cache["pattern", 2][:, 0, -1, 0], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"engine='rerun' needs.*reads a cache"):
        interp.sweep(model, ids, frame, engine="rerun", **options)
    wrong = metrics.cache_function(lambda cache: cache["pattern", 2], "pattern")
    with pytest.raises(ValueError, match="expected one number per example"):
        interp.sweep(model, ids, frame, **(options | {"metric": wrong}))


@pytest.mark.parametrize("engine", ["rerun", "naive"])
def test_a_metric_that_fails_on_edited_runs_names_the_node(unchecked, engine):
    model, ids = random_model(small_config()), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    frame = interp.nodes(model, "resid_pre", by=("layer",), layers=[1])
    plain = model(ids)[:, -1].sum(-1)

    def shape(logits, examples):
        own = logits[:, -1].sum(-1)
        return own if torch.allclose(own, plain) else own[:, None]

    def nan(logits, examples):
        own = logits[:, -1].sum(-1)
        return own if torch.allclose(own, plain) else own / 0

    options = {"edit": edits.zero(), "engine": engine, "progress": False}
    for fn, message in ((shape, "expected one number per example"), (nan, "is not finite")):
        with pytest.raises(ValueError, match=message) as error:
            interp.sweep(model, ids, frame, metric=metrics.function(fn), **options)
        assert "node blocks.1.hook_resid_pre" in str(error.value)


@pytest.mark.parametrize("engine", ["rerun", "naive"])
def test_every_node_can_have_its_own_edit(model, engine, tmp_path):
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(32, generator=generator, dtype=torch.float64)
    own = {7: edits.add(direction, 2.0), 3: edits.project_out(direction), 5: edits.noise(0.5)}
    rows = [{"row": row, "site": "hook_resid_post", "layer": 1} for row in own]
    rows.append({"row": 9, "site": "hook_resid_mid", "layer": 0, "pos": 2})
    rows.append({"row": 9, "site": "hook_resid_post", "layer": 1, "pos": 3})
    own[9] = edits.mean(model.accept(CORRUPTED))
    options = {"metric": DIFF, "engine": engine, "progress": False, "reduce": "none"}
    together = interp.sweep(model, CLEAN, rows, edit=edits.each(own), **options,
                            journal=tmp_path / "each")  # fmt: skip
    for row, edit in own.items():
        alone = interp.sweep(model, CLEAN, [r for r in rows if r["row"] == row], edit=edit,
                             **options)  # fmt: skip
        ours = together[together["row"] == row]["value"].to_numpy()
        assert np.allclose(ours, alone["value"], rtol=1e-9)
    again = interp.sweep(model, CLEAN, rows, edit=edits.each(own), **options,
                         journal=tmp_path / "each")  # fmt: skip
    assert again.equals(together)
    with pytest.raises(ValueError, match=r"row 9 has no edit: there are some for \[7\]"):
        interp.sweep(model, CLEAN, rows[:1] + rows[3:], edit=edits.each({7: own[7]}), **options)
    assert edits.each({1: own[7]}).direction == "steer"
    assert edits.each({1: own[3], 2: edits.zero()}).direction == "ablate"
