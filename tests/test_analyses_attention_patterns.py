"""Attention patterns: the planted heads are found, the text may be anything, the numbers agree."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers

from analyses.attention_patterns import (
    HALF,
    Config,
    _answer,
    _closest,
    _closest_to_induction,
    run,
)
from interp.core.tokenizer import Tokenizer
from interp.model import HookedTransformer
from interp.report import Report
from interp.zoo import planted
from tests.strategies import small_config
from tests.vocabularies import masked, model_of, whole_words

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img/src=x/onerror=alert(1)>",
    "\u202ertl",
    "&amp;",
)


@pytest.fixture(scope="module")
def model():
    return model_of(whole_words(), n_heads=2)


def heads(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "attention.csv").set_index(["layer", "head"])


def content(folder) -> dict:
    page = (folder / "index.html").read_text("utf-8")
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])


def test_planted_heads_are_found_and_no_others(tmp_path):
    known = planted.BUILDERS["induction"]()
    (previous,) = known.truth.roles["previous_token"]
    (inductive,) = known.truth.roles["induction"]
    report = run(known.model, Config(prompt=()))
    frame = heads(report.write(tmp_path / "r").parent)
    assert frame.loc[inductive, "induction"] > 0.95
    assert frame.loc[inductive, "same_distance"] < 0.2
    assert frame.loc[previous, "previous_token"] > 0.95
    assert frame.loc[inductive, "label"] == "induction"
    assert frame.loc[previous, "label"] == "previous token"
    assert frame.drop([inductive, previous])["induction"].max() < HALF
    assert report.findings[0].startswith(f"L{inductive[0]} H{inductive[1]} looks most behind")
    assert report.findings[1].startswith(f"L{previous[0]} H{previous[1]} looks most at the prev")
    assert "1 puts more than half of its attention behind an earlier" in report.headline
    at_the_repetition = f"#head-L{inductive[0]}H{inductive[1]}-prompt1"
    assert [*report.findings[0].links.values()] == [at_the_repetition]


def test_a_model_in_which_nothing_is_planted_has_no_induction(tmp_path):
    control = planted.random_control(planted.BUILDERS["induction"]())
    report = run(control.model, Config(prompt=()))
    assert heads(report.write(tmp_path / "r").parent)["induction"].max() < HALF
    assert report.findings[0].startswith("No head clearly looks behind an earlier occurrence")
    assert report.headline.startswith("No head puts more than half of its attention")
    assert any("no head puts more than half" in finding for finding in report.findings[3:])


def shares_of(**columns) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    return pd.DataFrame({"layer": 0, "head": range(n), **columns})


EVEN = pd.Series({"previous_token": 0.1, "first_token": 0.1, "itself": 0.1})
PLAIN = {"previous_token": [0.9, 0.2], "first_token": [0.05, 0.8], "itself": [0.1, 0.7]}


@pytest.mark.parametrize(
    ("columns", "even", "said"),
    [
        (PLAIN, EVEN, "Of 2 heads, 1 puts more than half of its attention on the previous token, "
         "1 on the first token and 1 on the token itself."),
        (PLAIN | {"itself": [0.9, 0.7]}, EVEN, "Of 2 heads, 2 put more than half of their "
         "attention on the token itself, 1 on the previous token and 1 on the first token."),
        (PLAIN | {"previous_token": [0.5, 0.2], "first_token": [0, 0], "itself": [0, 0]}, EVEN,
         "No head puts more than half of its attention on the previous token or on the first "
         "token or on the token itself."),
        (PLAIN, EVEN + 0.4, "; on prompts as short as these, looking everywhere alike gives up to "
         "50\u00a0%."),
    ],
)  # fmt: skip
def test_the_answer_is_true_of_every_outcome(columns, even, said):
    assert _answer(shares_of(**columns), even).endswith(said)


@pytest.mark.parametrize(
    ("induction", "same_distance", "said"),
    [
        (0.9, 0.1, "L0 H0 looks most behind an earlier occurrence"),
        (0.9, 0.8, "No head clearly looks behind an earlier occurrence"),
        (0.4, 0.0, "No head clearly looks behind an earlier occurrence"),
    ],
)
def test_a_head_that_looks_as_far_back_in_any_case_is_no_induction_head(
    induction, same_distance, said
):
    report, shares = Report("T", "Q?"), shares_of(**PLAIN)
    shares = shares.assign(induction=[induction, 0.0], same_distance=[same_distance, 0.0])
    _closest_to_induction(report, shares, prompt=4)
    _closest(report, shares, "first_token", 0.9)
    assert report.findings[0].startswith(said)
    assert report.findings[1].startswith("No head looks at the first token more than")
    assert all(len(finding.split()) <= 25 for finding in report.findings)


def test_the_first_screen_is_the_answer_the_viewer_and_three_short_findings(model):
    report = run(model, Config(prompt=("the king went", "to the store"), repeated=4))
    screen = report.first_screen()
    assert [item.name for item in screen.items] == ["attention"]
    assert len(screen.findings) == 3
    assert all(len(finding.split()) <= 25 and finding.at for finding in screen.findings)
    assert report.findings[0].links.popitem()[1].endswith("-prompt3")


def test_the_numbers_are_those_of_the_model(tmp_path, model):
    text = "When Mary went to the store"
    folder = run(model, Config(prompt=(text,), repeated=0)).write(tmp_path / "r").parent
    tokens = model.to_tokens(text)
    logits, cache = model.run_with_cache(tokens)
    pattern = cache["pattern", 0][0].double().numpy()
    n = tokens.shape[1]
    for head in range(2):
        row = heads(folder).loc[(0, head)]
        assert row["previous_token"] == pytest.approx(
            np.mean([pattern[head, q, q - 1] for q in range(1, n)]), abs=1e-6
        )
    log_probs = logits[0].log_softmax(-1)
    losses = [-log_probs[i, tokens.ids[0, i + 1]].item() for i in range(n - 1)]
    found = pd.read_csv(folder / "loss.csv")["value (nats)"]
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], losses, rtol=1e-5)
    assert content(folder)["prompts"][0]["tokens"] == tokens.strings[0]


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path, model):
    def written(name, seed):
        report = run(model, Config(prompt=("the king",), seed=seed, repeated=4))
        folder = report.write(tmp_path / name).parent
        return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}

    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again, other = (written(*one) for one in (("one", 0), ("two", 0), ("three", 1)))
    without_config = {"index.html"}
    assert first == again
    assert any(first[n] != other[n] for n in first if n not in without_config)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_hostile_words_are_read_and_shown(tmp_path):
    vocab = {word: i for i, word in enumerate(["[UNK]", *HOSTILE, *(f"w{i}" for i in range(50))])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(backend.to_str(), {"unk_token": "[UNK]"}, "hostile")
    hostile = model_of(tokenizer)
    folder = run(hostile, Config(prompt=(" ".join(HOSTILE),), repeated=4)).write(tmp_path / "r")
    raw = folder.read_text("utf-8")
    assert re.findall(r"<script[^>]*>", raw) == ['<script type="application/json">', "<script>"]
    assert "<img/" not in raw
    assert "\u202e" not in raw
    assert HOSTILE[0] in content(folder.parent)["prompts"][0]["tokens"][0]


def test_a_long_prompt_is_cut_and_that_is_said(tmp_path, model):
    report = run(model, Config(prompt=("the king " * 40,), max_tokens=7, repeated=0))
    assert len(report.skipped) == 1
    assert "first 7 of its 80 tokens" in report.skipped[0]
    folder = report.write(tmp_path / "r").parent
    assert len(content(folder)["prompts"][0]["tokens"]) == 7
    narrow = run(model, Config(prompt=("the king " * 40,), repeated=0))
    assert f"first {model.cfg.n_ctx} of" in narrow.skipped[0]


def test_a_model_that_attends_both_ways(tmp_path):
    both = model_of(masked(), causal=False)
    folder = run(both, Config(prompt=("the king",), repeated=4)).write(tmp_path / "r").parent
    assert not any(prompt["causal"] for prompt in content(folder)["prompts"])
    assert content(folder)["prompts"][0]["tokens"][0] == "[CLS]"
    assert not (folder / "loss.csv").exists()


def test_of_two_stacks_the_encoder_is_shown(tmp_path):
    tokenizer = whole_words()
    encoder = dataclasses.replace(
        small_config(d_vocab=tokenizer.vocab_size, n_ctx=64, n_layers=2),
        causal=False, head="none",
    )  # fmt: skip
    cfg = small_config(
        n_layers=1, d_vocab=tokenizer.vocab_size, n_ctx=64, encoder=encoder,
        decoder_start_token_id=1,
    )  # fmt: skip
    model = HookedTransformer(cfg, tokenizer=tokenizer)
    report = run(model, Config(prompt=("the king",), repeated=4))
    assert "the encoder's heads" in report.doubts[-1]
    assert len(heads(report.write(tmp_path / "r").parent)) == 2 * cfg.n_heads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 1}, "max_tokens=1"),
        ({"repeated": 1}, "repeated=1"),
        ({"repeated": -1}, "repeated=-1"),
        ({"repeated": 0, "prompt": ()}, "nothing to look at"),
    ],
)
def test_bad_configs_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_what_cannot_be_read_is_an_error(model):
    with pytest.raises(ValueError, match=r"“king” is 1 token; .*two or more"):
        run(model, Config(prompt=("king",), repeated=0))
    with pytest.raises(ValueError, match="empty prompt"):
        run(model, Config(prompt=("",), repeated=0))
    bare = planted.BUILDERS["induction"]().model
    for options in ({"prompt": ("the king",)}, {"repeated": 0}):
        with pytest.raises(ValueError, match="no tokenizer, so it cannot read prompts"):
            run(bare, Config(**options))


def test_without_a_tokenizer_random_tokens_are_read():
    bare = planted.BUILDERS["induction"]().model
    report = run(bare, Config())
    assert any("no tokenizer" in text for text in report.skipped)
    assert report.findings == run(bare, Config(prompt=())).findings
