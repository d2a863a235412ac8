"""Activation patching: planted heads and paths are named and no others, the numbers are those of
plain patching, and what cannot be patched is named."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from analyses.activation_patching import Config, examine, run
from interp.data.tasks import Pairs
from interp.methods.baseline import measure_baseline
from interp.methods.patching import unrelated
from interp.report import Report
from interp.report.table import Table
from interp.zoo import planted
from tests.strategies import random_model, small_config
from tests.truth.by_hand import logit_diff
from tests.vocabularies import masked, model_of, whole_words

HEADS = ("heads", "paths", "control")


pytestmark = pytest.mark.usefixtures("one_thread")


def pairs_of(known: planted.Planted, n: int = 10) -> Pairs:
    prompts = known.prompts(n, seed=2)
    return Pairs(known.name, prompts.clean, prompts.corrupted, prompts.answer, prompts.wrong)


def examined(model, pairs: Pairs, **options) -> Report:
    report = Report("T", "Q?")
    examine(report, model, pairs, Config(**options))
    return report


def table(report: Report, name: str) -> pd.DataFrame:
    items = (item for section in report.sections for item in section.items)
    (found,) = [one.frame for one in items if isinstance(one, Table) and one.name == name]
    return found


def named(report: Report) -> set[tuple[int, int]]:
    """Every head that a finding names."""
    told = re.findall(r"L(\d+) H(\d+)", " ".join(report.findings))
    return {(int(layer), int(head)) for layer, head in told}


# Truth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "seed"),
    [("induction", 0), ("induction", 1), ("grouped_induction", 0), ("copy_suppression", 0)],
)
def test_findings_name_the_planted_heads_and_no_others(name, seed):
    known = planted.BUILDERS[name](seed=seed)
    report = examined(known.model, pairs_of(known), parts=HEADS, top=3)
    assert named(report) == set(known.truth.heads)
    first, second = (one for heads in known.truth.roles.values() for one in heads)
    group = known.model.cfg.n_heads // known.model.cfg.n_kv_heads
    reader = f"L1 KV{second[1] // group}" if group > 1 else f"L1 H{second[1]}"
    kind = "q" if name == "copy_suppression" else "k"
    (paths,) = [text for text in report.findings if text.startswith("Paths")]
    assert f"{reader} reads L0 H{first[1]} by {kind}" in paths
    assert paths.count(" reads ") == 1
    left = table(report, "together").set_index("nodes").loc["named heads", "denoise_share"]
    assert left == pytest.approx(1, abs=0.05)


def test_backups_that_no_patch_wakes_are_not_named():
    known = planted.backup_movers()
    report = examined(known.model, pairs_of(known), parts=HEADS, top=3)
    assert named(report) == set(known.truth.roles["mover"])


@pytest.mark.parametrize("control", ["random_control", "permuted_control"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_named_in_controls(control, seed):
    known = planted.induction(seed=1)
    null = getattr(planted, control)(known, seed)
    report = examined(null.model, pairs_of(known, 40), parts=("heads",))
    assert named(report) == set()
    assert "No position, layer, head or path is named" in report.findings[0]


def test_planted_neurons_come_first():
    known = planted.lookup()
    pairs = pairs_of(known, 48)
    layer = known.truth.neurons[0][0]
    report = examined(known.model, pairs, parts=("outputs",), neurons=(layer,))
    effects = table(report, "neurons").set_index("neuron")[["denoise", "noise"]].abs().max(axis=1)
    planted_ones = [neuron for _, neuron in known.truth.neurons]
    others = effects.drop(planted_ones)
    assert effects.iloc[0] == effects.max() and effects.idxmax() in planted_ones
    assert others.max() < 0.2 * effects.max()


def test_positions_say_where_the_answer_comes_from():
    """In the planted model the name stands at role "name" before layer 0, at "end" behind it."""
    known = planted.copy_suppression()
    prompts = known.prompts(60, seed=1)
    at = int(prompts.clean.roles["name"].mode().values)
    rows = (prompts.clean.roles["name"] == at).nonzero()[:, 0]
    pairs = Pairs("one place", prompts.clean[rows], prompts.corrupted[rows],
                  prompts.answer[rows], prompts.wrong[rows])  # fmt: skip
    report = examined(known.model, pairs, parts=("stream", "outputs", "heads", "positions"))
    stream = table(report, "residual-stream").set_index(["layer", "pos"])["denoise_share"]
    assert stream[0, at] == pytest.approx(1)
    assert stream[1].idxmax() == 9 and stream[0].idxmax() == at
    words = " ".join(report.findings)
    assert f"at “{at} name” before layer 0" in words
    assert "at “9 end” before layer 1" in words
    heads = table(report, "head-positions")
    best = heads.loc[heads["denoise"].abs().idxmax()]
    assert best["position"] == "9 end"


# Numbers -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patched():
    """A random model without norms of its own making: nothing is special about it."""
    cfg = small_config(n_layers=2, d_vocab=24, n_kv_heads=2, norm="rmsnorm")
    known = planted.induction()
    return random_model(cfg), pairs_of(known, 6)


def test_effects_are_those_of_plain_patching(patched):
    model, pairs = patched
    report = examined(model, pairs, top=3, parts=("heads",))
    options = {"by": ("layer", "head"), "progress": False}
    heads = table(report, "heads").set_index(["site", "layer", "head"])
    heads = heads.sort_index()  # the report has the strongest first
    gap = measure_baseline(model, pairs).gap
    for site in ("q", "k", "v", "pattern", "z"):
        plain = interp.patch(model, pairs, site, **options).set_index(["layer", "head"])
        own = heads.loc[site]
        assert np.allclose(own["denoise"], plain["effect"], atol=1e-9)
        assert np.allclose(own["denoise_stderr"], plain["stderr"], atol=1e-9)
    spread = interp.patch(model, pairs, "z", reduce="none", **options)
    wide = spread["effect"].to_numpy().reshape(-1, len(pairs))
    assert np.allclose(heads.loc["z"]["denoise_sd"], wide.std(1, ddof=1))
    examples = table(report, "examples")
    for (layer, head), rows in examples.groupby(["layer", "head"]):
        own = spread[(spread["layer"] == layer) & (spread["head"] == head)]
        assert np.allclose(rows["denoise"], own["effect"])
    if heads["denoise_share"].notna().all():
        assert np.allclose(heads.loc["z"]["denoise_share"], wide.mean(1) / gap.mean())
    turned = Pairs("turned", pairs.corrupted, pairs.clean, pairs.answer, pairs.wrong)
    back = interp.patch(model, turned, "z", **options)
    assert np.allclose(heads.loc["z"]["noise"], back["effect"], atol=1e-9)


def test_patched_together_is_one_run_with_all_of_them():
    known = planted.induction()
    pairs = pairs_of(known)
    report = examined(known.model, pairs, parts=("heads",))
    _, cache = known.model.run_with_cache(pairs.clean, "z")

    def put(z, hook):
        for layer, head in known.truth.heads:
            if layer == hook.layer:
                z[:, :, head] = cache["z", layer][:, :, head]

    view = known.model.with_hooks([("z", put)])
    effect = logit_diff(view, pairs.corrupted, pairs) - logit_diff(
        known.model, pairs.corrupted, pairs
    )
    row = table(report, "together").set_index("nodes").loc["named heads"]
    assert row["denoise"] == pytest.approx(effect, rel=1e-9) and row["count"] == 2


def test_controls_are_small_and_a_run_into_itself_is_nothing(patched):
    known = planted.induction()
    report = examined(known.model, pairs_of(known), parts=("stream", "heads", "control"))
    assert (table(report, "itself")["effect"] == 0).all()
    level = table(report, "control")["effect"].abs().max()
    assert 0 < level < 0.2 * table(report, "heads")["denoise"].abs().max()
    assert f"is larger than {level:.2f} logits" in " ".join(report.certainty)


def test_unrelated_words_are_none_of_the_pair():
    known = planted.induction()
    pairs = pairs_of(known)
    one, two = unrelated(known.model, pairs, 0)
    own = torch.stack([pairs.answer, pairs.wrong], 1)
    assert not (own == one[:, None]).any() and not (own == two[:, None]).any()
    assert (one != two).all()
    again, _ = unrelated(known.model, pairs, 0)
    assert torch.equal(one, again) and not torch.equal(one, unrelated(known.model, pairs, 1)[0])
    few = pairs[[0]]  # no other pair: any two ids
    a, b = unrelated(known.model, few, 0)
    assert {int(a), int(b)}.isdisjoint({int(few.answer), int(few.wrong)})


# Options and models --------------------------------------------------------------------------


def test_layers_and_heads_restrict(patched):
    model, pairs = patched
    report = examined(model, pairs, layers=(1,), heads=(0, 3), top=2, parts=("stream", *HEADS))
    heads = table(report, "heads")
    assert set(heads["layer"]) == {1}
    assert set(heads.query("site == 'z'")["head"]) == {0, 3}
    assert set(heads.query("site == 'k'")["head"]) == {0, 1}
    assert set(table(report, "residual-stream")["layer"]) == {1}
    assert "none reads another" in " ".join(report.skipped)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": (0, 7)}, "layers=7: expected 0 to 1"),
        ({"heads": (4,)}, "heads=4: expected 0 to 3"),
        ({"heads": ()}, "heads is empty: expected 0 to 3"),
        ({"neurons": (-3,)}, "neurons=-3: expected 0 to 1"),
    ],
)
def test_what_the_model_does_not_have_is_named(patched, options, message):
    model, pairs = patched
    with pytest.raises(ValueError, match=message):
        examined(model, pairs, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ()}, "expected some of stream"),
        ({"parts": ("paths",)}, "paths starts from the heads; add heads"),
        ({"parts": ("head",)}, "expected some of stream"),
        ({"top": 0}, "expected at least 1 head"),
        ({"least": 1.5}, "a share between 0 and 1"),
        ({"n": 0}, "at least 1 pair"),
    ],
)
def test_options_that_contradict(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_models_that_cannot_be_asked_are_named(patched):
    _, pairs = patched
    silent = model_of(masked(), causal=False, head="none", tied=False)
    with pytest.raises(ValueError, match="gives no logits"):
        run(silent, Config())
    encoder = small_config(causal=False, head="none", d_vocab=24)
    both = random_model(small_config(encoder=encoder, decoder_start_token_id=1, d_vocab=24))
    with pytest.raises(ValueError, match="encoder–decoder"):
        examined(both, pairs)
    bare = random_model(small_config(d_mlp=0, d_vocab=24))
    with pytest.raises(ValueError, match="no MLP; leave neurons out"):
        examined(bare, pairs, neurons=(0,))


def test_attention_alone_leaves_mlps_out(patched):
    _, pairs = patched
    report = examined(
        random_model(small_config(d_mlp=0, n_layers=2, d_vocab=24)),
        pairs,
        parts=("outputs", "heads"),
    )
    assert set(table(report, "sublayer-outputs")["site"]) == {"attn_out"}
    assert "no MLP" in " ".join(report.skipped)
    assert "all MLPs" not in set(table(report, "together")["nodes"])


def test_a_masked_model_is_asked_at_its_mask():
    report = run(model_of(masked(), causal=False, head="mlm"), Config(task="capitals", n=4, top=2))
    assert "Norms are not held before a masked-LM head" in " ".join(report.skipped)
    paths = table(report, "paths")
    assert paths["held"].isna().all() and paths["denoise"].notna().all()


def write(folder, *rows: str):
    path = folder / "mine.csv"
    path.write_text("clean,corrupted,answer,wrong\n" + "\n".join(rows) + "\n")
    return path


def test_one_prompt_has_no_intervals(tmp_path):
    path = write(tmp_path, "The capital of France is,The capital of Italy is,Paris,Rome")
    report = run(model_of(whole_words()), Config(prompts=path, top=2))
    heads = table(report, "heads")
    assert heads["denoise_stderr"].isna().all() and heads["denoise"].notna().all()
    words = [*report.findings, *report.certainty, *report.doubts]
    assert not re.search(r"\bnan\b", " ".join(words))
    report.write(tmp_path / "r")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("The capital of France is,The capital city of Italy is,Paris,Rome", "line 2: clean has"),
        ("The capital of France is,The capital of Italy is,Paris and Rome,Rome", "is 3 tokens"),
        ("The capital of France is,The capital of Italy is,Xyzzy,Rome", "unknown to the tokenizer"),
    ],
)
def test_prompts_that_are_no_pairs_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        run(model_of(whole_words()), Config(prompts=write(tmp_path, row)))


def test_the_bundled_model_is_explained():
    """What holds of any training of it: the last position ends up with the whole answer."""
    model = interp.load("tinyworld", device="cpu")
    report = run(model, Config(n=6, parts=("stream", "heads"), top=2))
    stream = table(report, "residual-stream").set_index(["layer", "pos"])["denoise_share"]
    last, end = stream.index.get_level_values("layer").max(), stream[0].index.max()
    assert stream[last].idxmax() == end and stream[last, end] > 0.8
    assert stream[0].idxmax() < end
    assert not report.warnings and len(report.findings) >= 4
    together = table(report, "together").set_index("nodes")["denoise_share"]
    assert together["all heads"] == pytest.approx(1, abs=0.1)
