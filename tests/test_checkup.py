"""`interp doctor`: what the card says of sound models, and that it fails those that are not."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

import interp
from interp.cli import main as cli
from interp.loading import checkup, reference
from interp.loading.check import check_loaded
from interp.model.attention import Attention
from interp.model.block import Block

from .published import edit_json, edit_weights, published
from .strategies import random_model, small_config
from .test_load_check import adds_more_than_it_shows, with_tokenizer

HF = "Hugging Face forward"


def finding(card: checkup.Checkup, what: str) -> checkup.Finding:
    (found,) = [one for one in card.findings if one.what == what]
    return found


def marks(card: checkup.Checkup) -> dict[str, bool | None]:
    return {one.what: one.holds for one in card.findings if one.part == "checks"}


ALL = ("family reference", "tokenizer", HF, "rounding, against float64", "generation with cache")


@pytest.mark.parametrize("name", interp.loading.bundled())
def test_bundled_models_are_sound(name: str, capsys, tmp_path: Path):
    assert cli.main(["doctor", name, "--json", str(tmp_path / "card.json")]) == 0
    out = capsys.readouterr().out
    assert re.match(rf"{name}: \d+ checks, all ok\n", out)
    for part in ("Facts", "Identities", "Checks", "Sites", "family reference", "source", HF):
        assert part in out
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["ok"] and card["name"] == name
    assert all(one["holds"] is not False for one in card["findings"])


def test_minilm():
    card = interp.doctor("minilm")
    assert marks(card) == dict.fromkeys(ALL[:4], True) | {ALL[4]: None}
    assert finding(card, "parameters").text.startswith("22,565,376 in 6 layers of 12 heads")
    assert "30,522 entries, 30,522 rows" in finding(card, "tokenizer").text
    assert finding(card, HF).error < 1e-5
    assert finding(card, "ln1(resid_pre + attn_out) = resid_mid").holds
    assert finding(card, "attn.hook_pattern").text == "0–5       batch head q_pos k_pos"
    assert finding(card, "in all").text == str(len(interp.load("minilm").sites))


@pytest.mark.parametrize(("name", "tokenizer"), [("stories260K", True), ("nano-sort", None)])
def test_small_trained_models(shared_data: Path, name: str, tokenizer: bool | None):
    card = interp.doctor(shared_data / "models" / name)
    assert marks(card) == dict.fromkeys(ALL, True) | {"tokenizer": tokenizer}
    assert all(one.error < 1e-5 for one in card.findings if one.error is not None)
    reads = "a short text" if tokenizer else "11 tokens: ids by formula (no tokenizer)"
    assert reads in finding(card, "examined on").text


@pytest.mark.parametrize("case", ["gpt2", "llama", "bert", "bert mlm"])
def test_published_models(case: str, tmp_path: Path):
    published(case, tmp_path)
    card = interp.doctor(tmp_path, dtype="float32")
    encoder = case.startswith("bert")
    expected = {"tokenizer": None, ALL[4]: None if encoder else True}
    assert marks(card) == dict.fromkeys(ALL, True) | expected
    assert card.ok and card.to_dict()["ok"]


def test_our_own_format_has_no_reference(tmp_path: Path):
    published("gpt2", tmp_path / "theirs")
    interp.save(interp.load(tmp_path / "theirs"), tmp_path / "ours")
    card = interp.doctor(tmp_path / "ours")
    assert card.ok
    assert "no reference: the folder is in interp's own format" in finding(card, HF).text
    assert "no reference is recorded for family 'interp'" in finding(card, ALL[0]).text


def test_a_model_made_in_memory():
    card = interp.doctor(random_model(small_config()))
    assert card.ok
    assert finding(card, HF).text == "no reference: the model was made in memory"
    assert finding(card, ALL[3]).text == "the model is in float64"
    assert marks(card)[ALL[4]] is True
    assert "–    tokenizer" in str(card)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_dtypes(dtype: str, tmp_path: Path):
    published("gpt2", tmp_path)
    card = interp.doctor(tmp_path, dtype=dtype)
    assert card.ok, str(card)
    assert dtype in finding(card, "dtype and device").text
    assert dtype == "float64" or finding(card, ALL[3]).error > 1e-6


# --- what is not sound --------------------------------------------------------------------------


def test_a_broken_forward_fails_the_card(tmp_path: Path, monkeypatch, capsys):
    published("gpt2", tmp_path)
    monkeypatch.setattr(Block, "from_post", adds_more_than_it_shows)
    card = interp.doctor(tmp_path)
    assert [one.what for one in card.failed] == ["resid_mid + mlp_out = resid_post", ALL[0], HF]
    assert all(one.error > 1e-5 for one in card.failed)
    assert cli.main(["doctor", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"{tmp_path.name}: 3 of 9 checks FAILED\n" in out
    assert re.search(r"FAIL resid_mid \+ mlp_out = resid_post +worst \d\.\de-0\d in layer \d", out)


def test_a_cache_that_forgets_fails_the_card(tmp_path: Path, monkeypatch):
    published("llama", tmp_path)
    extend = interp.model.prefix.GrowingPrefix.extend

    def forgets(self, layer, k, v):
        keys, values = extend(self, layer, k, v)
        return keys, values * (1 if layer else 0.9)

    monkeypatch.setattr("interp.model.prefix.GrowingPrefix.extend", forgets)
    assert [one.what for one in interp.doctor(tmp_path).failed] == [ALL[4]]


def test_numbers_that_are_not_finite(tmp_path: Path):
    published("gpt2", tmp_path)

    def spoil(weights):
        weights["transformer.h.1.mlp.c_fc.weight"][3, 4] = math.inf

    edit_weights(tmp_path, spoil)
    card = interp.doctor(tmp_path)
    assert {ALL[3], "finite numbers"} <= {one.what for one in card.failed}
    assert "not finite; try dtype='float32'" in finding(card, ALL[3]).text
    text = finding(card, "finite numbers").text
    assert "first site with such numbers is 'blocks.1.mlp.hook_pre'" in text
    assert "neuron 4 of W_in" in text
    json.dumps(card.to_dict(), allow_nan=False)


def test_tokenizers_of_another_size(tmp_path: Path):
    smaller = interp.doctor(with_tokenizer(tmp_path / "a", 40))
    assert smaller.ok
    assert finding(smaller, "tokenizer").text.endswith("rows of embedding: 21 rows no text reaches")
    larger = interp.doctor(with_tokenizer(tmp_path / "b", 63))
    assert [one.what for one in larger.failed] == ["tokenizer"]
    assert "63 entries with ids up to 62" in larger.failed[0].text
    image = interp.doctor(with_tokenizer(tmp_path / "c", 61, ("<image>",)))
    assert finding(image, "tokenizer").text.endswith("past it, and refused when run: '<image>'")


def test_what_transformers_cannot_open_is_no_reference(tmp_path: Path):
    published("gpt2", tmp_path)
    edit_json(tmp_path / "config.json", initializer_range="wide")
    text = finding(interp.doctor(tmp_path), HF).text
    assert text.startswith("no reference: transformers could not run it (")


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch):
    published("gpt2", tmp_path)
    monkeypatch.setattr(checkup, "free_bytes", lambda device: 10_000)
    card = interp.doctor(tmp_path, dtype="float32")
    assert card.ok
    for what in (HF, ALL[3]):
        assert re.search(r"left out: it needs \d+ kB more memory, and 10 kB are free",
                         finding(card, what).text)  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["minilmm"], "unknown model 'minilmm'; did you mean 'minilm'?"),
        (["minilm", "--dtype", "int8"], "dtype 'int8': expected one of float16"),
        (["minilm", "--device", "mps"], "device 'mps'"),
    ],
)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.delenv("INTERP_DEBUG", raising=False)
    assert cli.main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_hostile_name_cannot_drive_the_terminal():
    model = random_model(small_config())
    model.name = "a\x1b[2J\nb"
    assert "\x1b" not in str(interp.doctor(model))


def test_nothing_is_left_behind(tmp_path: Path):
    from transformers.utils import logging

    published("gpt2", tmp_path)
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.is_grad_enabled())
    interp.doctor(tmp_path)
    after = (logging.get_verbosity(), logging.is_progress_bar_enabled(), torch.is_grad_enabled())
    assert after == before


@pytest.mark.parametrize("name", reference.families())
def test_every_family_can_be_examined(name: str):
    """Words or not, one stack or two."""
    model = reference.reference_model(name)
    card = checkup.doctor(model)
    assert card.ok, str(card)
    check_loaded(model, name, check=True)
    generation = finding(card, "generation with cache")
    writes = model.cfg.causal and model.cfg.head == "unembed" and model.cfg.inputs == "tokens"
    assert generation.holds is (True if writes else None)


def test_a_decoder_that_forgets_its_source_fails(monkeypatch):
    model = reference.reference_model("t5")
    attend_source = Attention.attend_source

    def forgets(self, q, encoded, tap):
        return attend_source(self, q, encoded, tap) * (0.5 if tap.wants("hook_logits") else 1.0)

    monkeypatch.setattr(Attention, "attend_source", forgets)
    failed = [one.what for one in checkup.doctor(model).failed]
    assert "generation with cache" in failed
