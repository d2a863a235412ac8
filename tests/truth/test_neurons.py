"""The neurons of a planted table are ranked first and say its values; in the control none is."""

from __future__ import annotations

import re

import pytest
from sklearn.metrics import roc_auc_score

from analyses import neurons
from analyses.neurons import Config, run
from interp.core.tokenizer import Tokenizer
from interp.data.tasks import Pairs
from interp.methods.baseline import measure_baseline
from interp.methods.neurons import (
    Ranking,
    neuron_stats,
    promoted_tokens,
    rank_neurons,
    sets_against_random,
    top_activations,
)
from interp.zoo import planted
from tests.truth.by_hand import SEEDS
from tests.vocabularies import word_level

pytestmark = pytest.mark.usefixtures("one_thread")
LAYER = [0]


def pairs_of(known, n: int = 96) -> Pairs:
    prompts = known.prompts(n, seed=1)
    return Pairs(known.name, prompts.clean, prompts.corrupted, prompts.answer, prompts.wrong)


def ranking_of(model, pairs, kind) -> Ranking:
    """As the report makes it."""
    return rank_neurons(model, pairs, LAYER, kind, noise=measure_baseline(model, pairs).noise)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_the_table_is_ranked_first_both_ways(seed, kind):
    known = planted.lookup(seed=seed)
    ranking = ranking_of(known.model, pairs_of(known), kind)
    truth = set(known.truth.neurons)
    assert set(ranking.costliest[:16]) == truth
    table = ranking.table
    own = [(0, neuron) in truth for neuron in table["neuron"]]
    for column in ("effect", "attribution"):
        assert roc_auc_score(own, table[column].abs()) == 1.0
    assert table.loc[own, "effect"].max() < 0 < table.loc[own, "attribution"].min()
    assert ranking.correlation > 0.9
    assert (table["rank"].to_numpy() == range(1, 33)).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_each_says_its_value_and_fires_on_its_pair(seed):
    known = planted.lookup(seed=seed)
    inputs = known.labelled(64).tokens
    chosen = list(known.truth.neurons)
    words = promoted_tokens(known.model, chosen, k=1)
    said = words.loc[words["side"] == "promoted", "id"].tolist()
    assert sorted(said) == list(range(37, 53))
    answers = known.model(inputs)[:, -1].argmax(-1)
    found = top_activations(known.model, inputs, chosen, k=2)
    assert (found["pos"] == inputs.shape[1] - 1).all()
    told = dict(zip(chosen, said, strict=True))
    for row in found.itertuples():
        assert answers[row.example] == told[row.layer, row.neuron]
    frame = neuron_stats(known.model, inputs, threshold=0.5).set_index(["layer", "neuron"])
    # Each pair is a sixteenth of the prompts, and fires at the last of their 12 tokens.
    assert frame.loc[chosen, "active"].tolist() == pytest.approx([1 / 16 / 12] * 16)
    assert frame.loc[chosen, "kurtosis"].min() > 100


@pytest.mark.parametrize("seed", SEEDS[1:2])
def test_nothing_is_found_in_the_control(seed):
    known = planted.lookup(40, seed=seed)
    pairs = pairs_of(known)
    found = ranking_of(known.model, pairs, "zero")
    sets = sets_against_random(known.model, pairs, found, seed=seed)
    top, random = (sets[sets["removed"] == kind] for kind in ("costliest", "random"))
    assert top["high"].iloc[-1] < random["low"].iloc[-1]
    null = planted.random_control(known, seed=seed)
    nothing = ranking_of(null.model, pairs, "zero")
    assert nothing.table["effect"].abs().max() < 0.5 * found.table["effect"].abs().max()
    sets = sets_against_random(null.model, pairs, nothing, seed=seed)
    top, random = (sets[sets["removed"] == kind] for kind in ("costliest", "random"))
    assert not (top["high"].to_numpy() < random["low"].to_numpy()).any()


def test_the_report_names_them(monkeypatch, tmp_path):
    known = planted.lookup(40)
    known.model.tokenizer = Tokenizer(word_level(53), {}, "numbers")
    pairs = pairs_of(known, 64)
    monkeypatch.setattr(neurons, "task_pairs", lambda model, config: pairs)
    report = run(known.model, Config(examples=2))
    named = re.search(r"Alone, L0 N(\d+) costs the task most", report.findings[0])
    assert (0, int(named[1])) in known.truth.neurons
    assert report.findings[0].links == {f"L0 N{named[1]}": "examples-1"}
    assert report.headline.startswith("Without the ")
    assert "costliest neurons change" in report.findings[4]
    assert "nothing tells them apart" not in report.findings[4]
    says = next(text for text in report.findings if "promotes" in text)
    neuron, value = re.search(r"L0 N(\d+) promotes “w(\d+)”", says).groups()
    direct = known.model.blocks[0].mlp.W_out[int(neuron)] @ known.model.W_U
    assert int(value) == int(direct.argmax())
    null = planted.random_control(known)
    null.model.tokenizer = known.model.tokenizer
    report = run(null.model, Config(examples=2))
    assert "cannot do the task" in report.warnings[0]
    assert "nothing tells them apart" in report.findings[4]
    assert report.headline.startswith("No few neurons can be named")
