"""The report on attention heads: planted heads are found in it, every head has a page, and what a
model cannot show is said."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch

from analyses._heads.words import Lead, _matters_most, _reads, answer
from analyses.attention_heads import EFFECTS, TABLES, Config, examine, run
from interp.data.tasks import Pairs
from interp.model import HookedTransformer
from interp.report import Report
from interp.zoo import planted
from tests.strategies import small_config
from tests.test_contract import check_page
from tests.vocabularies import masked, model_of, whole_words

QUICK = {"n": 4, "null": 10, "shown": 1, "repeats": 4}


def pairs_of(known, n=12) -> Pairs:
    made = known.prompts(n)
    return Pairs(known.name, made.clean, made.corrupted, made.answer, made.wrong)


def examined(known, folder, **options):
    config = Config(**{"null": 100, "shown": 1} | options)
    report = examine(Report("T", "Q?"), known.model, pairs_of(known), config)
    return report, report.write(folder / "r").parent


def table(folder, name="heads") -> pd.DataFrame:
    return pd.read_csv(folder / f"{name}.csv")


@pytest.fixture(scope="module")
def induction(tmp_path_factory):
    known = planted.induction()
    return known, *examined(known, tmp_path_factory.mktemp("heads"))


def test_planted_heads_are_named_and_matter(induction):
    known, report, folder = induction
    frame = table(folder).set_index(["layer", "head"])
    (previous,), (inductive,) = (known.truth.roles[one] for one in ("previous_token", "induction"))
    assert frame.loc[previous, "label"] == "previous token"
    assert frame.loc[inductive, "roles"] == "induction, name mover"
    assert frame.loc[inductive, "end_role"] == "answer"
    assert frame.loc[inductive, "end_share"] > 0.99
    assert (frame["label"].drop([previous, inductive]) == "mixed").all()
    effect = frame["task_effect"].abs()
    assert set(effect.nlargest(2).index) == {previous, inductive}
    (names,) = [finding for finding in report.findings if "heads have a name" in finding]
    assert f"induction L{inductive[0]} H{inductive[1]}" in names
    assert "2 of 8 heads have a name" in names
    assert report.headline == (
        "Of 8 heads, 1 looks behind an earlier occurrence of the same token (induction) and 1 "
        "looks at the previous token; the other 6 have no clear role."
    )
    fed = table(folder, "composition")
    best = fed[fed["kind"] == "k"].iloc[0]
    assert (best["from_layer"], best["from_head"]) == previous
    assert (best["to_layer"], best["to_head"]) == inductive
    feeding = report.findings[-1]
    assert f"L{previous[0]} H{previous[1]} (previous token)" in feeding


def test_the_first_screen_shows_the_wall_and_three_short_findings(induction):
    known, report, folder = induction
    (previous,), (inductive,) = (known.truth.roles[one] for one in ("previous_token", "induction"))
    screen = report.first_screen()
    assert [item.name for item in screen.items] == ["wall"]
    assert table(folder, "wall").equals(table(folder)[["layer", "head", "label"]])
    assert all(len(finding.split()) <= 25 and finding.at for finding in screen.findings)
    matters, reads, unexplained = screen.findings
    frame = table(folder).set_index(["layer", "head"])["task_effect"]
    base = table(folder, "baseline")["logit_diff"][0]
    strongest = frame.abs().idxmax()
    assert f"Without L{strongest[0]} H{strongest[1]} (" in matters
    instead = f"{base + frame[strongest]:.1f} instead of {base:.1f} logits".replace("-", "−")
    assert instead in matters
    assert f"Induction head L1 H{inductive[1]} finds its place by what L0 H{previous[1]}" in reads
    pages = {
        f"L{layer} H{head}": f"heads/L{layer}H{head}.html" for layer, head in known.truth.heads
    }
    for finding in report.findings:
        for name, to in finding.links.items():
            page, _, anchor = to.partition("#")
            assert page == f"heads/{name.replace(' ', '')}.html"
            assert bool(anchor) == (name == f"L1 H{inductive[1]}")
    assert set(pages) <= {name for finding in report.findings for name in finding.links}
    assert unexplained.startswith("Heads without a role make up 1\u00a0% of all")


def of_heads(labels, effects, stderr=0.01, **columns) -> pd.DataFrame:
    return pd.DataFrame(
        {"layer": 0, "head": range(len(labels)), "label": labels, "roles": labels, "n": 20,
         "task_effect": effects, "task_stderr": stderr, "loss_effect": effects} | columns
    )  # fmt: skip


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["mixed", "mixed"], "None of the 2 heads has a role"),
        (["local", "name mover"], "Of 2 heads, 1 copies the answer to where it is asked for and 1 "
         "looks at the last few tokens."),
        (["negative mover"] * 2 + ["mixed"], "Of 3 heads, 2 hold the answer back; the other one "
         "has no clear role."),
        (["itself", "local", "local", "induction", "induction", "first token", "mixed", "mixed"],
         "and 2 have another role; the other 2 have no clear role."),
        (["itself", "local", "local", "induction", "induction"], "and 1 has another role."),
    ],
)  # fmt: skip
def test_the_answer_counts_the_roles(labels, said):
    assert said in answer(of_heads(labels, 0.0))


@pytest.mark.parametrize(
    ("effects", "said"),
    [
        ([-3.0, 0.1], "Without L0 H0 the right answer leads the wrong one by −1.0 instead of 2.0"),
        ([3.0, 0.1], "Without L0 H0 the right answer leads the wrong one by 5.0 instead of 2.0"),
        ([0.02, -0.01], "No head alone clearly matters to the task; L0 H0 changes the answer's "
         "lead most: by +0.02 ± 0.01"),
        ([1e-9, 0.0], "by no more than rounding"),
        ([np.nan, np.nan], None),
    ],
)  # fmt: skip
def test_what_matters_most_is_true_of_every_outcome(effects, said):
    report, frame = Report("T", "Q?"), of_heads(["mixed", "local"], effects)
    _matters_most(report, frame, Lead(2.0, 1e-6), lambda layer, head: f"#head-L{layer}H{head}")
    assert [said in finding for finding in report.findings] == ([True] if said else [])
    assert all(len(finding.split()) <= 25 for finding in report.findings)


def test_of_one_prompt_the_largest_effect_is_stated_and_a_feeder_at_chance_is_none():
    report, link = Report("T", "Q?"), lambda layer, head: f"#head-L{layer}H{head}"
    frame = of_heads(["mixed", "local"], [0.02, 0.0], stderr=np.nan, n=1)
    _matters_most(report, frame, Lead(2.0, 1e-6), link)
    assert report.findings[0].startswith("Without L0 H0")
    frame = of_heads(["local", "induction"], 0.0)
    fed = pd.DataFrame([{"kind": "k", "from_layer": 0, "from_head": 0, "to_layer": 0, "to_head": 1,
                         "times": 1.2}])  # fmt: skip
    _reads(report, frame, fed, link)
    assert (
        "No earlier head clearly feeds the induction heads: L0 H1 reads L0 H0 1.2"
        in (report.findings[1])
    )


def test_effects_are_those_of_a_mean_in_place_of_z(induction):
    known, _, folder = induction
    frame, pairs = table(folder).set_index(["layer", "head"]), pairs_of(known)
    model, end = known.model, pairs.clean.shape[1] - 1
    rows = torch.arange(len(pairs))

    def difference(logits):
        at = logits[:, end]
        return (at[rows, pairs.answer] - at[rows, pairs.wrong]).mean().item()

    base = difference(model(pairs.clean))
    ids = torch.cat([pairs.clean.ids, pairs.corrupted.ids])
    for layer, head in known.truth.heads:
        mean = model.run_with_cache(ids, ("z", layer))[1]["z", layer][:, :, head].mean(0)

        def put(z, hook, head=head, mean=mean):
            z[:, :, head] = mean

        logits = model.run_with_hooks(pairs.clean, [(("z", layer), put)])
        expected = difference(logits) - base
        assert frame.loc[(layer, head), "task_effect"] == pytest.approx(expected, rel=1e-5)


def test_nothing_is_named_in_a_control(tmp_path):
    control = planted.random_control(planted.induction(), seed=5)
    report, folder = examined(control, tmp_path, null=25)
    assert (table(folder)["label"] == "mixed").all()
    assert report.headline.startswith("None of the 8 heads has a role")
    assert any("0 of 8 heads have a name: none" in finding for finding in report.findings)
    assert any("cannot do the task" in one for one in report.warnings)


def test_every_head_has_a_page_and_they_are_linked_in_order(induction):
    known, report, folder = induction
    names = [f"heads/L{layer}H{head}.html" for layer in range(2) for head in range(4)]
    assert list(report.pages) == names
    index = check_page(folder / "index.html")
    pages = [a["href"] for a in index.all("a") if a["href"].startswith("heads/")]
    assert pages[-len(names) :] == names  # behind those of the findings
    (inductive,) = known.truth.roles["induction"]
    page = check_page(folder / f"heads/L{inductive[0]}H{inductive[1]}.html")
    for words in ("What does L1 H", "Tokens raised and lowered", "Who feeds it", "All its scores"):
        assert words in page.text
    assert f"L{inductive[0]} H{inductive[1]}: induction" in page.text
    links = [a["href"] for a in page.all("a")]
    assert links[0] == "../index.html" and links[1] == "../" + names[names.index(
        f"heads/L{inductive[0]}H{inductive[1]}.html") - 1]  # fmt: skip
    assert {"../heads.csv", "../head-roles.csv", "../attention.csv"} <= set(links)
    raw = (folder / f"heads/L{inductive[0]}H{inductive[1]}.html").read_text("utf-8")
    assert len(raw) < 100_000
    viewer = json.loads(re.search(r'<script type="application/json">(.*?)</script>', raw, re.S)[1])
    assert (viewer["layers"], viewer["heads"]) == ([inductive[0]], [inductive[1]])
    assert [len(prompt["pieces"][0]) for prompt in viewer["prompts"]] == [1, 1]
    assert viewer["labels"] == ["induction"]


def test_some_heads_alone_are_removed_and_paged(tmp_path):
    known = planted.induction()
    report, folder = examined(known, tmp_path, layers=(1,), heads=(2, 0), null=10)
    assert list(report.pages) == ["heads/L1H0.html", "heads/L1H2.html"]
    frame = table(folder).set_index(["layer", "head"])
    assert frame.loc[[(1, 0), (1, 2)], list(EFFECTS)].notna().all(axis=None)
    assert frame.drop([(1, 0), (1, 2)])[list(EFFECTS)].isna().all(axis=None)
    config = Config(layers=(2,))
    with pytest.raises(ValueError, match="layers=2: expected 0 to 1"):
        examine(Report("T", "Q?"), known.model, None, config)
    with pytest.raises(ValueError, match="heads=-5: expected 0 to 3"):
        examine(Report("T", "Q?"), known.model, None, Config(heads=(-5,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null": 0}, "null=0: expected at least 1"),
        ({"repeats": 1}, "repeats=1: expected at least 2"),
        ({"length": 1}, "length=1"),
        ({"shown": 0}, "shown=0"),
        ({"width": 1}, "width=1"),
        ({"windows": 0}, "windows=0"),
        ({"n": 0}, "n=0"),
    ],
)
def test_bad_configs_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_a_text_of_ones_own(tmp_path):
    model = model_of(whole_words(), n_heads=2)
    (tmp_path / "t.txt").write_text("Mary went to the store\nthe king gave a book to the queen\n")
    config = Config(text=tmp_path / "t.txt", width=6, windows=2, task="induction", **QUICK)
    report = run(model, config)
    assert any("first 2 windows" in one for one in report.skipped)
    folder = report.write(tmp_path / "r").parent
    assert set(table(folder, "head-tokens")["source"]) > {"(mean)"}
    assert {path.stem for path in folder.glob("*.csv")} <= set(TABLES)
    assert "Mary" in (folder / "index.html").read_text("utf-8")


def test_an_encoder_without_logits_shows_where_it_looks(tmp_path):
    both = model_of(masked(), causal=False, head="none", tied=False)
    report = run(both, Config(**QUICK))
    said = " ".join(report.skipped)
    for part in ("gives no logits", "effect on the loss", "induction, name mover", "head='none'"):
        assert part in said, part
    folder = report.write(tmp_path / "r").parent
    frame = table(folder)
    assert frame[["copying", "task_effect", "loss_effect"]].isna().all(axis=None)
    assert not (folder / "effects.csv").exists() and (folder / "heads/L0H0.html").is_file()


def test_of_two_stacks_the_encoder_is_shown():
    tokenizer = whole_words()
    encoder = dataclasses.replace(
        small_config(d_vocab=tokenizer.vocab_size, n_ctx=64, n_layers=2), causal=False, head="none"
    )
    cfg = small_config(
        n_layers=1, d_vocab=tokenizer.vocab_size, n_ctx=64, encoder=encoder,
        decoder_start_token_id=1,
    )  # fmt: skip
    report = run(HookedTransformer(cfg, tokenizer=tokenizer), Config(**QUICK))
    assert "these are the encoder's" in report.skipped[0]
    assert len(report.pages) == 2 * cfg.n_heads


def test_one_prompt_has_no_errors_and_says_so(tmp_path):
    known = planted.induction()
    pairs = pairs_of(known, 1)
    report = examine(Report("T", "Q?"), known.model, pairs, Config(null=5))
    words = " ".join([*report.findings, *report.certainty])
    assert "nan" not in words and "one prompt only" in words
    frame = table(report.write(tmp_path / "r").parent)
    assert frame["task_effect"].notna().all() and frame["task_stderr"].isna().all()
    assert np.isfinite(frame["induction"]).all()
