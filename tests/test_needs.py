"""What an analysis needs of a model, and what a model is known to have before it runs."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest

import analyses
import interp
from interp.cli import main as cli
from interp.core.tokenizer import has_tokenizer
from interp.loading import bundled
from interp.loading.needs import LACKING, Abilities, Needs, abilities, stored_abilities
from interp.model import HookedTransformer
from tests.strategies import small_config
from tests.test_contract import config_of, small_model

IMAGES = {
    "inputs": "patches", "image_size": (8, 8), "patch_size": (4, 4), "n_channels": 1,
    "n_ctx": 5, "causal": False,
}  # fmt: skip
TWO_STACKS = {
    "encoder": small_config(n_layers=2, d_vocab=len(small_model().W_E), causal=False, head="none"),
    "decoder_start_token_id": 1,
}
KINDS: dict[str, tuple[dict, bool, dict[str, str]]] = {
    "plain": ({}, True, {}),
    "no tokenizer": ({}, False, {"tokenizer": "has no tokenizer"}),
    "no logits": (
        {"head": "none"},
        True,
        {"logits": "head='none'", "continues": "writes no next token (head='none')"},
    ),
    "both ways": ({"causal": False}, True, {"continues": "attends both ways (causal=False)"}),
    "masked": (
        {"causal": False, "head": "mlm"},
        True,
        {"continues": "writes no next token (head='mlm')"},
    ),
    "no MLP": ({"d_mlp": 0}, True, {"neurons": "has no MLPs (d_mlp=0)"}),
    "two stacks": (TWO_STACKS, True, {"one_stack": "is an encoder–decoder"}),
    "images": (
        IMAGES,
        False,
        {
            "text": "reads patches, not text",
            "tokenizer": "has no tokenizer",
            "continues": "attends both ways",
        },
    ),
}
"""Kinds of models: fields of the config, whether there is a tokenizer, and what is said of each
need that they do not fulfil."""


@cache
def model_of(kind: str) -> HookedTransformer:
    """The contract's small model, of this kind."""
    fields, worded, _ = KINDS[kind]
    plain = small_model()
    cfg = plain.cfg.replace(**fields)
    return HookedTransformer(cfg, plain.tokenizer if worded else None).requires_grad_(False)


@pytest.mark.parametrize("need", LACKING)
@pytest.mark.parametrize("kind", KINDS)
def test_each_need_is_met_by_the_models_that_have_it(kind, need):
    known, expected = abilities(model_of(kind)), KINDS[kind][2].get(need)
    reason = Needs(**{need: True}).lacking(known)
    assert (reason is None) == (expected is None)
    assert expected is None or expected in reason
    assert Needs().lacking(known) is None


def test_a_model_behind_the_bridge_is_not_native():
    plain = abilities(model_of("plain"))
    opaque = dataclasses.replace(plain, opaque="the model runs behind the bridge")
    assert Needs(native=True).lacking(plain) is None
    assert "behind the bridge" in Needs(native=True).lacking(opaque)


def test_an_option_may_make_a_tokenizer_needless():
    known = abilities(model_of("no tokenizer"))
    needs, module = analyses.load("head-ablation").NEEDS, analyses.load("head-ablation")
    assert "--task induction needs none" in needs.lacking(known)
    assert "--task induction needs none" in needs.lacking(known, module.Config(task="agreement"))
    assert needs.lacking(known, module.Config(task="induction")) is None


def test_every_need_is_a_field_and_the_other_way_round():
    switches = {field.name for field in dataclasses.fields(Needs)} - {"wordless"}
    assert switches == set(LACKING)


# --- from files, without weights --------------------------------------------------------------


@pytest.mark.parametrize("name", bundled())
def test_what_the_files_of_a_bundled_model_say_is_what_it_has(name):
    assert stored_abilities(name) == abilities(interp.load(name, device="cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_files_of_a_saved_model_say_is_what_it_has(kind, tmp_path):
    interp.save(model_of(kind), tmp_path / "m")
    known = stored_abilities(tmp_path / "m")
    assert known == abilities(interp.load(tmp_path / "m", device="cpu"))
    assert known.tokenizer == has_tokenizer(tmp_path / "m") == KINDS[kind][1]


def test_weights_are_not_read(tmp_path, monkeypatch, capsys):
    interp.save(model_of("plain"), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"torn")
    monkeypatch.setitem(interp.__dict__, "load", None)
    assert stored_abilities(tmp_path / "m").tokenizer
    assert cli.main(["list", "--model", str(tmp_path / "m")]) == 0


# --- what the analyses declare ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", analyses.names())
def test_what_the_needs_refuse_the_analysis_cannot_do(name, kind):
    """Nothing that works is refused: on such a model the analysis by itself fails, too."""
    module, model = analyses.load(name), model_of(kind)
    if module.NEEDS.lacking(abilities(model), module.Config()) is None:
        return
    if "induction" in config_of(name).__dict__.values():  # whose prompts are made without words
        pytest.skip(f"{name}: the contract's options ask for less than the default ones")
    with pytest.raises((ValueError, AttributeError)):
        module.run(model, config_of(name))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plain"])
@pytest.mark.parametrize("name", analyses.names())
def test_what_the_needs_allow_the_analysis_can_do(name, kind):
    module, model, config = analyses.load(name), model_of(kind), config_of(name)
    if kind == "no MLP" and hasattr(config, "neurons") and name == "activation-patching":
        config = dataclasses.replace(config, neurons=())  # an option asks for them, not the need
    if module.NEEDS.lacking(abilities(model), config) is not None:
        return
    assert module.run(model, config).findings


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("activation-patching", "minilm", "it gives no logits (head='none')"),
        ("steering", "tiny-encoder", "it attends both ways (causal=False)"),
        ("neurons", "modadd", "it has no tokenizer, so it cannot read words (--task induction"),
        ("embedding-arithmetic", "modadd", "it has no tokenizer, so it cannot read words; "),
    ],
)
def test_a_run_refuses_before_loading_in_the_words_of_the_list(
    name, model, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(interp.__dict__, "load", None)
    assert cli.main(["run", name, "--model", model, "--out", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert f"{name} cannot run on {model}: {message}" in error
    assert "interp list --model MODEL" in error and error.count("\n") == 1
    assert cli.main(["list", "--model", model]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    words = message.removeprefix("it ").removesuffix("; ")
    assert f"no   {model} {words}" in lines[name]
    assert list(lines) == analyses.names()


def test_the_list_marks_those_that_can(capsys):
    assert cli.main(["list", "--model", "minilm"]) == 0
    marks = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    can = {name for name, mark in marks.items() if mark == "yes"}
    assert {"embedding-arithmetic", "embedding-geometry", "attention-heads"} <= can
    assert "head-ablation" not in can and set(marks.values()) == {"yes", "no"}


@pytest.mark.parametrize("model", ["./absent", "", "minilmm"])
def test_a_model_that_leads_nowhere_is_named(model, capsys):
    assert cli.main(["list", "--model", model]) == 2
    error = capsys.readouterr().err
    assert "unknown model" in error and error.count("\n") == 1


def test_abilities_are_a_value():
    known = abilities(model_of("plain"))
    assert known == Abilities(known.name, known.cfg, True)
