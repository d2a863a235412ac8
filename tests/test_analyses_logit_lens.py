"""The report on lenses and direct attribution: its numbers, its controls, and where it does not
apply."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from analyses._lens.corrupted import DIFFERENCE, FIRST, Contrast, clean_against_corrupted
from analyses._lens.direct import divide, most_lost
from analyses._lens.reading import arrival, in_one_sentence, read_lenses
from analyses._lens.tuned import train_lens
from analyses._task import TaskConfig, task_pairs
from analyses.logit_lens import Config, examine, run
from interp.methods.baseline import measure_baseline
from interp.report import Report
from tests.vocabularies import masked, model_of, models_by_kind, whole_words

QUICK = {"n": 8, "steps": 2, "top": 4}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Matrices of this size lose time to a second thread; and few prompts train a lens here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analyses._lens.tuned.PROMPTS", 60)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tinyworld():
    return interp.load("tinyworld", device="cpu")


@pytest.fixture(scope="module")
def done(tinyworld):
    config = Config(n=12, steps=5, top=6)
    report = run(tinyworld, config)
    return SimpleNamespace(
        report=report,
        tables=tables_of(report),
        pairs=task_pairs(tinyworld, config),
        text=" ".join([*report.findings, *report.certainty]),
    )


def tables_of(report: Report) -> dict[str, pd.DataFrame]:
    items = [getattr(item, "table", item) for item in report.exhibits()]
    return {table.name: table.frame for table in items}


def told(report: Report) -> str:
    return " ".join([*report.findings, *report.certainty, *report.doubts, *report.skipped])


# On a model that does the task ----------------------------------------------------------------


def test_the_last_layer_is_the_model_itself(tinyworld, done):
    found = measure_baseline(tinyworld, done.pairs)
    read = done.tables["lens-by-prompt"]
    for lens in ("plain", "tuned"):
        last = read[(read["lens"] == lens) & (read["layer"] == 4)]
        assert np.allclose(last["logit_diff"], found.clean, atol=1e-3)
        assert np.allclose(last["kl"], 0, atol=1e-6)
    logits = tinyworld(done.pairs.clean)[:, -1]
    mine = logits.gather(1, done.pairs.answer[:, None])
    last = read[(read["lens"] == "plain") & (read["layer"] == 4)]
    assert last["answer_rank"].tolist() == (logits >= mine).sum(1).tolist()


def test_the_answer_comes_late_and_controls_see_nothing(done):
    arrived = done.tables["arrival"].groupby("lens")
    for lens in ("plain", "tuned"):
        own = arrived.get_group(lens)
        assert own["first_top"].median() >= 1  # not in the embedding
        assert own["first_top"].notna().mean() > 0.7
    read = done.tables["lens-by-prompt"]
    turned = read[read["lens"] == "turned"]
    assert (turned["answer_rank"] == 1).mean() < 0.05 and turned["answer_rank"].median() > 100
    last = read[(read["lens"] == "plain") & (read["layer"] == 4)]
    assert last["other_rank"].median() > 10 * last["answer_rank"].median()
    assert "top token in at most" in done.text and "another prompt" in done.text


def test_parts_add_up_and_the_rest_is_stated(done):
    parts, base = done.tables["direct-parts"], done.tables["baseline"]
    total = base["logit_diff"][0]
    assert parts["value"].sum() == pytest.approx(total, abs=1e-3)
    drawn = done.tables["direct-parts-figure"]
    drawn = drawn[drawn["towards"] == "answer − wrong answer"]
    assert drawn["value"].sum() == pytest.approx(total, abs=1e-3)
    assert drawn["part"].iloc[-1] == "all other parts" and len(drawn) == 7
    (finding,) = [one for one in done.report.findings if "mean logit difference is" in one]
    shown, rest = drawn["value"].iloc[:-1].sum(), drawn["value"].iloc[-1]
    assert f"6 parts shown write {shown:.2f}" in finding.replace("−", "-")
    assert f"other {len(parts) - 6} parts {rest:.2f}" in finding.replace("−", "-")
    assert parts["random_pair"].abs().max() < 0.4 * parts["value"].abs().max()
    layers = done.tables["direct-layers-figure"]["value"].sum()
    outside = parts[parts["layer"] == -1]["value"].sum()
    assert layers + outside == pytest.approx(total, abs=1e-3)


def test_neurons_are_parts_of_their_mlp(tinyworld, done):
    neurons = done.tables["direct-neurons"]
    assert len(neurons) == 6 and neurons["value"].is_monotonic_decreasing
    first = neurons.iloc[0]
    _, cache = tinyworld.run_with_cache(done.pairs.clean)
    layer, neuron = int(first["layer"]), int(first["neuron"])
    act = cache["mlp.hook_post", layer][:, -1, neuron]
    rows = torch.arange(12)
    W_U = tinyworld.W_U.T
    aim = (W_U[done.pairs.answer] - W_U[done.pairs.wrong]) * tinyworld.ln_final.w
    aim = (aim - aim.mean(1, keepdim=True)) / cache["ln_final.hook_scale"][rows, -1]
    mine = act * (aim @ tinyworld.blocks[layer].mlp.W_out[neuron])
    assert first["value"] == pytest.approx(float(mine.mean()), abs=1e-4)


def test_removing_heads_is_a_hooked_run(tinyworld, done):
    row = done.tables["direct-and-total-by-head"].iloc[0]

    def zero(z, hook):
        z[:, -1, int(row["head"])] = 0

    view = tinyworld.with_hooks([(("z", int(row["layer"])), zero)])
    lost = measure_baseline(tinyworld, done.pairs).clean - measure_baseline(view, done.pairs).clean
    assert row["total"] == pytest.approx(lost.mean(), abs=1e-3)


def test_swapped_answers_turn_every_sign(tinyworld, done):
    pairs = done.pairs
    there = divide(tinyworld, pairs, pairs.answer, pairs.wrong, "head", [0, 1, 2, 3])
    back = divide(tinyworld, pairs, pairs.wrong, pairs.answer, "head", [0, 1, 2, 3])
    assert np.allclose(there.values, -back.values, atol=1e-5)
    assert there.error < 1e-3


def test_the_first_prompt_is_shown_with_its_words(done):
    top = done.tables["top-tokens"]
    last = top[(top["lens"] == "plain") & (top["layer"] == 4)].iloc[0]
    assert last["first"] in done.tables["prompts"]["clean"][0]
    places = done.tables["positions"]
    words = done.pairs.clean.strings[0]
    assert places["token"].tolist() == words * (len(places) // len(words))
    cells = done.tables["ranks-over-the-prompt"]
    assert np.allclose(10 ** cells["log10_rank"], cells["answer_rank"])


def test_the_first_screen_is_the_ranks_and_three_short_findings(done):
    report = done.report
    assert report.headline == (
        "The answer can be read after 1 of 4 layers: from there on it is the likeliest token where "
        "the prompt asks for it, and not where it asks for another."
    )
    screen = report.first_screen()
    assert [item.name for item in screen.items] == ["ranks-over-the-prompt"]
    assert all(len(finding.split()) <= 25 and finding.at for finding in screen.findings)
    written, lost, control = screen.findings
    parts = done.tables["direct-parts"]
    most = parts.loc[parts["value"].idxmax()]
    assert written.startswith(f"{most['part']} itself writes most towards the answer")
    assert f"{most['value']:.1f} logits" in written
    # Of twelve prompts no loss is beyond chance, corrected for the six heads that were removed.
    assert lost == "Of the heads that write most, none takes the answer along when it is removed."
    assert "100\u00a0% of prompts that ask for it, 0\u00a0% of others" in control
    report.html()  # every link leads somewhere


def contrast_of(*, lead: tuple, top: tuple, n: int = 20) -> Contrast:
    """Per layer, whether the logit difference and the top token tell clean from corrupted."""
    rows = []
    for layer, (leads, tops) in enumerate(zip(lead, top, strict=True)):
        for what, holds in ((DIFFERENCE, leads), (FIRST, tops)):
            rows.append(
                {
                    "lens": "plain",
                    "layer": layer,
                    "what": what,
                    "clean": 1.0,
                    "n": n,
                    "corrupted": 0.0,
                    "difference": 1.0,
                    "low": 0.5 if holds else -0.5,
                }
            )
    return clean_against_corrupted(pd.DataFrame(rows), "plain", 1e-6)


@pytest.mark.parametrize(
    ("lead", "top", "middle", "said"),
    [
        ((0, 1, 1), (0, 1, 1), 1, "The answer can be read after 1 of 2 layers: from there on"),
        ((1, 1, 1), (1, 1, 1), 0, "The answer can be read before the first layer"),
        ((0, 0, 1), (0, 0, 1), 2, "The answer can be read only at the output"),
        ((0, 1, 1), (0, 0, 1), 1, "The answer can be read only at the output"),
        ((0, 1, 1), (0, 1, 0), 1, "After 1 of 2 layers the model leans towards the answer"),
        ((1, 1, 1), (0, 0, 0), None, "Before the first layer the model leans towards the answer "
         "where the prompt asks for it, but in half of the prompts or more another"),
        ((1, 1, 0), (1, 1, 1), 0, "The answer appears at no layer"),
    ],
)  # fmt: skip
def test_the_answer_is_true_of_every_outcome(lead, top, middle, said):
    assert in_one_sentence(contrast_of(lead=lead, top=top), middle, 2).startswith(said)


@pytest.mark.parametrize(
    ("total", "written", "n", "said"),
    [
        (5.0, 0.1, 20, "it acts through later layers"),
        (5.0, 4.0, 20, "Without L0 H1, 5.0 logits of the answer's lead are lost; it writes 4.0"),
        (0.02, 0.1, 20, "none takes the answer along"),
        (-3.0, 0.1, 20, "none takes the answer along"),
        (1e-9, 1e-9, 1, "none takes the answer along"),
        (2.0, 1.9, 1, "Without L0 H1, 2.0 logits"),
    ],
)
def test_what_removing_a_head_takes_is_true_of_every_outcome(total, written, n, said):
    report = Report("T", "Q?")
    removed = pd.DataFrame(
        {
            "part": ["L0 H1", "L0 H0"],
            "direct": [written, 0.0],
            "n": n,
            "total": [total, -4.0],
            "total_stderr": np.nan if n == 1 else 0.01,
        }
    )
    most_lost(report, removed, 1e-6)
    assert said in report.findings[0] and len(report.findings[0].split()) <= 25


def test_arrival_is_the_first_and_the_lasting_layer():
    read = pd.DataFrame(
        {
            "lens": "plain",
            "example": [0] * 4 + [1] * 4,
            "layer": [0, 1, 2, 3] * 2,
            "answer_rank": [2, 1, 3, 1, 5, 4, 3, 2],
            "logit_diff": [-1, 1, 1, 1, 1, 1, 1, -1],
        }
    )
    found = arrival(read)
    assert found.iloc[0][["first_top", "top_for_good", "ahead_for_good"]].tolist() == [1, 3, 1]
    assert found.iloc[1][["first_top", "top_for_good", "ahead_for_good"]].isna().all()


def test_sets_of_answers_are_followed(tinyworld):
    pairs = task_pairs(tinyworld, TaskConfig(task="greater-than", n=6))
    assert pairs.answer.ndim == 2
    read = read_lenses(tinyworld, pairs, [4], None, 0)
    last = read[read["lens"] == "plain"]
    assert np.allclose(last["logit_diff"], measure_baseline(tinyworld, pairs).clean, atol=1e-3)


# What the tuned lens is trained on -----------------------------------------------------------


def test_the_lens_is_trained_on_other_prompts_or_on_a_text(tinyworld, tmp_path):
    config = Config(**QUICK)
    pairs = task_pairs(tinyworld, config)
    report = Report("T", "Q?")
    trained = train_lens(report, tinyworld, pairs, [0, 4], config)
    assert trained.lens.layers == (0,) and "other prompts of" in trained.source
    assert "of one form" in told(report)
    lines = [f"The capital of France is Paris number {i}." for i in range(20)]
    (tmp_path / "mine.txt").write_text("\n".join(lines))
    report = Report("T", "Q?")
    given = Config(**QUICK, text=tmp_path / "mine.txt", windows=10)
    trained = train_lens(report, tinyworld, pairs, [0, 4], given)
    assert trained.source == "the text mine.txt"
    assert "the first 10 windows" in told(report)
    assert trained.lens.made_of["rows"] + trained.lens.made_of["held_out_rows"] == 10


def test_one_prompt_has_no_interval_and_no_tuned_lens(tinyworld, tmp_path):
    (tmp_path / "mine.csv").write_text(
        "clean,corrupted,answer,wrong\n"
        "The capital of France is,The capital of Italy is,Paris,Rome\n"
    )
    report = run(tinyworld, Config(prompts=tmp_path / "mine.csv", top=3))
    assert "it takes at least 8" in told(report) and "all prompts share one answer" in told(report)
    assert "nan" not in told(report) and "NaN" not in report.to_markdown()
    assert tables_of(report)["direct-parts"]["low"].isna().all()


def test_few_prompts_of_ones_own_are_said_to_be_known_by_heart(tinyworld):
    pairs, report = task_pairs(tinyworld, Config(n=8)), Report("T", "Q?")
    config = Config(prompts=Path("mine.csv"), steps=1)
    trained = train_lens(report, tinyworld, pairs, [3, 4], config)
    assert trained.source == "the prompts themselves" and "by heart" in told(report)


# Other models --------------------------------------------------------------------------------


def examined(model, **options) -> Report:
    config = Config(**(QUICK | {"tuned": False} | options))
    report = Report("T", "Q?")
    examine(report, model, task_pairs(model, config), config)
    return report


def test_a_masked_model_is_read_but_not_divided():
    model = model_of(masked(), causal=False, head="mlm")
    report = examined(model)
    assert "head='mlm'" in told(report) and "predicts masked tokens" in told(report)
    tables = tables_of(report)
    assert "lens-by-layer" in tables and "direct-parts" not in tables


def test_a_post_norm_model_is_read_and_what_that_means_is_said():
    report = examined(model_of(whole_words(), norm_position="post"))
    assert "post-norm" in told(report) and "ablate the parts instead" in told(report)
    assert "direct-parts" not in tables_of(report)


def test_behind_output_norms_layers_are_parts_but_heads_are_not():
    report = examined(model_of(whole_words(), norm_position="both"))
    parts = tables_of(report)["direct-parts"]
    assert "L0 attention" in set(parts["part"]) and (parts["head"] == -1).all()
    assert "a norm stands between" in told(report)
    assert "direct-and-total" not in tables_of(report)


def test_a_model_without_mlps_has_no_neurons():
    report = examined(model_of(whole_words(), d_mlp=0))
    assert "needs an MLP" in told(report) and "direct-neurons" not in tables_of(report)


def test_layers_restrict_what_is_read_and_divided(tinyworld):
    report = examined(tinyworld, layers=(1,), neurons=False)
    tables = tables_of(report)
    assert set(tables["lens-by-layer"]["layer"]) == {1, 4}
    parts = tables["direct-parts"]
    assert set(parts.loc[parts["head"] >= 0, "layer"]) == {1}
    assert "L2 attention" in set(parts["part"])
    assert parts["value"].sum() == pytest.approx(tables["baseline"]["logit_diff"][0], abs=1e-3)
    assert "neurons is off" in told(report) and "tuned is off" in told(report)


def test_models_and_layers_that_do_not_fit_are_errors():
    model = models_by_kind()["whole words"]
    with pytest.raises(ValueError, match="layers=7: expected 0 to 1"):
        run(model, Config(layers=(0, 7), n=4))
    blind = model_of(masked(), causal=False, head="none", tied=False)
    with pytest.raises(ValueError, match="gives no logits"):
        run(blind, Config(n=4))
    opaque = model_of(whole_words())
    opaque.opaque = "the model runs behind the bridge"
    with pytest.raises(ValueError, match="behind the bridge"):
        run(opaque, Config(n=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"top": 0}, "top=0"),
        ({"steps": -1}, "steps=-1"),
        ({"width": 1}, "width=1"),
        ({"windows": 1}, "windows=1"),
        ({"layers": ()}, r"layers=\(\)"),
        ({"tuned": False, "text": "a.txt"}, "tuned is off"),
    ],
)
def test_bad_configs_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)
