"""The bundled models: what their cards say is what they do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import interp
from interp.cli import main as cli
from interp.loading.files import ZOO
from interp.loading.fingerprint import digest
from interp.training import TrainingError, train
from interp.zoo import bundle, cards, modadd, recipes, shakespeare, tinyworld
from interp.zoo.recipes import RECIPES, RecipeRun, train_recipe

from .strategies import random_model

SHAKESPEARE = Path(interp.__file__).parents[2] / "shared/data/text/tinyshakespeare.txt"
TRAINED = [name for name in RECIPES if (ZOO / name / cards.CARD).is_file()]
REACHED = {
    "tinyworld": {
        ("indirect_object", "held-out words", "first"): 0.98,
        ("indirect_object", "held-out words", "above wrong"): 0.99,
        ("indirect_object", "held-out template", "above wrong"): 0.99,
        ("indirect_object", "held-out template", "first"): 0.975,
        ("gender", "trained", "above wrong"): 0.98,
        ("pronoun", "held-out template", "above wrong"): 0.98,
        ("capitals", "held-out words", "first"): 0.99,
        ("capitals", "held-out template", "first"): 0.99,
        ("origins", "held-out words", "first"): 0.97,
        ("origins", "held-out template", "first"): 0.99,
        ("agreement", "held-out template", "above wrong"): 0.99,
        ("greater_than", "held-out template", "later"): 0.99,
        ("sense", "held-out template", "above wrong"): 0.99,
        ("sentiment", "held-out template", "above wrong"): 0.99,
        ("random_spans", "held-out words", "first"): 0.99,
        ("indirect_object", "baseline", "first"): 0.99,
        ("capitals", "baseline", "first"): 0.99,
        ("agreement", "baseline", "above wrong"): 0.99,
        ("gendered_pronoun", "baseline", "above wrong"): 0.99,
        ("greater_than", "baseline", "above wrong"): 0.99,
        ("induction", "baseline", "first"): 0.99,
    },
    "tiny-encoder": {
        ("indirect_object", "held-out words", "first"): 0.98,
        ("indirect_object", "held-out template", "first"): 0.99,
        ("gender", "trained", "above wrong"): 0.99,
        ("pronoun", "held-out template", "above wrong"): 0.99,
        ("capitals", "held-out words", "first"): 0.98,
        ("capitals", "held-out template", "first"): 0.99,
        ("origins", "held-out words", "first"): 0.96,
        ("origins", "held-out template", "first"): 0.98,
        ("agreement", "held-out template", "above wrong"): 0.99,
        ("greater_than", "held-out template", "later"): 0.98,
        ("sense", "held-out template", "above wrong"): 0.99,
        ("sentiment", "held-out template", "above wrong"): 0.99,
        ("random_spans", "held-out words", "first"): 0.98,
        ("indirect_object", "baseline", "first"): 0.98,
        ("capitals", "baseline", "first"): 0.99,
        ("agreement", "baseline", "above wrong"): 0.99,
        ("gendered_pronoun", "baseline", "above wrong"): 0.98,
        ("induction", "baseline", "first"): 0.98,
    },
}
"""By model and measure the least that it reaches on sentences it was never trained on."""


def text_of(name):
    if RECIPES[name].text is None:
        return None
    if not SHAKESPEARE.is_file():
        pytest.skip(f"{SHAKESPEARE} is not there")
    return SHAKESPEARE


@pytest.mark.parametrize("name", TRAINED)
def test_a_card_says_what_the_model_does(name):
    found = cards.measure(name, text_of(name))
    card = cards.card(name).measured
    assert found["task"].tolist() == card["task"].tolist()
    assert found["measure"].tolist() == card["measure"].tolist()
    # A share of n may differ by one row, a number by what another machine rounds differently.
    allowed = np.where(found["measure"].isin(["first", "above wrong", "later"]), 1 / found["n"], 0)
    assert (np.abs(found["value"] - found["card"]) <= allowed + 1e-3 * found["card"].abs()).all()


@pytest.mark.parametrize("name", REACHED)
def test_a_model_of_tinyworld_knows_what_was_held_out(name):
    """On fresh sentences: the card's were drawn by another seed."""
    found = tinyworld.evaluate(interp.load(name), n=400, seed=recipes.SEED + 1)
    value = found.set_index(["task", "split", "measure"])["value"]
    short = {key: value[key] for key, least in REACHED[name].items() if value[key] < least}
    assert not short
    rank = value["king - man + woman = queen", "embedding", "rank"]
    assert rank == 1


@pytest.mark.parametrize("name", TRAINED)
def test_a_card_is_complete(name, tmp_path):
    card = cards.card(name)
    assert {"made by", "commit", "seed", "data", "took", "stored"} <= set(card.facts)
    if not RECIPES[name].fresh:  # they are those of a bundled model, and change with it
        start, _ = RECIPES[name].make(RecipeRun(recipe=name, out=tmp_path))
        assert card.facts["first weights"] == digest(start.state_dict())
    assert card.curve["step"].iloc[-1] == RECIPES[name].train.steps
    assert str(card.curve["step"].iloc[-1]) in str(card)
    assert card.facts["made by"] in str(card)
    assert interp.load(name).dtype == torch.float32
    assert list(cards.checkpoints(name)) == list(RECIPES[name].kept)


def test_what_is_bundled_is_small():
    sizes = {d.name: sum(f.stat().st_size for f in d.rglob("*")) for d in ZOO.iterdir()}
    assert max(sizes.values()) <= bundle.MAX_BYTES
    assert sum(sizes.values()) <= 20_000_000


def test_the_list_and_the_errors(capsys):
    assert cli.main(["models"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in interp.loading.bundled())
    for arguments, message in (
        (["models", "nothing"], "bundled are"),
        (["models", "minilm", "--measure"], "no numbers to measure"),
        (["models", "--measure"], "name a model"),
        (["models", "modadd", "--measure", "--text", "x.txt"], "reads no text"),
        (["train", "--recipe", "shakespeare", "--out", "x"], "needs a text"),
    ):
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["models", "minilm"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out


@pytest.fixture
def short(monkeypatch, tmp_path):
    """The recipe of modadd, eight steps long, and a zoo of its own."""
    steps = dataclasses.replace(modadd.training(), steps=8, eval_every=4, checkpoints=2)
    small = dataclasses.replace(
        RECIPES["modadd"],
        make=lambda _: (interp.HookedTransformer(modadd.config(11)), modadd.data(11)),
        train=steps,
        kept=(0,),
    )
    monkeypatch.setitem(recipes.RECIPES, "modadd", small)
    for module in (bundle, cards):
        monkeypatch.setattr(module, "ZOO", tmp_path / "zoo")
    monkeypatch.setattr("interp.loading.files.ZOO", tmp_path / "zoo")
    return tmp_path


def test_a_recipe_becomes_a_bundled_model(short, capsys):
    run = short / "run"
    assert cli.main(["train", "--recipe", "modadd", "--out", str(run)]) == 0
    wanted = bundle.Bundle(name="modadd", run=run, commit="abc1234", took="a second")
    bundle.bundle(wanted)
    model, exact = interp.load("modadd"), interp.load(run)
    assert model.source["kind"] == "bundled"
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact.state_dict()[name].half().float())
    assert cards.checkpoints("modadd").keys() == {0}
    assert interp.load(cards.checkpoints("modadd")[0]).dtype == torch.float32
    found = cards.measure("modadd")
    assert found["value"].tolist() == pytest.approx(found["card"].tolist(), rel=1e-9)
    page = str(cards.card("modadd"))
    assert "interp train --recipe modadd --out modadd" in page
    assert "abc1234" in page


def test_only_the_recipes_finished_run_is_bundled(short):
    run, recipe = short / "run", recipes.RECIPES["modadd"]
    wanted = bundle.Bundle(name="modadd", run=run, commit="", took="")
    with pytest.raises(TrainingError, match="step None of 8"):
        bundle.bundle(wanted)
    model, data = recipe.make(RecipeRun(recipe="modadd", out=run))
    train(model, data, run, dataclasses.replace(recipe.train, lr=2e-3), progress=False)
    with pytest.raises(TrainingError, match=r"not the recipe's: lr was 0\.002 and is 0\.001"):
        bundle.bundle(wanted)
    with pytest.raises(TrainingError, match="holds another run"):
        train_recipe(RecipeRun(recipe="modadd", out=run), progress=False)


def test_shakespeares_loss_is_the_mean_over_its_windows(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("to be, or not to be: that is the question.\n" * 30, encoding="utf-8")
    run = dataclasses.replace(shakespeare.run(text, tmp_path / "run"), n_ctx=16)
    model, data = recipes.made(run)
    (found,) = shakespeare.evaluate(model, text).itertuples()
    part = data.parts["val"]
    windows = [part[i : i + 17] for i in range(0, len(part) - 16, 16)]
    losses = [
        -model(w[None, :-1])[0].log_softmax(-1)[torch.arange(16), w[1:]].mean() for w in windows
    ]
    assert found.value == pytest.approx(float(torch.stack(losses).mean()))
    assert (found.split, found.n) == ("val", 16 * len(windows))


# modadd: waves that are planted are found.


def planted_waves(p, sizes, noise=0.0):
    a, b, c = torch.meshgrid(*[torch.arange(p, dtype=torch.float64)] * 3, indexing="ij")
    waves = {k: size * torch.cos(2 * np.pi * k * (a + b - c) / p) for k, size in sizes.items()}
    rest = torch.randn(p, p, p, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return sum(waves.values()) + noise * rest, waves


def test_planted_frequencies_are_found_and_none_in_noise(monkeypatch):
    p, model = 23, random_model(modadd.config(23))
    found, waves = planted_waves(p, {2: 3.0, 7: 1.0, 11: 2.0}, noise=1.0)
    monkeypatch.setattr(modadd, "logits", lambda _: found)
    table = modadd.key_frequencies(model).set_index("frequency")
    assert table.index[table["key"]].tolist() == [2, 7, 11]
    variance = (found - found.mean(-1, keepdim=True)).square().mean()
    for k, wave in waves.items():
        assert table.loc[k, "logits"] == pytest.approx(
            float(wave.square().mean() / variance), abs=0.01
        )
        torch.testing.assert_close(modadd._waves(found, [k]), wave, atol=0.1, rtol=0)
    rows = modadd.evaluate(model).set_index(["task", "split", "measure"])["value"]
    assert rows["key frequencies alone", "all pairs", "first"] == 1
    assert rows["without them", "all pairs", "first"] < 3 / p  # chance is 1 / p
    found -= sum(waves.values())  # the control: the noise alone
    assert not modadd.key_frequencies(model)["key"].any()


def test_the_embeddings_spectrum_is_that_of_a_planted_wave():
    p, model = 23, random_model(modadd.config(23))
    at = torch.arange(p, dtype=model.dtype)
    with torch.no_grad():
        model.W_E.zero_()
        model.W_E[:p, 0] = torch.cos(2 * np.pi * 3 * at / p)
        model.W_E[:p, 1] = 2 * torch.sin(2 * np.pi * 8 * at / p) + 5  # a constant does not count
    table = modadd.key_frequencies(model).set_index("frequency")
    assert table.loc[3, "embedding"] == pytest.approx(0.2)
    assert table.loc[8, "embedding"] == pytest.approx(0.8)


def test_progress_measures_equal_the_naive_route():
    p, model = 11, random_model(modadd.config(11))
    row = modadd.progress({5: model}, [2, 4]).iloc[0]
    parts = modadd.split(p)
    for name, part in parts.items():
        logits = model(torch.from_numpy(part[:, :3]))[:, -1, :p].double()
        answers = torch.from_numpy(part[:, 3])
        loss = torch.nn.functional.cross_entropy(logits, answers)
        assert row[f"{name}_loss"] == pytest.approx(float(loss))
        assert row[f"{name}_accuracy"] == pytest.approx(
            float((logits.argmax(-1) == answers).double().mean())
        )
    everything = modadd.progress({5: model}, list(range(p // 2 + 1))).iloc[0]
    found = modadd.logits(model)
    a, b, c = torch.meshgrid(*[torch.arange(p)] * 3, indexing="ij")
    offset = (a + b - c) % p
    by_offset = torch.stack([found[offset == d].mean() for d in range(p)])
    every = torch.from_numpy(modadd.pairs(p))
    assert everything["restricted_loss"] == pytest.approx(modadd._loss(by_offset[offset], every))


@pytest.mark.skipif("modadd" not in TRAINED, reason="modadd is not bundled")
def test_modadd_groks_in_three_phases():
    """It learns by heart, forms the waves, and drops the rest (Nanda et al. 2023)."""
    card = cards.card("modadd").measured
    keys = [int(task.split()[1]) for task in card["task"] if task.startswith("frequency")]
    paths = cards.checkpoints("modadd")
    frame = modadd.progress({step: interp.load(path) for step, path in paths.items()}, keys[::2])
    rows = frame.set_index("step")
    start, by_heart, last = (rows.loc[step] for step in (0, 475, 5595))
    assert start["accuracy"] < 0.02  # chance is 1 in 113
    assert by_heart["train_accuracy"] == 1
    assert by_heart["val_accuracy"] < 0.05
    assert last["accuracy"] == 1
    assert rows["restricted_loss"].is_monotonic_decreasing
    waves = rows.loc[2087]  # where the waves alone are better than the model is
    assert waves["restricted_loss"] < 1 < 20 < waves["val_loss"]
    assert (rows.loc[3417:, "excluded_loss"] > 4).all()
    assert (rows.loc[475:1274, "excluded_loss"] < 0.02).all()
    assert last["squared_norm"] < 0.5 * by_heart["squared_norm"]


def test_weights_stored_in_half_precision_come_back_in_their_own(tmp_path):
    model = random_model(tinyworld.config().replace(n_layers=1, d_vocab=50))
    interp.save(model, tmp_path / "half", dtype="float16")
    again = interp.load(tmp_path / "half")
    assert again.dtype == model.dtype == torch.float64
    assert interp.load(tmp_path / "half", dtype="bfloat16").dtype == torch.bfloat16
    with torch.no_grad():
        model.W_E[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"does not fit into torch\.float16"):
        interp.save(model, tmp_path / "half", dtype="float16")
    config = tmp_path / "half" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float8"}))
    with pytest.raises(ValueError, match=r"config\.json: dtype 'float8': expected one of"):
        interp.load(tmp_path / "half")
