"""Word vectors: exact answers on planted tables, controls that find nothing, and refusals."""

from __future__ import annotations

from inspect import unwrap  # past the run-time type checks of the tests
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from interp.methods.geometry import Embedding, embedding
from interp.methods.geometry.analogies import QUESTION, accuracy, swap_answers
from tests.calls import tiny
from tests.words import WordTokenizer

# a, b, c along the axes and one candidate, so that every score can be worked out on paper.
AXES = Embedding(
    np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 2, 2]], float), ["a", "b", "c", "x"]
)


def planted(n: int = 30, d: int = 96, seed: int = 0, mean: float = 0.0) -> Embedding:
    """Random words w0 … and their partners v0 …, all at the same offset."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n, d))
    offset = 2.5 * rng.normal(size=d)
    vectors = np.concatenate([base, base + offset, rng.normal(size=(200, d))]) + mean
    names = [f"w{i}" for i in range(n)] + [f"v{i}" for i in range(n)]
    return Embedding(vectors, [*names, *(f"noise{i}" for i in range(200))])


def questions(n: int = 30) -> pd.DataFrame:
    rows = [("planted", f"w{i}", f"v{i}", f"w{(i + 1) % n}", f"v{(i + 1) % n}") for i in range(n)]
    return pd.DataFrame(rows, columns=list(QUESTION))


@pytest.mark.parametrize(
    ("method", "score"),
    [
        ("3cosadd", 1 / np.sqrt(3)),  # x = (1, 2, 2)/3; b - a + c = (-1, 1, 1)
        ("3cosmul", (5 / 6) ** 2 / (4 / 6 + 1e-3)),
        ("pairdistance", (1 / 3) / (np.sqrt(6) / 3 * np.sqrt(2))),  # x - c = (1, 2, -1)/3
        ("neighbor", 2 / 3),
    ],
)
def test_scores_are_those_worked_out_by_hand(method, score):
    found = AXES.analogy("a", "b", "c", method=method, centre=False)
    assert found.columns.tolist() == ["rank", "token", "score"]
    assert found.token.tolist() == ["x"]
    assert found.score[0] == pytest.approx(score, abs=1e-12)


def test_pairdistance_of_c_itself_is_zero():
    found = AXES.analogy("a", "b", "c", method="pairdistance", centre=False, exclude_inputs=False)
    assert found.set_index("token").score["c"] == pytest.approx(0, abs=1e-12)


def test_scores_are_the_formulas_over_vectors():
    table = planted(seed=3)
    unit = table.unit(True)
    a, b, c = unit[:3]
    by = {"candidates": np.arange(3, len(table)), "k": len(table)}
    add = table.analogy("w0", "w1", "w2", method="3cosadd", **by).set_index("token").score
    far = table.analogy("w0", "w1", "w2", method="pairdistance", **by).set_index("token").score
    for row in (3, 17, 100):
        x, name = unit[row], table.tokens[row]
        assert add[name] == pytest.approx(cosine(x, b - a + c), abs=1e-12)
        assert far[name] == pytest.approx(cosine(x - c, b - a), abs=1e-12)


def cosine(u, v):
    return u @ v / np.linalg.norm(u) / np.linalg.norm(v)


def test_planted_analogies_are_found_and_controls_are_not():
    table, asked = planted(), questions()
    kept = {"methods": ["3cosadd"], "centre": True, "exclude_inputs": True}
    assert table.evaluate(asked, **kept).correct.all()
    assert table.shuffled(0).evaluate(asked, **kept).correct.mean() < 0.1
    assert not table.evaluate(swap_answers(asked, 0), **kept).correct.any()


def test_evaluate_agrees_with_analogy_in_every_setting():
    table, asked = planted(n=8, seed=5, mean=0.5), questions(8)
    frame = table.evaluate(asked)
    assert len(frame) == 8 * 12
    assert frame.columns.tolist() == [
        *QUESTION, "method", "centre", "exclude_inputs", "rank", "correct", "top",
    ]  # fmt: skip
    for row in frame.itertuples():
        one = table.analogy(
            row.a, row.b, row.c, len(table), row.method, row.centre, row.exclude_inputs
        )
        assert one.token[0] == row.top
        assert one.set_index("token")["rank"][row.expected] == row.rank
        assert row.correct == (row.rank == 1)


def test_a_tie_counts_against_the_expected_answer():
    table = Embedding(np.vstack([AXES.vectors, AXES.vectors[-1]]), [*AXES.tokens, "twin"])
    asked = pd.DataFrame([("t", "a", "b", "c", "x")], columns=list(QUESTION))
    assert set(table.evaluate(asked, centre=False, exclude_inputs=True)["rank"]) == {2}


def test_centring_undoes_a_common_shift():
    plain, shifted = planted(mean=0.0), planted(mean=7.0)
    np.testing.assert_allclose(plain.unit(True), shifted.unit(True), atol=1e-10)
    assert shifted.similarity("w0", "noise3", centre=False) > 0.9
    assert abs(shifted.similarity("w0", "noise3")) < 0.5


def test_neighbours_leave_out_the_word():
    found = AXES.neighbors("b", k=10, centre=False)
    assert found.token.tolist()[0] == "x"
    assert found["rank"].tolist() == [1, 2, 3]
    assert "b" not in set(found.token)


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_direction_is_the_planted_offset(method):
    table = planted()
    pairs = [(f"w{i}", f"v{i}") for i in range(10)]
    found = table.direction(pairs, method)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert found @ (table.vectors[30] - table.vectors[0]) > 0.999 * np.linalg.norm(
        table.vectors[30] - table.vectors[0]
    )


def test_accuracy_counts_per_setting_and_category():
    frame = planted().evaluate(questions())
    table = accuracy(frame)
    assert len(table) == 12
    assert (table.n == 30).all()
    assert ((table.low <= table.accuracy) & (table.accuracy <= table.high)).all()
    assert len(accuracy(frame, by=())) == 12


def test_swapped_answers_are_never_the_own_ones():
    asked = questions(6)
    swapped = swap_answers(asked, 1)
    assert swapped.equals(swap_answers(asked, 1))
    assert not swapped.equals(swap_answers(asked, 2))
    assert (swapped.expected != asked.expected).all()
    assert not (swapped.expected == asked.b).any()
    assert set(swapped.expected) <= set(asked.expected)
    assert swap_answers(asked.head(1), 0).empty


def test_usable_names_the_reason():
    rows = [line.split() for line in ("g w0 v0 w1 v1", "g w0 v0 w1 w1", "g w0 huh w1 v1")]
    asked = pd.DataFrame(rows, columns=list(QUESTION))
    kept, rest = planted().usable(asked)
    assert len(kept) == 1
    assert "itself one of" in rest.reason[0]
    assert "'huh'" in rest.reason[1]
    assert planted().usable(kept)[1].empty


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda e: e.analogy("a", "b", "nope"), "'nope' is not one of the 4"),
        (lambda e: unwrap(Embedding.analogy)(e, "a", "b", "c", method="4cos"), "4cos.*3cosadd"),
        (lambda e: e.analogy("a", "b", "c", k=0), "k=0"),
        (lambda e: e.analogy("a", "b", "c", candidates=np.array([9])), "0 … 3"),
        (lambda e: e.direction([]), "at least one pair"),
        (lambda e: e.direction([("a", "b"), ("b", "a")]), "cancel"),
        (lambda e: unwrap(Embedding.direction)(e, [("a", "b")], "median"), "'mean' or 'pca'"),
        (lambda e: e.evaluate(pd.DataFrame({"a": ["x"]})), "lack the columns category, b"),
        (lambda e: Embedding(e.vectors, ["a"]), "1 tokens for 4"),
        (lambda e: Embedding(e.vectors * np.nan, e.tokens), "not finite, first row 0"),
        (lambda e: Embedding(e.vectors.astype(int), e.tokens), "float32 or float64"),
    ],
)
def test_refusals(act, message):
    with pytest.raises(ValueError, match=message):
        act(AXES)


def test_no_questions_give_no_rows():
    assert planted().evaluate(questions(3).head(0)).empty


def fake_model(words: list[str], d: int = 8) -> SimpleNamespace:
    table = torch.randn(len(words) + 2, d, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(
        W_E=table, W_U=table.T * 2, tokenizer=WordTokenizer(words), cfg=SimpleNamespace(n_layers=2)
    )


def test_words_resolve_through_the_tokenizer():
    model = fake_model([" king", "queen", " man"])
    table = embedding(model)
    assert table.tokens == [" king", "queen", " man", "<unused 3>", "<unused 4>"]
    assert [table.row(word) for word in ("king", "queen", " man")] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"\['wo', 'man'\]"):
        table.row("woman")
    with pytest.raises(ValueError, match="not a word"):
        table.row(" ")
    with pytest.raises(ValueError, match="2 tokens"):
        table.row(" queen")  # literal: it exists only without the space


def test_sides_and_models_without_tokenizer():
    model = fake_model([" king"])
    np.testing.assert_allclose(embedding(model, "unembed").vectors, 2 * embedding(model).vectors)
    model.tokenizer = None
    assert embedding(model).tokens == ["0", "1", "2"]
    assert embedding(model).row("2") == 2


def test_half_precision_becomes_float32_and_double_stays():
    model = fake_model([" king"])
    for dtype, wanted in ((torch.bfloat16, np.float32), (torch.float64, np.float64)):
        model.W_E = model.W_E.to(dtype)
        assert embedding(model).vectors.dtype == wanted


def test_contextual_vectors_are_means_over_the_places_of_a_word():
    model = tiny()
    texts = ["w1 w2 w1", "w3 w2"]
    stream = model.run_with_cache(model.to_tokens(texts), ("resid_post", 1))[1]["resid_post", 1]
    table = embedding(model, layer=1, texts=texts)
    assert table.tokens == ["w1", "w2", "w3"]
    for word, mean in (("w1", (stream[0, 0] + stream[0, 2]) / 2),
                       ("w2", (stream[0, 1] + stream[1, 1]) / 2)):  # fmt: skip
        np.testing.assert_allclose(table.vectors[table.row(word)], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": "both"}, "'embed' or 'unembed'"),
        ({"layer": 1}, "both layer= and texts="),
        ({"layer": 2, "texts": ["x"]}, "layer=2: expected 0 to 1"),
        ({"layer": 0, "texts": []}, "at least one text"),
        ({"layer": 0, "texts": ["x"], "site": "z"}, "site='z'"),
    ],
)
def test_embedding_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        unwrap(embedding)(fake_model([" king"]), **options)


def test_a_plane_shows_what_lies_in_a_plane_and_says_what_it_leaves_out():
    rng = np.random.default_rng(0)
    flat = Embedding(rng.normal(size=(40, 2)) @ rng.normal(size=(2, 50)), [*map(str, range(40))])
    found = flat.plane([*map(str, range(10))], centre=False)
    assert found.columns.tolist() == ["word", "x", "y", "explained"]
    assert sum(found.attrs["explained"]) == pytest.approx(1)
    assert found.explained.to_numpy() == pytest.approx(np.ones(10))
    table = planted()
    words = [f"{c}{i}" for i in range(6) for c in "wv"]
    found = table.plane(words)
    unit = table.unit(True)[[table.row(word) for word in words]]
    spread = ((unit - unit.mean(axis=0)) ** 2).sum()
    assert (found[["x", "y"]] ** 2).to_numpy().sum() / spread == pytest.approx(
        sum(found.attrs["explained"])
    )
    assert found.x.var() >= found.y.var()
    assert 0 < found.explained.min() < found.explained.max() < 1
    # One offset for all pairs is the first axis; as many random tokens have none like it.
    sides = [found[found.word.str.startswith(one)].x for one in "wv"]
    assert sides[0].max() < sides[1].min() or sides[1].max() < sides[0].min()
    assert sum(found.attrs["explained"]) > found.attrs["control"][1]


def test_a_parallelogram_stays_one_in_the_plane():
    table = planted()
    words = ["w0", "v0", "w1", "v1", "noise3"]
    place = table.plane(words).set_index("word")[["x", "y"]]
    sum_of = table.unit(True)[[table.row(one) for one in ("v0", "w0", "w1")]]
    made = sum_of[0] - sum_of[1] + sum_of[2]
    grown = Embedding(np.vstack([table.unit(True), made]), [*table.tokens, "made"])
    rows = grown.vectors[[grown.row(word) for word in words]]
    axes_of = np.linalg.lstsq(rows - rows.mean(axis=0), place.to_numpy(), rcond=None)[0]
    expected = (made - rows.mean(axis=0)) @ axes_of
    assert (place.loc["v0"] - place.loc["w0"] + place.loc["w1"]).to_numpy() == pytest.approx(
        expected
    )


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_pairs_agree_where_an_offset_is_planted_and_not_where_none_is(method):
    table = planted()
    pairs = [(f"w{i}", f"v{i}") for i in range(20)]
    found = table.agreement(pairs, method)
    assert found.columns.tolist() == ["first", "second", "length", "cosine", "control"]
    assert found.cosine.min() > 0.999  # one offset for all
    assert np.abs(found.control).max() < 0.5
    assert found.attrs["explained"] == pytest.approx(1)
    assert found.attrs["control"][1] < 0.3
    nothing = table.agreement([(f"noise{2 * i}", f"noise{2 * i + 1}") for i in range(20)], method)
    assert abs(nothing.cosine.mean()) < 0.15
    assert nothing.attrs["explained"] < 1.3 * nothing.attrs["control"][1]
    pd.testing.assert_frame_equal(found, table.agreement(pairs, method))
    assert not found.control.equals(table.agreement(pairs, method, seed=1).control)


def test_words_along_a_direction_leave_the_control_where_it_means_something():
    table = planted()
    direction = table.direction([(f"w{i}", f"v{i}") for i in range(10)])
    others = [f"{c}{i}" for c in "wv" for i in range(10, 30)]
    found = table.along(direction, [*others, *(f"noise{i}" for i in range(200))])
    assert found.columns.tolist() == ["word", "cosine", "low", "high"]
    v = found[found.word.str.startswith("v")]
    noise = found[found.word.str.startswith("noise")]
    assert (v.cosine > v.high).all()
    assert v.cosine.min() > found[found.word.str.startswith("w")].cosine.max()
    assert (noise.cosine > noise.high).mean() < 0.1
    random = np.random.default_rng(1).normal(size=96)
    blind = table.along(random, others)
    assert ((blind.cosine > blind.high) | (blind.cosine < blind.low)).mean() < 0.2
    # Along itself a word has cosine 1, and the length of the direction does not matter.
    unit = table.unit(True)[table.row("w3")]
    assert table.along(7 * unit, ["w3"]).cosine[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda e: e.plane(["a", "b"]), "three words or more, got 2"),
        (lambda e: e.plane(["a", "b", "a"]), "three words or more, got 2"),
        (lambda e: e.plane(["a", "b", "nope"]), "'nope'"),
        (lambda e: e.agreement([("a", "b")]), "at least two pairs"),
        (lambda e: e.along(np.zeros(3), ["a"]), "not all zero"),
        (lambda e: e.along(np.ones(2), ["a"]), r"3 numbers, not all zero; got shape \[2\]"),
    ],
)
def test_axes_refuse_what_gives_none(act, message):
    with pytest.raises(ValueError, match=message):
        act(AXES)
