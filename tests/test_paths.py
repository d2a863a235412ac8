"""Path patching: against a plain numpy route on random architectures, direct logit attribution, and
planted paths."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import interp
from interp import metrics, paths
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods.attribution import logit_attribution
from interp.methods.paths import path_patch
from interp.model import HookedTransformer
from interp.zoo import planted
from tests import plain

from .strategies import configs, random_model, small_config

CLEAN, CORRUPTED = [[3, 1, 4, 1, 5], [2, 7, 1, 8, 2]], [[3, 9, 4, 1, 5], [6, 7, 1, 8, 2]]


pytestmark = pytest.mark.usefixtures("one_thread")


def made_pairs() -> Pairs:
    roles = {"end": torch.tensor([4, 4])}
    clean, corrupted = (Tokens(torch.tensor(ids), roles=roles) for ids in (CLEAN, CORRUPTED))
    return Pairs("random", clean, corrupted, torch.tensor([4, 2]), torch.tensor([5, 6]))


def pairs_of(known: planted.Planted, n: int = 12) -> Pairs:
    prompts = known.prompts(n, seed=2)
    return Pairs(known.name, prompts.clean, prompts.corrupted, prompts.answer, prompts.wrong)


# A second route ------------------------------------------------------------------------------


class Plain:
    """`tests.plain`, run with z held, with norms held, and with a head's input put in.

    A receiver reads a second vector beside the first: its rows of the weights stand there.
    """

    def __init__(self, model: HookedTransformer) -> None:
        self.cfg = model.cfg
        self.w = {name: value.numpy() for name, value in model.state_dict().items()}

    def run(self, ids, *, z=None, scales=None, arrived=None, receiver=None):
        """The run, what each layer's heads read, and the scale of each norm of the stream."""
        read, found, attention, norm = {}, {}, plain.attention, plain.norm

        def held_attention(cfg, w, layer, x, seen):
            read[layer] = x
            name = f"blocks.{layer}.attn"
            if z is not None:
                return z[layer].reshape(len(x), -1) @ w[f"{name}.out_weight"].T + w.get(
                    f"{name}.out_bias", 0.0
                )
            if receiver is not None and receiver[1] == layer:
                weight = w[f"{name}.qkv_weight"]
                both = np.concatenate([weight, np.zeros_like(weight)], axis=1)
                rows = self.rows(receiver)
                both[rows] = np.roll(both[rows], cfg.d_model, axis=1)
                w = w | {f"{name}.qkv_weight": both}
                x = np.concatenate([x, arrived[layer]], axis=1)
            return attention(cfg, w, layer, x, seen)

        def held_norm(cfg, w, name, x):
            if not (name.startswith("ln_final") or ".ln" in name):
                return norm(cfg, w, name, x)  # of queries and keys, and of embeddings
            centred = x - x.mean(-1, keepdims=True) if cfg.norm == "layernorm" else x
            found[name] = np.sqrt((centred**2).mean(-1, keepdims=True) + cfg.norm_eps)
            if scales is None or name.startswith("mlm"):
                return norm(cfg, w, name, x)
            gain, bias = w.get(f"{name}.w", 1.0), w.get(f"{name}.b", 0.0)
            if cfg.norm == "rmsnorm_plus1" and f"{name}.w" in w:
                gain = 1 + gain
            return centred / scales[name] * gain + bias

        with (
            mock.patch.object(plain, "attention", held_attention),
            mock.patch.object(plain, "norm", held_norm),
        ):
            seen = plain.run(self.cfg, self.w, ids)
        return seen, read, found

    def rows(self, receiver) -> slice:
        kind, _, head = receiver
        cfg = self.cfg
        first = {"q": 0, "k": cfg.n_heads, "v": cfg.n_heads + cfg.n_kv_heads}[kind] + head
        return slice(first * cfg.d_head, (first + 1) * cfg.d_head)

    def outputs(self, ids, other_ids, sender, receiver, held):
        """Logits [pos d_vocab] once the sender has spoken to the receiver, and before."""
        seen, _, scales = self.run(ids)
        other = self.run(other_ids)[0]
        z = {layer: seen["z", layer].copy() for layer in range(self.cfg.n_layers)}
        z[sender[0]][:, sender[1]] = other["z", sender[0]][:, sender[1]]
        sent, read, _ = self.run(ids, z=z, scales=scales if held else None)
        if receiver != "logits":
            sent = self.run(ids, arrived=read, receiver=receiver)[0]
        return sent["output"], seen["output"]

    def effect(self, ids, other_ids, answer, wrong, sender, receiver, held) -> float:
        last, before = (x[-1] for x in self.outputs(ids, other_ids, sender, receiver, held))
        return (last[answer] - last[wrong]) - (before[answer] - before[wrong])


@settings(max_examples=30)
@given(
    cfg=configs(),
    held=st.booleans(),
    direction=st.sampled_from(["denoise", "noise"]),
    draw=st.integers(0, 10**6),
)
def test_effects_are_those_of_a_plain_route(cfg, held, direction, draw):
    assume(cfg.head != "none" and not (held and cfg.head == "mlm"))
    rng = np.random.default_rng(draw)
    model, pairs = random_model(cfg), made_pairs()
    receivers: list = ["logits"]
    if cfg.n_layers > 1:
        receivers += [
            (kind, int(rng.integers(1, cfg.n_layers)), int(rng.integers(heads)))
            for kind, heads in zip(
                "qkv", (cfg.n_heads, cfg.n_kv_heads, cfg.n_kv_heads), strict=True
            )
        ]
    options = {"direction": direction, "freeze_norms": held, "reduce": "none", "progress": False}
    frame = path_patch(model, pairs, None, receivers, **options)
    by_hand = Plain(model)
    runs = (CORRUPTED, CLEAN) if direction == "denoise" else (CLEAN, CORRUPTED)
    chosen = frame.iloc[rng.choice(len(frame), min(6, len(frame)), replace=False)]
    for line in chosen.itertuples():
        to = "logits" if line.to == "logits" else (line.to, line.to_layer, line.to_head)
        ids, other = runs[0][line.example], runs[1][line.example]
        ends = int(pairs.answer[line.example]), int(pairs.wrong[line.example])
        expected = by_hand.effect(ids, other, *ends, (line.from_layer, line.from_head), to, held)
        assert line.effect == pytest.approx(expected, rel=1e-7, abs=1e-8), (line, to)
        assert line.value == pytest.approx(line.baseline + line.effect)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


ANSWER = torch.tensor([4, 2])
READ = {
    "log_prob": (metrics.log_prob(ANSWER), lambda x, i: log_softmax(x[-1])[ANSWER[i]]),
    "log_prob in the middle": (
        metrics.log_prob(ANSWER, pos=2), lambda x, i: log_softmax(x[2])[ANSWER[i]],
    ),
    "all logits": (
        metrics.function(lambda x, examples: x.square().sum((1, 2)), "squares", of="logits"),
        lambda x, i: (x**2).sum(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("read", READ)
def test_whatever_a_metric_reads_of_the_logits(read, held):
    """Log-probabilities at any position, or all logits: the last norm is held under each."""
    metric, by_hand = READ[read]
    model, pairs = random_model(small_config(n_layers=2)), made_pairs()
    options = {"metric": metric, "reduce": "none", "freeze_norms": held, "progress": False}
    frame = path_patch(model, pairs, [(0, 1), (1, 2)], **options)
    route = Plain(model)
    for line in frame.itertuples():
        i, sender = line.example, (line.from_layer, line.from_head)
        after, before = route.outputs(CORRUPTED[i], CLEAN[i], sender, "logits", held)
        assert line.baseline == pytest.approx(by_hand(before, i))
        assert line.effect == pytest.approx(by_hand(after, i) - by_hand(before, i), abs=1e-8)


def nothing(paths, layer, layers):
    return []


def one_layer_less(paths, layer, layers, behind=paths._Paths.behind):
    own = paths.model.sites
    return [name for name in behind(paths, layer, layers) if own[name].layer < layers - 1]


def scales_left(paths, layer, layers, behind=paths._Paths.behind):
    return [name for name in behind(paths, layer, layers) if "scale" not in name]


def own_layer_held(paths, layer, layers, behind=paths._Paths.behind):
    return [paths.z(layer), *behind(paths, layer, layers)]


def same_run(*given, found=paths._paths):
    both = found(*given)
    return dataclasses.replace(both, other=both.base)


def other_way(model, pairs, direction, *rest, found=paths._paths):
    return found(model, pairs, "noise" if direction == "denoise" else "denoise", *rest)


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (paths._Paths, "behind", nothing),
        (paths._Paths, "behind", one_layer_less),
        (paths._Paths, "behind", scales_left),
        (paths._Paths, "behind", own_layer_held),
        (paths, "_paths", same_run),
        (paths, "_paths", other_way),
        (paths, "_with_scale", lambda metric, scale: metric),
        (paths, "_site", lambda model, part: f"blocks.{part.layer}.attn.hook_k"),
    ],
    ids=["nothing held", "one layer less", "no scales", "sender held", "same run", "other way",
         "last norm", "receiver"],
)  # fmt: skip
def test_mutants_of_path_patching_are_seen(monkeypatch, where, name, mutant):
    """The comparison with the plain route can fail."""
    model, pairs = random_model(small_config(n_layers=3)), made_pairs()
    receivers = ["logits", ("q", 2, 1), ("v", 1, 0)]
    by_hand = Plain(model)
    answer, wrong = int(pairs.answer[0]), int(pairs.wrong[0])

    def differs():
        try:
            frame = path_patch(
                model, pairs, None, receivers, freeze_norms=True, reduce="none", progress=False
            )
        except ValueError as error:
            return "nothing is sent" in str(error)
        return any(
            abs(line.effect - by_hand.effect(
                CORRUPTED[0], CLEAN[0], answer, wrong, (line.from_layer, line.from_head),
                "logits" if line.to == "logits" else (line.to, line.to_layer, line.to_head), True,
            )) > 1e-6
            for line in frame[frame["example"] == 0].itertuples()
        )  # fmt: skip

    assert not differs()
    monkeypatch.setattr(where, name, mutant)
    assert differs()


@settings(max_examples=15)
@given(cfg=configs(head="unembed", norm_position="pre", d_mlp=0, mlp_gated=False, n_experts=0,
                   mlp_clamp=None, mlp_linear_offset=0.0, experts_per_token=0, parallel=False,
                   parallel_shared_norm=False, expert_weights="chosen", router_bias=False,
                   final_softcap=None))  # fmt: skip
def test_with_norms_held_and_no_mlps_it_is_the_difference_in_attribution(cfg):
    model, pairs = random_model(cfg), made_pairs()
    frame = path_patch(model, pairs, freeze_norms=True, reduce="none", progress=False)
    parts, scales = [], []
    for tokens in (pairs.clean, pairs.corrupted):
        by_head = logit_attribution(model, tokens, pairs.answer, pairs.wrong, pos="end")
        heads = by_head[(by_head["component"] == "attn") & (by_head["head"] >= 0)]
        parts.append(heads.set_index(["layer", "head", "example"])["value"])
        scale = torch.ones(2)
        if model.ln_final is not None:
            cache = model.run_with_cache(tokens, "ln_final.hook_scale")[1]
            scale = cache["ln_final.hook_scale"][:, -1, 0]
        scales.append(scale.numpy())
    example = parts[0].index.get_level_values("example")
    expected = parts[0] * (scales[0] / scales[1])[example] - parts[1]
    found = frame.set_index(["from_layer", "from_head", "example"])["effect"]
    assert np.allclose(found.to_numpy(), expected.sort_index().loc[list(found.index)], atol=1e-9)


def test_norms_recomputed_are_another_number():
    model, pairs = random_model(small_config()), made_pairs()
    effects = [
        path_patch(model, pairs, freeze_norms=held, progress=False)["effect"]
        for held in (False, True)
    ]
    assert (effects[0] - effects[1]).abs().max() > 1e-3


def test_paths_of_a_last_layer_are_all_there_is():
    """Behind the last layer there is one path: patching z itself is the same."""
    model, pairs = random_model(small_config()), made_pairs()
    last = model.cfg.n_layers - 1
    senders = [(last, head) for head in range(model.cfg.n_heads)]
    paths = path_patch(model, pairs, senders, progress=False)
    patched = interp.patch(model, pairs, "z", layers=[last], by=("layer", "head"), progress=False)
    assert np.allclose(paths["effect"], patched["effect"], atol=1e-10)
    assert np.allclose(paths["stderr"], patched["stderr"], atol=1e-10)
    assert np.allclose(paths["value"], patched["value"], atol=1e-10)


def test_receivers_together_are_a_row_and_senders_in_their_order():
    model, pairs = random_model(small_config()), made_pairs()
    together = [("q", 2, 0), ("k", 2, 1), ("v", 1, 3)]
    frame = path_patch(model, pairs, [(0, 1)], [together, "logits", ("q", 2, 0)], progress=False)
    assert frame["row"].tolist() == [0, 0, 0, 1, 2]
    assert frame["to"].tolist() == ["q", "k", "v", "logits", "q"]
    assert frame["effect"].iloc[:3].nunique() == 1
    assert frame["effect"].iloc[0] != frame["effect"].iloc[4]
    assert frame["to_layer"].isna().tolist() == [False, False, False, True, False]
    every = path_patch(model, pairs, None, ("k", 1, 2), progress=False)
    assert set(every["from_layer"]) == {0} and len(every) == model.cfg.n_heads
    assert frame.attrs["forward_equivalents"] < frame.attrs["naive_equivalents"] + 4


NAMED = ["row", "from_layer", "from_head", "to", "to_layer", "to_head", "metric", "direction",
         "norms"]  # fmt: skip


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_frame_of_means_is_that_of_the_examples(direction, held):
    model, pairs = random_model(small_config()), made_pairs()
    receivers = ["logits", [("q", 2, 0), ("k", 1, 1)], ("v", 2, 3)]
    senders = [(1, 1), (0, 2), (0, 0)]
    options = {"direction": direction, "freeze_norms": held, "progress": False}
    long, means = (
        path_patch(model, pairs, senders, receivers, reduce=reduce, **options)
        for reduce in ("none", "mean")
    )
    assert list(long) == [*NAMED, "example", "value", "baseline", "effect"]
    assert list(means) == [*NAMED, "value", "baseline", "effect", "stderr", "n"]
    lines = [  # ordered by receiver, then sender; (1, 1) does not lie before ("k", 1, 1)
        *((*sender, "logits", None, None) for sender in sorted(senders)),
        *((*sender, *part) for sender in [(0, 0), (0, 2)] for part in receivers[1]),
        *((*sender, "v", 2, 3) for sender in sorted(senders)),
    ]
    rows = [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]
    named = {"metric": "logit_diff", "direction": direction,
             "norms": "held" if held else "recomputed"}  # fmt: skip
    expected = pd.DataFrame(lines, columns=NAMED[1:6]).assign(**named)
    expected.insert(0, "row", rows)
    expected = expected.astype({"to_layer": "Int64", "to_head": "Int64"})
    pd.testing.assert_frame_equal(means[NAMED], expected)
    for example in range(2):
        lines = long[example::2].reset_index(drop=True)
        pd.testing.assert_frame_equal(lines[NAMED], expected)
    assert (means["n"] == 2).all()
    base = model(pairs.corrupted if direction == "denoise" else pairs.clean)[:, -1]
    row = torch.arange(2)
    baseline = (base[row, pairs.answer] - base[row, pairs.wrong]).numpy()
    for i, line in enumerate(means.itertuples()):
        own = long.iloc[2 * i : 2 * i + 2]
        assert own["example"].tolist() == [0, 1]
        assert np.allclose(own["baseline"], baseline)
        assert np.allclose(own["value"] - own["baseline"], own["effect"])
        assert line.baseline == pytest.approx(baseline.mean())
        assert line.value == pytest.approx(own["value"].mean())
        assert line.effect == pytest.approx(own["effect"].mean())
        one, other = own["effect"]
        assert line.stderr == pytest.approx(abs(one - other) / 2)  # √½ |a − b| / √2


def test_paths_on_which_nothing_arrives_are_counted():
    """Later heads read nothing that a silent sender would have written."""
    model, pairs = random_model(small_config()), made_pairs()
    model.blocks[0].attn.W_O[1] = 0
    receivers = [("q", 2, 0), ("k", 2, 1)]
    frame = path_patch(model, pairs, [(0, 0), (0, 1), (1, 0)], receivers, progress=False)
    assert frame["effect"].eq(0).tolist() == [False, True, False] * 2
    assert frame.attrs["noop_paths"] == 2  # of 6


@pytest.mark.parametrize("receivers", ["logits", ("q", 2, 0), ["logits", ("k", 1, 0)]])
def test_the_bar_is_full_at_the_end_and_there_only_if_wanted(receivers, monkeypatch):
    asked, of = [], paths.counting

    @contextmanager
    def counted(total, title, shown):
        with of(total, title, shown) as bar, mock.patch.object(bar, "update") as update:
            yield bar
        asked.append((total, shown, sum(call.args[0] for call in update.call_args_list)))

    monkeypatch.setattr(paths, "counting", counted)
    model, pairs = random_model(small_config()), made_pairs()
    for options in ({}, {"progress": True}, {"progress": False}):
        path_patch(model, pairs, [(0, 0), (0, 1)], receivers, **options)
    assert asked == [(2, True, 2), (2, True, 2), (2, False, 2)]


@pytest.mark.parametrize("together", [False, True])
def test_what_path_patching_is_said_to_cost_is_what_it_runs(monkeypatch, together):
    """Both runs, for every sender one up to the last layer that receives, and the sweeps."""
    model, pairs = random_model(small_config()), made_pairs()
    senders, receivers = [(0, 1), (0, 2)], [("q", 1, 0), ("k", 1, 1), ("v", 1, 3)]
    swept, sweep = [], paths.engine.sweep

    def counted(*given, **options):
        frame = sweep(*given, **options)
        swept.append(frame.attrs["forward_equivalents"])
        return frame

    monkeypatch.setattr(paths.engine, "sweep", counted)
    chosen = [receivers] if together else receivers
    attrs = path_patch(model, pairs, senders, chosen, progress=False).attrs
    assert len(swept) >= 2
    runs = 2 + len(senders) * 2 / model.cfg.n_layers  # up to layer 1, which receives
    assert attrs["forward_equivalents"] == pytest.approx(runs + sum(swept))
    assert attrs["naive_equivalents"] == 2 + len(senders) + len(senders) * len(chosen)


def test_views_with_hooks_are_patched_as_they_run():
    """A view that silences a head is the model whose head writes nothing."""
    model, pairs = random_model(small_config()), made_pairs()
    silent = HookedTransformer(model.cfg, dtype=torch.float64)
    silent.load_state_dict(model.state_dict())
    silent.blocks[1].attn.W_O[2] = 0

    def mute(z, hook):
        z[:, :, 2] = 0

    view = model.with_hooks([(("z", 1), mute)])
    receivers = ["logits", ("q", 2, 1)]
    senders = [(0, 0), (1, 1)]
    one, two = (path_patch(m, pairs, senders, receivers, progress=False) for m in (view, silent))
    assert np.allclose(one["effect"], two["effect"], atol=1e-10)


def test_any_metric_and_one_pair():
    model, pairs = random_model(small_config()), made_pairs()
    for metric in (
        metrics.log_prob(pairs.answer),
        metrics.kl(pos="all"),
        metrics.rank(pairs.wrong),
    ):
        for held in (False, True):
            frame = path_patch(model, pairs, metric=metric, freeze_norms=held, progress=False)
            assert np.isfinite(frame["effect"]).all() and frame["metric"].eq(metric.name).all()
    seen = metrics.cache_function(lambda cache: cache["z", 0][:, 0, 0, 0], "blocks.0.attn.hook_z")
    frame = path_patch(model, pairs, metric=seen, progress=False)  # naive: a metric of a cache
    assert frame.loc[frame["from_layer"] > 0, "effect"].eq(0).all()
    one = path_patch(model, pairs[0], progress=False)
    assert one["stderr"].isna().all() and one["n"].eq(1).all()


# Planted paths -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seed"), [("induction", 0), ("induction", 1), ("grouped_induction", 0)]
)
def test_the_induction_head_reads_the_previous_token_head_by_its_keys(name, seed):
    known = planted.BUILDERS[name](seed=seed)
    cfg, pairs = known.model.cfg, pairs_of(known)
    (previous,), (induction,) = known.truth.roles.values()
    group = cfg.n_heads // cfg.n_kv_heads
    receivers = [
        (kind, 1, head)
        for kind in "qkv"
        for head in range(cfg.n_heads if kind == "q" else cfg.n_kv_heads)
    ]
    for direction, sign in (("denoise", 1), ("noise", -1)):
        frame = path_patch(
            known.model, pairs, None, ["logits", *receivers], direction=direction, progress=False
        )
        size = abs(frame["baseline"].iloc[0])
        is_path = (
            (frame["from_layer"] == previous[0]) & (frame["from_head"] == previous[1])
            & (frame["to"] == "k") & (frame["to_head"] == induction[1] // group)
        )  # fmt: skip
        is_end = (frame["to"] == "logits") & (frame["from_layer"] == 1)
        is_end &= frame["from_head"] == induction[1]
        assert is_path.sum() == is_end.sum() == 1
        assert (sign * frame.loc[is_path | is_end, "effect"] > 1.8 * size).all()
        assert frame.loc[~(is_path | is_end), "effect"].abs().max() < 0.15 * size


@pytest.mark.parametrize("seed", [0, 1])
def test_the_negative_head_reads_the_mover_by_its_queries(seed):
    known = planted.copy_suppression(seed=seed)
    (mover,), (negative,) = known.truth.roles.values()
    receivers = [(kind, *negative) for kind in "qkv"]
    frame = path_patch(known.model, pairs_of(known), None, ["logits", *receivers], progress=False)
    effect = frame.set_index(["to", "from_layer", "from_head"])["effect"]
    assert effect["logits", *mover] == pytest.approx(16, rel=0.02)
    assert effect["q", *mover] == pytest.approx(-4, rel=0.1)
    assert effect["logits", *negative] == pytest.approx(-8, rel=0.05)
    others = effect.drop([("logits", *mover), ("q", *mover), ("logits", *negative)])
    assert others.abs().max() < 0.1


@pytest.mark.parametrize("seed", [0, 1])
def test_backups_wake_by_their_queries_where_the_mover_falls_silent(seed):
    """Noised by a prompt without a name, the mover writes nothing: each backup adds .45 × 8."""
    known = planted.backup_movers(seed=seed)
    prompts = known.prompts(40, seed=2)
    nameless = prompts.clean.ids.clone()
    nameless[torch.arange(40), prompts.clean.roles["name"]] = 2  # a filler
    corrupted = Tokens(nameless, roles=prompts.clean.roles, bos=True)
    pairs = Pairs("nameless", prompts.clean, corrupted, prompts.answer, prompts.wrong)
    ((mover,), backups) = known.truth.roles.values()
    receivers = [(kind, *one) for kind in "qkv" for one in backups] + [[("q", *b) for b in backups]]
    frame = path_patch(known.model, pairs, [mover], receivers, direction="noise", progress=False)
    by_row = frame.drop_duplicates("row")
    assert np.allclose(by_row["effect"], [3.6, 3.6, 0, 0, 0, 0, 7.2], atol=0.15)


@pytest.mark.parametrize("control", ["random_control", "permuted_control"])
def test_controls_pass_nothing_on(control):
    known = planted.induction(seed=1)
    null, pairs = getattr(planted, control)(known, seed=3), pairs_of(known, 40)
    receivers = ["logits", *((kind, 1, head) for kind in "qk" for head in (0, 2))]
    found, nothing = (
        path_patch(one.model, pairs, None, receivers, progress=False)["effect"].abs().max()
        for one in (known, null)
    )
    assert nothing < 0.2 * found


# What raises ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("senders", "receivers", "message"),
    [
        ([(2, 0)], ("q", 1, 0), r"sender \(2, 0\) has no receiver behind it"),
        ([(1, 0)], ("q", 1, 0), "a head reads what earlier layers wrote"),
        ([(1, 0)], [("q", 1, 0), "logits"], "receiver .*has no sender before it"),
        (None, ("q", 0, 0), "has no sender before it"),
        (None, ("z", 1, 0), "kind 'q', 'k', 'v'"),
        (None, "loss", "receiver 'loss': expected 'logits' or"),
        (None, ("q", 3, 0), r"layer of receiver .*=3: expected 0 to 2"),
        (None, ("k", 1, 4), r"key-value head of receiver .*=4: expected 0 to 3"),
        ([], "logits", "senders is empty"),
        ([(1, 2, 3)], "logits", r"senders.*expected pairs \(layer, head\)"),
        ([(5, 0)], "logits", r"layer of sender \(5, 0\)=5: expected 0 to 2"),
        ([(0, 9)], "logits", r"head of sender .*=9: expected 0 to 3"),
        ([(0, 1), (0, 1)], "logits", r"senders: \(0, 1\) is there twice"),
        (None, [], "receivers is empty"),
        (None, [[]], "a list of receivers is empty"),
        (None, [[("q", 1, 0), ("q", 1, 0)]], r"receivers: .* is there twice"),
    ],
)
def test_what_has_no_path_is_named(senders, receivers, message, unchecked):
    with pytest.raises(ValueError, match=message):
        path_patch(random_model(small_config()), made_pairs(), senders, receivers, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "patch"}, "'denoise' or 'noise'"),
        ({"reduce": "sum"}, "'mean' or 'none'"),
    ],
)
def test_options(options, message, unchecked):
    model = random_model(small_config())
    with pytest.raises(ValueError, match=message):
        path_patch(model, made_pairs(), progress=False, **options)


def test_models_without_such_paths_are_refused(monkeypatch):
    pairs = made_pairs()
    masked = random_model(small_config(head="mlm", causal=False))
    with pytest.raises(ValueError, match="masked-LM head"):
        path_patch(masked, pairs, freeze_norms=True, progress=False)
    assert len(path_patch(masked, pairs, progress=False)) == 12
    encoder = small_config(causal=False, head="none")
    both = random_model(small_config(encoder=encoder, decoder_start_token_id=1))
    with pytest.raises(ValueError, match="encoder–decoder"):
        path_patch(both, pairs, progress=False)
    bridged = random_model(small_config())
    monkeypatch.setattr(type(bridged), "opaque", "it runs behind the bridge")
    with pytest.raises(ValueError, match="behind the bridge"):
        path_patch(bridged, pairs, progress=False)


def test_a_sender_that_says_the_same_in_both_runs_is_named():
    model, pairs = random_model(small_config()), made_pairs()
    model.blocks[0].attn.W_V[:] = 0
    model.blocks[0].attn.qkv_bias.zero_()
    with pytest.raises(ValueError, match="nothing is sent"):
        path_patch(model, pairs, [(0, 0)], progress=False)


def test_the_answer_is_read_at_the_end_that_the_pairs_name():
    """By default at their role "end", which need not be the last token."""
    model, last = random_model(small_config()), made_pairs()
    roles = {"end": torch.tensor([3, 2])}
    sides = (Tokens(side.ids, roles=roles) for side in (last.clean, last.corrupted))
    pairs = Pairs("random", *sides, last.answer, last.wrong)
    metric = metrics.logit_diff(pairs.answer, pairs.wrong, pos="end")
    frame = path_patch(model, pairs, progress=False)
    named = path_patch(model, pairs, metric=metric, progress=False)
    assert frame["effect"].tolist() == named["effect"].tolist()
    assert frame["effect"].tolist() != path_patch(model, last, progress=False)["effect"].tolist()
