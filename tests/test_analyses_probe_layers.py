"""Probes by layer as a report: what is planted is found, what is not there is said not to be."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_limits

import interp
from analyses._probe_texts import read_texts
from analyses.probe_layers import Config, examine, run
from interp import stats
from interp.methods.probes import (
    TextExamples,
    compare_probes,
    held_out_predictions,
    probe_sweep,
    text_examples,
)
from interp.methods.probes.compare import score_gain
from interp.methods.probes.texts import activations
from interp.model import HookedTransformer
from interp.report import Report
from interp.zoo import planted
from tests.strategies import small_config
from tests.vocabularies import known_words, model_of, models_by_kind, whole_words


@pytest.fixture(autouse=True)
def _one_thread():
    """Two pools of threads that wait for each other cost minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


FAST = {"C": (0.1,), "shuffles": 39}


def frame_of(report, name):
    items = [item for section in report.sections for item in section.items]
    found = [item for item in items if getattr(getattr(item, "table", item), "name", "") == name]
    return getattr(found[0], "table", found[0]).frame


def names_of(report):
    items = [item for section in report.sections for item in section.items]
    return {getattr(getattr(item, "table", item), "name", "") for item in items}


def read_of(tokens, labels, position=-1):
    """Examples that somebody else made."""
    weight = torch.zeros(tokens.shape)
    weight[:, position] = 1
    frame = pd.DataFrame(
        {
            "line": range(len(labels)),
            "text": [" ".join(map(str, row)) for row in tokens.ids.tolist()],
            "label": [f"is {one}" for one in labels],
            "read": "end",
        }
    )
    return TextExamples(frame, tokens, weight, "feature")


def written(tmp_path, rows, name="own.csv"):
    pd.DataFrame(rows).to_csv(tmp_path / name, index=False)
    return tmp_path / name


def marked(n=40, seed=0):
    """Texts that name a king or a teacher, and those who do; all are different."""
    rng, words = np.random.default_rng(seed), [w for w in known_words() if w.isalpha()]
    rows = []
    for i in range(n):
        who = ("king", "teacher")[i % 2]
        others = rng.choice([w for w in words if w not in ("king", "teacher")], 5, replace=False)
        rows.append({"text": f"{' '.join(others[:3])} {who} {' '.join(others[3:])}",
                     "label": who[0], "word": who, "size": i * 1.5})  # fmt: skip
    return rows


# What is planted ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lookup():
    return planted.lookup(seed=1)


def told(report, start):
    """The finding that begins so."""
    (finding,) = [one for one in report.findings if one.startswith(start)]
    return finding


def check_first_screen(report, answer, site="resid-post"):
    """The answer is so; below it the curve of the site above its controls; three short sentences
    lead on."""
    assert re.match(answer, report.headline.replace("\u00a0", " ")), report.headline
    assert [item.name for item in report.opening.items] == [f"{site}-figure"]
    first = report.first_screen().findings
    assert [sentence.at for sentence in first] == [f"{site}-figure", "rivals", "by-layer"]
    assert all(len(sentence.split()) <= 25 for sentence in first), first
    report.html()  # what the sentences lead to is there


@pytest.mark.parametrize(
    ("feature", "site", "there"),
    [
        ("a", "resid_mid", True),
        ("b", "resid_mid", True),
        ("xor", "resid_mid", False),
        ("xor", "resid_post", True),
        ("c", "resid_post", False),
    ],
)
def test_what_is_linear_is_found_and_nothing_else(lookup, feature, site, there):
    made = lookup.labelled(256, seed=3)
    read = read_of(made.tokens, made.labels[feature].tolist())
    report = Report("t", "q?")
    found = examine(report, lookup.model, read, Config(sites=(site,), **FAST))
    assert found.found == there
    first = told(report, "“feature” can be read best" if there else "Nothing is found")
    answer = {
        "b at resid_mid": ".*read at resid_mid of layer 0 .* but not measurably better than",
        "a at resid_mid": ".*read at resid_mid of layer 0 .* than from counting the words",
        "xor at resid_post": "Yes: “feature” can be read behind layer 0 .* better than from ",
    }.get(f"{feature} at {site}")
    nothing = "No: at none of 1 places can a linear probe read “feature” better than from shuffled"
    check_first_screen(report, answer or nothing, site.replace("_", "-"))
    table = frame_of(report, "by-layer").set_index("source")
    if there:
        assert table.loc["model", "score"] > 0.95 and table.loc["model", "p_adjusted"] <= 0.025
        assert table.loc["model", "compression"] > 1.3
        random = frame_of(report, "rivals").set_index("rival").loc["random weights"]
        assert feature == "b" or random["low"] > 0.1  # b itself stands there, whatever the weights
    else:
        assert table.loc["model", "low"] < 0.5  # held-out accuracy at chance may fall short of it
        assert table.loc["model", "compression"] < 1.1
        assert "corrected for the number of places, p = " in first.lower()


def test_from_a_script_texts_are_compared_in_three_lines():
    model = model_of(whole_words())
    others = ("Mary", "John", "Peter", "Sarah", "Tom", "James")
    frame = pd.DataFrame(
        [(f"the {a} saw the {b}", a) for a in ("king", "doctor") for b in others],
        columns=["text", "label"],
    )
    examples = text_examples(model, frame)
    found = compare_probes(
        model, examples, ["blocks.0.hook_resid_post"], folds=2, shuffles=19, random=False
    )
    assert examples.frame["read"].str.strip().tolist() == [t.split()[-1] for t in frame["text"]]
    x = activations(model, examples, ["blocks.0.hook_resid_post"])["blocks.0.hook_resid_post"]
    cache = model.run_with_cache(examples.tokens, "resid_post")[1]
    assert torch.allclose(x, cache["resid_post", 0][:, -1])
    again = probe_sweep(
        {"blocks.0.hook_resid_post": x}, frame["label"].to_numpy(), C=0.1, cv=2, n_shuffles=19,
        texts=frame["text"].tolist(), seed=0,
    )  # fmt: skip
    assert found.best["score"] == again["accuracy"].iloc[0]
    assert found.of("words alone")["score"].min() > 0.7  # the label is one of the words
    assert found.of("embedding")["score"].max() < 0.7  # and does not stand at the last token
    assert set(found.rivals["rival"]) == {"embedding", "words alone"}


def test_a_label_that_is_drawn_is_found_no_more_often_than_by_chance(lookup):
    made, options = lookup.labelled(128, seed=0), {**FAST, "random": False}
    names = ["blocks.0.hook_resid_post"]
    found = []
    for seed in range(8):
        labels = np.random.default_rng(seed).integers(0, 2, 128)
        read = read_of(made.tokens, labels)
        found.append(compare_probes(lookup.model, read, names, **options).found)
    assert sum(found) <= 2


def test_sentiment_is_read_in_tinyworld_and_not_from_its_last_token():
    model = interp.load("tinyworld", device="cpu")
    report = run(model, Config(n=160, sites=("resid_post",), **FAST))
    assert not report.warnings
    assert told(report, "“sentiment” can be read best at resid_post of layer")
    check_first_screen(
        report, r"(Yes: )?“sentiment” can be read behind layer \d \(9\d\.\d % right\), "
    )
    rivals = frame_of(report, "rivals").set_index("rival")
    assert rivals.loc["embedding", "low"] > 0.2
    best = frame_of(report, "by-layer").query("source == 'model'")["score"].max()
    assert best > 0.9
    assert any("concept-direction" in one for one in report.doubts)
    assert any("control task" in one for one in report.skipped)
    said = " ".join(report.findings)
    assert "more than from the embedding" in said and "Description length" in said
    assert len(frame_of(report, "examples")) <= 160


# The parts, by another route ----------------------------------------------------------------------


def noisy(n=120, d=10, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, (X[:, 0] + rng.normal(size=n) > 0).astype(int), rng


@pytest.mark.parametrize("C", [0.3, (0.01, 1.0)])
@pytest.mark.parametrize("how", ["folds", "groups", "split"])
def test_held_out_predictions_are_those_that_the_sweep_counts(C, how):
    X, y, rng = noisy()
    given = {
        "folds": {},
        "groups": {"groups": rng.integers(0, 30, 120)},
        "split": {"split": np.where(np.arange(120) < 80, "train", "test")},
    }[how]
    row = probe_sweep(X[None], y, C=C, control=False, progress=False, seed=4, **given).iloc[0]
    frame = held_out_predictions(X, y, C=C, seed=4, **given)
    assert len(frame) == row["n"] == (40 if how == "split" else 120)
    right = frame["label"] == frame["predicted"]
    assert right.mean() == pytest.approx(row["accuracy"], abs=1e-9)
    assert (frame["predicted"] == (frame["decision"] > 0)).all()
    assert (y[frame["example"]] == frame["label"]).all()
    other = held_out_predictions(X, y, C=C, seed=5, **given)
    assert how == "split" or not other["fold"].equals(frame["fold"])


def test_held_out_numbers_are_those_of_r2():
    X, _, rng = noisy()
    y = X[:, 0] + rng.normal(size=120)
    row = probe_sweep(X[None], y, kind="ridge", control=False, progress=False).iloc[0]
    frame = held_out_predictions(X, y, kind="ridge")
    missed = ((frame["label"] - frame["predicted"]) ** 2).sum()
    assert 1 - missed / ((y - y.mean()) ** 2).sum() == pytest.approx(row["r2"])
    assert "decision" not in frame


def test_differences_of_groups_have_the_interval_of_their_sums():
    values, groups = np.array([1.0, 1, 0, 0, 1, 0]), np.array([0, 0, 1, 1, 2, 2])
    found = stats.clustered_mean(values, groups)
    assert found.value == 0.5
    # Three groups whose means are 1, 0 and ½: the standard error of a mean of three.
    error = np.std([1, 0, 0.5], ddof=1) / 3**0.5
    assert found.stderr == pytest.approx(error) and found.high == pytest.approx(
        0.5 + 1.959964 * error, rel=1e-6
    )
    alone = stats.clustered_mean(values, np.arange(6))
    assert alone.stderr == pytest.approx(values.std(ddof=1) / 6**0.5)


# What the run itself cannot show -----------------------------------------------------------------


def test_differences_of_accuracies_stay_within_a_hundred_points(tmp_path):
    """Ten texts: where the best place knows all that a rival mostly misses, a normal interval
    passes 100 points, and where both are right it has no width."""
    model = models_by_kind()["whole words"]
    read = read_texts(
        model, Config(data=written(tmp_path, marked(10)), text_column="text", label_column="label")
    )
    measured = examine(Report("T", "Q?"), model, read, Config(shuffles=19, n=10, folds=2))
    right = np.zeros((2, 10), dtype=bool)
    right[0], right[1, :1] = True, True
    frames = [
        pd.DataFrame({"example": range(10), "label": 1, "predicted": row.astype(int)})
        for row in right
    ]
    apart, same = (score_gain(frames[0], other, read) for other in frames[::-1])
    normal = 0.9 + 1.96 * (right[0].astype(float) - right[1]).std(ddof=1) / 10**0.5
    assert normal > 1 >= apart.high > apart.value == pytest.approx(0.9)
    assert same.value == 0 and same.low < -0.2 < 0.2 < same.high
    rivals = measured.rivals
    assert (rivals["high"] > rivals["low"]).all() and rivals[["low", "high"]].abs().max().max() <= 1


@pytest.mark.parametrize(("shuffles", "short"), [(19, True), (39, False)])
def test_too_few_shuffles_are_said_and_not_called_nothing(shuffles, short, tmp_path):
    """Labels that nothing tells: two places need 39 shuffles for one of them to pass alone."""
    rng = np.random.default_rng(0)
    names = ("Mary", "John", "Peter", "Lisa", "Emma", "Tom")
    texts = [f"{names[i % 6]} and {names[i // 6 % 6]} saw {names[i // 36 % 6]}" for i in range(60)]
    rows = [{"text": text, "label": int(rng.integers(2))} for text in texts]
    model = HookedTransformer(
        small_config(n_layers=2, d_vocab=whole_words().vocab_size, n_ctx=64),
        tokenizer=whole_words(),
    )
    config = Config(
        data=written(tmp_path, rows), sites=("resid_post",), shuffles=shuffles, random=False
    )
    report = run(model, config)
    assert report.headline.startswith("This run cannot tell" if short else "No: at none of ")
    first = told(report, "This run cannot tell" if short else "Nothing is found")
    assert first.startswith("This run cannot tell") == short, first
    assert first.startswith("Nothing is found") != short
    assert ("--shuffles 39 lets it" in first) == short


@pytest.mark.parametrize(("regression", "seed"), [(True, 0), (True, 1), (True, 2), (False, 0)])
def test_the_penalty_of_numbers_is_chosen_within_the_training_part(regression, seed, tmp_path):
    """Many features and a weak trend: at the penalty of classes R² lies far below 0, whatever the
    model's weights."""
    torch.manual_seed(seed)
    model = HookedTransformer(
        small_config(n_layers=1, d_vocab=whole_words().vocab_size, n_ctx=64, d_model=128),
        tokenizer=whole_words(),
    )
    rng = np.random.default_rng(0)
    known = [word for word in whole_words().vocab() if word.isalpha()][:40]
    words = [rng.choice(known, 6) for _ in range(120)]
    sign = dict(zip(known, rng.normal(size=40), strict=True))
    noise = rng.normal(size=120) * 10
    values = [sum(sign[word] for word in row) + noise[i] for i, row in enumerate(words)]
    rows = [
        {"text": " ".join(row), "label": value if regression else int(value > 0)}
        for row, value in zip(words, values, strict=True)
    ]
    options = {"data": written(tmp_path, rows), "sites": ("resid_post",), "position": "mean",
               "random": False, "shuffles": 19}  # fmt: skip
    report = Report("T", "Q?")
    config = Config(**options)
    measured = examine(report, model, read_texts(model, config), config)
    said = " ".join(report.certainty)
    if not regression:
        assert "C = 0.1, the same everywhere" in said and set(measured.sweep["C"]) == {0.1}
        return
    fixed = Config(**options, C=(0.1,))
    before = examine(Report("T", "Q?"), model, read_texts(model, fixed), fixed)
    assert before.best["score"] < -0.3 and measured.best["score"] > -0.1
    assert "chose C among 8 by a cross-validation within its training part" in said
    name = "blocks.0.hook_resid_post"
    again = held_out_predictions(
        activations(model, measured.examples, [name])[name],
        measured.examples.frame["label"].to_numpy(), kind="ridge", C="cv", cv=5,
        texts=measured.examples.frame["text"].tolist(),
    )  # fmt: skip
    y, p = again["label"], again["predicted"]
    r2 = 1 - ((p - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
    assert r2 == pytest.approx(measured.best["score"], abs=1e-5)


def test_latitudes_are_not_lost_to_the_penalty(shared_data, tmp_path):
    path = shared_data / "places" / "world_place.csv"
    folder = shared_data / "models" / "stories260K"
    if not path.is_file() or not folder.is_dir():
        pytest.skip(f"shared/data: no {path.name} or no {folder.name}")
    frame = pd.read_csv(path).dropna(subset=["name", "latitude"]).sample(400, random_state=0)
    frame.to_csv(tmp_path / "places.csv", index=False)
    model = interp.load(folder, device="cpu")
    options = {"data": tmp_path / "places.csv", "text_column": "name", "label_column": "latitude",
               "sites": ("resid_post",), "shuffles": 19, "random": False}  # fmt: skip
    scores = {}
    for C in (None, (0.1,)):
        config = Config(**options, C=C)
        measured = examine(Report("T", "Q?"), model, read_texts(model, config), config)
        scores[C] = measured.model["score"]
    assert scores[0.1,].max() < -0.05 and scores[0.1,].min() < -0.25
    assert scores[None].max() > 0.03 and scores[None].min() > -0.06


@pytest.mark.parametrize("kind", ["whole words", "byte pairs", "masked"])
@pytest.mark.parametrize("position", ["last", "mean", "word"])
def test_what_is_read_is_what_stands_there(kind, position, tmp_path):
    """Texts of unequal length, in one batch, as each alone."""
    model = models_by_kind()[kind]
    texts = ["the king is", "I know the old king of Spain is", "king"]
    rows = [{"text": text, "label": i % 2, "word": "king"} for i, text in enumerate(texts)]
    config = Config(data=written(tmp_path, rows), position=position)
    read = read_texts(model, config)
    name = "blocks.0.hook_resid_post"
    found = activations(model, read, [name])[name]
    for i, text in enumerate(texts):
        tokens = model.to_tokens(text)
        strings = [one.strip().lower() for one in tokens.strings[0]]
        own = [k for k, one in enumerate(strings) if one not in ("[cls]", "[sep]", "<s>")]
        at = {"last": [own[-1]], "mean": own, "word": [strings.index("king")]}[position]
        alone = model.run_with_cache(tokens, name)[1][name][0, at].mean(0)
        assert torch.allclose(found[i], alone, atol=1e-6), text


# One's own texts ----------------------------------------------------------------------------------


def test_words_have_a_control_task_and_a_table(tmp_path):
    model = model_of(whole_words())
    data = written(tmp_path, marked())
    report = run(model, Config(data=data, position="word", sites=("resid_post",), **FAST))
    # Two words, two labels: whoever knows the word knows the label, and the control as well.
    table = frame_of(report, "by-layer").query("source == 'model'")
    assert table["score"].item() == 1
    assert table["selectivity"].item() < 0.2 and table["control"].item() > 0.8
    assert any("not clearly read beyond" in one for one in report.findings)
    assert any("all 40 held-out examples are right" in one for one in report.findings)
    assert set(frame_of(report, "by-word")["word"]) == {"king", "teacher"}
    assert set(frame_of(report, "examples")["read"]) == {"king", "teacher"}


def test_words_of_several_tokens_and_second_places(tmp_path):
    model = models_by_kind()["masked"]
    rows = [{"text": f"{a} zyx the zyx {b}", "label": i % 2, "word": "zyx#2"}
            for i, (a, b) in enumerate((a, b) for a in ("king", "queen", "city") for b in
                                       ("Paris", "Rome", "book", "cup"))]  # fmt: skip
    config = Config(data=written(tmp_path, rows), position="word", folds=2, n=12, **FAST)
    read = read_texts(model, config)
    assert any("several tokens here (zyx)" in one for one in read.left_out)
    strings = model.to_tokens(rows[0]["text"]).strings[0]
    assert int(read.weight[0].argmax()) == len(strings) - 3
    assert read.frame["read"][0] == "##x"


def test_numbers_are_a_regression(tmp_path):
    model = model_of(whole_words())
    data = written(tmp_path, marked(60))
    own = Config(data=data, label_column="size", sites=("resid_post",), **FAST)
    report = run(model, own)
    table = frame_of(report, "by-layer")
    assert {"spearman", "mae"} <= set(table) and "bits" not in table
    assert "R²" in report.findings[0]
    assert "predictions-figure" in names_of(report) and "confusion" not in names_of(report)
    wrong = frame_of(report, "wrong")
    assert wrong["error"].abs().is_monotonic_decreasing
    assert frame_of(report, "examples")["label"].dtype == float
    few = [{**row, "size": i % 4} for i, row in enumerate(marked(60))]
    config = Config(data=written(tmp_path, few), label_column="size", **FAST)
    assert not read_texts(model, config).regression


def test_groups_stay_together_and_are_told_apart(tmp_path):
    model = model_of(whole_words())
    rows = [{**row, "who": f"author {i // 4}"} for i, row in enumerate(marked())]
    config = Config(data=written(tmp_path, rows), group_column="who", sites=("resid_post",), **FAST)
    report = run(model, config)
    folds = frame_of(report, "examples").groupby("group")["fold"].nunique()
    assert (folds == 1).all() and len(folds) == 10
    assert len(frame_of(report, "by-group")) == 10
    assert any("(of a group)" in one for one in report.certainty)


def test_the_files_own_split(tmp_path):
    model = model_of(whole_words())
    rows = [{**row, "is_test": i >= 28} for i, row in enumerate(marked())]
    config = Config(
        data=written(tmp_path, rows), split_column="is_test", sites=("resid_post",), **FAST
    )
    report = run(model, config)
    assert len(frame_of(report, "examples")) == 12
    assert any("learned from 28 and asked about 12" in one for one in report.certainty)


def test_what_is_left_out_is_said(tmp_path):
    model = model_of(whole_words())
    rows = marked(30)
    rows += [rows[0], {**rows[1], "label": "rare"}, {**rows[2], "text": "the king " * 80}]
    config = Config(data=written(tmp_path, rows), sites=("resid_post",), random=False, **FAST)
    report = run(model, config)
    told = " ".join(report.skipped)
    assert "1 rows that repeat another" in told
    assert "longer than 64 tokens and were cut" in told
    assert "rare (1 rows)" in told and "held out together" in told
    assert "random weights (--no-random)" in told
    assert "random weights" not in set(frame_of(report, "by-layer")["source"])
    sampled = read_texts(model, Config(data=written(tmp_path, rows), n=10))
    assert len(sampled) == 10 and any("10 of them, at random" in one for one in sampled.left_out)


def test_a_last_token_that_is_always_the_same_tells_nothing_at_the_embedding(tmp_path):
    model = model_of(whole_words(), positions="none")
    rows = [{**row, "text": f"{row['text']} ."} for row in marked()]
    config = Config(data=written(tmp_path, rows), sites=("resid_post",), **FAST)
    report = run(model, config)
    assert any("The embedding of what stands" in one for one in report.findings)
    assert "embedding" not in set(frame_of(report, "by-layer")["source"])


BAD = [
    ({}, {"layers": (7,)}, "layers=7: expected 0 to 0"),
    ({}, {"sites": ("pattern",)}, "expected one vector per position"),
    ({}, {"sites": ("resid_pots",)}, "resid_pots"),
    ({"label": "one"}, {}, "two different ones are needed"),
    ({"label": " "}, {}, "line 2: label is empty"),
    ({"label": "007"}, {"task": "regression"}, "line 2: label is '007', which is no number"),
    ({"label": "nan"}, {"task": "regression"}, "line 2: label is 'nan', which is no number"),
    ({}, {"task": "regression"}, "line 2: label is 'k', which is no number"),
    ({"size": "inf"}, {"label_column": "size", "task": "regression"}, "line 2: size is 'inf'"),
    ({"word": "duke"}, {"position": "word"}, "line 2: the word 'duke' is not in"),
    ({"word": "king#4"}, {"position": "word"}, "line 2: 'king#4', but 'king' is there 1 times"),
    ({"text": "the king and the king", "word": "king"}, {"position": "word"}, "write king#1"),
    ({"side": "exam"}, {"split_column": "side"}, "line 2: side is 'exam'; expected train or test"),
    ({}, {"group_column": "word", "folds": 2}, "two are needed; rare: k and t"),
    ({}, {"folds": 30}, "two are needed; rare: k and t"),
]


@pytest.mark.parametrize(("change", "options", "message"), BAD)
def test_bad_input_is_named(change, options, message, tmp_path, unchecked):
    rows = [{**row, "side": "train"} for row in marked()]
    if change == {"label": "one"}:
        rows = [{**row, **change} for row in rows]
    rows[0] |= change
    config = Config(data=written(tmp_path, rows), **FAST, **options)
    with pytest.raises(ValueError, match=message):
        run(model_of(whole_words()), config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 2}, "n=2: expected at least 10"),
        ({"shuffles": 5}, "shuffles=5: expected at least 19"),
        ({"C": ()}, "C=\\(\\): expected one at least"),
        ({"C": (0.0,)}, "expected positive numbers"),
        ({"group_column": "author"}, "are for your own texts"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Config(**options)


def test_a_text_on_both_sides_is_refused(tmp_path):
    rows = [{**row, "who": i} for i, row in enumerate(marked())]
    rows += [{**row, "who": i + 100, "label": "t"} for i, row in enumerate(marked()) if i % 2 == 0]
    config = Config(data=written(tmp_path, rows), group_column="who", **FAST)
    with pytest.raises(ValueError, match="stands on both sides"):
        run(model_of(whole_words()), config)


def test_models_that_read_no_text_are_refused():
    model = planted.lookup().model
    with pytest.raises(ValueError, match="has no tokenizer"):
        run(model, Config())


def test_a_model_without_mlps(tmp_path):
    report = run(model_of(whole_words(), d_mlp=0), Config(data=written(tmp_path, marked()), **FAST))
    assert any(one.startswith("mlp_out:") for one in report.skipped)
    assert set(frame_of(report, "by-layer")["site"]) >= {"resid_post", "attn_out"}
    assert "mlp-out-figure" not in names_of(report)


# Real texts ---------------------------------------------------------------------------------------


def test_reviews_of_one_label_are_refused(shared_data, tmp_path):
    """The reviews that lie beside the repository are all negative."""
    reviews = json.loads((shared_data / "text" / "imdb_1000.json").read_text())
    data = written(tmp_path, [{"text": one["text"], "label": one["label"]} for one in reviews])
    with pytest.raises(ValueError, match="all 1000 rows have the label '0'"):
        run(model_of(whole_words()), Config(data=data))


@pytest.mark.slow
def test_minilm_reads_parts_of_speech(shared_data, tmp_path):
    rows = []
    for block in (shared_data / "text/en_ewt-ud-dev.conllu").read_text().split("\n\n")[:500]:
        lines = [line.split("\t") for line in block.splitlines() if line and line[0] != "#"]
        words = [one for one in lines if one[0].isdigit()]
        text = " ".join(one[1] for one in words)
        kinds = ("NOUN", "VERB", "ADJ", "ADV")
        for one in words:
            if one[3] in kinds and one[1].isalpha():
                rows.append({"text": text, "label": one[3], "word": f"{one[1]}#1"})
                break
    model = interp.load("minilm", device="cpu")
    config = Config(data=written(tmp_path, rows), n=300, position="word", width=64,
                    sites=("resid_post",), layers=(0, 2, 5), C=(0.01,), shuffles=39)  # fmt: skip
    report = run(model, config)
    best = frame_of(report, "by-layer").query("source == 'model'")
    assert best["score"].max() > 0.7 > best["constant"].max()
    assert best["selectivity"].max() > 0.1


@pytest.mark.slow
def test_minilm_knows_where_places_lie(shared_data, tmp_path):
    places = pd.read_csv(shared_data / "places" / "world_place.csv", keep_default_na=False)
    some = places.sample(600, random_state=0)
    rows = some.rename(columns={some.columns[some.columns.str.contains("name|asciiname")][0]: "at"})
    data = written(tmp_path, rows[["at", "latitude", "is_test"]])
    columns = {"text_column": "at", "label_column": "latitude", "split_column": "is_test"}
    config = Config(data=data, **columns, n=500, position="mean", sites=("resid_post",),
                    layers=(2, 5), C=(0.001, 0.01), shuffles=39)  # fmt: skip
    report = run(interp.load("minilm", device="cpu"), config)
    best = frame_of(report, "by-layer").query("source == 'model'")
    assert best["score"].max() > 0.1 and best["p_adjusted"].min() < 0.05
