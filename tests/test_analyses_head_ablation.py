"""Head ablation: the tables against hooks, what cannot be measured is left out or refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from analyses import head_ablation
from analyses._text import read_windows
from analyses.head_ablation import Config, examine, run
from interp import metrics
from interp.core.tokens import Tokens
from interp.data.tasks import Pairs
from interp.methods.ablation import cumulative_ablation, parts, removal_edits
from interp.model import HookedTransformer
from interp.report import Report
from tests.strategies import small_config
from tests.vocabularies import masked, model_of, whole_words

pytestmark = pytest.mark.usefixtures("unchecked")

CHEAP = {"n": 6, "top": 1, "random_sets": 1}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return model_of(whole_words(), n_heads=2)


@pytest.fixture
def measured(monkeypatch):
    """Measurements without figures, on pairs or on the task of the config."""

    def told(model, pairs=None, **options):
        kept = []
        monkeypatch.setattr(head_ablation, "show", lambda report, m, config: kept.append(m))
        config = Config(**CHEAP | options)
        if pairs is None:
            return run(model, config), kept[0]
        report = Report("T", "Q?")
        examine(report, model, pairs, config)
        return report, kept[0]

    return told


def csv(folder, text):
    (folder / "mine.csv").write_text(f"clean,corrupted,answer,wrong\n{text}")
    return folder / "mine.csv"


def without(model, pairs, layer, head):
    """By hand: the logit difference and −ln p of the answer with one head's z at zero."""

    def zero(z, hook):
        z[:, :, head] = 0

    logits = model.run_with_hooks(pairs.clean, [(("z", layer), zero)])
    rows, end = torch.arange(len(pairs)), pairs.clean.roles["end"]
    at = logits[rows, end]
    nats = -at.log_softmax(-1)[rows, pairs.answer]
    return (at[rows, pairs.answer] - at[rows, pairs.wrong]).numpy(), nats.numpy(), logits


# The tables against hooks --------------------------------------------------------------------


def test_the_tables_are_what_hooks_give(measured):
    torch.manual_seed(0)
    model = model_of(whole_words(), n_heads=2)
    _, m = measured(model, kinds=("zero",))
    pairs = interp.tasks.indirect_object(model, 6, 0)
    base, nats, logits = without(model, pairs, 0, slice(0, 0))
    ids = pairs.clean.ids

    def loss(logits):
        of = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return -of.mean(1).numpy()

    table = m.heads.of("zero")
    for head in range(2):
        value, cost, changed = without(model, pairs, 0, head)
        row, own = table.iloc[head], m.losses[m.losses["part"] == "head"].iloc[head]
        assert row["effect"] == pytest.approx((value - base).mean(), abs=1e-5)
        assert row["stderr"] == pytest.approx((value - base).std(ddof=1) / math.sqrt(6), rel=1e-3)
        assert own["answer"] == pytest.approx((cost - nats).mean(), abs=1e-5)
        assert own["text"] == pytest.approx((loss(changed) - loss(logits)).mean(), abs=1e-5)
    mlp = model.run_with_hooks(pairs.clean, [(("mlp_out", 0), lambda x, hook: torch.zeros_like(x))])
    rows = torch.arange(6)
    at = mlp[rows, pairs.clean.roles["end"]]
    value = (at[rows, pairs.answer] - at[rows, pairs.wrong]).numpy()
    effect = m.mlps.of("zero")["effect"][0]
    assert effect == pytest.approx((value - base).mean(), abs=1e-5)


def test_means_and_donors_are_those_the_config_names(model, measured):
    pairs = interp.tasks.indirect_object(model, 6, 0)
    metric = metrics.logit_diff(pairs.answer, pairs.wrong, pos="end")
    for options, edit in (
        ({"kinds": ("mean",)}, interp.edits.mean(pairs.both, per="pos")),
        ({"kinds": ("mean",), "per": "all"}, interp.edits.mean(pairs.both)),
        ({"kinds": ("mean",), "reference": "clean"}, interp.edits.mean(pairs.clean, per="pos")),
        ({"kinds": ("mean",), "reference": "corrupted"},
         interp.edits.mean(pairs.corrupted, per="pos")),
        ({"kinds": ("resample",)}, interp.edits.resample(pairs.corrupted, 0)),
        ({"kinds": ("resample",), "donors": "clean"}, interp.edits.resample(pairs.clean, 0)),
        ({"kinds": ("resample",), "donors": "own"}, interp.edits.patch(pairs.corrupted)),
    ):  # fmt: skip
        _, m = measured(model, pairs, **options)
        nodes = interp.nodes(model, "z", by=("layer", "head"))
        expected = interp.sweep(model, pairs.clean, nodes, edit=edit, metric=metric, progress=False)
        found = m.heads.of(options["kinds"][0])["effect"]
        assert np.allclose(found, expected["effect"], atol=1e-6), options


def test_only_what_is_asked_for_is_removed(measured):
    torch.manual_seed(0)
    cfg = small_config(n_layers=2, d_vocab=whole_words().vocab_size, n_ctx=64)
    model = HookedTransformer(cfg, tokenizer=whole_words())
    report, m = measured(model, kinds=("zero",), layers=(1,), heads=(0, 2), neurons=(0,))
    assert m.heads.table[["layer", "head"]].to_numpy().tolist() == [[1, 0], [1, 2]]
    assert m.mlps.table["layer"].tolist() == [1]
    assert m.neurons.table["layer"].unique().tolist() == [0]
    assert len(m.neurons.table) == cfg.d_mlp
    assert any(one.startswith("Neurons by zero ablation") for one in report.findings)
    expected = interp.ablate(
        model, interp.tasks.indirect_object(model, 6, 0).clean, "mlp.hook_post",
        ("layer", "neuron"), layers=[0], kind="zero", progress=False,
        metric=metrics.logit_diff(
            *(getattr(interp.tasks.indirect_object(model, 6, 0), one)
              for one in ("answer", "wrong")), pos="end"
        ),
    )  # fmt: skip
    assert np.allclose(m.neurons.of("zero")["effect"], expected["effect"], atol=1e-6)


def test_the_text_is_the_users(model, measured, tmp_path):
    text = "When Mary and John went to the store\nThe capital of France is called Paris\n"
    (tmp_path / "t.txt").write_text(text * 3)
    report, m = measured(model, kinds=("zero", "resample"), text=tmp_path / "t.txt", windows=4)
    assert any("4 windows" in one for one in report.skipped)
    assert any("windows are not equally long" in one for one in report.skipped)
    rows = m.losses[m.losses["kind"] == "zero"]
    assert rows["text"].notna().all()
    assert m.losses.loc[m.losses["kind"] == "resample", "text"].isna().all()
    tokens, _ = read_windows(model, tmp_path / "t.txt", width=64, windows=4)
    nodes = interp.nodes(model, "z", by=("layer", "head"))
    expected = interp.sweep(
        model, tokens, nodes, edit=interp.edits.zero(), metric=metrics.loss(), progress=False
    )
    assert np.allclose(rows["text"].to_numpy()[: len(nodes)], expected["effect"], atol=1e-6)
    assert "over the text without" in report.findings[-1]


# What is not there ---------------------------------------------------------------------------


def test_one_prompt_has_no_intervals_and_says_so(model, tmp_path):
    path = csv(tmp_path, "The capital of France is,The capital of Italy is,Paris,Rome\n")
    report = run(model, Config(**CHEAP, prompts=path))
    folder = report.write(tmp_path / "r").parent
    heads = pd.read_csv(folder / "heads.csv")
    assert heads["stderr"].isna().all() and not heads["named"].any()
    words = [*report.findings, *report.certainty, *report.doubts, *report.skipped]
    assert not any("nan" in one for one in words)
    assert any("one prompt, so nothing is tested" in one for one in words)
    assert any(
        "the mean over 2 clean and corrupted prompts, for each position" in one for one in words
    )
    assert ">nan<" not in (folder / "index.html").read_text("utf-8")
    report = run(model, Config(**CHEAP, prompts=path, reference="clean"))
    assert any("since there is one prompt only" in one for one in report.certainty)


def test_prompts_of_unequal_length_have_no_random_donor(model, measured, tmp_path):
    rows = (
        "The capital of France is,The capital of Italy is,Paris,Rome\n"
        "The capital city of France is,The capital city of Italy is,Paris,Rome\n"
    )
    report, m = measured(model, prompts=csv(tmp_path, rows))
    assert m.kinds == ("mean", "zero")
    assert any("Resample ablation: the prompts are not equally long" in one
               for one in report.skipped)  # fmt: skip
    assert any("since they are not equally long" in one for one in report.certainty)
    _, m = measured(model, prompts=csv(tmp_path, rows), donors="own")
    assert m.kinds == head_ablation.KINDS
    with pytest.raises(ValueError, match="donors='own'"):
        measured(model, prompts=csv(tmp_path, rows), kinds=("resample",))


def test_an_encoder_has_no_plain_loss(measured):
    torch.manual_seed(0)
    encoder = model_of(masked(), causal=False, head="mlm", norm="layernorm")
    report, m = measured(encoder, task="capitals", kinds=("mean", "zero"))
    assert any("predicts no next token" in one for one in report.skipped)
    assert m.losses["text"].isna().all() and m.losses["answer"].notna().all()
    assert (m.heads.table["effect"] != 0).any()


def test_attention_alone_has_no_mlps(measured):
    torch.manual_seed(0)
    bare = model_of(whole_words(), d_mlp=0)
    report, m = measured(bare, kinds=("zero",))
    assert m.mlps is None and "MLPs: this model has none." in report.skipped
    with pytest.raises(ValueError, match=r"neurons=\(0,\): .* it has no MLP"):
        measured(bare, neurons=(0,))


def test_one_head_has_no_second(measured):
    torch.manual_seed(0)
    report, m = measured(model_of(whole_words(), n_heads=1, n_kv_heads=1), kinds=("zero",))
    assert m.seconds is None
    assert m.sets["k"].tolist() == [1] and report.findings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": (1,)}, "layers=1: expected 0 to 0"),
        ({"heads": (0, 7)}, "heads=7: expected 0 to 1"),
        ({"neurons": (-2,)}, "neurons=-2: expected 0 to 0"),
    ],
)
def test_what_the_model_does_not_have_is_named_with_its_range(model, options, said):
    with pytest.raises(ValueError, match=said):
        run(model, Config(**CHEAP, **options))


def test_models_that_cannot_be_asked_are_refused(model):
    vectors = model_of(masked(), causal=False, head="none", tied=False)
    with pytest.raises(ValueError, match="no logits"):
        run(vectors, Config(**CHEAP))
    stack = small_config(causal=False, head="none")
    both = HookedTransformer(
        small_config(encoder=stack, d_vocab=stack.d_vocab, decoder_start_token_id=1)
    )
    with pytest.raises(ValueError, match=r"decoder_blocks\.attn\.hook_z"):
        run(both, Config(**CHEAP))
    experts = model_of(whole_words(), n_experts=2, experts_per_token=1)
    with pytest.raises(ValueError, match="made of experts"):
        run(experts, Config(**CHEAP, neurons=(0,)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kinds": ()}, "kinds"),
        ({"kinds": ("zero", "zero")}, "each once"),
        ({"kinds": ("knockout",)}, "expected some of mean, zero, resample"),
        ({"top": 0}, "top=0"),
        ({"random_sets": 0}, "random_sets=0"),
        ({"least": 1.0}, "least=1.0"),
        ({"n": 0}, "n=0"),
    ],
)
def test_settings_that_mean_nothing_raise(options, said):
    with pytest.raises(ValueError, match=said):
        Config(**options)


def test_faults_of_a_csv_file_are_named(model, tmp_path):
    (tmp_path / "bad.csv").write_text("clean,corrupted\na,b\n")
    with pytest.raises(ValueError, match=r"bad\.csv, line 1: no column 'answer', 'wrong'; there"):
        run(model, Config(prompts=tmp_path / "bad.csv"))
    path = csv(tmp_path, "The capital of France is,The capital of Italy is,Parisissimo,Rome\n")
    with pytest.raises(ValueError, match=r"mine\.csv, line 2"):
        run(model, Config(prompts=path))


# Trained models ------------------------------------------------------------------------------


def test_repetition_in_tinyworld_rests_on_few_heads():
    """Whatever its weights: a quarter of the heads suffices, and without half of them it is lost;
    one or two can be spared, since others make up for them."""
    model = interp.load("tinyworld", device="cpu")
    pairs = interp.tasks.induction(model, 12, 0)
    edit = interp.edits.mean(pairs.clean, per="pos")
    nodes = interp.nodes(model, "z", by=("layer", "head"))
    alone = interp.sweep(
        model, pairs.clean, nodes, edit=edit, progress=False,
        metric=metrics.logit_diff(pairs.answer, pairs.wrong, pos="end"),
    )  # fmt: skip
    ranked = nodes.iloc[np.argsort(-alone["effect"].abs().to_numpy(), kind="stable")]
    n = len(nodes)
    found = cumulative_ablation(
        model, pairs.clean, ranked, edit=edit, metric=metrics.accuracy(pairs.answer, pos="end"),
        counts=[n // 2, n - n // 4], orders=0, progress=False,
    ).set_index(["order", "removed"])  # fmt: skip
    assert found["baseline"].min() > 0.8
    assert found.loc[("least", n - n // 4), "value"] > 0.8 * found["baseline"].min()
    assert found.loc[("most", n // 2), "value"] < 0.5 * found["baseline"].min()


def test_induction_small_costs_what_was_recorded(shared_data, tmp_path):
    """Mean-ablating its heads 0.0 and 1.0 costs 3.90 and 3.20 nats."""
    folder = shared_data / "models" / "induction-small"
    model = interp.load(interp.convert(folder, tmp_path / "converted").folder)
    recorded = dict(np.load(folder / "eval.npz"))
    ids, labels = (torch.from_numpy(recorded[one]).long() for one in ("tokens", "labels"))
    end = torch.full((len(ids),), ids.shape[1] - 1)
    other = ids.clone()
    other[:, 0] = (other[:, 0] + 1) % 26
    clean, corrupted = (Tokens(one, roles={"end": end}) for one in (ids, other))
    pairs = Pairs("induction-small", clean, corrupted, labels, (labels + 1) % 26)
    made = removal_edits(clean, corrupted, clean, ("mean",))
    nodes = {"head": interp.nodes(model, "z", by=("layer", "head")), "mlp": None}
    losses = parts._losses(model, pairs, nodes, made, None, {}, parts.Options())
    assert losses["answer"].round(2).tolist() == [3.9, 3.2]


def test_stories_needs_no_single_head(shared_data, measured, tmp_path):
    """Zero-ablating one head costs about .04 nats at most."""
    model = interp.load(shared_data / "models" / "stories260K")
    texts = json.loads((shared_data / "text/tinystories_1000.json").read_text())[:12]
    (tmp_path / "t.txt").write_text("\n".join(" ".join(one.split()) for one in texts))
    _, m = measured(
        model, task="induction", kinds=("zero",), text=tmp_path / "t.txt", windows=12, width=128,
        bos=True,
    )  # fmt: skip
    heads = m.losses[m.losses["part"] == "head"].set_index(["layer", "head"])["text"]
    assert 0.02 < heads.max() < 0.06
